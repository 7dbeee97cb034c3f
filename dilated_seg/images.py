"""One image or label: read as it is meant or refused in one sentence that names the file; class ids written as a picture."""

import io
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from dilated_seg import UserError

UNKNOWN = 254  # stands in a table of class ids for label values that must not occur

ORIENTATION = 274  # EXIF's tag, and what it asks for where it exchanges height and width
TURNS = {
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip

MAX_PIXELS = "DILATED_SEG_MAX_PIXELS"


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
ReadLabel = Callable[[Source], Tensor]


def read_image(path: Source) -> Tensor:
    """An image file of any mode as uint8 RGB (3, H, W), turned upright if its EXIF says so; 16 bits are scaled to 8.

    The tensor's values lie pixel by pixel, as they come out of the file: cutting a crop out of it costs nothing.

    Raises:
        UserError: The file is damaged, no image, or larger than anything that is let in.
    """
    return _decode(path, as_rgb)


def as_rgb(image: Image.Image) -> Tensor:
    """Upright, in RGB; copied only where that changes something. 16 bits are scaled: Pillow itself would saturate them."""
    with suppress(Exception):  # damaged EXIF raises whatever it likes: then the picture lies as it lies
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":  # from 0 to 1, or to 255
        values = np.nan_to_num(np.asarray(image))
        image = Image.fromarray((values * (255 if values.max() <= 1 else 1)).clip(0, 255).astype(np.uint8))
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.int64) * 255 // 65535).clip(0, 255).astype(np.uint8))
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return as_bytes(bytearray(rgb.tobytes()), rgb.height, rgb.width, 3).permute(2, 0, 1)


def as_bytes(content: bytearray, *shape: int) -> Tensor:
    """Pillow's bytes as a tensor."""
    return torch.frombuffer(content, dtype=torch.uint8).view(shape)


def read_mask(path: Source, classes: bytes) -> Tensor:
    """A label file of one channel, or with a palette, as class ids (H, W): value v becomes ``classes[v]``.

    Args:
        path: The file; colour labels are refused, since their colours are not class ids.
        classes: The class id of each of the 256 values; ``UNKNOWN`` for values that must not occur.

    Raises:
        UserError: The file is damaged, coloured, or holds an unknown value.
    """

    def indices(image: Image.Image) -> Tensor:
        if image.mode not in ("L", "P"):
            raise UserError(f"{path} has mode {image.mode}, but a label holds one class id a pixel (mode L or P)")
        values = bytearray(image.tobytes())
        ids = values.translate(classes)
        if (first := ids.find(UNKNOWN)) >= 0:
            y, x = divmod(first, image.width)
            raise UserError(f"{path} holds the value {values[first]} at row {y}, column {x}, which is no class of this dataset")
        return as_bytes(ids, image.height, image.width)

    return _decode(path, indices)


def values_as(classes: Mapping[int, int]) -> bytes:
    """A table for ``read_mask``: the class id of each value, ``UNKNOWN`` for the values that are not given."""
    return bytes(classes.get(value, UNKNOWN) for value in range(256))


def read_colours(path: Source, classes: Mapping[tuple[int, int, int], int]) -> Tensor:
    """A label file of colours as class ids (H, W): a pixel of colour c becomes ``classes[c]``.

    Raises:
        UserError: The file is damaged, or holds another colour.
    """
    picture = _decode(path, as_rgb).long()
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
            if image.width * image.height > most_pixels():
                raise UserError(
                    f"{path} has {image.height} x {image.width} pixels, more than are let in: if it is meant, set the "
                    f"environment variable {MAX_PIXELS}"
                )
            return use(image)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path} is gone: it was there when the dataset was opened") from None
    except UnidentifiedImageError:
        raise UserError(f"{path} cannot be read as an image (it begins as none that Pillow knows): replace the file") from None
    except MemoryError:
        raise UserError(f"{path} cannot be read as an image (it says it is larger than the memory): replace the file") from None
    except Exception as error:  # every format has its own for damaged files
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read as an image ({said}): replace the file") from None


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


def header(path: Path) -> tuple[tuple[int, int], bool]:
    """Width and height as the file lies, and whether its EXIF turns it on its side."""
    try:
        with warnings.catch_warnings(), Image.open(path) as opened:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            # of a PNG, Pillow would decode all of it to look for EXIF at its end
            exif = opened.getexif() if opened.format == "JPEG" or "exif" in opened.info else {}
            return opened.size, exif.get(ORIENTATION, 1) in TURNS
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}): replace the file") from None


def turned(mask: Tensor, image: Source) -> Tensor:
    """A mask that lies as its image's file does, turned upright with it."""
    with image.open("rb") as file, Image.open(file) as opened:
        method = TURNS.get(opened.getexif().get(ORIENTATION, 1))
    return mask if method is None else torch.from_numpy(np.array(Image.fromarray(mask.numpy()).transpose(method)))


def mask_picture(ids: np.ndarray, palette: Sequence[tuple[int, int, int]]) -> Image.Image:
    """Class ids (H, W) as a picture with a palette, as VOC's labels are; 255 shows as the off-white of VOC."""
    picture = Image.fromarray(ids.astype(np.uint8))
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette
    colours[255] = (224, 224, 192)
    picture.putpalette(colours.ravel().tolist())  # now it has mode P
    return picture
