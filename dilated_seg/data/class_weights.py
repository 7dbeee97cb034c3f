"""Class weights from the frequencies of the classes in the training masks."""

import math
import os
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, get_args

import numpy as np

from dilated_seg.data.checks import count_pixels, require_labels
from dilated_seg.data.datamodule import SegmentationDataModule
from dilated_seg.data.split import Split
from dilated_seg.data.workers import print_once
from dilated_seg.errors import UserError

Method = Literal["median_frequency", "sqrt_median_frequency", "enet", "inverse"]
METHODS: tuple[str, ...] = get_args(Method)


def count_class_weights(data: SegmentationDataModule, method: Method) -> list[float]:
    """Return the weight of each class from the masks of the training split, with six digits, and print them.

    Every mask is read once; a prepared split has the counts already. A class without pixels has the weight 0.

    Raises:
        UserError: A mask is missing or cannot be read, or the method is unknown.
    """
    require_labels(data)
    split = data.open_split(data.train_split)
    if not split.labelled:
        raise UserError(f"model.class_weights {method}: images of {data.train_split} have no mask: give a weight per class")
    pixels, image_pixels = (counts[: data.num_classes] for counts in count_frequencies(split))
    weights = compute_class_weights(pixels, image_pixels, method)
    named = ", ".join(f"{name} {weight:g}" for name, weight in zip(data.classes, weights, strict=True))
    line = f"class weights ({method}, masks of {data.train_split}): {named}"
    print_once(line.encode(), line)
    return weights


def count_frequencies(split: Split) -> tuple[list[int], list[int]]:
    """Return two counts for each class id: its pixels, and all pixels of the images in which it occurs.

    Raises:
        UserError: A mask cannot be read, or the split was prepared without these counts.
    """
    if split.pixels is not None:
        if split.image_pixels is None:
            raise UserError("the shards of an earlier version have no class frequencies: prepare the dataset again")
        return list(split.pixels), list(split.image_pixels)
    with ThreadPoolExecutor(os.cpu_count() if split.countable else 1) as pool:
        counts = list(pool.map(lambda index: count_pixels(split.read_mask(index)), range(len(split))))
    table = np.stack(counts)
    return table.sum(0).tolist(), ((table > 0) * table.sum(1, keepdims=True)).sum(0).tolist()


def compute_class_weights(pixels: Sequence[int], image_pixels: Sequence[int], method: str) -> list[float]:
    """Return the weight of each class.

    With pixels n_c of class c, pixels N_c of the images in which it occurs (ignored ones too), and share p_c of all labelled
    pixels::

        median_frequency        w_c = median(f) / f_c, f_c = n_c / N_c        (Eigen and Fergus, 2015)
        sqrt_median_frequency   w_c = sqrt(median(f) / f_c)
        enet                    w_c = 1 / ln(1.02 + p_c)                      (Paszke et al., 2016)
        inverse                 w_c = 1 / (C p_c), for C classes that occur

    Args:
        pixels: n_c.
        image_pixels: N_c.
        method: One of `METHODS`.

    Raises:
        UserError: The method is unknown.
    """
    if method not in METHODS:
        raise UserError(f"model.class_weights is {method}: give a weight for each class, or one of {', '.join(METHODS)}")
    present = [k for k, count in enumerate(pixels) if count]
    share = {k: pixels[k] / sum(pixels) for k in present}
    frequency = {k: pixels[k] / image_pixels[k] for k in present}
    median = statistics.median(frequency.values())
    formulas: dict[str, Callable[[int], float]] = {
        "median_frequency": lambda k: median / frequency[k],
        "sqrt_median_frequency": lambda k: math.sqrt(median / frequency[k]),
        "enet": lambda k: 1 / math.log(1.02 + share[k]),
        "inverse": lambda k: 1 / (len(present) * share[k]),
    }
    return [float(f"{formulas[method](k):.6g}") if k in share else 0.0 for k in range(len(pixels))]
