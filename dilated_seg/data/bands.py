"""Images that are not RGB: gray, or of several channels, of 8 or 16 bits."""

import logging

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dilated_seg.data.decode import (
    DAMAGE,
    Source,
    apply_exif,
    check_pixels,
    decode_image,
    explain_unreadable,
    is_deep,
    is_own_error,
)  # fmt: skip
from dilated_seg.errors import UserError, require_extra

TIFF = (".tif", ".tiff")
SCALE = 257.0  # of 16-bit values, so that images of any depth are 0 to 255


def read_bands(path: Source, channels: int) -> Tensor:
    """Return an image file as it is stored (channels, H, W), 0 to 255: uint8, or float32 of 16 bits, which are divided by 257.

    Pillow reads all files but TIFFs of several channels, for which it has few modes.

    Args:
        path: The file.
        channels: The number of channels that it should have. One whose three channels are equal counts as gray.

    Raises:
        UserError: The file is damaged, has other channels or values, or needs a package that is not installed.
    """
    if channels > 1 and path.suffix.lower() in TIFF:
        bands = read_tiff(path)
    else:
        bands = decode_image(path, lambda image: split_bands(image, str(path)))
    if channels == 1 and len(bands) == 3 and torch.equal(bands[:2], bands[1:]):
        bands = bands[:1]
    if len(bands) != channels:
        raise UserError(f"{path} has {len(bands)} channels, not {channels} as stated (channels in classes.yaml): convert it")
    return bands


def split_bands(image: Image.Image, name: str = "the image") -> Tensor:
    """Return all channels of an image, upright (C, H, W); see `read_bands`."""
    if is_deep(image) and len(image.getbands()) > 1:
        raise UserError(f"{name} has several channels of 16 bits, of which Pillow reads 8: save it as .tif")
    apply_exif(image)
    if image.mode in ("1", "P", "PA"):
        image = image.convert("L" if image.mode == "1" else "RGBA" if "transparency" in image.info else "RGB")
    return scale_bands(np.array(image), name)


def read_tiff(path: Source) -> Tensor:
    """Return all channels of a TIFF (C, H, W), interleaved, one after the other, or one a page; see `read_bands`."""
    require_extra("a .tif of several channels", "tiff", "tifffile", "imagecodecs")
    from tifffile import TiffFile, TiffFileError

    logging.getLogger("tifffile").disabled = True  # of damaged files, which raise too
    try:
        with path.open("rb") as file, TiffFile(file) as tiff:
            check_pixels(path, tiff.pages.first.imagewidth, tiff.pages.first.imagelength)
            values, axes = tiff.series[0].asarray(), tiff.series[0].axes
    except (*DAMAGE, TiffFileError) as error:
        if is_own_error(error):
            raise
        raise explain_unreadable(path, error, "an image") from None
    other = [number for number, axis in enumerate(axes) if axis not in "YX"]
    if values.ndim - len(other) != 2 or len(other) > 1:
        raise UserError(f"{path} has the axes {axes}: save it with height, width and channels")
    return scale_bands(np.moveaxis(values, other[0], -1) if other else values, str(path))


def scale_bands(values: np.ndarray, name: str) -> Tensor:
    """Return an array (H, W) or (H, W, C) as a tensor (C, H, W); raise UserError unless its values have 8 or 16 bits."""
    if values.dtype != np.uint8:
        low, high = (values.min(), values.max()) if values.size else (0, 0)
        if values.dtype.kind not in "iu" or low < 0 or high > 65535:
            raise UserError(f"{name} has {values.dtype} values from {low} to {high}: convert it to 8 or 16 bits")
        values = values.astype(np.float32) / np.float32(SCALE)
    return torch.from_numpy(np.ascontiguousarray(np.atleast_3d(values))).permute(2, 0, 1)


def read_tiff_size(path: Source) -> tuple[int, int]:
    """Return width and height of a TIFF that Pillow does not know; raise UserError if tifffile does not either."""
    require_extra("a .tif of several channels", "tiff", "tifffile", "imagecodecs")
    from tifffile import TiffFile, TiffFileError

    try:
        with path.open("rb") as file, TiffFile(file) as tiff:
            return int(tiff.pages.first.imagewidth), int(tiff.pages.first.imagelength)
    except (*DAMAGE, TiffFileError) as error:
        raise explain_unreadable(path, error, "an image") from None


def show_rgb(image: Tensor) -> Tensor:
    """Return an image (C, H, W) as uint8 RGB (3, H, W) to be looked at: its first three channels, or the first one as gray.

    Values of 16 bits are divided by the largest.
    """
    if image.dtype != torch.uint8:
        image = (image * (255 / image.max().clamp(min=1e-6))).round().to(torch.uint8)
    return image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)


def blend(image: Tensor, mask: Image.Image, opacity: float = 0.5) -> Image.Image:
    """Return an image (C, H, W) blended with the colors of its mask."""
    return Image.blend(Image.fromarray(show_rgb(image).permute(1, 2, 0).numpy()), mask.convert("RGB"), opacity)
