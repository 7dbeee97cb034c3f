"""U-Net: four halvings down and four doublings up, with a skip connection at each level.

Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015,
https://arxiv.org/abs/1505.04597.

``form="authors"`` is Figure 1: no convolution pads, skip connections are cropped in the middle, and logits are smaller than the
image by 184 pixels (572 gives 388). ``form="any_size"`` pads every convolution, so that logits have the image's size; a level
of odd size is rounded up and cropped on the way up.
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import nn

from dilated_seg.errors import UserError
from dilated_seg.models import timm_encoder
from dilated_seg.models.layers import check_arguments, conv_relu, crop, initialize, scale_channels
from dilated_seg.models.release import ENCODER_LAYERS
from dilated_seg.tensors import Maps, Planes

# Figure 1: channels at each level, top to bottom.
LEVELS = (64, 128, 256, 512, 1024)

BORDER = 184  # pixels by which the unpadded convolutions make the logits smaller than the image


class UNet(nn.Module):
    """U-Net (Figure 1). Layers have the names of the authors' file: "conv_d0a-b" leads from point a to point b of level d0.

    Args:
        num_classes: C, not counting the ignored label.
        form: Figure 1, or padded for any size; see the module.
        width: Multiplies the channels of all hidden layers; 1 is the paper's network.
        in_channels: Channels of the image; the authors' microscope images have 1.
        encoder: timm's name of an encoder that replaces the contracting path (not in the paper), whose features of every
            stride are the skip connections; see `timm_encoder.Encoder`. A level without features has none.
    """

    output_stride = 1
    indivisible: ClassVar[str] = ENCODER_LAYERS

    def __init__(
        self,
        num_classes: int,
        form: Literal["any_size", "authors"] = "any_size",
        width: float = 1.0,
        *,
        in_channels: int = 3,
        encoder: str | None = None,
    ) -> None:
        check_arguments(UNet, locals())
        super().__init__()
        self.valid, self.in_channels = form == "authors", in_channels
        padding = 0 if self.valid else 1
        channels = [scale_channels(c, width) for c in LEVELS]
        self.down, self.pools, self.up = nn.ModuleList(), nn.ModuleDict(), nn.ModuleList()
        self.encoder = None
        if encoder is not None:
            if self.valid:
                raise ValueError("encoder replaces the convolutions of form='authors': leave one of the two out")
            self.encoder = timm_encoder.Encoder(encoder, in_channels=in_channels)
            of_stride = dict(zip(self.encoder.strides, self.encoder.channels, strict=True))
            self.skips = [of_stride.get(2**level, 0) for level in range(len(LEVELS))]
            channels = [*channels, self.encoder.channels[-1]]
        else:
            self.skips = channels[:-1]
            self.add_contracting_path(channels, padding)
        bottom = len(self.skips)
        for level in reversed(range(bottom)):
            below, outputs = channels[level + 1], channels[level]
            name = f"upconv_d{bottom}c_u{level}a" if level == bottom - 1 else f"upconv_u{level + 1}d_u{level}a"
            enlarge = nn.Sequential(OrderedDict({name: nn.ConvTranspose2d(below, outputs, 2, 2)}))
            layers = conv_relu(f"conv_u{level}b-c", outputs + self.skips[level], outputs, padding=padding)
            layers |= conv_relu(f"conv_u{level}c-d", outputs, outputs, padding=padding)
            self.up.append(Up(enlarge, nn.Sequential(layers), centred=self.valid))
        self.add_module("conv_u0d-score", nn.Conv2d(channels[0], num_classes, 1))
        initialize(self)

    def add_contracting_path(self, channels: Sequence[int], padding: int) -> None:
        """Add the convolutions of each level and the poolings between them."""
        for level, (inputs, outputs) in enumerate(pairwise((self.in_channels, *channels))):
            if level:
                self.pools[f"pool_d{level - 1}c-{level}a"] = nn.MaxPool2d(2, 2, ceil_mode=not self.valid)
            layers = conv_relu(f"conv_d{level}a-b", inputs, outputs, padding=padding)
            layers |= conv_relu(f"conv_d{level}b-c", outputs, outputs, padding=padding)
            self.down.append(nn.Sequential(layers))

    def forward(self, image: Planes) -> Maps:
        if self.valid:
            check_valid_size(image)
        if self.encoder is None:
            skips: list[Maps | None] = [self.down[0](image)]
            for pool, stage in zip(self.pools.values(), self.down[1:], strict=True):
                skips.append(stage(pool(skips[-1])))
        else:
            features = self.encoder(image)
            skips = [features.pop(0) if channels else None for channels in (*self.skips, 1)]
        maps = skips.pop()
        for stage in self.up:
            maps = stage(maps, skips.pop())
        scores = self.get_submodule("conv_u0d-score")(maps)
        return scores if self.encoder is None else crop(scores, 0, image)


class Up(nn.Module):
    """A level of the expanding path: the maps from below, upsampled, concatenated with the cropped skip connection."""

    def __init__(self, enlarge: nn.Module, join: nn.Module, centred: bool) -> None:
        super().__init__()
        self.enlarge, self.join, self.centred = enlarge, join, centred

    def forward(self, below: Maps, skip: Maps | None) -> Maps:
        below = self.enlarge(below)
        if skip is None:
            return self.join(below)
        skip = crop(skip, (skip.shape[-1] - below.shape[-1]) // 2 if self.centred else 0, below)
        return self.join(torch.cat([crop(below, 0, skip), skip], dim=1))


def check_valid_size(image: torch.Tensor) -> None:
    """Raise UserError unless both sides are 16 n + 12 with n > 10, so that they are even before each unpadded pooling."""
    for side in image.shape[-2:]:
        if side % 16 != 12 or side < 188:
            near = max(188, (side - 12 + 15) // 16 * 16 + 12)
            raise UserError(
                f"U-Net without padding needs sides of 188, 204, 220, ... pixels, not {side}: pad or crop to {near}"
            )
