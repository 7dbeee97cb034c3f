"""Masks in image files: read as class ids by value, palette or color, and written with a palette."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dilated_seg.data.decode import Source, as_bytes, as_rgb, decode_image
from dilated_seg.data.workers import print_once
from dilated_seg.errors import UserError

UNKNOWN = 254  # stands in a table of class ids for label values that must not occur
VOID = (224, 224, 192)  # VOC's color of ignored pixels
ID_MODES = ("1", "L", "P")  # of files that hold one class id a pixel
SCALED = {"L;2": 85, "L;4": 17}  # by what Pillow multiplies the values of grayscale files of 2 and 4 bits

Palette = Sequence[tuple[int, int, int]]
ReadLabel = Callable[[Source], Tensor]  # reads a mask's file as class ids (H, W)


def read_mask(path: Source, classes: bytes, palette: Palette = ()) -> Tensor:
    """Return a mask's file of one channel, or with a palette, as class ids (H, W): value v becomes ``classes[v]``.

    A file with a palette is read by its values too, unless its palette says that they are numbered in another way: if a value
    that occurs has the color of another class of the dataset, and every value that occurs has a color that tells its class,
    pixels are read by their colors. Palettes of other colors say nothing.

    Args:
        path: The file; masks of several channels are refused, since colors are not class ids.
        classes: The class id of each of the 256 values; ``UNKNOWN`` for values that must not occur.
        palette: The dataset's color of each class, if it is known.

    Raises:
        UserError: The file is damaged, has several channels, holds an unknown value, or its palette contradicts the dataset's.
    """

    def read_ids(image: Image.Image) -> Tensor:
        if image.mode not in ID_MODES:
            raise UserError(
                f"{path} has mode {image.mode}, but a label holds one class id a pixel (mode L or P): {describe_remedy(image)}"
            )
        scale = max((SCALED.get(str(args), 1) for *_, args in getattr(image, "tile", ())), default=1)
        values = bytearray(image.tobytes() if image.mode != "1" else np.asarray(image).astype(np.uint8).tobytes())
        if scale > 1:
            values = bytearray((np.frombuffer(values, np.uint8) // scale).tobytes())
        table = classes
        if image.mode == "P" and palette:
            table = choose_table(str(path), values, bytes(image.getpalette() or ()), classes, tuple(palette))
        ids = values.translate(table)
        if (first := ids.find(UNKNOWN)) >= 0:
            y, x = divmod(first, image.width)
            raise UserError(f"{path} holds the value {values[first]} at row {y}, column {x}, which is no class of this dataset")
        return as_bytes(ids, image.height, image.width)

    return decode_image(path, read_ids)


def describe_remedy(mask: Image.Image) -> str:
    """Return what to do about a mask that has several channels, or more than 8 bits."""
    if mask.mode in ("RGB", "RGBA"):
        red, green, blue = (mask.getchannel(channel).tobytes() for channel in range(3))
        if red == green == blue:
            return "its channels are equal, so save the first of them alone, Image.open(path).getchannel(0)"
        return "replace each color by its class id"
    if mask.mode == "LA":
        return "save it without transparency, Image.open(path).getchannel(0)"
    return "save it as 8-bit grayscale"


def choose_table(name: str, values: bytearray, stored: bytes, classes: bytes, palette: Palette) -> bytes:
    """Return the class id of each value of a mask with a palette: by value, or by color where the palette demands it.

    Args:
        name: What messages call the mask.
        values: Its pixels.
        stored: Its palette: red, green and blue of each value.
        classes: The class id of each value, if they are read by value.
        palette: The dataset's color of each class.

    Raises:
        UserError: A value has the color of another class, and not every value has the color of just one.
    """
    by_color, contradicted = compare_palettes(stored, classes, palette)
    if not contradicted or contradicted.isdisjoint(used := set(values)):
        return classes
    first = min(contradicted & used)
    told = f"value {first} has the color {get_color(stored, first)}, which is another class's"
    if untold := sorted(value for value in used if by_color[value] == UNKNOWN):
        others = ", ".join(f"{value} {get_color(stored, value)}" for value in untold[:3])
        raise UserError(
            f"{name} has a palette that contradicts the dataset's: {told}, but the color of value {others} tells no class: "
            "save it with the dataset's palette, or without one (mode L)"
        )
    print_once(
        classes + bytes(sum(palette, ())),
        f"{name} and masks like it are read by their colors, since their palettes number the classes in another way: {told}",
    )
    return by_color


@lru_cache(maxsize=256)
def compare_palettes(stored: bytes, classes: bytes, palette: Palette) -> tuple[bytes, frozenset[int]]:
    """Return the class id of each value by its color, ``UNKNOWN`` where that tells none, and the values that contradict it.

    A value contradicts its color where the color is that of other classes only. A ramp of grays, each value as bright as
    itself, is no evidence: it is the palette that programs write when they have none.
    """
    owners: dict[tuple[int, ...], set[int]] = {}
    for class_id, color in enumerate(palette):
        owners.setdefault(tuple(color), set()).add(class_id)
    owners.setdefault(VOID, {255})
    colors = [get_color(stored, value) for value in range(256)]
    # an ignored value may have any other color
    told = [owners.get(color, {255} if classes[value] == 255 else set()) for value, color in enumerate(colors)]
    agreed = {color for value, color in enumerate(colors) if classes[value] in told[value]}  # the same elsewhere is padding
    by_color = bytes(min(owner) if len(owner) == 1 else UNKNOWN for owner in told)
    ramp = len(stored) > 3 and all(color == (value,) * 3 for value, color in enumerate(colors[: len(stored) // 3]))
    contradicted = {value for value, color in enumerate(colors) if told[value] and color not in agreed and not ramp}
    return by_color, frozenset(contradicted)


def get_color(stored: bytes, value: int) -> tuple[int, ...]:
    """Return a value's red, green and blue in a palette, which may be too short to have any."""
    return tuple(stored[3 * value : 3 * value + 3])


def make_table(classes: Mapping[int, int]) -> bytes:
    """Return a table for ``read_mask``: the class id of each value, ``UNKNOWN`` for the values that are not given."""
    return bytes(classes.get(value, UNKNOWN) for value in range(256))


def read_colors(path: Source, classes: Mapping[tuple[int, int, int], int]) -> Tensor:
    """Return a mask's file of colors as class ids (H, W): a pixel of color c becomes ``classes[c]``.

    Raises:
        UserError: The file is damaged, or holds another color.
    """
    image = decode_image(path, lambda image: as_rgb(image, str(path), upright=False)).long()
    keys = (image[0] << 16) | (image[1] << 8) | image[2]
    colors, inverse = keys.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    known = {(r << 16) | (g << 8) | b: value for (r, g, b), value in classes.items()}
    values = [known.get(int(key), UNKNOWN) for key in colors]
    if UNKNOWN in values:
        key = int(colors[values.index(UNKNOWN)])
        y, x = (keys == key).nonzero()[0].tolist()
        raise UserError(
            f"{path} has the colour {key >> 16, key >> 8 & 255, key & 255} at row {y}, column {x}, which is no class's"
        )
    return torch.tensor(values, dtype=torch.uint8)[inverse]


def paint_mask(ids: np.ndarray, palette: Palette) -> Image.Image:
    """Return class ids (H, W) as an image with a palette, like VOC's masks; 255 has the off-white of VOC."""
    image = Image.fromarray(ids.astype(np.uint8))
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(palette)] = palette
    colors[255] = VOID
    image.putpalette(colors.ravel().tolist())  # now it has mode P
    return image
