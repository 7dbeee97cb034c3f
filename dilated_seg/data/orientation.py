"""EXIF orientation of images, and whether a dataset's masks are stored upright or as the files of their images."""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from dilated_seg.data.decode import Source, lift_pixel_limit
from dilated_seg.errors import UserError

# EXIF's tag of the orientation, and the transposition that each value but 1 needs; the last four exchange height and width.
ORIENTATION = 274
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
SIDEWAYS = (5, 6, 7, 8)


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image that is not decoded: a key of ``TURNS``, or 1."""
    if image.format == "PNG" and not image.info.keys() & {"exif", "Raw profile type exif", "XML:com.adobe.xmp"}:
        return 1  # Pillow would decode all of it to search for EXIF at its end
    with suppress(Exception):  # damaged EXIF raises any error
        value = image.getexif().get(ORIENTATION, 1)
        return value if value in TURNS else 1
    return 1


def apply_exif_orientation(mask: Tensor, image: Source) -> Tensor:
    """Return a mask (H, W) that is stored as its image's file, transposed as the image's EXIF demands."""
    method = None
    with suppress(UnidentifiedImageError), lift_pixel_limit(), image.open("rb") as file, Image.open(file) as header:
        method = TURNS.get(read_orientation(header))
    return mask if method is None else torch.from_numpy(np.array(Image.fromarray(mask.numpy()).transpose(method)))


@dataclass
class TurnedImages:
    """The images of a split that EXIF rotates, by the orientation of the masks that the sizes imply.

    Args:
        upright: The first image whose mask is upright.
        as_stored: The first image whose mask is stored like the image's file.
        unknown: Images whose mask has the right size in both cases.
    """

    upright: Path | None = None
    as_stored: Path | None = None
    unknown: list[Path] = field(default_factory=list)

    def add(self, image: Path, size: tuple[int, int], orientation: int, mask_size: tuple[int, int] | None) -> None:
        """Add an image by its size as stored, its orientation, and its mask's size."""
        if orientation not in SIDEWAYS or size[0] == size[1] or mask_size is None:
            self.unknown.append(image)
        elif mask_size == size:
            self.as_stored = self.as_stored or image
        elif mask_size == size[::-1]:
            self.upright = self.upright or image

    def __bool__(self) -> bool:
        return bool(self.upright or self.as_stored or self.unknown)


def find_mask_orientation(splits: list[TurnedImages]) -> bool | None:
    """Return whether a dataset's masks are stored as the files of their images, or None if the sizes allow both.

    Raises:
        UserError: Some masks are as stored and others are upright.
    """
    upright = next((images.upright for images in splits if images.upright), None)
    as_stored = next((images.as_stored for images in splits if images.as_stored), None)
    if upright and as_stored:
        raise UserError(
            f"EXIF turns {upright}, whose mask is upright, and {as_stored}, whose mask is as stored: turn one of the masks, "
            "so that all are stored in one way"
        )
    return bool(as_stored) if upright or as_stored else None
