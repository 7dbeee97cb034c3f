"""What every dataset shares: splits, batches, and the hooks that Lightning calls for them."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypedDict, runtime_checkable

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import tv_tensors

from dilated_seg import UserError
from dilated_seg.data import transforms
from dilated_seg.data.order import EvaluationOrder, Key, TrainingOrder, mix, run_seed


class Sample(TypedDict):
    """One image: uint8 RGB (3, H, W), its mask of class ids (H, W), and the name it goes by."""

    image: Tensor
    mask: Tensor
    id: str


@runtime_checkable
class Split(Protocol):
    """The images of one split in a fixed order; indexing decodes one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


class SegmentationDataModule(LightningDataModule):
    """A dataset: its facts as class attributes, its splits by ``split(name)``, its batches by Lightning's hooks.

    A batch is ``{"image": uint8 (B, 3, H, W), "mask": uint8 (B, H, W), "id": [str]}``.

    Args:
        batch_size: Images a process takes in one training step.
        crop_size: (height, width) of training crops; None trains on whole images.
        scale: Training images are resized by a factor drawn from this range before cropping.
        flip: Mirror half of the training images left to right.
        jitter: Training images change brightness, contrast and saturation by up to this fraction.
        eval_batch_size: Images evaluated at once; changes speed and memory, never a number.
        num_workers: Processes that read images beside the training one.
    """

    classes: Sequence[str]
    palette: Sequence[tuple[int, int, int]]
    ignore_index = 255

    def __init__(
        self,
        batch_size: int = 8,
        crop_size: tuple[int, int] | None = None,
        scale: tuple[float, float] = (1.0, 1.0),
        flip: bool = True,
        jitter: float = 0.0,
        eval_batch_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1), ("eval_batch_size", eval_batch_size, 1), ("num_workers", num_workers, 0),
        ):  # fmt: skip
            if value < least:
                raise UserError(f"data.{name} is {value}: it must be at least {least}")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.augment = transforms.training(crop_size, scale, flip, jitter, self.ignore_index)

    @property
    def num_classes(self) -> int:
        """C, not counting the ignored label."""
        return len(self.classes)

    def split(self, name: str) -> Split:
        """The images of a split, unaugmented. Each dataset writes this one."""
        raise NotImplementedError(f"{type(self).__name__} must define split()")

    def train_dataloader(self) -> DataLoader[Any]:
        images = Images(self.split("train"), self.augment, run_seed())
        order = TrainingOrder(len(images), self.batch_size, run_seed(), self._rank, self._world, self._batches_done)
        return self._loader(images, order)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader[Any]:
        return self._evaluation("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._evaluation("val")

    def _evaluation(self, name: str) -> DataLoader[Any]:
        images = Images(self.split(name))
        if not len(images):
            raise UserError(f"{type(self).__name__} has no images in its split '{name}': there is nothing to evaluate")
        return self._loader(images, EvaluationOrder(len(images), self.eval_batch_size, self._rank, self._world))

    def _loader(self, images: "Images", order: Sampler[list[Key]]) -> DataLoader[Any]:
        pin = torch.cuda.is_available()
        return DataLoader(
            images,
            batch_sampler=order,
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=pin,
            persistent_workers=self.num_workers > 0,
        )

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def _world(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    def _batches_done(self) -> int:
        """Batches that this run has taken, over all epochs and earlier sessions; Lightning restores the count."""
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.ready if self.trainer else 0


class Images(Dataset[Sample]):
    """A split as a DataLoader reads it: augmented by a seed of its own for every (epoch, index), or as it is."""

    def __init__(self, split: Split, augment: Callable[..., Any] | None = None, seed: int = 0) -> None:
        self.split, self.augment, self.seed = split, augment, seed

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: Key) -> Sample:
        if key is None:  # a process that has run out of images keeps step with the others; void counts nowhere
            sample = self.split[0]
            return Sample(image=sample["image"], mask=torch.full_like(sample["mask"], 255), id="")
        epoch, index = key if isinstance(key, tuple) else (0, key)
        sample = self.split[index]
        if self.augment is None:
            return sample
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix(self.seed, epoch, index))
            image, mask = self.augment(tv_tensors.Image(sample["image"]), tv_tensors.Mask(sample["mask"]))
        return Sample(image=image.as_subclass(Tensor), mask=mask.as_subclass(Tensor), id=sample["id"])


def collate(samples: list[Sample]) -> dict[str, Any]:
    """Stack samples of equal size into a batch."""
    sizes = {tuple(sample["mask"].shape) for sample in samples}
    if len(sizes) > 1:
        (h1, w1), (h2, w2) = sorted(sizes)[:2]
        raise UserError(
            f"images of {h1} x {w1} and {h2} x {w2} are in one batch: "
            "set data.crop_size for training and data.eval_batch_size=1 for evaluation"
        )
    return {
        "image": torch.stack([sample["image"] for sample in samples]),
        "mask": torch.stack([sample["mask"] for sample in samples]),
        "id": [sample["id"] for sample in samples],
    }
