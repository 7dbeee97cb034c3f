"""One image or label: read as it is meant or refused in one sentence that names the file; class ids written as a picture."""

import io
import os
import struct
import sys
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import get_worker_info

from dilated_seg.errors import UserError, explain_system_error, format_error

UNKNOWN = 254  # stands in a table of class ids for label values that must not occur

VOID = (224, 224, 192)  # VOC's color of ignored pixels

# EXIF's tag of how to turn an image, and what each value asks for; the last four exchange height and width.
ORIENTATION = 274
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
SIDEWAYS = (5, 6, 7, 8)

# An image of more than 8 bits whose brightest pixel would be below this, of 255, has most likely another range: 12 bits
# (0 to 4095) in a file of 16.
DARK = 16
TWELVE_BITS = "which is nearly black: convert the image to 8 bits (12-bit values x 255 / 4095)"

SAID: set[bytes] = set()  # the topics of the lines that were printed

ID_MODES = ("1", "L", "P")  # of files that hold one class id a pixel
SCALED = {"L;2": 85, "L;4": 17}  # by what Pillow multiplies the values of grayscale files of 2 and 4 bits

MAX_PIXELS = "DILATED_SEG_MAX_PIXELS"

# What decoders raise for damaged files. ImportError, RecursionError and errors of other packages have other causes.
DAMAGE = (
    OSError, SyntaxError, EOFError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError,
    MemoryError, RuntimeError, SystemError, BufferError, UnboundLocalError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A file whose content lies in a shard: it reads as the file did, and goes by the shard's name and its own."""

    shard: str
    name: str
    content: bytes

    def __str__(self) -> str:
        return f"{self.name} (in {self.shard})"

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    def open(self, mode: str = "rb") -> io.BytesIO:
        """The content, as of a file."""
        return io.BytesIO(self.content)


Source = Path | Stored
Palette = Sequence[tuple[int, int, int]]
ReadLabel = Callable[[Source], Tensor]


def read_image(path: Source) -> Tensor:
    """An image file of any mode as uint8 RGB (3, H, W), turned upright if its EXIF says so; 16 bits are scaled to 8.

    The tensor's values lie pixel by pixel, as they come out of the file: cutting a crop out of it costs nothing.

    Raises:
        UserError: The file is damaged, no image, larger than anything that is let in, or its values have a range that cannot be
            told.
    """
    return _decode(path, lambda image: as_rgb(image, str(path)))


def as_rgb(image: Image.Image, name: str = "the image", upright: bool = True) -> Tensor:
    """Return an image of any mode as uint8 RGB (3, H, W); copied only where that changes something.

    Args:
        image: The image, decoded or not.
        name: What messages call it.
        upright: Whether to turn it as its EXIF says.

    Raises:
        UserError: The values of an image of more than 8 bits have a range that cannot be told.
    """
    deep = any(";16" in str(args) for *_, args in getattr(image, "tile", ()))  # Pillow drops the lower 8 of 16 bits of colours
    with suppress(Exception):  # damaged EXIF raises whatever it likes: then the picture lies as it lies
        if upright:
            ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F" or image.mode.startswith("I"):
        image = scale_to_bytes(image, name)
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    content = bytearray(rgb.tobytes())
    if deep and 0 < (highest := max(content)) < DARK:
        raise UserError(f"{name} holds 16-bit values up to about {256 * highest:,}, {TWELVE_BITS}")
    return as_bytes(content, rgb.height, rgb.width, 3).permute(2, 0, 1)


def scale_to_bytes(image: Image.Image, name: str) -> Image.Image:
    """Return an image of floating-point numbers (0 to 1, or 0 to 255) or of 16 bits with 8 bits.

    Pillow itself would clip the values. The range is told by the largest value; where that would give an image without any
    pixel of ``DARK`` or brighter, the values have most likely another range.

    Raises:
        UserError: The values have neither range.
    """
    values = np.nan_to_num(np.asarray(image), posinf=np.inf, neginf=-np.inf)
    low, high = values.min(), values.max()
    if image.mode == "F":
        if low < 0 or 1 < high < DARK or high > 255:
            raise UserError(
                f"{name} has floating-point values from {low:.4g} to {high:.4g}, which are neither 0 to 1 nor 0 to 255: "
                "scale them, or convert the image to 8 bits"
            )
        return Image.fromarray((values * (255 if high <= 1 else 1)).astype(np.uint8))
    if low < 0 or high > 65535:
        raise UserError(f"{name} has values from {low} to {high}, which are not 0 to 65535: convert the image to 8 bits")
    if 0 < high < 256 * DARK:
        raise UserError(f"{name} holds 16-bit values up to {high:,}, {TWELVE_BITS}")
    return Image.fromarray((values.astype(np.int64) * 255 // 65535).astype(np.uint8))


def as_bytes(content: bytearray, *shape: int) -> Tensor:
    """Pillow's bytes as a tensor."""
    return torch.frombuffer(content, dtype=torch.uint8).view(shape)


def read_mask(path: Source, classes: bytes, palette: Palette = ()) -> Tensor:
    """A label file of one channel, or with a palette, as class ids (H, W): value v becomes ``classes[v]``.

    A file with a palette is read by its values too, unless its palette says that they are numbered in another way: if a value
    that occurs has the color of another class of the dataset, and every value that occurs has a color that tells its class,
    pixels are read by their colors. Palettes of other colors say nothing.

    Args:
        path: The file; colour labels are refused, since their colours are not class ids.
        classes: The class id of each of the 256 values; ``UNKNOWN`` for values that must not occur.
        palette: The dataset's color of each class, if it is known.

    Raises:
        UserError: The file is damaged, coloured, holds an unknown value, or its palette contradicts the dataset's.
    """

    def indices(image: Image.Image) -> Tensor:
        if image.mode not in ID_MODES:
            raise UserError(
                f"{path} has mode {image.mode}, but a label holds one class id a pixel (mode L or P): {remedy(image)}"
            )
        scale = max((SCALED.get(str(args), 1) for *_, args in getattr(image, "tile", ())), default=1)
        values = bytearray(image.tobytes() if image.mode != "1" else np.asarray(image).astype(np.uint8).tobytes())
        if scale > 1:
            values = bytearray((np.frombuffer(values, np.uint8) // scale).tobytes())
        table = classes
        if image.mode == "P" and palette:
            table = table_of_palette(str(path), values, bytes(image.getpalette() or ()), classes, tuple(palette))
        ids = values.translate(table)
        if (first := ids.find(UNKNOWN)) >= 0:
            y, x = divmod(first, image.width)
            raise UserError(f"{path} holds the value {values[first]} at row {y}, column {x}, which is no class of this dataset")
        return as_bytes(ids, image.height, image.width)

    return _decode(path, indices)


def remedy(mask: Image.Image) -> str:
    """Return what to do about a mask that has several channels, or more than 8 bits."""
    if mask.mode in ("RGB", "RGBA"):
        red, green, blue = (mask.getchannel(channel).tobytes() for channel in range(3))
        if red == green == blue:
            return "its channels are equal, so save the first of them alone, Image.open(path).getchannel(0)"
        return "replace each color by its class id"
    if mask.mode == "LA":
        return "save it without transparency, Image.open(path).getchannel(0)"
    return "save it as 8-bit grayscale"


def table_of_palette(name: str, values: bytearray, stored: bytes, classes: bytes, palette: Palette) -> bytes:
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
    told = f"value {first} has the color {color_of(stored, first)}, which is another class's"
    if untold := sorted(value for value in used if by_color[value] == UNKNOWN):
        others = ", ".join(f"{value} {color_of(stored, value)}" for value in untold[:3])
        raise UserError(
            f"{name} has a palette that contradicts the dataset's: {told}, but the color of value {others} tells no class: "
            "save it with the dataset's palette, or without one (mode L)"
        )
    say_once(
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
    colors = [color_of(stored, value) for value in range(256)]
    # an ignored value may have any other color
    told = [owners.get(color, {255} if classes[value] == 255 else set()) for value, color in enumerate(colors)]
    agreed = {color for value, color in enumerate(colors) if classes[value] in told[value]}  # the same elsewhere is padding
    by_color = bytes(min(owner) if len(owner) == 1 else UNKNOWN for owner in told)
    ramp = len(stored) > 3 and all(color == (value,) * 3 for value, color in enumerate(colors[: len(stored) // 3]))
    contradicted = {value for value, color in enumerate(colors) if told[value] and color not in agreed and not ramp}
    return by_color, frozenset(contradicted)


def color_of(stored: bytes, value: int) -> tuple[int, ...]:
    """Return a value's red, green and blue in a palette, which may be too short to have any."""
    return tuple(stored[3 * value : 3 * value + 3])


def say_once(topic: bytes, line: str) -> None:
    """Print the first line of a topic to stderr; of the processes that train and load data, the first one only."""
    worker = get_worker_info()
    if topic not in SAID and (worker is None or worker.id == 0) and os.environ.get("LOCAL_RANK", "0") == "0":
        print(line, file=sys.stderr)
    SAID.add(topic)


def values_as(classes: Mapping[int, int]) -> bytes:
    """A table for ``read_mask``: the class id of each value, ``UNKNOWN`` for the values that are not given."""
    return bytes(classes.get(value, UNKNOWN) for value in range(256))


def read_colours(path: Source, classes: Mapping[tuple[int, int, int], int]) -> Tensor:
    """A label file of colours as class ids (H, W): a pixel of colour c becomes ``classes[c]``.

    Raises:
        UserError: The file is damaged, or holds another colour.
    """
    picture = _decode(path, lambda image: as_rgb(image, str(path), upright=False)).long()
    keys = (picture[0] << 16) | (picture[1] << 8) | picture[2]
    found, inverse = keys.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    known = {(r << 16) | (g << 8) | b: value for (r, g, b), value in classes.items()}
    values = [known.get(int(key), UNKNOWN) for key in found]
    if UNKNOWN in values:
        key = int(found[values.index(UNKNOWN)])
        y, x = (keys == key).nonzero()[0].tolist()
        raise UserError(
            f"{path} has the colour {key >> 16, key >> 8 & 255, key & 255} at row {y}, column {x}, which is no class's"
        )
    return torch.tensor(values, dtype=torch.uint8)[inverse]


def _decode(path: Source, use: Callable[[Image.Image], Tensor]) -> Tensor:
    try:
        with unlimited(), path.open("rb") as file, Image.open(file) as image:
            check_pixels(path, image)
            return use(image)
    except UnidentifiedImageError:
        raise UserError(f"{path} cannot be read as an image (no format that Pillow knows): replace the file") from None
    except RecursionError:
        raise
    except DAMAGE as error:
        if raised_here(error):
            raise
        raise explain_unreadable(path, error, "an image") from None


def raised_here(error: BaseException) -> bool:
    """Return whether this package raised an error itself, not a decoder that it called: then it is a mistake of the program."""
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1]).partition(".")[0] == "dilated_seg"


def explain_unreadable(path: Source, error: BaseException, kind: str) -> UserError:
    """Return what to tell the user of a file whose decoder raised one of DAMAGE."""
    if isinstance(error, MemoryError):  # also of small files, whose damaged header claims a large size
        return UserError(
            f"{path} cannot be decoded in the memory that is free: lower data.num_workers, or replace the file if it is small"
        )
    problem = explain_system_error(path, error)
    return problem or UserError(f"{path} cannot be read as {kind} ({format_error(error)}): replace the file")


def check_pixels(path: Source, image: Image.Image) -> None:
    """Refuse an image that would unpack to more pixels than are let in."""
    if image.width * image.height > most_pixels():
        raise UserError(
            f"{path} has {image.height} x {image.width} pixels, more than are let in: if it is meant, set the environment "
            f"variable {MAX_PIXELS}"
        )


@contextmanager
def unlimited() -> Iterator[None]:
    """Pillow without its own limit of pixels, which is refused here and not only warned of, and without its warnings."""
    kept = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = kept


def most_pixels() -> int:
    """How many pixels an image may have: a file of 155 KB can unpack to 160 million."""
    given = os.environ.get(MAX_PIXELS, "200000000")
    if not given.isdigit():
        raise UserError(f"the environment variable {MAX_PIXELS} is '{given}': it should be a number of pixels")
    return int(given)


def header(path: Path) -> tuple[tuple[int, int], int]:
    """Return width and height as the file lies, and how its EXIF turns it: a key of ``TURNS``, or 1."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as opened:
            return opened.size, orientation(opened)
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}): replace the file") from None


def orientation(image: Image.Image) -> int:
    """Return how the EXIF of an image that is not decoded turns it: a key of ``TURNS``, or 1."""
    if image.format == "PNG" and not image.info.keys() & {"exif", "Raw profile type exif", "XML:com.adobe.xmp"}:
        return 1  # Pillow would decode all of it to look for EXIF at its end
    with suppress(Exception):  # damaged EXIF raises whatever it likes
        value = image.getexif().get(ORIENTATION, 1)
        return value if value in TURNS else 1
    return 1


def label_header(path: Path) -> tuple[tuple[int, int], str]:
    """Return width, height and Pillow's mode of a label's file.

    Raises:
        UserError: It cannot be read.
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as opened:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return opened.size, opened.mode
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}): replace the file") from None


def turned(mask: Tensor, image: Source) -> Tensor:
    """A mask that lies as its image's file does, turned upright with it."""
    with unlimited(), image.open("rb") as file, Image.open(file) as opened:
        method = TURNS.get(orientation(opened))
    return mask if method is None else torch.from_numpy(np.array(Image.fromarray(mask.numpy()).transpose(method)))


def mask_picture(ids: np.ndarray, palette: Sequence[tuple[int, int, int]]) -> Image.Image:
    """Class ids (H, W) as a picture with a palette, as VOC's labels are; 255 shows as the off-white of VOC."""
    picture = Image.fromarray(ids.astype(np.uint8))
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette
    colours[255] = VOID
    picture.putpalette(colours.ravel().tolist())  # now it has mode P
    return picture
