"""Check a dataset before training: whether it has masks, which classes occur, which images two splits share."""

import os
import sys
from typing import TYPE_CHECKING

from dilated_seg.data.classes import describe_absent
from dilated_seg.data.labels import count_labels
from dilated_seg.errors import UserError

if TYPE_CHECKING:
    from dilated_seg.data.datamodule import SegmentationDataModule


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


def check_labels(dataset: "SegmentationDataModule") -> None:
    """Count the classes in the masks of the training and validation splits, and warn of those that do not occur.

    Raises:
        UserError: All pixels of a split are ignored, or a mask that is read is damaged.
    """
    require_labels(dataset)
    for name in (dataset.train_split, "val"):
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
