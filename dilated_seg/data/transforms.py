"""Joint transforms of image and mask, on uint8 tensors: a mask only ever moves, or is resized by nearest neighbour."""

from typing import Any

import torch
import torch.nn.functional as F
from torchvision import tv_tensors
from torchvision.transforms import v2

GREY = (124, 117, 104)  # ImageNet's mean, rounded: what is put around an image


class ScaleAndCrop(v2.Transform):  # type: ignore[misc] # torchvision has no types
    """Resize image and mask by one factor drawn uniformly from a range, and take a crop of the result at random.

    Only what will be in the crop is resized. Where the resized image is smaller than the crop, it lies anywhere in it, and
    what is around it is grey and ignored.

    Args:
        scale: The range of the factor.
        crop_size: (height, width) of the crop; None for all of the image.
        ignore_index: The mask's value around the image.
    """

    def __init__(self, scale: tuple[float, float], crop_size: tuple[int, int] | None, ignore_index: int) -> None:
        super().__init__()
        self.scale, self.crop_size, self.ignore_index = scale, crop_size, ignore_index

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The part to take, its new size, and what to put around it, for this call."""
        low, high = self.scale
        factor = low + (high - low) * torch.rand(()).item()
        sides = v2.functional.get_size(flat_inputs[0])
        (top, height, h, above, below), (left, width, w, before, after) = (
            cut(side, factor, crop) for side, crop in zip(sides, self.crop_size or (None, None), strict=True)
        )
        return {"part": (top, left, height, width), "size": [h, w], "border": [before, above, after, below]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:  # noqa: ANN401 - torchvision's signature
        """Bilinear for an image; for a mask the nearest neighbour of each pixel's centre.

        torchvision's own nearest neighbour takes the pixel's corner: the labels would sit up to half a pixel to one side.
        """
        part = v2.functional.crop(inpt, *params["part"])
        mask = isinstance(inpt, tv_tensors.Mask)
        if list(part.shape[-2:]) != params["size"]:
            if mask:
                part = tv_tensors.Mask(F.interpolate(part[None, None], params["size"], mode="nearest-exact")[0, 0])
            elif params["size"] == [1, 1]:  # torch 2.15's kernel for bytes fails on one pixel
                part = tv_tensors.Image(part.float().mean((-2, -1), keepdim=True).round().to(torch.uint8))
            else:
                part = v2.functional.resize(part, params["size"], antialias=True)
        if not any(params["border"]):
            return part
        return v2.functional.pad(part, params["border"], fill=self.ignore_index if mask else list(GREY))


def cut(side: int, factor: float, crop: int | None) -> tuple[int, int, int, int, int]:
    """One side of a crop: where it begins and how long it is in the image, its new length, and what is added at both ends."""
    if crop is None:
        return 0, side, max(1, round(side * factor)), 0, 0
    wanted = max(1, round(crop / factor))
    taken = min(side, wanted)
    start = int(torch.randint(side - taken + 1, ()))
    size = crop if taken == wanted else min(crop, max(1, round(side * factor)))
    before = int(torch.randint(crop - size + 1, ()))
    return start, taken, size, before, crop - size - before


def training(
    crop_size: tuple[int, int] | None,
    scale: tuple[float, float],
    flip: bool,
    jitter: float,
    ignore_index: int,
    rotate: float = 0.0,
) -> v2.Compose:
    """Random scale, crop, mirror, turn and colour; what comes in around an image is grey and ignored."""
    steps: list[v2.Transform] = [v2.Identity()]
    if tuple(scale) != (1.0, 1.0) or crop_size is not None:
        steps.append(ScaleAndCrop(scale, crop_size, ignore_index))
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    if rotate:
        fill = {tv_tensors.Image: list(GREY), tv_tensors.Mask: ignore_index}
        steps.append(v2.RandomRotation(rotate, v2.InterpolationMode.BILINEAR, fill=fill))
    if jitter:
        steps.append(v2.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter))
    return v2.Compose(steps)
