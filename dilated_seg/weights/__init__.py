"""Published weights in our networks: read a file, rename and match its tensors, convert them, check the result.

The mean and standard deviation that a file's images were normalized by go along with the weights.
"""

from dilated_seg.weights.download import fetch
from dilated_seg.weights.match import LoadResult, map_tensors
from dilated_seg.weights.normalization import fetch_imagenet
from dilated_seg.weights.port import load, port
from dilated_seg.weights.readers import read

__all__ = ["LoadResult", "fetch", "fetch_imagenet", "load", "map_tensors", "port", "read"]
