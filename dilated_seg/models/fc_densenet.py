"""FC-DenseNet, the "One Hundred Layers Tiramisu": dense blocks down, and up again with the new maps of each level.

Jegou, Drozdzal, Vazquez, Romero and Bengio, "The One Hundred Layers Tiramisu: Fully Convolutional DenseNets for Semantic
Segmentation", CVPR workshops 2017, https://arxiv.org/abs/1611.09326.

Differs from the release: evaluation uses running averages in batch norm, where the authors use the batch's statistics there too
(``batch_statistics=True`` does the same, and a prediction then depends on the rest of its batch); an image with a side under 32
pixels, which five poolings would reduce to 0 cells, is padded with zeros to 32.
"""

from collections import OrderedDict
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import nn

from dilated_seg.models.layers import BatchNorm, check_arguments, crop, initialize, scale_channels
from dilated_seg.models.release import ENCODER_LAYERS, Variants
from dilated_seg.tensors import Logits, Maps, Planes

# Section 4.1 and Table 2.       layers of the blocks down, of the bottleneck, of the blocks up; growth: new maps a layer
DEPTHS = {
    56:  ((4, 4, 4, 4, 4),    4,  (4, 4, 4, 4, 4),    12),
    67:  ((5, 5, 5, 5, 5),    5,  (5, 5, 5, 5, 5),    16),
    103: ((4, 5, 7, 10, 12),  15, (12, 10, 7, 5, 4),  16),
}  # fmt: skip
FIRST = 48  # channels of the first convolution

EPS = 1e-4  # of batch norm, Lasagne's


class FCDenseNet(nn.Module):
    """FC-DenseNet56, 67 or 103 (Table 2).

    Args:
        num_classes: C, not counting the ignored label.
        depth: Convolutions, as Table 2 counts them.
        width: Multiplies the first channels and the growth; 1 is the paper's network.
        dropout: Probability of dropout after every convolution of the blocks and of the transitions down.
        batch_statistics: Whether to normalize by the batch's statistics in evaluation too, as the authors' code does.
        in_channels: Channels of the image.
    """

    output_stride = 1
    variants: ClassVar[Variants] = ({"depth": 56}, {"depth": 67}, {"depth": 103})
    indivisible: ClassVar[str] = ENCODER_LAYERS

    def __init__(
        self,
        num_classes: int,
        depth: Literal[56, 67, 103] = 103,
        width: float = 1.0,
        *,
        dropout: float = 0.2,
        batch_statistics: bool = False,
        in_channels: int = 3,
    ) -> None:
        check_arguments(FCDenseNet, locals())
        super().__init__()
        self.in_channels = in_channels
        down, middle, up, growth = DEPTHS[depth]
        channels, growth = scale_channels(FIRST, width), scale_channels(growth, width)
        self.first = nn.Conv2d(in_channels, channels, 3, padding=1)
        skips = []
        for level, layers in enumerate(down):
            self.add_module(f"down{level}", DenseBlock(channels, layers, growth, dropout))
            channels += layers * growth
            skips.append(channels)
            self.add_module(f"td{level}", nn.Sequential(bn_relu_conv(channels, channels, 1, dropout)))
            self.add_module(f"pool{level}", nn.MaxPool2d(2, 2))
        self.mid = DenseBlock(channels, middle, growth, dropout)
        for level, (layers, before) in enumerate(zip(up, (middle, *up), strict=False)):
            self.add_module(f"tu{level}", nn.ConvTranspose2d(before * growth, before * growth, 3, 2))
            channels = before * growth + skips.pop()
            self.add_module(f"up{level}", DenseBlock(channels, layers, growth, dropout))
        self.score = nn.Conv2d(channels + up[-1] * growth, num_classes, 1)
        initialize(self, uniform=True)
        for layer in self.modules():
            if isinstance(layer, BatchNorm) and batch_statistics:
                layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None

    def forward(self, image: Planes) -> Logits:
        height, width = image.shape[-2:]
        maps, skips = self.first(F.pad(image, (0, max(0, 32 - width), 0, max(0, 32 - height)))), []
        for level in range(5):
            maps = torch.cat([maps, self.get_submodule(f"down{level}")(maps)], dim=1)
            skips.append(maps)
            maps = self.get_submodule(f"pool{level}")(self.get_submodule(f"td{level}")(maps))
        new = self.mid(maps)
        for level in range(5):
            skip = skips.pop()  # Section 3.1: only the new maps of the last block go up, not its input
            maps = torch.cat([crop(self.get_submodule(f"tu{level}")(new), 0, skip), skip], dim=1)
            new = self.get_submodule(f"up{level}")(maps)
        return crop(self.score(torch.cat([maps, new], dim=1)), 0, image)


class DenseBlock(nn.ModuleList):
    """Layers whose input is the block's and the outputs of all layers before (Figure 2); returns their outputs only."""

    def __init__(self, channels: int, layers: int, growth: int, dropout: float) -> None:
        super().__init__(nn.Sequential(bn_relu_conv(channels + i * growth, growth, 3, dropout)) for i in range(layers))

    def forward(self, maps: Maps) -> Maps:
        outputs: list[torch.Tensor] = []
        for layer in self:
            outputs.append(layer(torch.cat([maps, *outputs], dim=1)))
        return torch.cat(outputs, dim=1)


def bn_relu_conv(in_channels: int, out_channels: int, kernel_size: int, dropout: float) -> "OrderedDict[str, nn.Module]":
    """Return batch norm, ReLU, convolution, dropout: Table 1's layer, and before a pooling its transition down."""
    return OrderedDict(
        bn=BatchNorm(in_channels, eps=EPS),
        relu=nn.ReLU(inplace=True),
        conv=nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2),
        drop=nn.Dropout(dropout),
    )
