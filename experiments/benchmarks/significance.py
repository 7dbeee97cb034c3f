"""Time of the paired bootstrap: 10,000 resamples of VOC's 1,449 images and 21 classes, against a plain loop over them.

Both draw images and take the mean IoU of the sums of their confusion matrices; the loop is timed on 200 resamples.

run:    python experiments/benchmarks/significance.py
"""

import time

import numpy as np
import torch

from dilated_seg.analysis.bootstrap import Bootstrap
from dilated_seg.analysis.resampling import count_pixels
from dilated_seg.metrics.confusion import compute_metrics

IMAGES, CLASSES, RESAMPLES, FEW = 1449, 21, 10_000, 200


def bootstrap_in_loop(networks, resamples):
    """Bootstrap by definition: draw images, add up their confusion matrices, take the mean IoU of each network."""
    rng = np.random.default_rng(0)
    for _ in range(resamples):
        drawn = rng.integers(0, IMAGES, IMAGES)
        for matrices in networks:
            compute_metrics(torch.from_numpy(matrices[drawn].sum(0)))["mean_iou"]


def measure_seconds(work):
    """Return the seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    rng = np.random.default_rng(1)
    print(f"{torch.get_num_threads()} threads, {RESAMPLES:,} resamples of {IMAGES:,} images, {CLASSES} classes")
    for networks in (2, 7):
        matrices = [rng.integers(0, 500, (IMAGES, CLASSES, CLASSES)) for _ in range(networks)]
        counted = {str(k): [count_pixels(one)] for k, one in enumerate(matrices)}
        ours = measure_seconds(lambda counted=counted: Bootstrap(counted, RESAMPLES).pairs())
        plain = measure_seconds(lambda matrices=matrices: bootstrap_in_loop(matrices, FEW)) * RESAMPLES / FEW
        print(f"{networks} networks, all pairs: {ours:.2f} s; loop {plain:.0f} s, {plain / ours:.0f} times as long")
