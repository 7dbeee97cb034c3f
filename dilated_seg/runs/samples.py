"""Samples of a run's dataset, on which its network is measured."""

import os
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from dilated_seg.data.classes import find_first_difference
from dilated_seg.data.datamodule import SegmentationDataModule
from dilated_seg.data.split import Sample, Split
from dilated_seg.errors import UserError


def open_labelled_split(dataset: SegmentationDataModule, split: str) -> Split:
    """Return a split with masks.

    Raises:
        UserError: There is no such split, or it has no images or no masks.
    """
    try:
        opened = dataset.open_split(split)
    except ValueError as error:
        raise UserError(f"--split {split}: {type(dataset).__name__} has no such split") from error
    if not len(opened) or not opened.labelled:
        raise UserError(f"{type(dataset).__name__} has no masks for the split {split}: name another split")
    return opened


def sample_evenly(split: Split, images: int) -> list[Sample]:
    """Return ``images`` samples of a split at evenly spaced indices."""
    indices = np.linspace(0, len(split) - 1, images).round().astype(int).tolist()
    return [
        Sample(image=s["image"].as_subclass(Tensor), mask=s["mask"].as_subclass(Tensor), id=s["id"])
        for s in (split[index] for index in indices)
    ]  # fmt: skip


def require_same_classes(run: str | os.PathLike[str], dataset: SegmentationDataModule, classes: Sequence[str]) -> None:
    """Require that a network's classes are those of its run's dataset now.

    Raises:
        UserError: The number, a name or the order of classes differs.
    """
    if difference := find_first_difference(
        classes, dataset.classes, "in the checkpoint", f"in {dataset.names_source} of {run}"
    ):
        raise UserError(f"{difference}: name the run's own checkpoint, or restore the class names")
