"""The inference strategy of DilatedNet's authors."""

import math

import torch
from torch import Tensor

from dilated_seg.errors import UserError
from dilated_seg.inference.strategies import Bands, Inference, Model, log_in_place
from dilated_seg.models import DilatedNet
from dilated_seg.models.dilatednet import MARGIN
from dilated_seg.models.layers import Upsample, mirror_indices, promote
from dilated_seg.tensors import Maps


class ReflectedTiles(Inference):
    """The strategy of DilatedNet's authors: the image reflected by 186 pixels, in tiles of 900 with 66 x 66 logits each.

    The context of each tile ends at its 66 x 66 logits. The probabilities of all tiles are joined and upsampled 8 times, where
    the network itself upsamples logits; with 10 context layers (Cityscapes), the network upsamples each tile's logits. For
    ``DilatedNet(padding="reflect")`` and its published weights.

    Args:
        size: Side of a tile with its margins, 372 plus a multiple of 8: 900 for VOC and CamVid, 1396 for Cityscapes.
    """

    def __init__(self, size: int = 900) -> None:
        if size <= 2 * MARGIN or (size - 2 * MARGIN) % DilatedNet.output_stride:
            raise ValueError(f"ReflectedTiles: size {size} must be 372 plus a multiple of 8, such as 900")
        self.size = size
        self.name = f"reflected-tiles-{size}"

    def __call__(self, model: Model, image: Tensor) -> Bands:
        net = self.require_network(model)
        if not (isinstance(net.ctx_upsample, Upsample) and net.ctx_upsample.corners):
            yield from self.upsample_tiles(model, net, image)
            return
        step, stride = self.size - 2 * MARGIN, net.output_stride
        height, width = image.shape[-2:]
        rows = [torch.cat(self.segment_row(model, net, image, top), 3).softmax(1) for top in range(0, height, step)]
        cells = torch.cat(rows, 2)
        for first in range(0, math.ceil(height / stride), step // stride):  # and the first row of the next band
            band = net.ctx_upsample(cells[:, :, first : first + step // stride + 1])
            top = first * stride
            bottom = min(top + step, height)
            yield slice(top, bottom), log_in_place(band[:, :, : bottom - top, :width])

    def require_network(self, model: Model) -> DilatedNet:
        """Return the model's network.

        Raises:
            UserError: The network is not DilatedNet with reflection, or the model has a CRF, which needs full images.
        """
        net = getattr(model, "net", None)
        if not isinstance(net, DilatedNet) or net.margin != MARGIN:
            raise UserError("inference ReflectedTiles is for DilatedNet with padding: reflect; use Tiles for other networks")
        if getattr(model, "crf", None):
            raise UserError(
                "inference ReflectedTiles is for models without a CRF, and this one was trained with a CRF: use FullImage"
            )
        return net

    def upsample_tiles(self, model: Model, net: DilatedNet, image: Tensor) -> Bands:
        """Yield logits as for Cityscapes, where the network's deconvolution upsamples each tile."""
        height, width = image.shape[-2:]
        step = self.size - 2 * MARGIN
        for top in range(0, height, step):
            row = torch.cat([promote(net.ctx_upsample(scores)) for scores in self.segment_row(model, net, image, top)], 3)
            bottom = min(top + step, height)
            yield slice(top, bottom), row[:, :, : bottom - top, :width]

    def segment_row(self, model: Model, net: DilatedNet, image: Tensor, top: int) -> list[Maps]:
        """Return the logits of every tile of a row, (size - 372) / 8 cells a side."""
        height, width = image.shape[-2:]
        rows = image.index_select(2, self.tile_indices(height, top).to(image.device))
        tiles = (
            rows.index_select(3, self.tile_indices(width, left).to(image.device))
            for left in range(0, width, self.size - 2 * MARGIN)
        )
        return [promote(net.context(net.front_end(model.normalize(tile)))) for tile in tiles]  # type: ignore[attr-defined]

    def tile_indices(self, length: int, start: int) -> Tensor:
        """Return the pixels of a tile along one side; a tile beyond the end of the reflected image is mirrored there."""
        indices = mirror_indices(length, MARGIN)[start : start + self.size]
        short = self.size - len(indices)
        return indices[mirror_indices(len(indices), short)[short:]]

    def __str__(self) -> str:
        return f"image reflected by {MARGIN} pixels, tiles of {self.size}, as DilatedNet's authors"
