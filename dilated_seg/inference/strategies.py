"""Inference strategies: the full image, overlapping tiles, the tiles of DilatedNet's authors, or several scales.

A strategy takes a model and a batch of plain RGB images of one size, and yields their logits in bands of rows from top to
bottom, so that no memory for the logits of the whole image is needed. Where probabilities are averaged, the logits are their
logarithms. The strategy is part of the evaluation protocol.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dilated_seg.errors import UserError
from dilated_seg.models.segmenter import MAX_CLASSES
from dilated_seg.tensors import Logits
from dilated_seg.tensors import predict as best

GRID = 32  # tiles begin at its multiples, where every network's poolings fall as they do in the whole image

Model = Callable[[Tensor], Logits]  # plain RGB (B, 3, H, W), 0 to 255, to logits: a Segmenter
Bands = Iterator[tuple[slice, Logits]]  # rows of the image, and the logits of these rows over its whole width


class Inference(ABC):
    """An inference strategy: ``name`` is part of file names, ``str()`` of the evaluation protocol."""

    name: str

    @abstractmethod
    def __call__(self, model: Model, image: Tensor) -> Bands:
        """Yield the logits of plain RGB images (B, 3, H, W), 0 to 255, in bands of rows from top to bottom."""


class FullImage(Inference):
    """The full image at once, at its own size."""

    name = ""

    def __call__(self, model: Model, image: Tensor) -> Bands:
        yield slice(0, image.shape[-2]), model(image)

    def __str__(self) -> str:
        return "whole image"


class Tiles(Inference):
    """Overlapping tiles whose probabilities are blended: memory is bounded by the image's width and the tile's size.

    The result is that of the full image if ``margin`` is at least half the receptive field plus the output stride, or a little
    more where logits are upsampled in steps.

    Args:
        size: (height, width) of a tile; those at the image's far borders may be up to 31 pixels larger.
        overlap: Pixels that two neighbors have in common, at least. Within them the weight of one falls from 1 to 0.
        margin: Pixels inside a tile's border that do not count, unless it is the image's border: their context is cut off.
    """

    def __init__(self, size: tuple[int, int] = (512, 512), overlap: int = 128, margin: int = 0) -> None:
        if (
            not isinstance(size, tuple | list)
            or len(size) != 2
            or not all(type(number) is int for number in (*size, overlap, margin))
        ):
            raise UserError(f"inference Tiles: size {size}, overlap {overlap}, margin {margin} are no whole numbers of pixels")
        if margin < 0 or overlap < 2 * margin or overlap + GRID > min(size):
            raise UserError(
                f"inference Tiles: size {size[0]} x {size[1]}, overlap {overlap}, margin {margin} do not go together: two "
                f"margins must fit into the overlap, and the tile must be at least {GRID} larger than that"
            )
        self.size, self.overlap, self.margin = size, overlap, margin
        self.name = f"tiles-{size[0]}x{size[1]}-{overlap}" + (f"-{margin}" if margin else "")

    def __call__(self, model: Model, image: Tensor) -> Bands:
        rows = self.place_tiles(image.shape[-2], self.size[0], image.device)
        columns = self.place_tiles(image.shape[-1], self.size[1], image.device)
        begun: Tensor | None = None  # rows of which the tiles below have a share too
        for number, (top, heights) in enumerate(rows):
            band = self.row_of_tiles(model, image[..., top : top + len(heights), :], columns).mul_(heights[:, None])
            if begun is not None:
                band[:, :, : begun.shape[2]] += begun
            done = rows[number + 1][0] - top if number + 1 < len(rows) else len(heights)
            begun = band[:, :, done:].clone()
            yield slice(top, top + done), logarithm(band[:, :, :done])

    def row_of_tiles(self, model: Model, image: Tensor, columns: list[tuple[int, Tensor]]) -> Tensor:
        """Probabilities over the whole width of a strip as high as a tile."""
        band: Tensor | None = None
        for left, widths in columns:
            here = slice(left, left + len(widths))
            tile = model(image[..., here]).softmax(1)
            band = tile.new_zeros(*tile.shape[:3], image.shape[-1]) if band is None else band
            band[..., here] += tile * widths
        assert band is not None  # an image has at least one column
        return band

    def place_tiles(self, length: int, size: int, device: torch.device) -> list[tuple[int, Tensor]]:
        """Return where tiles begin along one side of an image, and the weights of their pixels, which add up to 1."""
        count = max(math.ceil((length - self.overlap) / ((size - self.overlap) // GRID * GRID)), 1) if length > size else 1
        places = [number * (length - size) // max(count - 1, 1) // GRID * GRID for number in range(count)]
        starts = list(dict.fromkeys(places))
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
    """The image at several sizes, and mirrored left to right: the mean of the probabilities, resized to the image's size.

    This needs memory for the probabilities of the whole image.

    Args:
        scales: Factors of height and width.
        flip: Whether to take each size mirrored as well.
        each: The strategy for each size.
    """

    def __init__(
        self, scales: Sequence[float] = (0.5, 0.75, 1.0, 1.25, 1.5), flip: bool = True, each: Inference | None = None
    ) -> None:
        if not scales or not all(isinstance(scale, int | float) and 0 < scale <= 100 for scale in scales):
            raise UserError(
                f"inference MultiScale: scales {list(scales)} should be factors above 0 and up to 100, such as [0.5, 1.0, 1.5]"
            )
        if not isinstance(flip, bool) or not isinstance(each, Inference | None):
            raise UserError("inference MultiScale: flip is true or false, and each a protocol such as Tiles(overlap=64)")
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
        yield slice(0, size[0]), logarithm(total / (len(self.scales) * (1 + self.flip)))

    def __str__(self) -> str:
        sizes = ", ".join(f"{scale:g}" for scale in self.scales)
        return f"scales {sizes}{', each mirrored too' if self.flip else ''}, probabilities averaged; each: {self.each}"


def predict_logits(inference: Inference, model: Model, image: Tensor) -> Logits:
    """Return the logits of full images: all bands of a strategy."""
    bands = [logits for _, logits in inference(model, image)]
    return bands[0] if len(bands) == 1 else torch.cat(bands, 2)


def predict(inference: Inference, model: Model, image: Tensor) -> Tensor:
    """Return class ids (B, H, W), uint8, of plain RGB images (B, 3, H, W), 0 to 255, in memory for one band of logits."""
    prediction = torch.empty(len(image), *image.shape[-2:], dtype=torch.uint8, device=image.device)
    for rows, logits in inference(model, image):
        if logits.shape[1] > MAX_CLASSES:
            raise UserError(f"class ids are written as bytes, of which 255 says void: {logits.shape[1]} classes are too many")
        prediction[:, rows] = best(logits).to(torch.uint8)
    return prediction


def logarithm(probabilities: Tensor) -> Logits:
    """Return logits whose softmax gives these probabilities, computed in place; they are finite where it underflowed to 0."""
    return probabilities.clamp_min_(torch.finfo(probabilities.dtype).tiny).log_()
