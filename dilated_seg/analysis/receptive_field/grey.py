"""Accuracy with limited context: predictions at sampled pixels when the image beyond a radius has the mean color."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dilated_seg.models.segmenter import Segmenter

RADII = (4, 8, 16, 32, 64, 128, 256, None)  # pixels to each side; None: the full image
MAX_PIXELS = 400_000  # of all images of a batch, to limit memory


@dataclass(frozen=True)
class Context:
    """The class predicted at each of n pixels when only the square of each radius around it is visible.

    The pixels are the same for all networks, so that networks are compared pixel by pixel.

    Args:
        ids: Image ids.
        image: The index in ``ids`` of each pixel's image (n,).
        row: The row of each pixel, from the top (n,).
        column: The column of each pixel, from the left (n,).
        truth: The class of each pixel in the mask (n,).
        radii: The largest distance from the pixel, in rows and in columns, at which the image is visible; None for all of it.
        predicted: The predicted class of each pixel, for each radius (n, radii).
    """

    ids: Sequence[str]
    image: np.ndarray
    row: np.ndarray
    column: np.ndarray
    truth: np.ndarray
    radii: Sequence[int | None]
    predicted: np.ndarray

    def accuracy(self, classes: Sequence[int] | None = None) -> np.ndarray:
        """Return the accuracy for each radius, of the pixels of these true classes or of all; NaN if there are none."""
        selected = np.ones(len(self.truth), bool) if classes is None else np.isin(self.truth, classes)
        correct = (self.predicted == self.truth[:, None])[selected]
        return correct.mean(0) if len(correct) else np.full(len(self.radii), np.nan)


def context(
    model: Segmenter,
    samples: Sequence[Mapping[str, Any]],
    radii: Sequence[int | None] = RADII,
    pixels: int = 256,
    seed: int = 0,
) -> Context:
    """Predict the classes of sampled pixels for each radius, beyond which the image has the network's mean color.

    After normalization that color is 0, the value that convolutions pad with.

    Args:
        model: The model, in evaluation mode, on the device to compute on.
        samples: ``image`` (3, H, W), ``mask`` (H, W) and ``id`` of each image.
        radii: See `Context`.
        pixels: The number of pixels, equally many of each class and, within a class, of each image that has it; fewer if
            a class has too few.
        seed: The seed of the choice of pixels, which depends on the masks only.
    """
    masks = [torch.as_tensor(sample["mask"]).cpu().numpy() for sample in samples]
    image, row, column = sample_pixels(masks, len(model.classes), pixels, seed)
    truth = np.array([masks[i][y, x] for i, y, x in zip(image, row, column, strict=True)], dtype=np.int64)
    predicted = np.empty((len(image), len(radii)), dtype=np.int64)
    with torch.inference_mode():
        for number, sample in enumerate(samples):
            selected = np.flatnonzero(image == number)
            if len(selected):
                pixels_of_image = torch.as_tensor(sample["image"]).to(model.mean.device).float()
                predicted[selected] = predict_within(model, pixels_of_image, row[selected], column[selected], radii)
    return Context([sample["id"] for sample in samples], image, row, column, truth, tuple(radii), predicted)


def sample_pixels(
    masks: Sequence[np.ndarray], num_classes: int, pixels: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return image, row and column of pixels: equally many of each class and, within a class, of each image."""
    counts = np.array([np.bincount(mask.ravel(), minlength=256)[:num_classes] for mask in masks])
    drawn = []
    for k in range(num_classes):
        shares = allocate_evenly(counts[:, k], pixels // num_classes, np.random.default_rng([seed, k]))
        for number in np.flatnonzero(shares).tolist():
            rng = np.random.default_rng([seed, k, number])
            at = np.sort(rng.choice(np.flatnonzero(masks[number] == k), shares[number], replace=False))
            drawn += [(number, *divmod(index, masks[number].shape[1])) for index in at.tolist()]
    image, row, column = np.array(sorted(drawn), dtype=np.int64).reshape(-1, 3).T
    return image, row, column


def allocate_evenly(available: np.ndarray, total: int, rng: np.random.Generator) -> np.ndarray:
    """Divide ``total`` evenly, at most ``available`` each: rounds of one each, in random order, while any remain.

    6 of (5, 1, 3) are (3, 1, 2) or (2, 1, 3).
    """
    shares = np.zeros_like(available)
    while total > 0 and len(remaining := rng.permutation(np.flatnonzero(shares < available))):
        shares[remaining[:total]] += 1
        total -= len(remaining[:total])
    return shares


def predict_within(
    model: Segmenter, image: Tensor, row: np.ndarray, column: np.ndarray, radii: Sequence[int | None]
) -> np.ndarray:
    """Return the predicted classes at n pixels of one image (3, H, W), for each radius (n, radii)."""
    _, height, width = image.shape
    whole = model(image[None])[0].argmax(0).cpu().numpy()
    predicted = np.repeat(whole[row, column][:, None], len(radii), axis=1)
    reach = np.array([-1 if r is None else r for r in radii])
    farthest = np.maximum.reduce([row, column, height - 1 - row, width - 1 - column])
    views = np.argwhere((reach >= 0) & (farthest[:, None] > reach))
    count = max(1, MAX_PIXELS // (height * width))
    for start in range(0, len(views), count):
        pixel, size = views[start : start + count].T
        y, x, radius = (torch.as_tensor(values, device=image.device) for values in (row[pixel], column[pixel], reach[size]))
        logits = model(fill_beyond(image, y, x, radius, model.mean))
        predicted[pixel, size] = logits[torch.arange(len(pixel), device=image.device), :, y, x].argmax(1).cpu().numpy()
    return predicted


def fill_beyond(image: Tensor, row: Tensor, column: Tensor, radius: Tensor, color: Tensor) -> Tensor:
    """Return a copy of the image for each of n pixels (n, 3, H, W), filled with a color beyond the radius around the pixel."""
    _, height, width = image.shape
    rows = (torch.arange(height, device=image.device) - row[:, None]).abs() <= radius[:, None]
    columns = (torch.arange(width, device=image.device) - column[:, None]).abs() <= radius[:, None]
    return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], image, color)
