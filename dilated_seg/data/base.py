"""What every dataset shares: splits, batches, and the hooks that Lightning calls for them."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import tv_tensors

from dilated_seg import UserError
from dilated_seg.data import transforms
from dilated_seg.data.files import Sample
from dilated_seg.data.order import EvaluationOrder, Key, TrainingOrder, mix, run_seed


@runtime_checkable
class Split(Protocol):
    """The images of one split in a fixed order; indexing decodes one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


class SegmentationDataModule(LightningDataModule):
    """A dataset: its facts as class attributes, its splits by ``split(name)``, its batches by Lightning's hooks.

    A batch is ``{"image": uint8 (B, 3, H, W), "mask": uint8 (B, H, W), "id": [str], "size": [(int, int)]}``. In evaluation,
    images smaller than the largest of their batch are padded at the right and bottom, their masks with ``ignore_index``;
    ``size`` says where they end, and the task looks at each up to there.

    Args:
        batch_size: Images a process takes in one training step.
        crop_size: (height, width) of training crops; None trains on whole images.
        scale: Training images are resized by a factor drawn from this range before cropping.
        flip: Mirror half of the training images left to right.
        jitter: Training images change brightness, contrast and saturation by up to this fraction.
        eval_batch_size: Images evaluated at once; changes speed and memory, never a number.
        num_workers: Processes that read images beside the training one.
        predict_split: What ``predict`` predicts; it needs no labels.
    """

    train_split = "train"
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
        predict_split: str = "val",
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
        self._opened: dict[str, Split] = {}
        self.predict_split = predict_split
        self.augment = transforms.training(crop_size, scale, flip, jitter, self.ignore_index)

    @property
    def num_classes(self) -> int:
        """C, not counting the ignored label."""
        return len(self.classes)

    def split(self, name: str) -> Split:
        """The images of a split, unaugmented. Each dataset writes this one."""
        raise NotImplementedError(f"{type(self).__name__} must define split()")

    def opened(self, name: str) -> Split:
        """The split, looked through once: every further call gives the same one."""
        if name not in self._opened:
            self._opened[name] = self.split(name)
        return self._opened[name]

    def train_dataloader(self) -> DataLoader[Any]:
        images = Images(self.opened(self.train_split), self.augment, run_seed())
        order = TrainingOrder(len(images), self.batch_size, run_seed(), self._rank, self._world, self._batches_done)
        return self._loader(images, order, stack)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader[Any]:
        return self._evaluation("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._evaluation(self.predict_split, labelled=False)

    def _evaluation(self, name: str, labelled: bool = True) -> DataLoader[Any]:
        split = self.opened(name)
        if not len(split):
            raise UserError(f"{type(self).__name__} has no images in its split '{name}': there is nothing to evaluate")
        if labelled and not getattr(split, "labelled", True):
            raise UserError(
                f"{type(self).__name__} has no labels for its split '{name}', so it cannot be scored here: "
                f"predict it (predict --data.init_args.predict_split {name})"
            )
        return self._loader(Images(split), EvaluationOrder(len(split), self.eval_batch_size, self._rank, self._world), pad)

    def _loader(self, images: "Images", order: Sampler[list[Key]], collate: Callable[..., Any]) -> DataLoader[Any]:
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


def stack(samples: list[Sample]) -> dict[str, Any]:
    """Samples of equal size as a batch.

    Raises:
        UserError: Their sizes differ.
    """
    sizes = {tuple(sample["mask"].shape) for sample in samples}
    if len(sizes) > 1:
        (h1, w1), (h2, w2) = sorted(sizes)[:2]
        raise UserError(
            f"images of {h1} x {w1} and {h2} x {w2} are in one training batch: set data.crop_size, or data.batch_size=1"
        )
    return pad(samples)


def pad(samples: list[Sample], ignore_index: int = 255) -> dict[str, Any]:
    """Samples as a batch of the largest one's size, the others with nothing at their right and bottom, ignored there."""
    sizes = [(int(sample["mask"].shape[0]), int(sample["mask"].shape[1])) for sample in samples]
    height, width = (max(side) for side in zip(*sizes, strict=True))
    borders = [(0, width - w, 0, height - h) for h, w in sizes]
    return {
        "image": torch.stack([F.pad(sample["image"], border) for sample, border in zip(samples, borders, strict=True)]),
        "mask": torch.stack(
            [F.pad(sample["mask"], border, value=ignore_index) for sample, border in zip(samples, borders, strict=True)]
        ),
        "id": [sample["id"] for sample in samples],
        "size": sizes,
    }
