"""Class ids from logits."""

import torch
import torch.nn.functional as F

from dilated_seg.shapes import Logits, Mask

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
