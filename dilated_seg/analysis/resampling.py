"""The mean IoU of networks on resampled images: sums of integers over the images that were drawn."""

from collections.abc import Mapping, Sequence

import numpy as np

from dilated_seg.errors import UserError

Counts = np.ndarray  # int64 (N, 3, C): for each image and class the hits, the pixels in the mask, the pixels in the prediction
Seeds = Sequence[Counts]  # counts of one network, one array for each seed, all of the same images

RESAMPLES_AT_ONCE = 500  # limits the memory: 500 * N doubles


def count_pixels(matrices: np.ndarray) -> Counts:
    """Return hits, pixels of the mask and of the prediction by image and class (N, 3, C), from confusion matrices (N, C, C)."""
    return np.stack([np.diagonal(matrices, axis1=1, axis2=2), matrices.sum(2), matrices.sum(1)], axis=1)


def mean_iou(totals: np.ndarray) -> np.ndarray:
    """Return the mean IoU of sums (..., 3, C) of hits, truth and prediction.

    Classes absent from truth and prediction are left out; without any class it is NaN.
    """
    hits, union = totals[..., 0, :], totals[..., 1, :] + totals[..., 2, :] - totals[..., 0, :]
    present = union > 0
    iou = np.divide(hits, union, out=np.zeros(union.shape), where=present)
    number = present.sum(-1)
    return np.divide(iou.sum(-1), number, out=np.full(number.shape, np.nan), where=number > 0)


def stack_runs(networks: Mapping[str, Seeds]) -> np.ndarray:
    """Stack the counts of all seeds of all networks (K, N, 3, C).

    Raises:
        UserError: The networks differ in the number of images or classes, or there are no images.
    """
    if len(shapes := {run.shape for seeds in networks.values() for run in seeds}) != 1 or not shapes.pop()[0]:
        raise UserError(
            "the networks were not evaluated on the same images and classes, or on no images: compare them separately"
        )
    return np.stack([run for seeds in networks.values() for run in seeds])


def drop_uncounted_images(parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Remove the images without a counted pixel in all runs (K, N, 3, C) of all parts, unless all images are such."""
    counted = np.logical_or.reduce([runs.any((0, 2, 3)) for runs in parts])
    return [runs[:, counted] if counted.any() else runs for runs in parts]


def resample(runs: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return the mean IoU of runs (K, N, 3, C) on images drawn with replacement, the same for all runs: (K, resamples).

    With N = 3, the draw (0, 2, 2) is the row (1, 0, 2) of how often each image was drawn; its product with the integers of
    the images (N, K * 3 * C) gives their sums.
    """
    number, size = runs.shape[:2]
    columns = runs.transpose(1, 0, 2, 3).reshape(size, -1).astype(np.float64)  # whole numbers below 2**53: sums are exact
    means = []
    for start in range(0, resamples, RESAMPLES_AT_ONCE):
        rows = min(RESAMPLES_AT_ONCE, resamples - start)
        drawn = rng.integers(0, size, (rows, size), dtype=np.int32) + size * np.arange(rows, dtype=np.int32)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float64)
        means.append(mean_iou((times @ columns).reshape(rows, number, *runs.shape[2:])))
    return np.concatenate(means).T


def leave_each_out(runs: np.ndarray) -> np.ndarray:
    """Return the mean IoU of runs (K, N, 3, C) without each image, for the jackknife: (K, N)."""
    return np.stack([mean_iou(run.sum(0) - run) for run in runs])
