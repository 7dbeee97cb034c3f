"""Theoretical receptive fields: their size, their stride and their center in the image, by layer.

Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019,
https://distill.pub/2019/computing-receptive-fields.
"""

import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from dilated_seg.analysis.receptive_field.trace import Field, Trace
from dilated_seg.models.outputs import resize_to_image, resizes, split_outputs

WIDE = 4108  # pixels: more than most receptive fields; of the form 16 n + 12, which U-Net without padding requires
WIDEST = 40_000


def widths() -> Iterator[int]:
    """Yield image widths to try, narrow ones first, until no field in the middle of a map reaches an edge."""
    wide = WIDE
    while wide < WIDEST:
        yield wide
        wide = 2 * wide + 4  # again 16 n + 12


def side(field: Field) -> int | None:
    """Return the number of image columns that the middle of a map depends on; None if the image is too narrow for it."""
    n = len(field[0])
    middle = slice(n // 3, max(n // 3 + 1, n - n // 3))
    first, last = field[0][middle], field[1][middle]
    edges = field[0].min(), field[1].max()
    if (first <= edges[0]).any() or (last >= edges[1]).any():
        return None
    return int((last - first).max()) + 1


def format_side(side: int | None) -> str:
    """Format a receptive field, or a lower bound if no image was wide enough for it."""
    return f"{side:,}" if side is not None else f"over {WIDEST:,}"


def stride(field: Field) -> float | None:
    """Return the stride of a map: image columns per column of the map, in its middle; None if the map is too narrow."""
    step = line(field)
    return None if step is None else round(step[1], 2)


def centre(field: Field) -> float | None:
    """Return the center of the receptive field of a map's first column in a larger image, as an image column from 0.

    That of column i is ``centre + i * stride``; where columns differ, as after an unpooling, this holds on average.
    """
    step = line(field)
    return None if step is None else round(step[0], 2)


def line(field: Field) -> tuple[float, float] | None:
    """Return start and slope of the line through the centers of the fields, fitted to the middle third of a map.

    After an unpooling, fields repeat with a period of 2, 4, 8, ... columns: unpooling 2 x 2 of fields with centers 0.5, 2.5,
    ... gives 0.5, 0.5, 2.5, 2.5, ..., a slope of 1. The fit uses the largest power of two below the number of columns in the
    third, which is a multiple of every such period.
    """
    n = len(field[0])
    if n < 6:
        return None
    first, columns = n // 3, 1
    while 2 * columns < n // 3:
        columns *= 2
    x = np.arange(first, first + columns)
    centers = (field[0] + field[1]) / 2
    slope = float(centers[first + columns] - centers[first]) / columns
    return float((centers[x] - slope * x).mean()), slope


def of_logits(net: nn.Module, width: int) -> Field:
    """Return the field of the logits in an image of this width."""
    image = torch.empty(1, getattr(net, "in_channels", 3), width, width, device="meta")
    with torch.no_grad(), Trace(image) as trace:
        logits, _ = split_outputs(copy.deepcopy(net).to("meta")(image))
        logits = resize_to_image(logits, image) if resizes(net, logits, image) else logits
    field = trace.field(logits)
    return (np.zeros(width, int), np.full(width, width - 1)) if field is None else field


def logits_side(net: nn.Module) -> int | None:
    """Return the receptive field of the logits, with their upsampling; None if it is larger than every image tried."""
    return next((columns for wide in widths() if (columns := side(of_logits(net, wide))) is not None), None)


def logits_box(net: nn.Module, height: int, width: int) -> tuple[int, int, int, int]:
    """Return the first and last row, first and last column that the logits in the middle of an image depend on."""
    (top, bottom), (left, right) = (
        (int(field[0][n // 2]), int(field[1][n // 2])) for n in (height, width) for field in [of_logits(net, n)]
    )
    return top, bottom, left, right
