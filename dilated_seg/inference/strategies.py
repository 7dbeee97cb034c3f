"""Inference strategies: the full image, overlapping tiles, the tiles of DilatedNet's authors, or several scales.

A strategy applies a model to a batch of RGB images of one size, and yields logits in bands of rows from top to bottom, so that
the logits of a full image need not fit into memory. Where probabilities are averaged, the logits are their logarithms.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dilated_seg import tensors
from dilated_seg.errors import UserError
from dilated_seg.models.segmenter import MAX_CLASSES
from dilated_seg.tensors import Logits

GRID = 32  # tiles begin at multiples, so that every network's pooling cells are those of the full image

Model = Callable[[Tensor], Logits]  # maps RGB (B, 3, H, W), 0 to 255, to logits: a Segmenter
Bands = Iterator[tuple[slice, Logits]]  # rows of the image, and their logits


class Inference(ABC):
    """An inference strategy: ``name`` is part of file names, ``str()`` of the evaluation protocol."""

    name: str

    @abstractmethod
    def __call__(self, model: Model, image: Tensor) -> Bands:
        """Yield the logits of RGB images (B, 3, H, W), 0 to 255, in bands of rows from top to bottom."""


class FullImage(Inference):
    """The full image at once, at its own size."""

    name = ""

    def __call__(self, model: Model, image: Tensor) -> Bands:
        yield slice(0, image.shape[-2]), model(image)

    def __str__(self) -> str:
        return "whole image"


class Tiles(Inference):
    """Overlapping tiles whose probabilities are blended: memory is bounded by the image's width and the tile's size.

    If ``margin`` >= half the receptive field + the output stride, the result equals that of FullImage (slightly more for
    networks that upsample in steps).

    Args:
        size: (height, width) of a tile; tiles at the right and bottom border may be up to 31 pixels larger.
        overlap: Minimum number of pixels that neighbors share; within them, a tile's weight falls from 1 to 0.
        margin: Pixels at a tile's border with weight 0, except at the image's border: their context is incomplete.
    """

    def __init__(self, size: tuple[int, int] = (512, 512), overlap: int = 128, margin: int = 0) -> None:
        if (
            not isinstance(size, tuple | list)
            or len(size) != 2
            or not all(type(number) is int for number in (*size, overlap, margin))
        ):
            raise ValueError(f"Tiles: size {size}, overlap {overlap}, margin {margin} must be integers (pixels)")
        if margin < 0 or overlap < 2 * margin or overlap + GRID > min(size):
            raise ValueError(
                f"Tiles: size {size[0]} x {size[1]}, overlap {overlap}, margin {margin} do not fit: the overlap "
                f"must be at least two margins, and the tile at least {GRID} pixels larger than the overlap"
            )
        self.size, self.overlap, self.margin = size, overlap, margin
        self.name = f"tiles-{size[0]}x{size[1]}-{overlap}" + (f"-{margin}" if margin else "")

    def __call__(self, model: Model, image: Tensor) -> Bands:
        rows = self.place_tiles(image.shape[-2], self.size[0], image.device)
        columns = self.place_tiles(image.shape[-1], self.size[1], image.device)
        begun: Tensor | None = None  # weighted rows that the tiles below add to
        for number, (top, heights) in enumerate(rows):
            band = self.segment_row(model, image[..., top : top + len(heights), :], columns).mul_(heights[:, None])
            if begun is not None:
                band[:, :, : begun.shape[2]] += begun
            done = rows[number + 1][0] - top if number + 1 < len(rows) else len(heights)
            begun = band[:, :, done:].clone()
            yield slice(top, top + done), log_in_place(band[:, :, :done])

    def segment_row(self, model: Model, image: Tensor, columns: list[tuple[int, Tensor]]) -> Tensor:
        """Return the blended probabilities (B, C, H, W) of a strip of the image that is as high as a tile."""
        band: Tensor | None = None
        for left, widths in columns:
            span = slice(left, left + len(widths))
            tile = model(image[..., span]).softmax(1)
            band = tile.new_zeros(*tile.shape[:3], image.shape[-1]) if band is None else band
            band[..., span] += tile * widths
        assert band is not None  # an image has at least one column
        return band

    def place_tiles(self, length: int, size: int, device: torch.device) -> list[tuple[int, Tensor]]:
        """Return the first pixel of each tile along one side of an image, and its weights; at each pixel they add up to 1."""
        count = max(math.ceil((length - self.overlap) / ((size - self.overlap) // GRID * GRID)), 1) if length > size else 1
        offsets = [number * (length - size) // max(count - 1, 1) // GRID * GRID for number in range(count)]
        starts = list(dict.fromkeys(offsets))
        ends = [start + size for start in starts[:-1]] + [length]
        total, shares = torch.zeros(length, device=device), []
        for start, end in zip(starts, ends, strict=True):
            inside = torch.arange(end - start, device=device) + 0.5
            share = torch.ones(end - start, device=device)
            if start > 0:
                share = torch.minimum(share, self.ramp(inside))
            if end < length:
                share = torch.minimum(share, self.ramp(inside.flip(0)))
            total[start:end] += share
            shares.append(share)
        return [(start, share / total[start : start + len(share)]) for start, share in zip(starts, shares, strict=True)]

    def ramp(self, depth: Tensor) -> Tensor:
        """Return a pixel's weight by its distance from the tile's border: 0 in the margin, 1 beyond the overlap."""
        return ((depth - self.margin) / max(self.overlap - 2 * self.margin, 1e-6)).clamp(0, 1)

    def __str__(self) -> str:
        text = f"tiles of {self.size[0]} x {self.size[1]}, {self.overlap} pixels of overlap blended"
        return text + (f", {self.margin} at their borders left out" if self.margin else "")


class MultiScale(Inference):
    """Averages the probabilities of the image at several sizes, and mirrored left to right, resized to the image's size.

    The probabilities of the full image must fit into memory.

    Args:
        scales: Factors of height and width.
        flip: Whether to include each size mirrored.
        each: The strategy for each size; FullImage by default.
    """

    def __init__(
        self, scales: Sequence[float] = (0.5, 0.75, 1.0, 1.25, 1.5), flip: bool = True, each: Inference | None = None
    ) -> None:
        if not scales or not all(isinstance(scale, int | float) and 0 < scale <= 100 for scale in scales):
            raise ValueError(
                f"MultiScale: scales {list(scales)} must be factors above 0 and up to 100, such as [0.5, 1.0, 1.5]"
            )
        if not isinstance(flip, bool) or not isinstance(each, Inference | None):
            raise ValueError("MultiScale: flip must be true or false, and each a strategy such as Tiles(overlap=64)")
        self.scales, self.flip, self.each = scales, flip, each or FullImage()
        sizes = "-".join(f"{scale:g}" for scale in scales)
        self.name = f"scales-{sizes}{'-flip' if flip else ''}{'-' if self.each.name else ''}{self.each.name}"

    def __call__(self, model: Model, image: Tensor) -> Bands:
        size = image.shape[-2:]
        total: Tensor | None = None
        for scale in self.scales:
            scaled_size = [max(round(side * scale), 1) for side in size]
            resized = F.interpolate(image.float(), scaled_size, mode="bilinear", align_corners=False, antialias=True)
            for mirror in (False, True) if self.flip else (False,):
                logits = predict_logits(self.each, model, resized.flip(3) if mirror else resized)
                probabilities = F.interpolate(
                    logits.softmax(1), size, mode="bilinear", align_corners=False, antialias=scale > 1
                )
                probabilities = probabilities.flip(3) if mirror else probabilities
                total = probabilities if total is None else total.add_(probabilities)
        assert total is not None  # there is at least one scale
        yield slice(0, size[0]), log_in_place(total / (len(self.scales) * (1 + self.flip)))

    def __str__(self) -> str:
        sizes = ", ".join(f"{scale:g}" for scale in self.scales)
        return f"scales {sizes}{', each mirrored too' if self.flip else ''}, probabilities averaged; each: {self.each}"


def predict_logits(inference: Inference, model: Model, image: Tensor) -> Logits:
    """Return the logits (B, C, H, W) of full images: all bands of a strategy."""
    bands = [logits for _, logits in inference(model, image)]
    return bands[0] if len(bands) == 1 else torch.cat(bands, 2)


def predict(inference: Inference, model: Model, image: Tensor) -> Tensor:
    """Return class ids (B, H, W), uint8, of RGB images (B, 3, H, W), 0 to 255, in memory for one band of logits.

    Raises:
        UserError: There are more than 255 classes.
    """
    prediction = torch.empty(len(image), *image.shape[-2:], dtype=torch.uint8, device=image.device)
    for rows, logits in inference(model, image):
        if logits.shape[1] > MAX_CLASSES:
            raise UserError(f"{logits.shape[1]} classes are too many: class ids are uint8, and 255 is the ignore index")
        prediction[:, rows] = tensors.predict(logits).to(torch.uint8)
    return prediction


def log_in_place(probabilities: Tensor) -> Logits:
    """Return logits whose softmax is these probabilities, computed in place; finite where a probability underflowed to 0."""
    return probabilities.clamp_min_(torch.finfo(probabilities.dtype).tiny).log_()
