"""The metrics of a split as a torchmetrics.Metric."""

import torch
from torch import Tensor
from torchmetrics import Metric

from dilated_seg.metrics.confusion import compute_metrics, confusion_matrices
from dilated_seg.tensors import Logits, Mask, predict


class SegmentationMetrics(Metric):
    """The metrics of a split, computed from one int64 confusion matrix of all images on all processes.

    Means over batches or images have other values.

    Args:
        num_classes: C, not counting the ignored label.
        ignore_index: The mask value of pixels that are not counted.
    """

    full_state_update = False
    matrix: Tensor
    images: Tensor  # the confusion matrices (B, C, C) of the last batch

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        super().__init__()
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.add_state("matrix", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Logits | Mask, mask: Mask) -> None:
        """Add a batch to the confusion matrix.

        Args:
            prediction: Logits (B, C, H, W) or class ids (B, H, W).
            mask: Class ids, and ``ignore_index`` where unlabelled (B, H, W).

        Raises:
            ValueError: A mask or prediction holds a value outside the classes.
        """
        if prediction.ndim == 4:
            prediction = predict(prediction)
        self.images = confusion_matrices(prediction, mask, self.num_classes, self.ignore_index)
        self.matrix += self.images.sum(0)

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics of all batches since the last reset; see `compute_metrics`."""
        return compute_metrics(self.matrix)
