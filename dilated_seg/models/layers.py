"""What several networks share: scaled widths, blocks of convolution, upsampling that keeps pixels in place, He's start."""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Size, nn

from dilated_seg.shapes import Maps


def scaled(channels: int, width: float) -> int:
    """A hidden layer's channels at this width: at least one, and as published at width 1."""
    return max(1, round(channels * width))


def conv_relu(
    name: str,
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    dilation: int = 1,
    batch_norm: str = "",
    deconvolution: bool = False,
) -> "OrderedDict[str, nn.Module]":
    """A convolution that keeps height and width, batch norm if ``batch_norm`` names one, and ReLU, by their names.

    ``deconvolution`` takes a transposed convolution of stride 1 instead, as DeconvNet's decoder does.
    """
    convolution = nn.ConvTranspose2d if deconvolution else nn.Conv2d
    padding = dilation * (kernel_size // 2)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers[name] = convolution(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation)
    if batch_norm:
        layers[batch_norm] = nn.BatchNorm2d(out_channels)
    layers[f"{name}_relu"] = nn.ReLU(inplace=True)
    return layers


def upsample(maps: Maps, stride: int, size: Size, corners: bool = False) -> Maps:
    """Bilinear upsampling by exactly ``stride``, cut at the right and bottom to ``size`` (height, width).

    Interpolating to ``size`` itself would stretch the maps whenever a pooling rounded up, and move every score away from
    the pixels it was computed from.  A score lies in the middle of its stride x stride pixels where the poolings were
    2 x 2, and on the first of them (``corners``) where they were 3 x 3 with padding 1.
    """
    if stride == 1:
        return maps[..., : size[0], : size[1]]
    if corners:
        height, width = (stride * (n - 1) + 1 for n in maps.shape[-2:])
        maps = F.interpolate(maps, (height, width), mode="bilinear", align_corners=True)
    else:
        maps = F.interpolate(maps, scale_factor=stride, mode="bilinear", align_corners=False)
    return maps[..., : size[0], : size[1]]


def initialise(network: nn.Module) -> None:
    """Start every convolution from He's normal distribution (fan in) and every bias from zero.

    The published networks start from ImageNet's VGG-16 instead; this is the start of those that train from nothing.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            # At stride 1 each output of a transposed convolution sums in_channels x k x k products, as a convolution's does.
            taps = layer.kernel_size[0] * layer.kernel_size[1]
            nn.init.normal_(layer.weight, std=(2 / (layer.in_channels // layer.groups * taps)) ** 0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
