"""Image and label files: read as they are meant, or refused in one sentence that names the file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from dilated_seg import UserError
from dilated_seg.data.transforms import UNKNOWN

ORIENTATION = 274  # EXIF's tag


def read_image(path: Path) -> Tensor:
    """An image file as uint8 RGB (3, H, W), turned upright if its EXIF says so.

    Raises:
        UserError: The file is damaged or no image.
    """
    return _decode(path, lambda image: ImageOps.exif_transpose(image).convert("RGB"))


def read_mask(path: Path, classes: Tensor) -> Tensor:
    """A label file of one channel, or with a palette, as class ids (H, W): value v becomes ``classes[v]``.

    Args:
        path: The file; colour labels are refused, since their colours are not class ids.
        classes: uint8 (256,): the class id of every value; ``UNKNOWN`` for values that must not occur.

    Raises:
        UserError: The file is damaged, coloured, or holds an unknown value.
    """

    def indices(image: Image.Image) -> Image.Image:
        if image.mode not in ("L", "P"):
            raise UserError(f"{path} has mode {image.mode}, but a label holds one class id a pixel (mode L or P)")
        return image

    values = _decode(path, indices)
    mask = classes[values.long()]
    if (mask == UNKNOWN).any():
        value = int(values[mask == UNKNOWN][0])
        raise UserError(f"{path} holds the value {value}, which is no class of this dataset: correct the label")
    return mask


def _decode(path: Path, convert: Callable[[Image.Image], Image.Image]) -> Tensor:
    try:
        with Image.open(path) as image:
            array = np.array(convert(image))
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path} is gone: it was there when the dataset was opened") from None
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}): replace the file") from None
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)) if array.ndim == 3 else array)


def check_sizes(image: Path, mask: Path) -> None:
    """Compare an image's size with its label's, reading the files' headers only."""
    sizes = []
    for path in (image, mask):
        try:
            with Image.open(path) as opened:
                turned = opened.getexif().get(ORIENTATION, 1) in range(5, 9)  # read_image turns it upright
                sizes.append(opened.size[::-1] if turned else opened.size)
        except OSError as error:
            raise UserError(f"{path} cannot be read as an image ({error}): replace the file") from None
    if sizes[0] != sizes[1]:
        (w1, h1), (w2, h2) = sizes
        raise UserError(f"{image} is {h1} x {w1} and its label {mask} is {h2} x {w2}: they must have one size")
