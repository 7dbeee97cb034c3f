"""How EXIF turns an image, and whether the masks of a dataset are stored upright or as the files of their images."""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dilated_seg.data.decode import Source, unlimited
from dilated_seg.errors import UserError

# EXIF's tag of how to turn an image, and what each value asks for; the last four exchange height and width.
ORIENTATION = 274
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
SIDEWAYS = (5, 6, 7, 8)


def read_orientation(image: Image.Image) -> int:
    """Return how the EXIF of an image that is not decoded turns it: a key of ``TURNS``, or 1."""
    if image.format == "PNG" and not image.info.keys() & {"exif", "Raw profile type exif", "XML:com.adobe.xmp"}:
        return 1  # Pillow would decode all of it to look for EXIF at its end
    with suppress(Exception):  # damaged EXIF raises any error
        value = image.getexif().get(ORIENTATION, 1)
        return value if value in TURNS else 1
    return 1


def apply_exif_orientation(mask: Tensor, image: Source) -> Tensor:
    """Return a mask (H, W) that is stored as its image's file, turned upright as the image is."""
    with unlimited(), image.open("rb") as file, Image.open(file) as header:
        method = TURNS.get(read_orientation(header))
    return mask if method is None else torch.from_numpy(np.array(Image.fromarray(mask.numpy()).transpose(method)))


@dataclass
class TurnedImages:
    """Images that EXIF turns.

    Args:
        upright: The first image whose mask can only be upright, by its size.
        as_stored: The first image whose mask can only be as the file.
        untold: Images whose masks have a size that tells neither.
    """

    upright: Path | None = None
    as_stored: Path | None = None
    untold: list[Path] = field(default_factory=list)

    def add(self, image: Path, size: tuple[int, int], orientation: int, mask_size: tuple[int, int] | None) -> None:
        """Add an image by its size as stored, its orientation, and its mask's size."""
        if orientation not in SIDEWAYS or size[0] == size[1] or mask_size is None:
            self.untold.append(image)
        elif mask_size == size:
            self.as_stored = self.as_stored or image
        elif mask_size == size[::-1]:
            self.upright = self.upright or image

    def __bool__(self) -> bool:
        return bool(self.upright or self.as_stored or self.untold)


def find_mask_orientation(splits: list[TurnedImages]) -> bool | None:
    """Return whether the masks of a dataset are stored as the files of their images, or None if no size tells.

    An image that EXIF turns on its side and that is not square tells it by its mask's size.

    Args:
        splits: The images of each split that EXIF turns.

    Raises:
        UserError: Some masks are as stored and others are upright.
    """
    upright = as_stored = None
    for images in splits:
        upright, as_stored = upright or images.upright, as_stored or images.as_stored
        if upright and as_stored:
            raise UserError(
                f"EXIF turns {upright}, whose mask is upright, and {as_stored}, whose mask lies as the file does: turn one "
                "of the two masks, since all masks of a dataset must lie in one way"
            )
    return bool(as_stored) if upright or as_stored else None
