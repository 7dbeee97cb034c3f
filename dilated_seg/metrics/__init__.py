"""The confusion matrix, the metrics computed from it, and counts stratified by object size and boundary distance."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dilated_seg.metrics.segmentation import SegmentationMetrics

__all__ = ["SegmentationMetrics"]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import SegmentationMetrics on first use, so that reading an evaluation does not import torchmetrics."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dilated_seg.metrics import segmentation

    return getattr(segmentation, name)
