"""How a trained network looks at an image: as a whole, in tiles, as DilatedNet's authors did, or at several scales.

A protocol takes a model and a batch of plain RGB images of one size, and gives their logits in bands of rows from top to
bottom: whoever takes the bands one by one needs no memory for the scores of the whole image. Where scores of several looks
are averaged these are probabilities, and the logits are their logarithms. The protocol is part of every number measured by it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dilated_seg.errors import UserError
from dilated_seg.models import DilatedNet
from dilated_seg.models.dilatednet import MARGIN
from dilated_seg.models.layers import Upsample, mirrored, promote
from dilated_seg.models.segmenter import MAX_CLASSES
from dilated_seg.tensors import Logits, Maps
from dilated_seg.tensors import predict as best

GRID = 32  # tiles begin at its multiples, where every network's poolings fall as they do in the whole image

Model = Callable[[Tensor], Logits]  # plain RGB (B, 3, H, W), 0 to 255, to logits: a Segmenter
Bands = Iterator[tuple[slice, Logits]]  # rows of the image, and the logits of these rows over its whole width


class Inference(ABC):
    """A protocol: ``name`` goes into the names of files, ``str()`` of it into the numbers' protocol."""

    name: str

    @abstractmethod
    def __call__(self, model: Model, image: Tensor) -> Bands:
        """Logits of plain RGB images (B, 3, H, W), 0 to 255, in bands of rows from top to bottom."""


class Whole(Inference):
    """The whole image at once, at its own size."""

    name = ""

    def __call__(self, model: Model, image: Tensor) -> Bands:
        yield slice(0, image.shape[-2]), model(image)

    def __str__(self) -> str:
        return "whole image"


class Tiles(Inference):
    """Tiles that overlap, their probabilities blended from one to the next: memory is bounded by the width and the tile.

    If ``margin`` is at least as far as the network looks from a pixel, which is half the receptive field of a score and the
    output stride, or a little more where scores are enlarged in steps, the result is that of the whole image.

    Args:
        size: (height, width) of a tile; those at the image's far borders may be up to 31 pixels larger.
        overlap: At least so many pixels are seen by both of two neighbours. Within them one's share falls from 1 to 0.
        margin: So many pixels inside a tile's border do not count, unless it is the image's border: they see too little.
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
        rows = self.along(image.shape[-2], self.size[0], image.device)
        columns = self.along(image.shape[-1], self.size[1], image.device)
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

    def along(self, length: int, size: int, device: torch.device) -> list[tuple[int, Tensor]]:
        """Where the tiles begin along one side of an image, and the share of each pixel of theirs; shares add up to 1."""
        count = max(math.ceil((length - self.overlap) / ((size - self.overlap) // GRID * GRID)), 1) if length > size else 1
        places = [number * (length - size) // max(count - 1, 1) // GRID * GRID for number in range(count)]
        starts = list(dict.fromkeys(places))
        ends = [start + size for start in starts[:-1]] + [length]
        total, shares = torch.zeros(length, device=device), []
        for start, end in zip(starts, ends, strict=True):
            inside = torch.arange(end - start, device=device) + 0.5
            share = torch.ones(end - start, device=device)
            if start > 0:
                share = torch.minimum(share, self.rise(inside))
            if end < length:
                share = torch.minimum(share, self.rise(inside.flip(0)))
            total[start:end] += share
            shares.append(share)
        return [(start, share / total[start : start + len(share)]) for start, share in zip(starts, shares, strict=True)]

    def rise(self, depth: Tensor) -> Tensor:
        """A pixel's share by how deep in its tile it lies: none in the margin, all beyond the overlap's other margin."""
        return ((depth - self.margin) / max(self.overlap - 2 * self.margin, 1e-6)).clamp(0, 1)

    def __str__(self) -> str:
        text = f"tiles of {self.size[0]} x {self.size[1]}, {self.overlap} pixels of overlap blended"
        return text + (f", {self.margin} at their borders left out" if self.margin else "")


class ReflectedTiles(Inference):
    """The authors' protocol of DilatedNet: the image reflected by 186 pixels, cut into tiles of 900 with 66 x 66 scores each.

    Each tile's context ends at its 66 x 66 scores. The probabilities of all tiles side by side are enlarged 8 times, where the
    network itself enlarges scores; with 10 context layers, for Cityscapes, the network enlarges each tile's scores.
    For ``DilatedNet(padding="reflect")``, as published weights need it.

    Args:
        size: Side of a tile with its margins, 372 and a multiple of 8: 900 for VOC and CamVid, 1396 for Cityscapes.
    """

    def __init__(self, size: int = 900) -> None:
        if size <= 2 * MARGIN or (size - 2 * MARGIN) % DilatedNet.output_stride:
            raise UserError(f"inference ReflectedTiles: size {size} is not 372 and a multiple of 8 more, such as 900")
        self.size = size
        self.name = f"reflected-tiles-{size}"

    def __call__(self, model: Model, image: Tensor) -> Bands:
        net = self.network(model)
        if not isinstance(net.ctx_upsample, Upsample):
            yield from self.enlarged_by_tile(model, net, image)
            return
        step, stride = self.size - 2 * MARGIN, net.output_stride
        height, width = image.shape[-2:]
        rows = [torch.cat(self.row_of_tiles(model, net, image, top), 3).softmax(1) for top in range(0, height, step)]
        cells = torch.cat(rows, 2)
        for first in range(0, math.ceil(height / stride), step // stride):  # and the first row of the next band
            band = net.ctx_upsample(cells[:, :, first : first + step // stride + 1])
            top = first * stride
            bottom = min(top + step, height)
            yield slice(top, bottom), logarithm(band[:, :, : bottom - top, :width])

    def network(self, model: Model) -> DilatedNet:
        """The network that this protocol is for.

        Raises:
            UserError: The model's is another, or it has a CRF of its own, which works on whole images.
        """
        net = getattr(model, "net", None)
        if not isinstance(net, DilatedNet) or net.margin != MARGIN:
            raise UserError("inference ReflectedTiles is for DilatedNet with padding: reflect; take Tiles for other networks")
        if getattr(model, "crf", None):
            raise UserError("inference ReflectedTiles is for networks alone, and this one was trained with a CRF: take Whole")
        return net

    def enlarged_by_tile(self, model: Model, net: DilatedNet, image: Tensor) -> Bands:
        """As for Cityscapes: the network's deconvolution enlarges the scores of each tile."""
        height, width = image.shape[-2:]
        step = self.size - 2 * MARGIN
        for top in range(0, height, step):
            row = torch.cat([promote(net.ctx_upsample(scores)) for scores in self.row_of_tiles(model, net, image, top)], 3)
            bottom = min(top + step, height)
            yield slice(top, bottom), row[:, :, : bottom - top, :width]

    def row_of_tiles(self, model: Model, net: DilatedNet, image: Tensor, top: int) -> list[Maps]:
        """The scores of every tile of a row, (size - 372) / 8 cells a side."""
        height, width = image.shape[-2:]
        rows = image.index_select(2, self.seen(height, top).to(image.device))
        tiles = (
            rows.index_select(3, self.seen(width, left).to(image.device)) for left in range(0, width, self.size - 2 * MARGIN)
        )
        return [promote(net.context(net.front_end(model.normalize(tile)))) for tile in tiles]  # type: ignore[attr-defined]

    def seen(self, length: int, start: int) -> Tensor:
        """Which pixels along one side a tile sees; one that is cut short by the reflected image's end mirrors itself there."""
        here = mirrored(length, MARGIN)[start : start + self.size]
        short = self.size - len(here)
        return here[mirrored(len(here), short)[short:]]

    def __str__(self) -> str:
        return f"image reflected by {MARGIN} pixels, tiles of {self.size}, as DilatedNet's authors"


