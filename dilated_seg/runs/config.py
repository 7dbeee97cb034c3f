"""The resolved experiment of a run, for code that does not use Lightning's CLI."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dilated_seg.errors import UserError

if TYPE_CHECKING:
    from dilated_seg.data.datamodule import SegmentationDataModule


@dataclass(frozen=True)
class Component:
    """A class that an experiment names, and its arguments."""

    class_path: str
    init_args: dict[str, Any]


@dataclass(frozen=True)
class RunConfig:
    """The resolved experiment of a run.

    Args:
        text: The whole configuration, YAML.
        seed: The seed of the training.
        net: The network.
        data: The dataset.
        weights: ``model.weights``, from which the training started.
    """

    text: str
    seed: int
    net: Component
    data: Component
    weights: str | None

    @classmethod
    def read(cls, file: Path) -> "RunConfig":
        """Read a run's config.yaml.

        Raises:
            UserError: The file is missing, or not the configuration of a run.
        """
        if not file.is_file():
            raise UserError(
                f"{file.parent} is not a run directory (no {file.name}): pass the directory that `dilated-seg fit` created"
            )
        try:
            text = file.read_text("utf-8")
            content = yaml.safe_load(text)
            net, data = (
                Component(part["class_path"], dict(part.get("init_args") or {}))
                for part in (content["model"]["net"], content["data"])
            )
            return cls(text, content["seed_everything"], net, data, content["model"]["weights"])
        except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{file} is not the configuration of a run of this version: train the run again with "
                "`dilated-seg fit`, or name another directory"
            ) from error


def build_dataset(data: dict[str, Any]) -> "SegmentationDataModule":
    """Build the data module that a configuration names by ``class_path`` and ``init_args``.

    Raises:
        UserError: The data module rejects its arguments, or its files are missing.
    """
    from jsonargparse import ArgumentParser

    from dilated_seg.data.datamodule import SegmentationDataModule  # imports Lightning

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SegmentationDataModule, "data")
    try:
        return parser.instantiate_classes(parser.parse_object({"data": data})).data
    except ValueError as error:  # of jsonargparse; its cause is the constructor's exception
        if isinstance(error.__cause__, UserError):
            raise UserError(str(error.__cause__)) from error
        raise
