"""What a network can see: how large a layer's receptive fields are, how far apart, and where in the image they lie.

Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019,
https://distill.pub/2019/computing-receptive-fields.
"""

import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from dilated_seg.analysis.receptive_field.trace import Field, Trace

WIDE = 4108  # pixels: wide enough for most receptive fields; 16 n + 12, as U-Net without padding needs
WIDEST = 40_000


def widths() -> Iterator[int]:
    """Widths of images to try, narrow ones first, until no field in the middle of a map meets an edge."""
    wide = WIDE
    while wide < WIDEST:
        yield wide
        wide = 2 * wide + 4  # again 16 n + 12


def side(field: Field) -> int | None:
    """The receptive field: how many image columns the middle columns of a map see; None if the image's edge hides it."""
    n = len(field[0])
    middle = slice(n // 3, max(n // 3 + 1, n - n // 3))
    first, last = field[0][middle], field[1][middle]
    edges = field[0].min(), field[1].max()
    if (first <= edges[0]).any() or (last >= edges[1]).any():
        return None
    return int((last - first).max()) + 1


def format_side(side: int | None) -> str:
    """Return a receptive field as text, or a lower bound if no image was wide enough for it."""
    return f"{side:,}" if side is not None else f"over {WIDEST:,}"


def stride(field: Field) -> float | None:
    """Image columns a column of a map, in its middle; None if the map is too narrow to have one."""
    step = line(field)
    return None if step is None else round(step[1], 2)


def centre(field: Field) -> float | None:
    """The image column, counted from 0, in the middle of what the first column of a map would see in a larger image.

    That of column i is ``centre + i * stride``; where columns are not alike, as behind an unpooling, it is so on average.
    """
    step = line(field)
    return None if step is None else round(step[0], 2)


def line(field: Field) -> tuple[float, float] | None:
    """Start and slope of the middles of all fields, from a whole number of any pooling's periods in the map's middle."""
    n = len(field[0])
    if n < 6:
        return None
    a, span = n // 3, 1 << (n // 3 - 1).bit_length() - 1
    at = np.arange(a, a + span)
    middles = (field[0] + field[1]) / 2
    slope = float(middles[a + span] - middles[a]) / span
    return float((middles[at] - slope * at).mean()), slope


def of_logits(net: nn.Module, width: int) -> Field:
    """What each column of the logits sees of an image of this width."""
    image = torch.empty(1, 3, width, width, device="meta")
    with torch.no_grad(), Trace(image) as trace:
        logits = copy.deepcopy(net).to("meta")(image)
    field = trace.field(logits)
    return (np.zeros(width, int), np.full(width, width - 1)) if field is None else field


def logits_side(net: nn.Module) -> int | None:
    """The receptive field of the logits, their upsampling included; None if it is larger than any image that was tried."""
    return next((found for wide in widths() if (found := side(of_logits(net, wide))) is not None), None)


def logits_box(net: nn.Module, height: int, width: int) -> tuple[int, int, int, int]:
    """First and last row, first and last column that the logits in the middle of an image of this size depend on."""
    (top, bottom), (left, right) = (
        (int(field[0][n // 2]), int(field[1][n // 2])) for n in (height, width) for field in [of_logits(net, n)]
    )
    return top, bottom, left, right
