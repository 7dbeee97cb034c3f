"""Load the images of a split, augment them and stack them to batches, in any process."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors

from dilated_seg.data.samplers import Key, fix_seed, mix_seeds
from dilated_seg.data.split import Sample, Split
from dilated_seg.errors import ResourceError, UserError


class Images(Dataset[dict[str, Any]]):
    """A split for a DataLoader, augmented with a separate seed for every (epoch, index) if ``augmentation`` is given.

    Args:
        split: The images.
        augmentation: Maps image and mask to augmented ones; None for no augmentation.
        seed: The seed of the run.
        skip_bad: Return the next image instead of one that cannot be read.
    """

    def __init__(
        self, split: Split, augmentation: Callable[..., Any] | None = None, seed: int = 0, skip_bad: bool = False
    ) -> None:
        self.split, self.augmentation, self.seed, self.skip_bad = split, augmentation, seed, skip_bad

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        if key is None:  # an ignored image for a process that has fewer images than the others
            sample = self.split[0]
            return {**sample, "mask": torch.full_like(sample["mask"], 255), "id": ""}
        epoch, index = key if isinstance(key, tuple) else (0, key)
        sample, skipped = self.find_readable(index) if self.skip_bad else (self.split[index], [])
        image, mask = sample["image"], sample["mask"]
        if self.augmentation is not None:
            with fix_seed(mix_seeds(self.seed, epoch, index)):
                image, mask = self.augmentation(tv_tensors.Image(image), tv_tensors.Mask(mask))
        batch = {"image": image.as_subclass(Tensor), "mask": mask.as_subclass(Tensor), "id": sample["id"]}
        return batch | ({"skipped": skipped} if skipped else {})

    def find_readable(self, index: int) -> tuple[Sample, list[str]]:
        """Return an image, or the next one that can be read; and the problems of those before it."""
        problems: list[str] = []
        for step in range(len(self)):
            try:
                return self.split[(index + step) % len(self)], problems
            except ResourceError:
                raise
            except UserError as problem:
                problems.append(str(problem))
        raise UserError(f"no image of the training split can be read: {problems[0]}")


class TimedLoader(DataLoader[Any]):
    """A DataLoader that adds up the seconds in ``waited`` for which its caller waits for batches."""

    waited = 0.0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override] # DataLoader states its own iterator
        batches, end = super().__iter__(), object()
        while True:
            start = time.perf_counter()
            batch = next(batches, end)
            self.waited += time.perf_counter() - start
            if batch is end:
                return
            yield batch


def stack(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Return samples as a batch; raise UserError if their sizes differ."""
    sizes = {tuple(sample["mask"].shape) for sample in samples}
    if len(sizes) > 1:
        (h1, w1), (h2, w2) = sorted(sizes)[:2]
        raise UserError(
            f"images of {h1} x {w1} and {h2} x {w2} are in one training batch: set data.augmentation.crop_size, "
            "or data.batch_size=1"
        )
    batch = pad(samples)
    if skipped := [problem for sample in samples for problem in sample.get("skipped", ())]:
        batch["skipped"] = skipped
    return batch


def pad(samples: list[dict[str, Any]], ignore_index: int = 255) -> dict[str, Any]:
    """Return samples as a batch of the largest height and width; padding at the right and bottom is ignored."""
    sizes = [(int(sample["mask"].shape[0]), int(sample["mask"].shape[1])) for sample in samples]
    height, width = (max(side) for side in zip(*sizes, strict=True))

    def pad_tensor(tensor: Tensor, value: int) -> Tensor:
        border = (0, width - tensor.shape[-1], 0, height - tensor.shape[-2])
        return F.pad(tensor, border, value=value) if any(border) else tensor

    return {
        "image": torch.stack([pad_tensor(sample["image"], 0) for sample in samples]),
        "mask": torch.stack([pad_tensor(sample["mask"], ignore_index) for sample in samples]),
        "id": [sample["id"] for sample in samples],
        "size": sizes,
    }
