"""Effective receptive fields of trained networks: the influence of each pixel on the prediction at the center.

Luo, Li, Urtasun and Zemel, "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks", NeurIPS 2016,
https://arxiv.org/abs/1701.04128. The gradient is that of the predicted class's logit, not of the sum over classes: what all
logits share changes no prediction.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

SHARES = (0.5, 0.9, 0.95)  # fractions of a field whose central squares are reported


def effective(model: Callable[[Tensor], Tensor], images: Sequence[Tensor]) -> np.ndarray:
    """Return the effective receptive field (H, W) of the middle pixel, float64, of sum 1; all 0 if no pixel has any influence.

    It is the mean over images of the gradient's absolute value, summed over red, green and blue. Images of unequal size are
    aligned at their middle, pixel (H // 2, W // 2).

    Args:
        model: Maps plain RGB (1, 3, H, W), 0 to 255, to logits (1, C, H, W), as a `Segmenter`.
        images: Plain RGB (3, H, W), on the model's device.
    """
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    total = np.zeros((height, width))
    for image in images:
        _, h, w = image.shape
        top, left = height // 2 - h // 2, width // 2 - w // 2
        total[top : top + h, left : left + w] += influence(model, image)
    return total / (total.sum() or 1)


def influence(model: Callable[[Tensor], Tensor], image: Tensor) -> np.ndarray:
    """Return the gradient of the middle's largest logit with respect to each pixel (H, W)."""
    _, height, width = image.shape
    pixels = image[None].float().requires_grad_()
    logit = model(pixels)[0, :, height // 2, width // 2].max()
    (gradient,) = torch.autograd.grad(logit, pixels)
    return gradient[0].abs().sum(0).double().cpu().numpy()


def accumulate_field(field: np.ndarray) -> np.ndarray:
    """Return the sum of a field within 0, 1, 2, ... pixels of its middle (chessboard distance)."""
    height, width = field.shape
    rows, columns = np.abs(np.arange(height) - height // 2), np.abs(np.arange(width) - width // 2)
    distance = np.maximum(rows[:, None], columns[None, :])
    return np.bincount(distance.ravel(), weights=field.ravel()).cumsum()


def side_of(field: np.ndarray, share: float) -> int | None:
    """Return the side of the smallest square around the middle with this share of a field; None if the field is 0.

    A field of 0.5 at the middle, 0.3 at distance 1 and 0.2 at distance 2 has sides 1, 3 and 5 for 0.5, 0.8 and 0.9.
    """
    sums = accumulate_field(field)
    return 2 * int(np.argmax(sums >= share * sums[-1])) + 1 if sums[-1] > 0 else None
