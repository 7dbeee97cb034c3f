"""Count the pixels of each class in the masks of a split."""

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from dilated_seg.data.split import Split
from dilated_seg.errors import UserError

# For reading masks before the first step. A mask of 375 x 500 takes 2.4 ms, one of 1024 x 2048 about 20 ms: this is enough
# for 2,000 or 250 masks.
SECONDS = 5.0


@dataclass(frozen=True)
class LabelCounts:
    """Pixels of each class in the masks of a split.

    Args:
        pixels: int64 (256,), by class id.
        masks: The number of masks counted.
        images: The number of images in the split.
    """

    pixels: np.ndarray
    masks: int
    images: int

    @property
    def complete(self) -> bool:
        """Whether every mask of the split was counted."""
        return self.masks == self.images


def count_pixels(mask: Any) -> np.ndarray:  # noqa: ANN401 - a tensor, or a mask of torchvision's
    """Return the number of pixels of each class id, int64 (256,)."""
    return np.bincount(np.asarray(mask).ravel(), minlength=256)


def count_labels(split: Split, num_classes: int, skip_bad: bool = False, seconds: float = SECONDS) -> LabelCounts | None:
    """Count the classes of a split: from the manifest of a prepared one, else from masks until every class has occurred.

    Masks are read in this process, evenly spread over the split, for at most ``seconds``. Splits that are not ``countable``
    are not read: their readers may open files that worker processes must not inherit.

    Raises:
        UserError: A mask cannot be read, unless ``skip_bad``.
    """
    if split.pixels is not None:
        return LabelCounts(np.array(split.pixels), len(split), len(split))
    if not split.countable:
        return None
    pixels, masks, end = np.zeros(256, np.int64), 0, time.monotonic() + seconds
    for index in spread_indices(len(split)):
        try:
            pixels += count_pixels(split.read_mask(index))
            masks += 1
        except UserError:
            if not skip_bad:
                raise
        if pixels[:num_classes].all() or time.monotonic() > end:
            break
    return LabelCounts(pixels, masks, len(split))


def spread_indices(length: int) -> list[int]:
    """Return all indices, ordered so that any first n are evenly spread: steps of the golden ratio, modulo ``length``."""
    step = max(1, round(0.618 * length))
    while math.gcd(step, length) > 1:
        step += 1
    return [i * step % length for i in range(length)]
