"""The confusion matrix, all that is read from it, and counts stratified by object size and boundary distance."""

from dilated_seg.metrics.confusion import SegmentationMetrics

__all__ = ["SegmentationMetrics"]
