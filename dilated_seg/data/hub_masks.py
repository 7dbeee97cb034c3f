"""Infer how masks encode classes: as class ids, as other values such as published label ids, or as colors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from dilated_seg.data.decode import Source, decode_image, make_tensor
from dilated_seg.data.masks import VOID, Palette, ValueTable, make_table, read_colors, read_mask
from dilated_seg.errors import UserError

BLACK = (0, 0, 0)


@dataclass(frozen=True)
class MaskCoding:
    """Reads masks as class ids (H, W).

    Args:
        table: The class id of each of the 256 values, see `make_table`; None for masks of colors.
        palette: The color of each class, if known.
        description: The kind of values in the masks, for messages.
    """

    table: ValueTable | None
    palette: Palette
    description: str

    def __call__(self, mask: Source) -> Tensor:
        """Read a mask's file.

        Raises:
            UserError: The file is damaged, or has a value or a color that no class has.
        """
        if self.table is None:
            return read_colors(mask, list_colors(self.palette))
        if read_mode(mask) in ("1", "L", "P"):
            return read_mask(mask, self.table, self.palette)
        return read_gray(mask, self.table)


def list_colors(palette: Palette) -> dict[tuple[int, int, int], int]:
    """Return the class id of each color; 255 for VOC's off-white, and for black unless a class has it."""
    return {VOID: 255, BLACK: 255} | {(r, g, b): k for k, (r, g, b) in enumerate(palette)}


def read_mode(mask: Source) -> str:
    """Return the mode of an image file, without decoding it."""
    return decode_image(mask, lambda image: image.mode)


def read_gray(mask: Source, table: ValueTable) -> Tensor:
    """Return a mask of three equal channels, or of 16 or 32 bits, as class ids (H, W).

    Raises:
        UserError: Its channels differ, or it has an unknown value.
    """

    def read_ids(image: Image.Image) -> Tensor:
        values = np.asarray(image)
        if values.ndim == 3:
            channels = values[..., :3] if image.mode in ("RGB", "RGBA") else values[..., :1]
            if (channels != channels[..., :1]).any():
                raise UserError(f"{mask} has colors (mode {image.mode}), but other masks of the dataset hold values: {REMEDY}")
            values = channels[..., 0]
        known = (values >= 0) & (values <= 255)
        ids = np.frombuffer(table.ids, np.uint8)[np.where(known, values, 0).astype(np.uint8)]
        unknown = ~known | (ids == table.unknown if table.unknown is not None else False)
        if unknown.any():
            y, x = np.argwhere(unknown)[0]
            raise UserError(f"{mask} holds the value {values[y, x]} at row {y}, column {x}, which is not a class: {REMEDY}")
        return make_tensor(bytearray(ids.tobytes()), *ids.shape)

    return decode_image(mask, read_ids)


REMEDY = "set data.values or data.ignore, or choose another column with data.mask_column"


def find_coding(
    masks: Sequence[Source],
    classes: Sequence[str],
    palette: Palette,
    values: Sequence[int] | int | None = None,
    label_ids: Sequence[int] | None = None,
    ignore: Sequence[int] = (255,),
) -> MaskCoding:
    """Infer the coding of a dataset's masks.

    Args:
        masks: Some of the masks.
        classes: The names of the classes.
        palette: The color of each class, if known.
        values: The value of each class; or one value v: class k has the value v + k; None to infer them.
        label_ids: The published value of each class, if these are not the class ids.
        ignore: The ignored values.

    Raises:
        UserError: The masks hold values or colors that are not classes.
    """
    contents = [read_content(mask) for mask in masks]
    if any(content is None for content in contents):
        if not palette:
            raise UserError(f"{masks[0]} holds colors, and the classes have none: set data.palette, a color for each class")
        return MaskCoding(None, palette, "colors")
    present = sorted({value for content in contents for value in content or ()})
    if values is None and label_ids and any(len(classes) <= value <= max(label_ids) for value in present):
        table = dict.fromkeys(range(max(label_ids) + 1), 255) | {value: k for k, value in enumerate(label_ids)}
        description = f"label ids as published (such as {', '.join(map(str, present[:5]))}), not class ids"
    else:
        first = values if isinstance(values, int) else 0
        listed = list(values) if isinstance(values, Sequence) else list(range(first, first + len(classes)))
        if len(listed) != len(classes):
            raise UserError(f"data.values has {len(listed)} values for {len(classes)} classes: give one for each")
        table = dict.fromkeys(range(first), 255) | dict.fromkeys(ignore, 255) | {v: k for k, v in enumerate(listed)}
        description = "class ids" if listed == list(range(len(classes))) else f"values {listed[0]} to {listed[-1]}"
    check_values(masks, classes, present, table)
    return MaskCoding(make_table(table | {255: table.get(255, 255)}), palette, description)


def check_values(masks: Sequence[Source], classes: Sequence[str], present: Sequence[int], table: Mapping[int, int]) -> None:
    """Raise UserError if a value is not in a table, unless a mask has a palette, by whose colors it may be read."""
    unknown = [value for value in present if value not in table and value != 255]
    if not unknown or any(read_mode(mask) == "P" for mask in masks):  # `read_mask` reads by color where palettes differ
        return
    shown = ", ".join(map(str, present[:8])) + (" and more" if len(present) > 8 else "")
    shifted = 0 in present and max(value for value in present if value != 255) == len(classes)
    first = ", or data.values to 1 if 0 is unlabelled" if shifted else ""
    raise UserError(
        f"masks such as {masks[0]} hold the values {shown}, of which {unknown[0]} is not one of the {len(classes)} classes "
        f"{classes[0]}, {classes[1]}, ...: set data.classes to those of this dataset, data.values or data.ignore{first}"
    )


def read_content(mask: Source) -> set[int] | None:
    """Return the values of a mask; None if it has colors."""

    def read_values(image: Image.Image) -> set[int] | None:
        values = np.asarray(image)
        if values.ndim == 3 and image.mode in ("RGB", "RGBA") and (values[..., :3] != values[..., :1]).any():
            return None
        return {int(value) for value in np.unique(values if values.ndim == 2 else values[..., 0])}

    return decode_image(mask, read_values)
