"""The columns of a Parquet dataset that hold images, masks and names."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from dilated_seg.data.decode import Stored
from dilated_seg.errors import UserError

# Names by which columns are recognized, in lower case and in order of precedence.
IMAGES = ("image", "img", "pixel_values", "images", "picture", "photo", "jpg", "rgb")
MASKS = (
    "mask", "label", "annotation", "semantic_segmentation", "segmentation", "segmentation_mask", "semantic_mask", "semantic",
    "label_map", "labels", "masks", "annotations", "seg", "gt", "png",
)  # fmt: skip
NAMES = ("id", "image_id", "image_name", "file_name", "filename", "name", "key", "__key__")


@dataclass(frozen=True)
class Columns:
    """The names of three columns; ``mask`` is None if the dataset has no masks, ``name`` if images have no names."""

    image: str
    mask: str | None
    name: str | None

    @property
    def all(self) -> list[str]:
        """The columns to read."""
        return [column for column in (self.name, self.image, self.mask) if column]


def find_columns(
    schema: pa.Schema, repo: str, image: str | None = None, mask: str | None = None, name: str | None = None
) -> Columns:
    """Return the columns of images, masks and names: the given ones, others recognized by name and type.

    Raises:
        UserError: A given column is missing, or the column of images or masks is not recognized.
    """
    content = ", ".join(f"{field.name} ({describe_type(field.type)})" for field in schema)
    for column in (image, mask, name):
        if column is not None and column not in schema.names:
            raise UserError(f"{repo} has no column '{column}': it has {content}")
    files = [field.name for field in schema if is_file(field.type)]
    maps = [*files, *(field.name for field in schema if is_map(field.type))]
    image = image or next(iter(match(files, IMAGES)), None)
    if image is None:
        raise UserError(
            f"{repo} has no column of images that is recognized by its name: set data.image_column to one of {content}"
        )
    if mask is None:
        rest = [column for column in maps if column != image]
        named = match(rest, MASKS)
        mask = named[0] if named else rest[0] if len(rest) == 1 else None
        if mask is None and rest:
            raise UserError(
                f"{repo} has no column of masks that is recognized by its name: set data.mask_column to one of {content}"
            )
    plain = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_integer(field.type)]
    return Columns(image, mask, name or next(iter(match(plain, NAMES)), None))


def match(columns: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the columns that have one of the names, in the order of the names."""
    return [column for name in names for column in columns if column.lower() == name]


def is_file(kind: pa.DataType) -> bool:
    """Return whether a column holds files: bytes, or a struct of bytes and path as `datasets` writes it."""
    if pa.types.is_struct(kind):
        return "bytes" in {kind.field(i).name for i in range(kind.num_fields)}
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def is_map(kind: pa.DataType) -> bool:
    """Return whether a column holds maps (H, W) as nested lists of integers."""
    kind = getattr(kind, "storage_type", kind)
    inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else None
    return inner is not None and pa.types.is_list(inner) and pa.types.is_integer(inner.value_type)


def describe_type(kind: pa.DataType) -> str:
    """Return a word or two for a column's type."""
    return "files" if is_file(kind) else "maps" if is_map(kind) else str(kind)


def read_cell(value: Any, shard: str, name: str) -> Stored | None:  # noqa: ANN401 - a value of Parquet
    """Return the image file in a cell, encoding a map (H, W) as PNG; None for an empty cell.

    Raises:
        UserError: The cell has only the file's path, or values outside 0 to 255.
    """
    if isinstance(value, list):
        ids = np.array(value)
        if ids.ndim != 2 or ids.min() < 0 or ids.max() > 255:
            raise UserError(
                f"{name} (in {shard}) is not a map (H, W) of values from 0 to 255: set data.mask_column to another column"
            )
        png = BytesIO()
        Image.fromarray(ids.astype(np.uint8)).save(png, "png", compress_level=1)
        value = png.getvalue()
    cell = value if isinstance(value, dict) else {"bytes": value}
    if cell.get("bytes"):
        return Stored(shard, Path(cell.get("path") or name).name, cell["bytes"])
    if cell.get("path"):
        raise UserError(f"{shard} holds the path of {cell['path']} and not its content: upload the dataset with its images")
    return None
