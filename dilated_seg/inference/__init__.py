"""A trained network on images: loading it, the inference strategies; one image in image.py, directories in folder.py."""

from dilated_seg.inference.load import load
from dilated_seg.inference.strategies import Inference, MultiScale, ReflectedTiles, Tiles, Whole, predict
from dilated_seg.models.segmenter import Segmenter

__all__ = [
    "Inference",
    "MultiScale",
    "ReflectedTiles",
    "Segmenter",
    "Tiles",
    "Whole",
    "load",
    "predict",
]
