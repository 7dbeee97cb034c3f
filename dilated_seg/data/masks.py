"""Read masks from image files as class ids, by value or color, and write class ids with a palette."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dilated_seg.data.decode import Source, convert_to_rgb, decode_image, make_tensor
from dilated_seg.data.workers import print_once
from dilated_seg.errors import UserError

VOID = (224, 224, 192)  # VOC's color of ignored pixels
ID_MODES = ("1", "L", "P")  # modes of files with one class id per pixel
SCALED = {"L;2": 85, "L;4": 17}  # factors by which Pillow multiplies grayscale values of 2 and 4 bits

Palette = Sequence[tuple[int, int, int]]
MaskReader = Callable[[Source], Tensor]  # reads a mask's file as class ids (H, W)


@dataclass(frozen=True)
class ValueTable:
    """The class id of each of the 256 values of a mask.

    Args:
        ids: The class id of each value.
        unknown: The entry of ``ids`` for values that must not occur; None if all may.
    """

    ids: bytes
    unknown: int | None

    def __getitem__(self, value: int) -> int | None:
        """Return the class id of a value, None if it must not occur."""
        return None if self.ids[value] == self.unknown else self.ids[value]


def make_table(classes: Mapping[int, int]) -> ValueTable:
    """Return the table for a mapping from values to class ids; values that it lacks must not occur."""
    unknown = None if len(classes) == 256 else next(k for k in (254, 255, *range(254)) if k not in classes.values())
    return ValueTable(bytes(classes.get(value, unknown or 0) for value in range(256)), unknown)


def read_mask(
    path: Source, classes: ValueTable, palette: Palette = (), copies: bool = False, remedy: str = "correct the mask"
) -> Tensor:
    """Read a mask of one channel, or with a palette, as class ids (H, W): value v becomes ``classes[v]``.

    In a file of one bit, white is value 1, or 255 if 1 must not occur.

    A file is read by color instead if its palette assigns the classes to other values: one of the values that occur has the
    color of another class, and each has the color of exactly one class. Other palettes are ignored.

    Args:
        path: The file, of one channel.
        classes: The class id of each value.
        palette: The dataset's color of each class, if known.
        copies: Whether to read files whose channels are copies of one, apart from transparency.
        remedy: The remedy for a value that must not occur, for the message.

    Raises:
        UserError: The file is damaged, has several channels, holds an unknown value, or its palette contradicts the dataset's.
    """

    def read_ids(image: Image.Image) -> Tensor:
        values = bytearray(read_values(image, str(path), copies))
        if image.mode == "1" and classes[1] is None:
            values = values.replace(b"\1", b"\xff")
        table = classes
        if image.mode == "P" and palette:
            table = choose_table(str(path), values, bytes(image.getpalette() or ()), classes, tuple(palette))
        ids = values.translate(table.ids)
        if table.unknown is not None and (first := ids.find(table.unknown)) >= 0:
            y, x = divmod(first, image.width)
            raise UserError(
                f"{path} holds the value {values[first]} at row {y}, column {x}, which is not a class of this dataset: {remedy}"
            )
        return make_tensor(ids, image.height, image.width)

    return decode_image(path, read_ids)


def read_values(image: Image.Image, name: str, copies: bool = False) -> bytes:
    """Return the values of a mask of one channel, or with a palette, in row-major order.

    Args:
        image: The mask.
        name: The name of the mask in messages.
        copies: Whether to accept several channels with equal values.

    Raises:
        UserError: It has several channels, or more than 8 bits.
    """
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8).tobytes()
    if copies and image.mode in ("RGB", "RGBA", "LA"):
        first, *others = (image.getchannel(channel).tobytes() for channel in image.getbands() if channel != "A")
        if all(other == first for other in others):
            return first
    if image.mode not in ID_MODES:
        raise UserError(
            f"{name} has mode {image.mode}, but a mask has one class id per pixel (mode L or P): {describe_remedy(image)}"
        )
    scale = max((SCALED.get(str(args), 1) for *_, args in getattr(image, "tile", ())), default=1)  # decoding empties tile
    values = image.tobytes()
    return values if scale == 1 else (np.frombuffer(values, np.uint8) // scale).tobytes()


def describe_remedy(mask: Image.Image) -> str:
    """Return the remedy for a mask that has several channels, or more than 8 bits."""
    if mask.mode in ("RGB", "RGBA"):
        red, green, blue = (mask.getchannel(channel).tobytes() for channel in range(3))
        if red == green == blue:
            return "its channels are equal, so save the first of them alone, Image.open(path).getchannel(0)"
        return "replace each color by its class id, or map colors in classes.yaml of a Folder (colors: {NAME: [R, G, B], ...})"
    if mask.mode == "LA":
        return "save it without transparency, Image.open(path).getchannel(0)"
    return "save it as 8-bit grayscale"


def choose_table(name: str, values: bytearray, stored: bytes, classes: ValueTable, palette: Palette) -> ValueTable:
    """Return the class id of each value of a mask with a palette, by value or by color; see `read_mask`.

    ``stored`` is the mask's palette: red, green and blue of each value.

    Raises:
        UserError: A value has the color of another class, and not every value has the color of exactly one.
    """
    by_color, contradicted = compare_palettes(stored, classes, palette)
    if not contradicted or contradicted.isdisjoint(used := set(values)):
        return classes
    first = min(contradicted & used)
    evidence = f"value {first} has the color {get_color(stored, first)}, which is another class's"
    if unknown := sorted(value for value in used if by_color[value] is None):
        others = ", ".join(f"{value} {get_color(stored, value)}" for value in unknown[:3])
        raise UserError(
            f"{name} has a palette that contradicts the dataset's: {evidence}, but no class has the color of value {others}: "
            "save it with the dataset's palette, or without one (mode L)"
        )
    print_once(
        classes.ids + bytes(sum(palette, ())),
        f"{name} and masks like it are read by color, since their palettes assign classes to other values: {evidence}",
    )
    return by_color


@lru_cache(maxsize=256)
def compare_palettes(stored: bytes, classes: ValueTable, palette: Palette) -> tuple[ValueTable, frozenset[int]]:
    """Return the class id of each value by its color, if that is of one class, and the values that contradict their color.

    A value contradicts its color if that is the color of other classes only. A gray ramp, in which value v is (v, v, v), is
    ignored: programs write it when they have no palette.
    """
    owners: dict[tuple[int, ...], set[int]] = {}
    for class_id, color in enumerate(palette):
        owners.setdefault(tuple(color), set()).add(class_id)
    owners.setdefault(VOID, {255})
    colors = [get_color(stored, value) for value in range(256)]
    # an ignored value may have any other color
    candidates = [owners.get(color, {255} if classes[k] == 255 else set()) for k, color in enumerate(colors)]
    agreed = {
        color for value, color in enumerate(colors) if classes[value] in candidates[value]
    }  # repeated at unused values as padding
    by_color = make_table({value: min(owner) for value, owner in enumerate(candidates) if len(owner) == 1})
    ramp = len(stored) > 3 and all(color == (value,) * 3 for value, color in enumerate(colors[: len(stored) // 3]))
    contradicted = {value for value, color in enumerate(colors) if candidates[value] and color not in agreed and not ramp}
    return by_color, frozenset(contradicted)


def get_color(stored: bytes, value: int) -> tuple[int, ...]:
    """Return a value's red, green and blue in a palette; empty if the palette is shorter."""
    return tuple(stored[3 * value : 3 * value + 3])


