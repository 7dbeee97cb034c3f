"""What the headers of image files say, read without decoding the images."""

import warnings
from pathlib import Path

from PIL import Image

from dilated_seg.data.directories import MASK_SUFFIX
from dilated_seg.data.masks import ID_MODES, ReadLabel
from dilated_seg.data.orientation import SIDEWAYS, read_orientation
from dilated_seg.errors import UserError

Size = tuple[int, int]  # width, height
Headers = tuple[Size, int, Size | None]  # an image's size as stored, its orientation, its mask's size


def read_image_header(path: Path) -> tuple[Size, int]:
    """Return an image's width and height as stored, and how its EXIF turns it: a key of ``TURNS``, or 1.

    Raises:
        UserError: It cannot be read.
    """
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            return image.size, read_orientation(image)
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}): replace the file") from None


def read_mask_header(path: Path) -> tuple[Size, str]:
    """Return width, height and Pillow's mode of a mask's file.

    Raises:
        UserError: It cannot be read.
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return image.size, image.mode
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}): replace the file") from None


def read_headers(image: Path, mask: Path | None, read_mask: ReadLabel, modes: dict[str, bool]) -> Headers | str:
    """Return an image's size as stored, its orientation, and its mask's size; or why they cannot be read.

    Args:
        image: The image.
        mask: Its mask.
        read_mask: Reads a mask; whether it takes masks of a mode is tried with the first of that mode.
        modes: Those tried before, and the result; a new one is added.
    """
    try:
        if mask is None or mask.suffix.lower() != MASK_SUFFIX:
            return *read_image_header(image), None  # SBD's masks have no such header: they are compared as they are read
        size, mode = read_mask_header(mask)
        if mode not in modes:
            modes[mode] = mode in ID_MODES
            if not modes[mode]:
                read_mask(mask)
                modes[mode] = True
        if not modes[mode]:
            return f"{mask} has mode {mode}, which is not read as a label of this dataset"
        return *read_image_header(image), size
    except UserError as error:
        return str(error)


def find_size_problem(image: Path, mask: Path | None, headers: Headers | str, as_stored: bool | None = None) -> str | None:
    """Return what is wrong with an image and its mask by their headers, or None.

    Args:
        image: The image, which its EXIF may turn upright.
        mask: Its mask.
        headers: What `read_headers` returned.
        as_stored: Whether the mask should be stored as the image's file, or upright; either is right if None.
    """
    if isinstance(headers, str):
        return headers
    stored, orientation, size = headers
    upright = stored[::-1] if orientation in SIDEWAYS else stored
    if size is None or size in {None: (stored, upright), True: (stored,), False: (upright,)}[as_stored]:
        return None
    (w1, h1), (w2, h2) = stored if as_stored else upright, size
    problem = f"{image} is {h1} x {w1} and its label {mask} is {h2} x {w2}: they must have one size"
    if size in (stored, upright):
        problem += f", where EXIF turns the image and masks are taken to lie {'as stored' if as_stored else 'upright'}"
    return problem
