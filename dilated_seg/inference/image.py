"""Segments one image."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from dilated_seg import tensors
from dilated_seg.crf import DenseCRF
from dilated_seg.data.bands import blend, read_bands, split_bands
from dilated_seg.data.decode import convert_to_rgb, read_image
from dilated_seg.data.masks import paint_mask
from dilated_seg.errors import UserError, format_error
from dilated_seg.inference.strategies import FullImage, Inference, Tiles, predict, predict_logits
from dilated_seg.models.segmenter import Segmenter

LARGE = 4_000_000  # pixels; larger images are segmented in tiles by default


@dataclass(frozen=True)
class Segmentation:
    """The segmentation of an image.

    Args:
        image: The image (C, H, W), 0 to 255: uint8 RGB, or the channels that the network was trained on.
        ids: Class ids, uint8 (H, W).
        classes: Class names.
        palette: A color per class.
        protocol: Inference strategy and CRF.
        probabilities: (C, H, W), if requested.
    """

    image: Tensor
    ids: Tensor
    classes: Sequence[str]
    palette: Sequence[tuple[int, int, int]]
    protocol: str
    probabilities: Tensor | None = None

    def mask(self) -> Image.Image:
        """Return the class ids as an image with the palette."""
        return paint_mask(self.ids.numpy(), self.palette)

    def overlay(self, opacity: float = 0.5) -> Image.Image:
        """Return the classes' colors blended with the image."""
        return blend(self.image, self.mask(), opacity)

    def shares(self) -> dict[str, float]:
        """Return the fraction of pixels of each class that occurs, largest first."""
        counts = torch.bincount(self.ids.flatten().long(), minlength=len(self.classes)) / self.ids.numel()
        shares = {name: share for name, share in zip(self.classes, counts.tolist(), strict=True) if share}
        return dict(sorted(shares.items(), key=lambda item: -item[1]))

    def _repr_png_(self) -> bytes:
        """Return the overlay as a PNG, for notebooks."""
        file = io.BytesIO()
        self.overlay().save(file, "png")
        return file.getvalue()


def segment_image(
    model: Segmenter,
    image: str | Path | Image.Image | Tensor,
    inference: Inference | None = None,
    crf: DenseCRF | None = None,
    probabilities: bool = False,
) -> Segmentation:
    """Segment one image on the model's device.

    Args:
        model: The model that `dilated_seg.inference.load.load` returns.
        image: A file of any mode, to which its EXIF orientation is applied; a Pillow image; or uint8 RGB (3, H, W). Images of a
            network with other channels are read as `data.bands.read_bands` does, or are (C, H, W), 0 to 255, uint8 or float32.
        inference: The strategy; by default FullImage, or Tiles above 4 megapixels.
        crf: Refines the probabilities.
        probabilities: Whether to return the probabilities too, which need memory for all classes.

    Raises:
        UserError: The image cannot be read, or the network cannot process it.
    """
    channels = len(model.mean)
    pixels = open_image(image, channels)
    dtypes, kind = ((torch.uint8,), "uint8 RGB") if channels == 3 else ((torch.uint8, torch.float32), "uint8 or float32")
    if pixels.ndim != 3 or pixels.shape[0] != channels or pixels.dtype not in dtypes or not pixels.numel():
        raise UserError(f"an image must be {kind} ({channels}, height, width), not {pixels.dtype} {tuple(pixels.shape)}")
    inference = inference or (Tiles() if pixels[0].numel() > LARGE else FullImage())
    protocol = f"{inference}, then {crf}" if crf else str(inference)
    result: Tensor | None = None
    with torch.inference_mode():
        batch = pixels[None].to(model.mean.device)
        if crf or probabilities:
            result = predict_logits(inference, model, batch).softmax(1)
            result = crf(result, batch) if crf else result
            ids = tensors.predict(result)[0].to(torch.uint8)
        else:
            ids = predict(inference, model, batch)[0]
    kept = result[0].cpu() if result is not None and probabilities else None
    return Segmentation(pixels, ids.cpu(), model.classes, model.palette, protocol, kept)


def open_image(image: str | Path | Image.Image | Tensor, channels: int = 3) -> Tensor:
    """Return a file or a Pillow image as RGB, uint8 (3, H, W), or with other ``channels`` as stored; a tensor unchanged.

    Raises:
        UserError: The image is missing or damaged.
    """
    if isinstance(image, Tensor):
        return image
    if isinstance(image, Image.Image):
        try:
            return convert_to_rgb(image.copy()) if channels == 3 else split_bands(image.copy())
        except UserError:
            raise
        except Exception as error:  # every format raises its own for damaged files
            raise UserError(f"Pillow cannot read this image: {format_error(error)}") from error
    if not Path(image).is_file():
        raise UserError(f"{image} is not a file" if Path(image).exists() else f"there is no image {image}")
    return read_image(Path(image)) if channels == 3 else read_bands(Path(image), channels)