def read_colors(path: Source, classes: Mapping[tuple[int, int, int], int], remedy: str = "correct the mask") -> Tensor:
    """Return a mask's file of colors as class ids (H, W): color c becomes ``classes[c]``; other colors raise UserError."""
    image = decode_image(path, lambda image: convert_to_rgb(image, str(path), upright=False)).long()
    keys = (image[0] << 16) | (image[1] << 8) | image[2]
    colors, inverse = keys.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    known = {(r << 16) | (g << 8) | b: value for (r, g, b), value in classes.items()}
    if unknown := [key for key in colors.tolist() if key not in known]:
        key = unknown[0]
        y, x = (keys == key).nonzero()[0].tolist()
        color = key >> 16, key >> 8 & 255, key & 255
        raise UserError(f"{path} has the color {color} at row {y}, column {x}, which no class has: {remedy}")
    return torch.tensor([known[key] for key in colors.tolist()], dtype=torch.uint8)[inverse]


def paint_mask(ids: np.ndarray, palette: Palette) -> Image.Image:
    """Return class ids (H, W) as an image of mode P; 255 has the off-white of VOC's masks."""
    image = Image.fromarray(ids.astype(np.uint8))
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(palette)] = palette
    colors[255] = VOID
    image.putpalette(colors.ravel().tolist())  # sets mode P
    return image
