"""A run again: the dataset that it was trained on, and images of it to look at its network with."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor

from dilated_seg.data.classes import first_difference
from dilated_seg.data.collate import Split
from dilated_seg.data.datamodule import SegmentationDataModule
from dilated_seg.data.pairs import Sample
from dilated_seg.errors import UserError


def configuration(run: str | Path) -> Path:
    """A run's saved configuration.

    Raises:
        UserError: This is no run.
    """
    file = Path(run) / "config.yaml"
    if not file.is_file():
        raise UserError(f"{run} is no run's folder: name one that fit made, with its config.yaml")
    return file


def dataset_of(run: str | Path) -> SegmentationDataModule:
    """The dataset of a run, with the options that it was trained with.

    Raises:
        UserError: This is no run.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SegmentationDataModule, "data")
    config = yaml.safe_load(configuration(run).read_text("utf-8"))
    return parser.instantiate_classes(parser.parse_object({"data": config["data"]})).data


def labelled(dataset: SegmentationDataModule, split: str) -> Split:
    """A split whose labels are there.

    Raises:
        UserError: There is none of this name, or it has no images, or its labels are kept back.
    """
    try:
        opened = dataset.opened(split)
    except ValueError as error:
        raise UserError(f"--split {split}: {type(dataset).__name__} has none of this name") from error
    if not len(opened) or not getattr(opened, "labelled", True):
        raise UserError(f"{type(dataset).__name__} has no labels for its split {split}: name another one")
    return opened


def spread(split: Split, images: int) -> list[Sample]:
    """So many images of a split, evenly spread over it."""
    chosen = [split[index] for index in np.linspace(0, len(split) - 1, images).round().astype(int).tolist()]
    return [
        Sample(image=s["image"].as_subclass(Tensor), mask=s["mask"].as_subclass(Tensor), id=s["id"])
        for s in chosen
    ]  # fmt: skip


def require_same_classes(run: str | Path, dataset: SegmentationDataModule, classes: Sequence[str]) -> None:
    """Refuse a network that was trained on other classes than the dataset of this run has now.

    Raises:
        UserError: Their number, a name or the order differs.
    """
    if difference := first_difference(classes, dataset.classes, "in the checkpoint", f"in {dataset.names_source} of {run}"):
        raise UserError(f"{difference}: name the run's own checkpoint, or put the class names back as they were")
