"""Decode image files; a UserError names a file that is damaged or not supported."""

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
from typing import TypeVar

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from dilated_seg.errors import UserError, explain_system_error, format_error

# 16-bit RGB files whose highest value is below this (of 255) most likely hold 12-bit values (0 to 4095).
MIN_BRIGHTNESS = 16
TO_8_BITS = "convert the image to 8 bits (16-bit values / 257, 12-bit values x 255 / 4095)"

MAX_PIXELS = "DILATED_SEG_MAX_PIXELS"  # environment variable

# What decoders raise for damaged files. ImportError and RecursionError, for example, have other causes.
DAMAGE = (
    OSError, SyntaxError, EOFError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError,
    MemoryError, RuntimeError, SystemError, BufferError, UnboundLocalError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A file whose content is in a shard; messages name the file and the shard."""

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
T = TypeVar("T")


def read_image(path: Source) -> Tensor:
    """Return an image file as uint8 RGB (3, H, W) with its EXIF orientation applied.

    In memory the tensor is (H, W, 3), as decoded, so that a crop is a view of contiguous rows.

    Raises:
        UserError: The file is damaged, no image, larger than ``DILATED_SEG_MAX_PIXELS``, or has more than 8 bits a channel.
    """
    return decode_image(path, lambda image: convert_to_rgb(image, str(path)))


def convert_to_rgb(image: Image.Image, name: str = "the image", upright: bool = True) -> Tensor:
    """Return an image as uint8 RGB (3, H, W).

    Args:
        image: The image, decoded or not.
        name: The image's name in messages.
        upright: Whether to apply its EXIF orientation.

    Raises:
        UserError: The image has more than 8 bits per channel, of a range that Pillow does not scale to 8 bits.
    """
    deep = is_deep(image)
    if upright:
        apply_exif(image)
    if image.mode == "F" or image.mode.startswith("I"):
        raise UserError(f"{name} has mode {image.mode}, more than 8 bits a pixel: {TO_8_BITS}")
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    content = bytearray(rgb.tobytes())
    if deep and 0 < (highest := max(content)) < MIN_BRIGHTNESS:
        raise UserError(f"{name} holds 16-bit values up to about {256 * highest:,}, which is nearly black: {TO_8_BITS}")
    return make_tensor(content, rgb.height, rgb.width, 3).permute(2, 0, 1)


def is_deep(image: Image.Image) -> bool:
    """Return whether an image that is not decoded yet has 16 bits a channel; Pillow drops the lower 8 of colors."""
    return any(";16" in str(args) for *_, args in getattr(image, "tile", ()))


def apply_exif(image: Image.Image) -> None:
    """Turn an image upright, as its EXIF says; if that is damaged, the image stays as stored."""
    with suppress(Exception):  # damaged EXIF raises any error
        ImageOps.exif_transpose(image, in_place=True)


def make_tensor(content: bytearray, *shape: int) -> Tensor:
    """Return Pillow's bytes as a tensor."""
    return torch.frombuffer(content, dtype=torch.uint8).view(shape)


def decode_image(path: Source, use: Callable[[Image.Image], T]) -> T:
    """Open an image file and return ``use(image)``.

    Raises:
        UserError: The file is damaged, no image, or larger than ``DILATED_SEG_MAX_PIXELS``.
    """
    try:
        with lift_pixel_limit(), path.open("rb") as file, Image.open(file) as image:
            check_pixels(path, image.width, image.height)
            return use(image)
    except UnidentifiedImageError:
        raise UserError(f"{path} cannot be read as an image (no format that Pillow knows): replace the file") from None
    except RecursionError:
        raise
    except DAMAGE as error:
        if is_own_error(error):
            raise
        raise explain_unreadable(path, error, "an image") from None


def is_own_error(error: BaseException) -> bool:
    """Return whether an error was raised in this package, so that it is a bug, and not in a decoder."""
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1]).partition(".")[0] == "dilated_seg"


def explain_unreadable(path: Source, error: BaseException, kind: str) -> UserError:
    """Return the UserError for a file whose decoder raised one of DAMAGE."""
    if isinstance(error, MemoryError):  # also for small files whose damaged header states a large size
        return UserError(
            f"{path} cannot be decoded in the memory that is free: lower data.num_workers, or replace the file if it is small"
        )
    problem = explain_system_error(path, error)
    return problem or UserError(f"{path} cannot be read as {kind} ({format_error(error)}): replace the file")


def check_pixels(path: Source, width: int, height: int) -> None:
    """Raise UserError if an image that is not decoded yet has more pixels than ``DILATED_SEG_MAX_PIXELS``."""
    if width * height > get_max_pixels():
        raise UserError(
            f"{path} has {height} x {width} pixels, more than the limit: if that is intended, set the environment "
            f"variable {MAX_PIXELS}"
        )


@contextmanager
def lift_pixel_limit() -> Iterator[None]:
    """Disable Pillow's limit of pixels and its warnings; `check_pixels` has our limit."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def get_max_pixels() -> int:
    """Return the number of pixels that an image may have; a file of 155 KB can unpack to 160 million."""
    text = os.environ.get(MAX_PIXELS, "200000000")
    if not text.isdigit():
        raise UserError(f"the environment variable {MAX_PIXELS} is '{text}': set it to a number of pixels")
    return int(text)
