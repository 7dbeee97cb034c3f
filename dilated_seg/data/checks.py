"""Check a dataset before training: whether it has masks, which classes occur, which images two splits share."""

import math
import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dilated_seg.data.classes import describe_absent
from dilated_seg.data.split import Split
from dilated_seg.errors import UserError

if TYPE_CHECKING:
    from dilated_seg.data.datamodule import SegmentationDataModule

# For reading masks before the first step. A mask of 375 x 500 takes 2.4 ms, one of 1024 x 2048 about 20 ms: this is enough
# for 2,000 or 250 masks.
SECONDS = 5.0


def require_labels(dataset: "SegmentationDataModule") -> None:
    """Raise UserError if no image of the training split has a mask."""
    split = dataset.open_split(dataset.train_split)
    if not split.count_masks() and len(split):
        where = f" in {dataset.require_root()}" if dataset.stored else ""
        expected = split.expected or "add a mask for each image where this dataset reads them from"
        raise UserError(
            f"{type(dataset).__name__}: the split {dataset.train_split}{where} has {len(split):,} images and 0 masks, so "
            f"nothing can be learnt: {expected}"
        )


def check_labels(dataset: "SegmentationDataModule", validated: bool = True) -> None:
    """Count the classes in the masks of the training and validation splits, and warn of those that do not occur.

    Args:
        dataset: The dataset.
        validated: Whether the run validates, so that there is a validation split.

    Raises:
        UserError: All pixels of a split are ignored, or a mask that is read is damaged.
    """
    require_labels(dataset)
    for name in (dataset.train_split, "val") if validated else (dataset.train_split,):
        split = dataset.open_split(name)
        skip = dataset.on_bad_image == "skip" and name == dataset.train_split
        counts = count_labels(split, len(dataset.classes), skip) if split.labelled and len(split) else None
        if counts is None:
            continue
        dataset.label_counts[name] = counts
        where = f"the {counts.masks:,} masks of {name}"
        where += "" if counts.complete else f" that were read (of {counts.images:,})"
        ignored = int(counts.pixels[dataset.ignore_index])
        problem = describe_absent(counts.pixels.tolist(), ignored, dataset.classes, where, dataset.ignore_index)
        if problem and counts.complete and not counts.pixels[: len(dataset.classes)].any():
            raise UserError(f"{type(dataset).__name__}: {problem}")
        if problem:
            print(f"warning: {type(dataset).__name__}: {problem}", file=sys.stderr)


def warn_of_shared_images(dataset: "SegmentationDataModule") -> None:
    """Warn if the training and validation splits overlap."""
    train, val = (set(dataset.open_split(name).members) for name in (dataset.train_split, "val"))
    if train & val:
        print(
            f"{type(dataset).__name__}: {dataset.train_split} has images of val: metrics of val are not those of new images",
            file=sys.stderr,
        )


def warn_of_other_count(dataset: "SegmentationDataModule", name: str, images: int) -> None:
    """Warn, in the first process, if a split has another number of images than published."""
    published = dataset.published.get(name, images)
    if images != published and os.environ.get("LOCAL_RANK", "0") == "0":
        counts = f"{images:,} images here, as published {published:,}"
        print(f"{type(dataset).__name__}: {name} has {counts}", file=sys.stderr)


@dataclass(frozen=True)
class LabelCounts:
    """Pixels of each class in the masks of a split.

    Args:
        pixels: int64 (256,), by class id.
        masks: The number of masks counted.
        images: The number of images in the split.
    """

    pixels: np.ndarray
    masks: int
    images: int

    @property
    def complete(self) -> bool:
        """Whether every mask of the split was counted."""
        return self.masks == self.images


def count_pixels(mask: Any) -> np.ndarray:  # noqa: ANN401 - a tensor, or a mask of torchvision's
    """Return the number of pixels of each class id, int64 (256,)."""
    return np.bincount(np.asarray(mask).ravel(), minlength=256)


def count_labels(split: Split, num_classes: int, skip_bad: bool = False, seconds: float = SECONDS) -> LabelCounts | None:
    """Count the classes of a split: from the manifest of a prepared one, else from masks until every class has occurred.

    Masks are read in this process, evenly spread over the split, for at most ``seconds``. Splits that are not ``countable``
    are not read: their readers may open files that worker processes must not inherit.

    Raises:
        UserError: A mask cannot be read, unless ``skip_bad``.
    """
    if split.pixels is not None:
        return LabelCounts(np.array(split.pixels), len(split), len(split))
    if not split.countable:
        return None
    pixels, masks, end = np.zeros(256, np.int64), 0, time.monotonic() + seconds
    for index in spread_indices(len(split)):
        try:
            pixels += count_pixels(split.read_mask(index))
            masks += 1
        except UserError:
            if not skip_bad:
                raise
        if pixels[:num_classes].all() or time.monotonic() > end:
            break
    return LabelCounts(pixels, masks, len(split))


def spread_indices(length: int) -> list[int]:
    """Return all indices, ordered so that any first n are evenly spread: steps of the golden ratio, modulo ``length``."""
    step = max(1, round(0.618 * length))
    while math.gcd(step, length) > 1:
        step += 1
    return [i * step % length for i in range(length)]
