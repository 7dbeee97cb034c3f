"""Sizes, modes and orientations of image files, read from their headers without decoding."""

import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from dilated_seg.data.bands import TIFF, read_tiff_size
from dilated_seg.data.directories import MASK_SUFFIXES
from dilated_seg.data.masks import ID_MODES, MaskReader
from dilated_seg.data.orientation import SIDEWAYS, read_orientation
from dilated_seg.errors import UserError

Size = tuple[int, int]  # width, height
Headers = tuple[Size, int, Size | None]  # an image's size as stored, its orientation, its mask's size


def read_header(path: Path, in_channels: int = 3) -> tuple[Size, str, int]:
    """Return an image file's width and height as stored, its mode in Pillow, and its EXIF orientation, 1 if it has none.

    A TIFF that Pillow does not know, as there are with other ``in_channels`` than 3, has no mode.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            return image.size, image.mode, read_orientation(image)
    except (OSError, Image.DecompressionBombError) as error:
        tiff = isinstance(error, UnidentifiedImageError) and path.suffix.lower() in TIFF
        if tiff and in_channels != 3:
            return read_tiff_size(path), "", 1
        remedy = ", or state its channels, such as channels: 4 in classes.yaml" if tiff else ""
        raise UserError(f"{path} cannot be read as an image ({error}): replace the file{remedy}") from None


def read_headers(
    image: Path, mask: Path | None, mask_reader: MaskReader, modes: dict[str, bool], in_channels: int = 3
) -> Headers | str:
    """Return an image's size as stored, its orientation, and its mask's size; or why they cannot be read.

    ``mask_reader`` is tried with the first mask of each mode; ``modes`` stores whether it accepts the mode.
    """
    try:
        size, _, orientation = read_header(image, in_channels)
        if mask is None or mask.suffix.lower() not in MASK_SUFFIXES:  # SBD's masks have no such header
            return size, orientation, None
        mask_size, mode, _ = read_header(mask)
        if mode not in modes:
            modes[mode] = mode in ID_MODES
            if not modes[mode]:
                mask_reader(mask)
                modes[mode] = True
        if not modes[mode]:
            return f"{mask} has mode {mode}, which is not a mode of this dataset's masks: convert it"
        return size, orientation, mask_size
    except UserError as error:
        return str(error)


def find_size_problem(image: Path, mask: Path | None, headers: Headers | str, as_stored: bool | None = None) -> str | None:
    """Return the problem of an image and its mask according to their headers, or None.

    ``as_stored`` tells whether the mask must have the size of the image as stored, or else upright; None accepts both.
    """
    if isinstance(headers, str):
        return headers
    stored, orientation, size = headers
    upright = stored[::-1] if orientation in SIDEWAYS else stored
    if size is None or size in {None: (stored, upright), True: (stored,), False: (upright,)}[as_stored]:
        return None
    (w1, h1), (w2, h2) = stored if as_stored else upright, size
    problem = f"{image} is {h1} x {w1} and its mask {mask} is {h2} x {w2}: they must have one size"
    if size in (stored, upright):
        problem += f" after EXIF turns the image, where masks are {'as stored' if as_stored else 'upright'}"
    return problem
