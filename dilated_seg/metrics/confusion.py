"""The confusion matrix of a split and the metrics computed from it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dilated_seg.tensors import Mask


def confusion_matrices(prediction: Mask, mask: Mask, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Return one confusion matrix per image: int64 (B, C, C), whose entry [i, t, p] counts pixels of class t predicted as p.

    Raises:
        ValueError: A mask holds a value that is neither a class nor ``ignore_index``, or a prediction one that is not a class.
    """
    if mask.dtype != torch.uint8:
        outside = ((mask < 0) | (mask > 255)) & (mask != ignore_index)
        if outside.any():
            raise ValueError(f"a mask holds {int(mask[outside][0])}, which is not one of {num_classes} classes")
        if not 0 <= ignore_index <= 255:  # map it to a value that a byte has
            mask, ignore_index = torch.where(mask == ignore_index, 255, mask), 255
    for extreme in prediction.aminmax() if prediction.numel() else ():
        if not 0 <= extreme < num_classes:
            raise ValueError(f"a prediction holds {int(extreme)}, which is not one of {num_classes} classes")
    # One count over (mask value, predicted class), in the smallest integer type that holds it. Ignored and invalid values have
    # rows of their own, which are removed or checked after counting: this saves a pass over the pixels for each.
    dtype = torch.int16 if 256 * num_classes < 2**15 else torch.int32
    index = mask.to(dtype) * num_classes + prediction.to(dtype)
    counts = torch.stack([torch.bincount(image.flatten(), minlength=256 * num_classes) for image in index])
    counts = counts.view(len(mask), 256, num_classes)
    counts[:, ignore_index] = 0
    if (invalid := counts[:, num_classes:].sum((0, 2)).nonzero()).numel():
        raise ValueError(f"a mask holds {int(invalid[0]) + num_classes}, which is not one of {num_classes} classes")
    return counts[:, :num_classes]


def compute_metrics(matrix: Tensor) -> dict[str, Tensor]:
    """Compute all metrics of one (C, C) confusion matrix, in float64, as fractions of 1.

    ``iou`` and ``accuracy`` have one value per class. A class absent from both masks and predictions has IoU NaN and is left
    out of the mean; a class that is only predicted has 0. Accuracies leave out classes absent from the masks.
    """
    matrix = matrix.double()
    true_positives, labelled, predicted = matrix.diag(), matrix.sum(1), matrix.sum(0)
    iou = true_positives / (labelled + predicted - true_positives)  # TP / (TP + FN + FP); 0 / 0 is NaN: absent
    accuracy = true_positives / labelled
    frequency = labelled / labelled.sum()
    return {
        "pixel_accuracy": true_positives.sum() / labelled.sum(),
        "mean_accuracy": accuracy.nanmean(),
        "mean_iou": iou.nanmean(),
        "frequency_weighted_iou": (frequency * iou.nan_to_num()).sum(),
        "iou": iou,
        "accuracy": accuracy,
    }


def name_metrics(values: Mapping[str, Tensor], classes: Sequence[str]) -> dict[str, Tensor]:
    """Return what is logged of `compute_metrics`: the metrics of one value, and the IoU of each class as ``iou/CLASS``."""
    named = {name: value for name, value in values.items() if value.ndim == 0}
    return named | {f"iou/{name}": value for name, value in zip(classes, values["iou"], strict=True)}


def percent(value: Any) -> str:  # noqa: ANN401 - a float or a tensor of one
    """Return a fraction as a percentage with one decimal, or a dash if it is NaN."""
    return "-" if math.isnan(float(value)) else f"{100 * float(value):.1f}"
