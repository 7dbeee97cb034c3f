"""The report's sections on classes: the IoU of each, and the confusion matrix of each network."""

import numpy as np
import torch

from dilated_seg.analysis import plots
from dilated_seg.metrics.confusion import percent
from dilated_seg.report.blocks import Fold, PageOnly, Plot, ReportTable, Section
from dilated_seg.report.comparison import Comparison

SHOWN_MATRICES = 4  # confusion matrices that the page shows at once; the others are folded
CONFUSION_EXPLAINED = (
    "Of all pixels of a class (row), the percentage that is predicted as each class (column), summed over images and seeds; "
    "empty: less than 0.5. Pixel counts are in confusion.csv."
)


def build_iou_section(comparison: Comparison) -> Section:
    """Build the section on the IoU of each class and network, the mean over its seeds."""
    names = list(comparison.groups)
    values = np.array([
        np.asarray(torch.stack([result.evaluation.metrics["iou"] for result in group]).nanmean(0))
        for group in comparison.groups.values()
    ]).T  # fmt: skip
    rows = [[name, *(percent(value) for value in line)] for name, line in zip(comparison.classes, values, strict=True)]
    sheet = Plot("class_iou", "IoU of each class and network", plots.draw_class_map(names, comparison.classes, values))
    shades = [list(map(shade_fraction, line)) for line in values]
    return Section("IoU of each class", [ReportTable("classes", ["class", *names], rows, shades, matrix=True, plot=sheet)])


def build_confusion_section(comparison: Comparison) -> Section:
    """Build the section of confusion matrices, each row a fraction of the class's pixels."""
    sums = {name: sum_matrices(comparison, name) for name in comparison.groups}
    lines = [
        [name, truth, predicted, int(matrix[t, p]), f"{100 * matrix[t, p] / max(1, matrix[t].sum()):.2f}"]
        for name, matrix in sums.items()
        for t, truth in enumerate(comparison.classes)
        for p, predicted in enumerate(comparison.classes)
    ]
    csv = (["network", "class", "predicted as", "pixels", "percent of the class"], lines)
    shares = {name: normalize_rows(matrix) for name, matrix in sums.items()}
    tables = [
        ReportTable(
            "" if k else "confusion",
            ["", *comparison.classes],
            [
                [name, *(format_share(value) for value in row)]
                for name, row in zip(comparison.classes, shares[network], strict=True)
            ],
            [list(map(shade_fraction, row)) for row in shares[network]],
            matrix=True,
            caption=network,
            csv=csv,
        )
        for k, network in enumerate(shares)
    ]
    shown, folded = tables[:SHOWN_MATRICES], tables[SHOWN_MATRICES:]
    more = [Fold(f"{len(folded)} more networks", folded)] if folded else []
    plot = Plot("confusion", "Confusion matrix of each network", plots.draw_confusions(shares, comparison.classes))
    return Section("Confusion matrices", [CONFUSION_EXPLAINED, PageOnly([*shown, *more], plot)])


def sum_matrices(comparison: Comparison, name: str) -> np.ndarray:
    """Return the confusion matrix of a network (C, C), summed over its seeds; rows are the ground truth."""
    return np.sum([result.evaluation.matrix for result in comparison.groups[name]], axis=0)


def normalize_rows(matrix: np.ndarray) -> np.ndarray:
    """Divide each row by its sum; NaN for a class without pixels."""
    total = matrix.sum(1, keepdims=True)
    return np.divide(matrix, total, out=np.full(matrix.shape, np.nan), where=total > 0)


def format_share(value: float) -> str:
    """Format a fraction as a whole percentage; a dash if it is not known, nothing below 0.5 %."""
    return "-" if np.isnan(value) else f"{100 * value:.0f}" if value >= 0.005 else ""


def shade_fraction(value: float) -> str:
    """Return the shade of a fraction in a heat map; none for NaN."""
    return "" if np.isnan(value) else f"h{100 * value:.0f}"
