"""Joint augmentation of image and mask on uint8 tensors; masks are resized by nearest neighbor only."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from dilated_seg.errors import UserError

DRAWS = 10  # of a crop in which one class has too large a part
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
        jitter: Largest relative change of brightness, contrast and, of RGB images, saturation.
        cat_max_ratio: A crop is drawn again, at most ten times, while one class has at least this share of its labelled
            pixels; 1 accepts every crop. MMSegmentation uses 0.75.
        rare_classes: Ids of the classes of ``rare_share``.
        rare_share: Share of the crops of an image with rare classes that are drawn around a pixel of one of them.
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
        cat_max_ratio: float = 1.0,
        rare_classes: Sequence[int] = (),
        rare_share: float = 0.5,
    ) -> None:
        for name, value in (("cat_max_ratio", cat_max_ratio), ("rare_share", rare_share)):
            if not 0 < value <= 1:
                raise UserError(f"data.augmentation.{name} is {value:g}: give a number above 0 and at most 1")
        if crop_size is None and (cat_max_ratio < 1 or rare_classes):
            raise UserError("data.augmentation: cat_max_ratio and rare_classes choose crops, so set crop_size too")
        if not 0 < scale[0] <= scale[1]:
            raise UserError(f"data.augmentation.scale is {list(scale)}: give two factors above 0, the smaller first")
        if crop_size is not None and min(crop_size) < 1:
            raise UserError(f"data.augmentation.crop_size is {list(crop_size)}: give a height and a width of at least 1")
        steps: list[v2.Transform] = [v2.Identity()]
        if tuple(scale) != (1.0, 1.0) or crop_size is not None:
            choice = cat_max_ratio, tuple(rare_classes), rare_share
            steps.append(RandomScaledCrop(scale, crop_size, ignore_index, *choice))
        if flip:
            steps.append(v2.RandomHorizontalFlip())
        if rotate:
            steps.append(Rotation(rotate, ignore_index))
        if jitter:
            steps.append(Jitter(brightness=jitter, contrast=jitter, saturation=jitter))
        super().__init__(steps)


class Rotation(v2.RandomRotation):  # type: ignore[misc] # torchvision has no types
    """Rotate image and mask by an angle drawn uniformly; what comes in from outside is padding.

    Args:
        degrees: The largest angle, to either side.
        ignore_index: Mask value of the padding.
    """

    def __init__(self, degrees: float, ignore_index: int) -> None:
        super().__init__(degrees)
        self.ignore_index = ignore_index

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:  # noqa: ANN401 - torchvision's signature
        """Interpolate an image bilinearly, a mask by the nearest neighbor."""
        fill = self.ignore_index if isinstance(inpt, tv_tensors.Mask) else find_fill(inpt)
        return v2.functional.rotate(inpt, **params, interpolation=v2.InterpolationMode.BILINEAR, fill=fill)


class Jitter(v2.ColorJitter):  # type: ignore[misc] # torchvision has no types
    """torchvision's jitter of color for RGB; of other images, brightness and contrast of all channels together."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:  # noqa: ANN401 - torchvision's signature
        """Change an image by factors of brightness and contrast, and of saturation if it is RGB."""
        if isinstance(inpt, tv_tensors.Mask) or inpt.shape[-3] == 3:
            return super().transform(inpt, params)
        pixels = inpt.float() * params["brightness_factor"]
        pixels = pixels.mean() + params["contrast_factor"] * (pixels - pixels.mean())
        pixels = pixels.clamp(0, 255)
        return tv_tensors.Image(pixels.round().to(torch.uint8) if inpt.dtype == torch.uint8 else pixels)


def find_fill(image: Tensor) -> list[float]:
    """Return the padding of an image: `GREY` for RGB, otherwise the mean of each of its channels."""
    if len(image) == 3:
        return list(GREY)
    means = image.float().mean((-2, -1))
    return (means.round() if image.dtype == torch.uint8 else means).tolist()


