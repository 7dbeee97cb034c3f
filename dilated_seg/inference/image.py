"""A trained network on pictures: one from Python here; files, folders and patterns of them in files.py, found by find.py."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from dilated_seg.crf import DenseCRF
from dilated_seg.data.decode import convert_to_rgb, read_image
from dilated_seg.data.masks import paint_mask
from dilated_seg.errors import UserError, format_error
from dilated_seg.inference.strategies import FullImage, Inference, Tiles, predict, predict_logits
from dilated_seg.models.segmenter import Segmenter
from dilated_seg.tensors import predict as best

LARGE = 4_000_000  # pixels; a larger picture is looked at in tiles, unless it is said how


@dataclass(frozen=True)
class Segmentation:
    """What a network says of a picture: ``ids``, the class of each pixel (H, W), of the picture ``image`` (3, H, W)."""

    image: Tensor
    ids: Tensor
    classes: Sequence[str]
    palette: Sequence[tuple[int, int, int]]
    protocol: str  # how the picture was looked at
    probabilities: Tensor | None = None  # (C, H, W), if they were asked for

    def mask(self) -> Image.Image:
        """The class ids as a picture with the dataset's palette."""
        return paint_mask(self.ids.numpy(), self.palette)

    def overlay(self, opacity: float = 0.5) -> Image.Image:
        """The classes' colours over the picture."""
        return Image.blend(Image.fromarray(self.image.permute(1, 2, 0).numpy()), self.mask().convert("RGB"), opacity)

    def shares(self) -> dict[str, float]:
        """The part of the picture that each class takes, largest first, without those that are not there."""
        counts = torch.bincount(self.ids.flatten().long(), minlength=len(self.classes)) / self.ids.numel()
        found = {name: share for name, share in zip(self.classes, counts.tolist(), strict=True) if share}
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        file = io.BytesIO()
        self.overlay().save(file, "png")
        return file.getvalue()


def segment_image(
    model: Segmenter,
    picture: str | Path | Image.Image | Tensor,
    inference: Inference | None = None,
    crf: DenseCRF | None = None,
    probabilities: bool = False,
) -> Segmentation:
    """Segment one picture, on the model's device.

    Args:
        model: From `dilated_seg.inference.load.load`.
        picture: A file of any mode, which is turned upright if its EXIF says so; a Pillow image; or uint8 RGB (3, H, W).
        inference: How to look at it; if None as a whole, or in tiles if it has more than 4 megapixels.
        crf: Refines what the network says.
        probabilities: Whether to give them too; this needs memory for all of them.

    Raises:
        UserError: The picture cannot be read, or the network cannot take it.
    """
    image = read_picture(picture)
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8 or not image.numel():
        raise UserError(f"a picture is uint8 RGB (3, height, width), not {image.dtype} {tuple(image.shape)}")
    inference = inference or (Tiles() if image[0].numel() > LARGE else FullImage())
    protocol = f"{inference}, then {crf}" if crf else str(inference)
    found: Tensor | None = None
    with torch.inference_mode():
        batch = image[None].to(model.mean.device)
        if crf or probabilities:
            found = predict_logits(inference, model, batch).softmax(1)
            found = crf(found, batch) if crf else found
            ids = best(found)[0].to(torch.uint8)
        else:
            ids = predict(inference, model, batch)[0]
    kept = found[0].cpu() if found is not None and probabilities else None
    return Segmentation(image, ids.cpu(), model.classes, model.palette, protocol, kept)


def read_picture(picture: str | Path | Image.Image | Tensor) -> Tensor:
    """A picture from a file or from Pillow as RGB (3, H, W); a tensor as it is."""
    if isinstance(picture, Tensor):
        return picture
    if isinstance(picture, Image.Image):
        try:
            return convert_to_rgb(picture.copy())
        except UserError:
            raise
        except Exception as error:  # every format has its own for damaged files
            raise UserError(f"Pillow cannot read this picture: {format_error(error)}") from error
    if not Path(picture).is_file():
        raise UserError(f"{picture} is no file" if Path(picture).exists() else f"there is no picture {picture}")
    return read_image(Path(picture))
