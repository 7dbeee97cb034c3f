"""Train, evaluate and compare networks for semantic segmentation."""

__version__ = "0.1.0"
