"""What context buys: how a trained network does at some pixels when it sees no farther than so far around them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dilated_seg.models.segmenter import Segmenter

RADII = (4, 8, 16, 32, 64, 128, 256, None)  # pixels to each side; None is the whole image
AT_ONCE = 400_000  # pixels of all images that go through the network together


@dataclass(frozen=True)
class Context:
    """The class predicted at each of n pixels when only the square of each radius around it is seen.

    Pixels are the same for all networks, so that two of them can be compared pixel by pixel, and image by image.

    Args:
        ids: The names of the images.
        image: Of each pixel, the place of its image among them (n,).
        row: Of each pixel, from the top (n,).
        column: Of each pixel, from the left (n,).
        truth: The class of each pixel (n,).
        radii: How far from the pixel the image is seen, rows or columns, the rest being grey; None: all of it.
        predicted: The class of each pixel as predicted, for each radius (n, radii).
    """

    ids: Sequence[str]
    image: np.ndarray
    row: np.ndarray
    column: np.ndarray
    truth: np.ndarray
    radii: Sequence[int | None]
    predicted: np.ndarray

    def accuracy(self, classes: Sequence[int] | None = None) -> np.ndarray:
        """The part of the pixels that is predicted right, for each radius; of these true classes alone, or of all.

        NaN if there is no such pixel.
        """
        chosen = np.ones(len(self.truth), bool) if classes is None else np.isin(self.truth, classes)
        right = (self.predicted == self.truth[:, None])[chosen]
        return right.mean(0) if len(right) else np.full(len(self.radii), np.nan)


def context(
    model: Segmenter,
    samples: Sequence[Mapping[str, Any]],
    radii: Sequence[int | None] = RADII,
    pixels: int = 256,
    seed: int = 0,
) -> Context:
    """Ask a network for the classes of some pixels, seeing less and less around them; the rest is the grey of its mean.

    After normalisation that grey is 0, as what convolutions pad with.

    Args:
        model: In evaluation mode, on the device to compute on.
        samples: ``image`` (3, H, W), ``mask`` (H, W) and ``id`` of each image.
        radii: See `Context`.
        pixels: How many in all, in equal parts of every class, in equal parts of every image that has it; fewer if a class has
            too few.
        seed: Of the choice of pixels, which depends on nothing else but the masks.
    """
    masks = [torch.as_tensor(sample["mask"]).cpu().numpy() for sample in samples]
    image, row, column = places(masks, len(model.classes), pixels, seed)
    truth = np.array([masks[i][y, x] for i, y, x in zip(image, row, column, strict=True)], dtype=np.int64)
    predicted = np.empty((len(image), len(radii)), dtype=np.int64)
    with torch.inference_mode():
        for number, sample in enumerate(samples):
            own = np.flatnonzero(image == number)
            if len(own):
                picture = torch.as_tensor(sample["image"]).to(model.mean.device).float()
                predicted[own] = at_places(model, picture, row[own], column[own], radii)
    return Context([sample["id"] for sample in samples], image, row, column, truth, tuple(radii), predicted)


def places(masks: Sequence[np.ndarray], num_classes: int, pixels: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, row and column of pixels drawn from all classes alike, and for each class from all images alike that have it."""
    counts = np.array([np.bincount(mask.ravel(), minlength=256)[:num_classes] for mask in masks])
    drawn = []
    for k in range(num_classes):
        shares = dealt(counts[:, k], pixels // num_classes, np.random.default_rng([seed, k]))
        for number in np.flatnonzero(shares).tolist():
            rng = np.random.default_rng([seed, k, number])
            at = np.sort(rng.choice(np.flatnonzero(masks[number] == k), shares[number], replace=False))
            drawn += [(number, *divmod(place, masks[number].shape[1])) for place in at.tolist()]
    found = np.array(sorted(drawn), dtype=np.int64).reshape(-1, 3)
    return found[:, 0], found[:, 1], found[:, 2]


def dealt(available: np.ndarray, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """How many to take of each, one in turn from those that have any left, in an order drawn at random."""
    shares = np.zeros_like(available)
    while wanted > 0 and len(left := rng.permutation(np.flatnonzero(shares < available))):
        shares[left[:wanted]] += 1
        wanted -= len(left[:wanted])
    return shares


def at_places(
    model: Segmenter, picture: Tensor, row: np.ndarray, column: np.ndarray, radii: Sequence[int | None]
) -> np.ndarray:
    """The classes predicted at places of one picture (3, H, W), for each radius (places, radii)."""
    _, height, width = picture.shape
    whole = model(picture[None])[0].argmax(0).cpu().numpy()
    predicted = np.repeat(whole[row, column][:, None], len(radii), axis=1)
    reach = np.array([-1 if r is None else r for r in radii])
    farthest = np.maximum.reduce([row, column, height - 1 - row, width - 1 - column])
    views = np.argwhere((reach >= 0) & (farthest[:, None] > reach))
    most = max(1, AT_ONCE // (height * width))
    for start in range(0, len(views), most):
        which, how = views[start : start + most].T
        y, x, radius = (torch.as_tensor(at, device=picture.device) for at in (row[which], column[which], reach[how]))
        logits = model(greyed(picture, y, x, radius, model.mean))
        predicted[which, how] = logits[torch.arange(len(which), device=picture.device), :, y, x].argmax(1).cpu().numpy()
    return predicted


def greyed(picture: Tensor, row: Tensor, column: Tensor, radius: Tensor, grey: Tensor) -> Tensor:
    """A copy of the picture for each place (n, 3, H, W), seen within its radius and grey elsewhere."""
    _, height, width = picture.shape
    near = (torch.arange(height, device=picture.device) - row[:, None]).abs() <= radius[:, None]
    beside = (torch.arange(width, device=picture.device) - column[:, None]).abs() <= radius[:, None]
    return torch.where((near[:, :, None] & beside[:, None, :])[:, None], picture, grey)