class RandomScaledCrop(v2.Transform):  # type: ignore[misc] # torchvision has no types
    """Resize image and mask by a factor drawn uniformly from a range, and crop the result at random.

    Only the part in the crop is resized. A resized image that is smaller than the crop gets a random position in it; the
    padding is gray (see `find_fill`) and ignored. v2.ScaleJitter with v2.RandomCrop would resize the whole image and shift
    masks by half a pixel.

    Args:
        scale: Range of the factor.
        crop_size: (height, width) of the crop; None for the whole image.
        ignore_index: Mask value of the padding.
        cat_max_ratio: See ScaleAndCrop.
        rare_classes: See ScaleAndCrop.
        rare_share: See ScaleAndCrop.
    """

    def __init__(
        self,
        scale: tuple[float, float],
        crop_size: tuple[int, int] | None,
        ignore_index: int,
        cat_max_ratio: float = 1.0,
        rare_classes: tuple[int, ...] = (),
        rare_share: float = 0.5,
    ) -> None:
        super().__init__()
        self.scale, self.crop_size, self.ignore_index = scale, crop_size, ignore_index
        self.cat_max_ratio, self.rare_classes, self.rare_share = cat_max_ratio, rare_classes, rare_share

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the part of the image, its new size, and the border."""
        low, high = self.scale
        mask = next((value for value in flat_inputs if isinstance(value, tv_tensors.Mask)), None)
        point = self.draw_rare_pixel(mask) if self.rare_classes and mask is not None else None
        params: dict[str, Any] = {}
        for _ in range(DRAWS if self.cat_max_ratio < 1 else 1):
            factor = low + (high - low) * torch.rand(()).item()
            sides = v2.functional.get_size(flat_inputs[0])
            (top, height, h, above, below), (left, width, w, before, after) = (
                draw_side(side, factor, crop, pixel)
                for side, crop, pixel in zip(sides, self.crop_size or (None, None), point or (None, None), strict=True)
            )
            params = {"part": (top, left, height, width), "size": [h, w], "border": [before, above, after, below]}
            if self.cat_max_ratio == 1 or mask is None or self.is_mixed(v2.functional.crop(mask, *params["part"])):
                break
        return params

    def draw_rare_pixel(self, mask: Tensor) -> tuple[int, int] | None:
        """Draw a pixel (row, column) of a rare class with probability ``rare_share``, else None; None without rare classes."""
        if torch.rand(()).item() >= self.rare_share:
            return None
        present = [k for k in self.rare_classes if (mask == k).any()]
        if not present:
            return None
        pixels = (mask == present[int(torch.randint(len(present), ()))]).nonzero()
        row, column = pixels[int(torch.randint(len(pixels), ()))].tolist()
        return row, column

    def is_mixed(self, mask: Tensor) -> bool:
        """Return whether no class has ``cat_max_ratio`` of the labelled pixels of a crop."""
        labelled = mask[mask != self.ignore_index]
        counts = torch.bincount(labelled.flatten().long())
        return bool(len(labelled)) and counts.max().item() < self.cat_max_ratio * len(labelled)

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
                mean = part.float().mean((-2, -1), keepdim=True)
                part = tv_tensors.Image(mean.round().to(torch.uint8) if part.dtype == torch.uint8 else mean)
            else:
                part = v2.functional.resize(part, params["size"], antialias=True)
        if not any(params["border"]):
            return part
        return v2.functional.pad(part, params["border"], fill=self.ignore_index if mask else find_fill(inpt))


def draw_side(side: int, factor: float, crop: int | None, pixel: int | None = None) -> tuple[int, int, int, int, int]:
    """Draw one side of a crop: its start and length in the image, its new length, and the padding before and after it.

    Args:
        side: The image's.
        factor: The factor by which it is resized.
        crop: The crop's; None for the whole image.
        pixel: One that the crop must contain.
    """
    if crop is None:
        return 0, side, max(1, round(side * factor)), 0, 0
    wanted = max(1, round(crop / factor))
    length = min(side, wanted)
    first, last = (0, side - length) if pixel is None else (max(0, pixel - length + 1), min(side - length, pixel))
    start = first + int(torch.randint(last - first + 1, ()))
    size = crop if length == wanted else min(crop, max(1, round(side * factor)))
    before = int(torch.randint(crop - size + 1, ()))
    return start, length, size, before, crop - size - before
