"""ResNet, the other encoder of FCN and DilatedNet, with an option for dilation instead of its last strides.

He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, https://arxiv.org/abs/1512.03385; dilated
as in Yu, Koltun and Funkhouser, "Dilated Residual Networks", CVPR 2017, https://arxiv.org/abs/1705.09914 (their DRN-A).

Names and layout are torchvision's, so its weights load by name: a bottleneck's stride is in its 3x3 convolution, where the
paper has it in the first 1x1.
"""

from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import nn

from dilated_seg.models.layers import BatchNorm, check_arguments, scale_channels
from dilated_seg.models.release import ENCODER_LAYERS
from dilated_seg.models.upsampling import Upsampling
from dilated_seg.tensors import Maps, Planes

Depth = Literal[18, 34, 50, 101, 152]

# Table 1: residual blocks in each of the four stages.
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
CHANNELS = (64, 128, 256, 512)


class Encoder(nn.Module):
    """ResNet without its classifier; returns the maps of its first pooling and of each stage, five as VGG's.

    Args:
        depth: Layers, as Table 1 counts them; 50 and more have bottlenecks.
        width: Multiplies the channels.
        output_stride: 32, or 8 to dilate the last two stages by 2 and 4 instead of halving.
        in_channels: Channels of the image.
    """

    indivisible: ClassVar[str] = ENCODER_LAYERS
    upsampling: ClassVar[Upsampling] = "aligned"  # a cell is centered on its first pixel

    def __init__(self, depth: Depth, width: float = 1.0, output_stride: Literal[32, 8] = 32, in_channels: int = 3) -> None:
        check_arguments(Encoder, locals())
        super().__init__()
        self.in_channels = in_channels
        block: type[Basic] | type[Bottleneck] = Bottleneck if depth >= 50 else Basic
        in_channels = scale_channels(64, width)
        self.conv1 = nn.Conv2d(self.in_channels, in_channels, 7, 2, padding=3, bias=False)
        self.bn1 = BatchNorm(in_channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.imagenet = f"ResNet{depth}_Weights.IMAGENET1K_V1"
        self.channels = [in_channels, in_channels]
        stride, dilation = 4, 1
        for stage, (blocks, channels) in enumerate(zip(BLOCKS[depth], CHANNELS, strict=True), start=1):
            step = 1 if stage == 1 else 2
            before = dilation
            if stride * step > output_stride:
                step, dilation = 1, 2 * dilation
            stride *= step
            layers = []
            for i in range(blocks):
                first = (step, before) if i == 0 else (1, dilation)
                layers.append(block(in_channels, scale_channels(channels, width), *first, dilation))
                in_channels = layers[-1].out_channels
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
            self.channels.append(in_channels)
        self.channels = [self.channels[0], *self.channels[2:]]

    def forward(self, image: Planes) -> list[Maps]:
        maps = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        pooled = [maps]
        for stage in (1, 2, 3, 4):
            maps = self.get_submodule(f"layer{stage}")(maps)
            pooled.append(maps)
        return pooled


class Basic(nn.Module):
    """Two 3x3 convolutions and a skip connection (Figure 5, left).

    Where dilation replaces a stride, the convolution of the stride keeps the dilation ``before`` it; later ones are dilated.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, before: int, dilation: int) -> None:
        super().__init__()
        self.out_channels = channels
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, before, before, bias=False)
        self.bn1 = BatchNorm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, dilation, dilation, bias=False)
        self.bn2 = BatchNorm(channels)
        self.downsample = shortcut(in_channels, channels, stride)

    def forward(self, maps: Maps) -> Maps:
        inner = F.relu(self.bn1(self.conv1(maps)))
        return F.relu(self.bn2(self.conv2(inner)) + self.downsample(maps))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the last to four times the channels, and a skip connection (Figure 5, right)."""

    def __init__(self, in_channels: int, channels: int, stride: int, before: int, dilation: int) -> None:
        super().__init__()
        self.out_channels = 4 * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = BatchNorm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, before, before, bias=False)
        self.bn2 = BatchNorm(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = BatchNorm(4 * channels)
        self.downsample = shortcut(in_channels, 4 * channels, stride)

    def forward(self, maps: Maps) -> Maps:
        inner = F.relu(self.bn1(self.conv1(maps)))
        inner = F.relu(self.bn2(self.conv2(inner)))
        return F.relu(self.bn3(self.conv3(inner)) + self.downsample(maps))


def shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Return the skip connection of a block: the identity where shapes agree, otherwise a 1x1 convolution."""
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), BatchNorm(out_channels))
