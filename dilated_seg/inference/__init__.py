"""Trained networks on images: loading, inference strategies, one image (image.py), many files (folder.py)."""

from dilated_seg.inference.load import load
from dilated_seg.inference.reflected_tiles import ReflectedTiles
from dilated_seg.inference.strategies import FullImage, Inference, MultiScale, Tiles, predict
from dilated_seg.models.segmenter import Segmenter

__all__ = [
    "FullImage",
    "Inference",
    "MultiScale",
    "ReflectedTiles",
    "Segmenter",
    "Tiles",
    "load",
    "predict",
]
