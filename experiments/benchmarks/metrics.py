"""From the logits of a Cityscapes image (19 classes, 1024 x 2048) to its confusion matrix: ours, torchmetrics', NumPy's.

All give the same integers, which is checked. Ratios are of one run on one thread.

run:    python experiments/benchmarks/metrics.py
"""

import time
from statistics import median

import numpy as np
import torch
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from dilated_seg.metrics import SegmentationMetrics

CLASSES, SIZE = 19, (1024, 2048)


def ours(logits, mask):
    metric = SegmentationMetrics(CLASSES)
    metric.update(logits, mask)
    return metric.matrix


def ours_deterministic(logits, mask):
    torch.use_deterministic_algorithms(True)
    try:
        return ours(logits, mask)
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
    "SegmentationMetrics": ours,
    "the same, deterministic": ours_deterministic,
    "torchmetrics, confusion matrix": confusion_matrix,
    "torchmetrics, Jaccard index": jaccard_index,
    "NumPy, bincount": numpy,
}


def example():
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    mask = torch.randint(0, CLASSES, (1, *SIZE), generator=generator, dtype=torch.uint8)
    mask[:, :100] = 255
    return torch.randn(1, CLASSES, *SIZE, generator=generator), mask


def main():
    logits, mask = example()
    expected, found = ours(logits, mask), {}
    for name, way in WAYS.items():
        assert torch.equal(way(logits, mask), expected), name
        times = []
        for _ in range(7):
            start = time.perf_counter()
            way(logits, mask)
            times.append(time.perf_counter() - start)
        found[name] = median(times)
    for name, seconds in found.items():
        ratio = seconds / found["SegmentationMetrics"]
        print(f"{name:32}{1000 * seconds:8.1f} ms, {ratio:5.1f} times ours")


if __name__ == "__main__":
    main()
