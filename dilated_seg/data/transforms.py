"""Joint transforms of image and mask, on uint8 tensors: a mask only ever moves, or is resized by nearest neighbour."""

from typing import Any

import torch
import torch.nn.functional as F
from torchvision import tv_tensors
from torchvision.transforms import v2

UNKNOWN = 254  # stands in a table of class ids for label values that must not occur


class RandomScale(v2.Transform):  # type: ignore[misc] # torchvision has no types
    """Resize image and mask by one factor drawn uniformly from a range."""

    def __init__(self, scale: tuple[float, float]) -> None:
        super().__init__()
        self.scale = scale

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The new (height, width) for this call."""
        low, high = self.scale
        factor = low + (high - low) * torch.rand(()).item()
        return {"size": [max(1, round(side * factor)) for side in v2.functional.get_size(flat_inputs[0])]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:  # noqa: ANN401 - torchvision's signature
        """Bilinear for an image; for a mask the nearest neighbour of each pixel's centre.

        torchvision's own nearest neighbour takes the pixel's corner: the labels would sit up to half a pixel to one side.
        """
        if isinstance(inpt, tv_tensors.Mask):
            return tv_tensors.Mask(F.interpolate(inpt[None, None], params["size"], mode="nearest-exact")[0, 0])
        return v2.functional.resize(inpt, params["size"], antialias=True)


def training(
    crop_size: tuple[int, int] | None, scale: tuple[float, float], flip: bool, jitter: float, ignore_index: int
) -> v2.Compose:
    """Random scale, crop, mirror and colour; what a crop adds around an image is grey and ignored."""
    steps: list[v2.Transform] = [v2.Identity()]
    if tuple(scale) != (1.0, 1.0):
        steps.append(RandomScale(scale))
    if crop_size is not None:
        fill = {tv_tensors.Image: 124, tv_tensors.Mask: ignore_index}
        steps.append(v2.RandomCrop(crop_size, pad_if_needed=True, fill=fill))
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    if jitter:
        steps.append(v2.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter))
    return v2.Compose(steps)
