"""Joint augmentation of image and mask on uint8 tensors; masks are resized by nearest neighbor only."""

from typing import Any

import torch
import torch.nn.functional as F
from torchvision import tv_tensors
from torchvision.transforms import v2

from dilated_seg.errors import UserError

GREY = (124, 117, 104)  # the padding of images: ImageNet's mean, rounded


def mirror_half(image: tv_tensors.Image, mask: tv_tensors.Mask) -> Any:  # noqa: ANN401 - image and mask
    """Mirror image and mask left to right with probability 1/2: the default augmentation."""
    return v2.RandomHorizontalFlip()(image, mask)


class ScaleAndCrop(v2.Compose):  # type: ignore[misc] # torchvision has no types
    """Resize, crop, mirror, rotate and color image and mask at random, in this order; padding is ignored.

    Args:
        crop_size: (height, width) of the crop; None for the whole image.
        scale: Range of the factor, drawn uniformly, by which images are resized before cropping.
        flip: Whether to mirror half of the images left to right.
        rotate: Largest angle in degrees, to either side.
        jitter: Largest relative change of brightness, contrast and saturation.
        ignore_index: Mask value of the padding.
    """

    def __init__(
        self,
        crop_size: tuple[int, int] | None = None,
        scale: tuple[float, float] = (1.0, 1.0),
        flip: bool = True,
        rotate: float = 0.0,
        jitter: float = 0.0,
        ignore_index: int = 255,
    ) -> None:
        if not 0 < scale[0] <= scale[1]:
            raise UserError(f"data.augmentation.scale is {list(scale)}: give two factors above 0, the smaller first")
        if crop_size is not None and min(crop_size) < 1:
            raise UserError(f"data.augmentation.crop_size is {list(crop_size)}: give a height and a width of at least 1")
        steps: list[v2.Transform] = [v2.Identity()]
        if tuple(scale) != (1.0, 1.0) or crop_size is not None:
            steps.append(RandomScaledCrop(scale, crop_size, ignore_index))
        if flip:
            steps.append(v2.RandomHorizontalFlip())
        if rotate:
            fill = {tv_tensors.Image: list(GREY), tv_tensors.Mask: ignore_index}
            steps.append(v2.RandomRotation(rotate, v2.InterpolationMode.BILINEAR, fill=fill))
        if jitter:
            steps.append(v2.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter))
        super().__init__(steps)


class RandomScaledCrop(v2.Transform):  # type: ignore[misc] # torchvision has no types
    """Resize image and mask by a factor drawn uniformly from a range, and crop the result at random.

    Only the part in the crop is resized. A resized image that is smaller than the crop gets a random position in it; the
    padding is gray and ignored. v2.ScaleJitter with v2.RandomCrop would resize the whole image and shift masks by half a pixel.

    Args:
        scale: Range of the factor.
        crop_size: (height, width) of the crop; None for the whole image.
        ignore_index: Mask value of the padding.
    """

    def __init__(self, scale: tuple[float, float], crop_size: tuple[int, int] | None, ignore_index: int) -> None:
        super().__init__()
        self.scale, self.crop_size, self.ignore_index = scale, crop_size, ignore_index

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the part of the image, its new size, and the border."""
        low, high = self.scale
        factor = low + (high - low) * torch.rand(()).item()
        sides = v2.functional.get_size(flat_inputs[0])
        (top, height, h, above, below), (left, width, w, before, after) = (
            draw_side(side, factor, crop) for side, crop in zip(sides, self.crop_size or (None, None), strict=True)
        )
        return {"part": (top, left, height, width), "size": [h, w], "border": [before, above, after, below]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:  # noqa: ANN401 - torchvision's signature
        """Resize an image bilinearly, a mask by the nearest neighbor of each pixel's center.

        torchvision's nearest neighbor is that of the pixel's corner, which shifts masks by up to half a pixel.
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


def draw_side(side: int, factor: float, crop: int | None) -> tuple[int, int, int, int, int]:
    """Draw one side of a crop: its start and length in the image, its new length, and the padding before and after it."""
    if crop is None:
        return 0, side, max(1, round(side * factor)), 0, 0
    wanted = max(1, round(crop / factor))
    length = min(side, wanted)
    start = int(torch.randint(side - length + 1, ()))
    size = crop if length == wanted else min(crop, max(1, round(side * factor)))
    before = int(torch.randint(crop - size + 1, ()))
    return start, length, size, before, crop - size - before
