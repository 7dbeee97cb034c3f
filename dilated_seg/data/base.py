"""What every dataset shares: which images make up which batch, and how they become tensors.

Nothing here remembers where it is.  Batch b of process r is computed from the seed and b, the augmentation of an image
from the seed, the epoch and the image's index: so an interrupted run sees the same batches as one that went through, and
the number of workers changes nothing.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypedDict, runtime_checkable

import numpy as np
import torch
from lightning import LightningDataModule
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import tv_tensors
from torchvision.transforms import v2

from dilated_seg import UserError
from dilated_seg.data import transforms

Key = tuple[int, int] | int | None  # (epoch, index) in training; index, or None for a padding image, in evaluation


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
    splits: Sequence[str] = ("train", "val", "test")

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
        return DataLoader(images, batch_sampler=order, num_workers=self.num_workers, collate_fn=collate, pin_memory=pin)

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


class TrainingOrder(Sampler[list[Key]]):
    """Batches of (epoch, index): each epoch a new permutation, the last incomplete batch left out.

    Args:
        size: Images in the split.
        batch_size: Images a process takes.
        seed: Of the run.
        rank: This process; all processes cut their share out of the same permutation.
        world: Number of processes.
        done: Says how many batches were taken before, so that iteration starts where the run stands.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, rank: int = 0, world: int = 1, done: Callable[[], int] = int
    ) -> None:
        self.size, self.batch_size, self.seed, self.rank, self.world, self.done = (
            size, batch_size, seed, rank, world, done,
        )  # fmt: skip
        self.batches = size // (batch_size * world)
        if not self.batches:
            needed = f"{batch_size} images a batch" + (f" in {world} processes" if world > 1 else "")
            raise UserError(f"the training split has {size} images and a step needs {needed}: lower data.batch_size")

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, first = divmod(self.done(), self.batches)
        order = np.random.default_rng([self.seed, epoch]).permutation(self.size)
        for batch in range(first, self.batches):
            start = (batch * self.world + self.rank) * self.batch_size
            yield [(epoch, int(index)) for index in order[start : start + self.batch_size]]


class EvaluationOrder(Sampler[list[Key]]):
    """Process r takes images r, r + world, ...; all make the same number of steps, the surplus ones on None."""

    def __init__(self, size: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.size, self.batch_size, self.rank, self.world = size, batch_size, rank, world

    def __len__(self) -> int:
        return -(-self.size // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[list[Key]]:
        mine: list[Key] = list(range(self.rank, self.size, self.world))
        mine += [None] * (-(-self.size // self.world) - len(mine))
        for step in range(len(self)):
            yield mine[step * self.batch_size : (step + 1) * self.batch_size] or [None]


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


def run_seed() -> int:
    """The run's seed, as ``seed_everything`` set it, in every process of the run."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def mix(*numbers: int) -> int:
    """One seed of 63 bits out of several numbers: neighbours in, unrelated seeds out."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def read_image(path: Path) -> Tensor:
    """An image file as uint8 RGB (3, H, W), turned upright if its EXIF says so.

    Raises:
        UserError: The file is damaged or no image.
    """
    return _decode(path, lambda image: ImageOps.exif_transpose(image).convert("RGB"))


def read_mask(path: Path, classes: Tensor) -> Tensor:
    """A label file of one channel, or with a palette, as class ids (H, W): value v becomes ``classes[v]``.

    Args:
        path: The file; colour labels are refused, since their colours are not class ids.
        classes: uint8 (256,): the class id of every value; ``transforms.UNKNOWN`` for values that must not occur.

    Raises:
        UserError: The file is damaged, coloured, or holds an unknown value.
    """

    def indices(image: Image.Image) -> Image.Image:
        if image.mode not in ("L", "P"):
            raise UserError(f"{path} has mode {image.mode}, but a label holds one class id a pixel (mode L or P)")
        return image

    values = _decode(path, indices)
    mask = classes[values.long()]
    if (mask == transforms.UNKNOWN).any():
        value = int(values[mask == transforms.UNKNOWN][0])
        raise UserError(f"{path} holds the value {value}, which is no class of this dataset: correct the label")
    return mask


def _decode(path: Path, convert: Callable[[Image.Image], Image.Image]) -> Tensor:
    try:
        with Image.open(path) as image:
            array = np.array(convert(image))
    except FileNotFoundError:
        raise UserError(f"{path} is gone: it was there when the dataset was opened") from None
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}): replace the file") from None
    tensor = torch.from_numpy(array)
    return v2.functional.pil_to_tensor(Image.fromarray(array)) if tensor.ndim == 3 else tensor
