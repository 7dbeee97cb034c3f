"""Tensor types with shapes, which jaxtyping checks in tests only; and argmax over classes."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer, Num
from torch import Tensor

Image = Float[Tensor, "batch 3 height width"]  # RGB, normalized
Planes = Float[Tensor, "batch {self.in_channels} height width"]  # likewise, of a network's ``in_channels``: 3 for RGB
Mask = Integer[Tensor, "batch height width"]  # class ids, and ignore_index where unlabelled
Logits = Float[Tensor, "batch classes height width"]  # one map per class, at the image's size
Probabilities = Float[Tensor, "batch classes height width"]  # softmax of logits, or the marginals of a CRF
Pixels = Num[Tensor, "_ _ _ _"]  # plain images, 0 to 255, of any dtype
Maps = Float[Tensor, "batch _ _ _"]  # features inside a network, of any channels and size

PIXELS = 1 << 12  # pixels whose logits of all classes fit into a core's cache


def predict(logits: Logits) -> Mask:
    """Return the class with the highest logit at every pixel (B, H, W); the first one if several are equal."""
    if logits.device.type != "cpu":
        return logits.max(1).indices
    # On CPUs, torch's argmax over classes processes one pixel at a time, but its max pooling many channels at once. Max pooling
    # with pixels as channels and classes as the window, block by block, is about three times as fast.
    count, classes, height, width = logits.shape
    prediction = torch.empty(count, height * width, dtype=torch.long)
    for image, ids in zip(logits.detach().flatten(2), prediction, strict=True):
        for block, block_ids in zip(image.split(PIXELS, 1), ids.split(PIXELS), strict=True):
            pixels_as_channels = block.T[None, :, :, None].contiguous(memory_format=torch.channels_last)
            block_ids[:] = F.max_pool2d(pixels_as_channels, (classes, 1), return_indices=True)[1].flatten()
    return prediction.view(count, height, width)
