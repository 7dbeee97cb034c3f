"""Train, compare and trust the classic networks for semantic segmentation."""

__version__ = "0.1.0"
