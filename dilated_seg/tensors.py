"""The tensors of this package as types: jaxtyping checks them on every call while the tests run, and never else."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer, Num
from torch import Tensor

Image = Float[Tensor, "batch 3 height width"]  # RGB, normalised
Mask = Integer[Tensor, "batch height width"]  # class ids, and ignore_index where unlabelled
Logits = Float[Tensor, "batch classes height width"]  # one score map a class, at the image's size
Probabilities = Float[Tensor, "batch classes height width"]  # the softmax of logits, or what a CRF makes of it
Pixels = Num[Tensor, "_ 3 _ _"]  # plain RGB, 0 to 255, bytes or not
Maps = Float[Tensor, "batch _ _ _"]  # features inside a network, of any channels and size
Planes = Float[Tensor, "batch {self.in_channels} height width"]  # an image of as many channels as its network says

PIXELS = 1 << 12  # whose scores of all classes stay in a core's cache


def predict(logits: Logits) -> Mask:
    """The class of the highest score at every pixel (B, H, W); of several, the first."""
    if logits.device.type != "cpu":
        return logits.max(1).indices
    # On a CPU, torch looks for a maximum over classes one pixel at a time, but pools many maps at once: so pixels become the
    # maps here and the classes the window, a few pixels after the other. About three times as fast.
    count, classes, height, width = logits.shape
    found = torch.empty(count, height * width, dtype=torch.long)
    for image, ids in zip(logits.detach().flatten(2), found, strict=True):
        for scores, here in zip(image.split(PIXELS, 1), ids.split(PIXELS), strict=True):
            pixels_as_maps = scores.T[None, :, :, None].contiguous(memory_format=torch.channels_last)
            here[:] = F.max_pool2d(pixels_as_maps, (classes, 1), return_indices=True)[1].flatten()
    return found.view(count, height, width)
