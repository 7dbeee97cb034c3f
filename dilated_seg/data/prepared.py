"""Open the shards that ``prepare`` wrote for a dataset, if its root holds any."""

from typing import TYPE_CHECKING, Any

from dilated_seg.data import manifest
from dilated_seg.data.classes import find_first_difference
from dilated_seg.data.shards import Shards
from dilated_seg.errors import UserError

if TYPE_CHECKING:
    from dilated_seg.data.datamodule import SegmentationDataModule


def open_prepared(dataset: "SegmentationDataModule", name: str) -> Shards | None:
    """Return a prepared split, or None if the dataset's root holds directories as released.

    Raises:
        UserError: There are no shards to stream, or they are of another dataset or were prepared with other options.
    """
    root = dataset.require_root()
    record = manifest.read(root)
    if record is None:
        if dataset.streaming:
            raise UserError(f"{root} holds no shards to stream: make them with dilated-seg prepare, or remove data.streaming")
        return None
    check_prepared(dataset, root, record, name)
    shards = Shards(root, record, name, dataset.mask_reader, dataset.streaming, dataset.in_channels)
    prepared = record.get("mask_orientation", dataset.mask_orientation)
    shards.as_stored = {"auto": None, "upright": False, "as_stored": True}[prepared]
    return shards


def check_prepared(dataset: "SegmentationDataModule", root: str, record: dict[str, Any], name: str) -> None:
    """Raise UserError unless shards were prepared from this dataset, with these classes and options."""
    if record["dataset"] != type(dataset).__name__:
        raise UserError(f"{root} holds {record['dataset']}, not {type(dataset).__name__}: name another directory or dataset")
    if record["classes"] != list(dataset.classes):
        difference = find_first_difference(
            record["classes"], dataset.classes, f"when {root} was prepared", f"in {dataset.names_source}"
        )
        raise UserError(f"{difference}: restore the names, or prepare it again")
    for option, value in dataset.choices.items():
        if record["options"].get(option) != value and name == dataset.train_split:
            raise UserError(
                f"{root} was prepared with {option} {record['options'].get(option)}, not {value}: prepare it again or set "
                f"data.{option}"
            )
    prepared = record.get("mask_orientation", dataset.mask_orientation)
    if dataset.mask_orientation not in ("auto", prepared):
        raise UserError(
            f"{root} was prepared with masks {prepared}, not {dataset.mask_orientation}: prepare it again with "
            f"--mask_orientation {dataset.mask_orientation}, or remove data.mask_orientation"
        )
