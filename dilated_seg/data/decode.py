"""Decoding of one image file; a damaged one is refused in a sentence that names it."""

import io
import os
import struct
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from dilated_seg.errors import UserError, explain_system_error, format_error

# Colors of 16 bits whose brightest value is below this, of 255, have most likely another range: 12 bits (0 to 4095).
DARK = 16
TO_8_BITS = "convert the image to 8 bits (16-bit values / 257, 12-bit values x 255 / 4095)"

MAX_PIXELS = "DILATED_SEG_MAX_PIXELS"

# What decoders raise for damaged files. ImportError, RecursionError and errors of other packages have other causes.
DAMAGE = (
    OSError, SyntaxError, EOFError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError,
    MemoryError, RuntimeError, SystemError, BufferError, UnboundLocalError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A file whose content is in a shard: it reads as the file did, and is named by the shard and its own name."""

    shard: str
    name: str
    content: bytes

    def __str__(self) -> str:
        return f"{self.name} (in {self.shard})"

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    def open(self, mode: str = "rb") -> io.BytesIO:
        """Open the content like a file."""
        return io.BytesIO(self.content)


Source = Path | Stored


def read_image(path: Source) -> Tensor:
    """Return an image file as uint8 RGB (3, H, W), turned upright as its EXIF says.

    The tensor's values are in memory pixel by pixel, as they come out of the file: cutting a crop out of it costs nothing.

    Raises:
        UserError: The file is damaged, no image, larger than ``DILATED_SEG_MAX_PIXELS``, or has more than 8 bits a channel.
    """
    return decode_image(path, lambda image: as_rgb(image, str(path)))


def as_rgb(image: Image.Image, name: str = "the image", upright: bool = True) -> Tensor:
    """Return an image as uint8 RGB (3, H, W); copied only where that changes something.

    Args:
        image: The image, decoded or not.
        name: What messages call it.
        upright: Whether to turn it as its EXIF says.

    Raises:
        UserError: The image has more than 8 bits a channel, of a range that Pillow does not scale to 8 bits.
    """
    deep = any(";16" in str(args) for *_, args in getattr(image, "tile", ()))  # Pillow drops the lower 8 of 16 bits of colors
    with suppress(Exception):  # damaged EXIF raises any error: then the image stays as it is stored
        if upright:
            ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F" or image.mode.startswith("I"):
        raise UserError(f"{name} has mode {image.mode}, more than 8 bits a pixel: {TO_8_BITS}")
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    content = bytearray(rgb.tobytes())
    if deep and 0 < (highest := max(content)) < DARK:
        raise UserError(f"{name} holds 16-bit values up to about {256 * highest:,}, which is nearly black: {TO_8_BITS}")
    return as_bytes(content, rgb.height, rgb.width, 3).permute(2, 0, 1)


def as_bytes(content: bytearray, *shape: int) -> Tensor:
    """Return Pillow's bytes as a tensor."""
    return torch.frombuffer(content, dtype=torch.uint8).view(shape)


def decode_image(path: Source, use: Callable[[Image.Image], Tensor]) -> Tensor:
    """Open an image file and return what ``use`` makes of it.

    Raises:
        UserError: The file is damaged, no image, or larger than ``DILATED_SEG_MAX_PIXELS``.
    """
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
    """Check the size of an image before it is decoded.

    Raises:
        UserError: It has more pixels than ``DILATED_SEG_MAX_PIXELS``.
    """
    if image.width * image.height > get_max_pixels():
        raise UserError(
            f"{path} has {image.height} x {image.width} pixels, more than are let in: if it is meant, set the environment "
            f"variable {MAX_PIXELS}"
        )


@contextmanager
def unlimited() -> Iterator[None]:
    """Lift Pillow's own limit of pixels, of which it only warns; `check_pixels` refuses."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def get_max_pixels() -> int:
    """Return how many pixels an image may have: a file of 155 KB can unpack to 160 million."""
    text = os.environ.get(MAX_PIXELS, "200000000")
    if not text.isdigit():
        raise UserError(f"the environment variable {MAX_PIXELS} is '{text}': it should be a number of pixels")
    return int(text)
