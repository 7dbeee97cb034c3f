"""Images of the dataset that a run was trained on, for measuring its network."""

import os
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from dilated_seg.data.classes import find_first_difference
from dilated_seg.data.datamodule import SegmentationDataModule
from dilated_seg.data.split import Sample, Split
from dilated_seg.errors import UserError


def open_labelled_split(dataset: SegmentationDataModule, split: str) -> Split:
    """Return a split that has masks.

    Raises:
        UserError: There is no split of this name, or it has no images, or its masks are kept back.
    """
    try:
        opened = dataset.open_split(split)
    except ValueError as error:
        raise UserError(f"--split {split}: {type(dataset).__name__} has none of this name") from error
    if not len(opened) or not opened.labelled:
        raise UserError(f"{type(dataset).__name__} has no labels for its split {split}: name another one")
    return opened


def sample_evenly(split: Split, images: int) -> list[Sample]:
    """Return images of a split, evenly spread over it."""
    indices = np.linspace(0, len(split) - 1, images).round().astype(int).tolist()
    return [
        Sample(image=s["image"].as_subclass(Tensor), mask=s["mask"].as_subclass(Tensor), id=s["id"])
        for s in (split[index] for index in indices)
    ]  # fmt: skip


def require_same_classes(run: str | os.PathLike[str], dataset: SegmentationDataModule, classes: Sequence[str]) -> None:
    """Require that a network's classes are those that the dataset of its run has now.

    Raises:
        UserError: Their number, a name or the order differs.
    """
    if difference := find_first_difference(
        classes, dataset.classes, "in the checkpoint", f"in {dataset.names_source} of {run}"
    ):
        raise UserError(f"{difference}: name the run's own checkpoint, or put the class names back as they were")