class MultiScale(Inference):
    """The image at several sizes, and mirrored left to right: the mean of the probabilities, enlarged to the image's size.

    This needs memory for the probabilities of the whole image.

    Args:
        scales: Factors of height and width.
        flip: Whether to look at each size mirrored as well.
        each: How each of them is looked at.
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
        self.scales, self.flip, self.each = scales, flip, each or Whole()
        sizes = "-".join(f"{scale:g}" for scale in scales)
        self.name = f"scales-{sizes}{'-flip' if flip else ''}{'-' if self.each.name else ''}{self.each.name}"

    def __call__(self, model: Model, image: Tensor) -> Bands:
        size = image.shape[-2:]
        total: Tensor | None = None
        for scale in self.scales:
            scaled_size = [max(round(side * scale), 1) for side in size]
            resized = F.interpolate(image.float(), scaled_size, mode="bilinear", align_corners=False, antialias=True)
            for mirror in (False, True) if self.flip else (False,):
                logits = whole(self.each, model, resized.flip(3) if mirror else resized)
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


def whole(inference: Inference, model: Model, image: Tensor) -> Logits:
    """The logits of whole images: all bands of a protocol."""
    bands = [logits for _, logits in inference(model, image)]
    return bands[0] if len(bands) == 1 else torch.cat(bands, 2)


def predict(inference: Inference, model: Model, image: Tensor) -> Tensor:
    """Class ids (B, H, W), uint8, of plain RGB images (B, 3, H, W), 0 to 255, in memory for one band of the scores."""
    found = torch.empty(len(image), *image.shape[-2:], dtype=torch.uint8, device=image.device)
    for rows, logits in inference(model, image):
        if logits.shape[1] > MAX_CLASSES:
            raise UserError(f"class ids are written as bytes, of which 255 says void: {logits.shape[1]} classes are too many")
        found[:, rows] = best(logits).to(torch.uint8)
    return found


def logarithm(probabilities: Tensor) -> Logits:
    """Logits whose softmax gives these probabilities, in their place; of those that underflowed to 0 too they are finite."""
    return probabilities.clamp_min_(torch.finfo(probabilities.dtype).tiny).log_()
