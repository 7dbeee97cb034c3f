"""From the logits of a Cityscapes image (19 classes, 1024 x 2048) to its confusion matrix: ours, torchmetrics', NumPy's.

All give the same integers, which is checked. Ratios are of one run on one thread, memory is the peak above the inputs.

run:    python experiments/benchmarks/metrics.py
"""

import argparse
import os
import resource
import time
from statistics import median

import numpy as np
import torch
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from dilated_seg.metrics import SegmentationMetrics

CLASSES = 19


def update_metrics(logits, mask):
    metric = SegmentationMetrics(CLASSES)
    metric.update(logits, mask)
    return metric.matrix


def update_deterministically(logits, mask):
    torch.use_deterministic_algorithms(True)
    try:
        return update_metrics(logits, mask)
    finally:
        torch.use_deterministic_algorithms(False)


def confusion_matrix(logits, mask):
    metric = MulticlassConfusionMatrix(CLASSES, ignore_index=255, validate_args=False)
    metric.update(logits, mask.long())
    return metric.confmat


def jaccard_index(logits, mask):
    metric = MulticlassJaccardIndex(CLASSES, ignore_index=255, validate_args=False)
    metric.update(logits, mask.long())
    return metric.confmat


def numpy(logits, mask):
    prediction, truth = logits.numpy().argmax(1), mask.numpy()
    valid = truth != 255
    index = truth[valid].astype(np.int64) * CLASSES + prediction[valid]
    return torch.from_numpy(np.bincount(index, minlength=CLASSES**2).reshape(CLASSES, CLASSES))


WAYS = {
    "SegmentationMetrics": update_metrics,
    "the same, deterministic": update_deterministically,
    "torchmetrics, confusion matrix": confusion_matrix,
    "torchmetrics, Jaccard index": jaccard_index,
    "NumPy, bincount": numpy,
}


def example(size):
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    mask = torch.randint(0, CLASSES, (1, *size), generator=generator, dtype=torch.uint8)
    mask[:, : size[0] // 10] = 255
    return torch.randn(1, CLASSES, *size, generator=generator), mask


def peak(way, logits, mask):
    """Bytes that a call adds at its peak, seen in a process of its own."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        way(logits, mask)
        os.write(write, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before).encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    return 1024 * int(os.read(read, 100))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 2048))
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    logits, mask = example(options.size)
    extra = {name: peak(way, logits, mask) / 1e6 for name, way in WAYS.items()}  # before this process has memory to spare
    expected, found = update_metrics(logits, mask), {name: [] for name in WAYS}
    for name, way in WAYS.items():
        assert torch.equal(way(logits, mask), expected), name
    for _ in range(options.rounds):  # in turns, so that a machine that is busy for a while is so for all
        for name, way in WAYS.items():
            start = time.perf_counter()
            way(logits, mask)
            found[name].append(time.perf_counter() - start)
    usual = median(found["torchmetrics, confusion matrix"])
    for name, times in found.items():
        ratio = usual / median(times)
        print(f"{name:32}{1000 * median(times):7.0f} ms{ratio:6.1f} times as fast{extra[name]:8.0f} MB more memory")


if __name__ == "__main__":
    main()
