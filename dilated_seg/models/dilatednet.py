"""DilatedNet: a VGG-16 front end, then a context module of dilated convolutions.

Yu and Koltun, "Multi-Scale Context Aggregation by Dilated Convolutions", ICLR 2016, https://arxiv.org/abs/1511.07122.

Differs from the paper: every convolution pads with zeros where the paper reflects the image's border once, so that any size
goes in and the same size comes out; the scores are upsampled to the image's size inside the network, for training too; the
front end's last bias starts above zero, so that both parts can be trained from nothing together (HEADROOM).
"""

from collections import OrderedDict
from typing import Literal

import torch
from torch import nn

from dilated_seg.models import vgg
from dilated_seg.models.layers import conv_relu, initialise, scaled, upsample
from dilated_seg.shapes import Image, Logits, Maps

# Section 4: pool4 and pool5 go; for each pooling gone, what follows is dilated by 2 more.
#                1     2     3      4      5
POOL =        (True, True, True, False, False)  # fmt: skip
DILATION =    (   1,    1,    1,     1,     2)  # fmt: skip
FC6_DILATION = 4

# Table 1, one row a layer; channels in multiples of C, the number of classes.
#    kernel, dilation, basic, large     receptive field
CONTEXT = (
    (3,      1,        1,      2),  #    3 x  3
    (3,      1,        1,      2),  #    5 x  5
    (3,      2,        1,      4),  #    9 x  9
    (3,      4,        1,      8),  #   17 x 17
    (3,      8,        1,     16),  #   33 x 33
    (3,     16,        1,     32),  #   65 x 65
    (3,      1,        1,     32),  #   67 x 67
    (1,      1,        1,      1),  #   67 x 67
)  # fmt: skip
COLUMN = {"basic": 2, "large": 3}

# Every score of the front end starts this far above zero if a context module follows. Softmax does not see it. The module's
# ReLUs do: from zero they cut off every class that scores below the middle, and trained from nothing such a class never
# comes back. Released weights bring their own bias.
HEADROOM = 8.0


class DilatedNet(nn.Module):
    """Front end, context module, then bilinear upsampling to the image's size.

    Args:
        num_classes: C, not counting the ignored label.
        context: Width of the context module (a column of Table 1), or None for the front end alone.
        width: Multiplies the front end's hidden channels; 1 is the paper's network.
        dropout: After fc6 and fc7.
        dilated: False sets every dilation of the context module to 1, for the ablation that asks what dilation buys.
    """

    output_stride = 8

    def __init__(
        self,
        num_classes: int,
        context: Literal["basic", "large"] | None = "basic",
        *,
        width: float = 1.0,
        dropout: float = 0.5,
        dilated: bool = True,
    ) -> None:
        super().__init__()
        self.front_end = FrontEnd(num_classes, width=width, dropout=dropout)
        self.context: nn.Module = nn.Identity()
        if context:
            nn.init.constant_(self.front_end.final.get_parameter("bias"), HEADROOM)
            self.context = ContextModule(num_classes, context, dilated=dilated)

    def forward(self, image: Image) -> Logits:
        maps = self.front_end(image)
        maps = self.context(maps)
        return upsample(maps, self.output_stride, image.shape[-2:])


class FrontEnd(nn.Module):
    """VGG-16 without its last two poolings, dilated instead (Section 4): class scores at stride 8.

    An image of height H and width W gives scores of ceil(H / 8) x ceil(W / 8), each seeing 380 x 380 pixels.

    Args:
        num_classes: C, not counting the ignored label.
        width: Multiplies the hidden channels; 1 is the paper's network.
        dropout: After fc6 and fc7.
    """

    output_stride = 8

    def __init__(self, num_classes: int, *, width: float = 1.0, dropout: float = 0.5) -> None:
        super().__init__()
        self.stages = vgg.stages(width, DILATION)
        self.pools = nn.ModuleList(nn.MaxPool2d(2, 2, ceil_mode=True) if pool else nn.Identity() for pool in POOL)
        fc, pool5 = scaled(vgg.FC, width), scaled(vgg.VGG16[4][0], width)
        self.classifier = nn.Sequential(
            conv_relu("fc6", pool5, fc, 7, FC6_DILATION)
            | OrderedDict(drop6=nn.Dropout(dropout))
            | conv_relu("fc7", fc, fc, 1)
            | OrderedDict(drop7=nn.Dropout(dropout))
        )
        self.final = nn.Conv2d(fc, num_classes, 1)
        initialise(self)
        nn.init.normal_(self.final.weight, std=0.001)

    def forward(self, image: Image) -> Maps:
        maps = image
        for stage, pool in zip(self.stages, self.pools, strict=True):
            maps = pool(stage(maps))
        return self.final(self.classifier(maps))


class ContextModule(nn.Module):
    """C score maps in, C score maps of the same size out, each seeing 67 x 67 of those that came in (Table 1).

    It starts as the identity (Equations 4 and 5): what the front end scored at or above zero passes unchanged, what it
    scored below zero is cut off by the ReLU of the first layer.

    Args:
        num_classes: C.
        size: Which column of Table 1 gives the channels.
        dilated: False sets every dilation to 1: same layers and weights, receptive field 15 x 15.
    """

    def __init__(self, num_classes: int, size: Literal["basic", "large"] = "basic", *, dilated: bool = True) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        in_channels = num_classes
        for number, row in enumerate(CONTEXT, start=1):
            name, out_channels = f"ctx{number}", num_classes * row[COLUMN[size]]
            layers |= conv_relu(name, in_channels, out_channels, kernel_size=row[0], dilation=row[1] if dilated else 1)
            identity_(layers[name], num_classes)
            in_channels = out_channels
        layers.popitem()  # the last layer gives logits: no ReLU
        self.layers = nn.Sequential(layers)

    def forward(self, maps: Maps) -> Maps:
        return self.layers(maps)


def identity_(convolution: nn.Module, num_classes: int) -> None:
    """Let a layer start by passing class maps through (Equations 4 and 5).

    Input channels and output channels each fall into C groups of equal size, one a class. The centre tap between
    channels of one group is C / out_channels, so that a class's maps add up to what came in; all else is zero in the Basic
    module. Where a group holds several channels, a little noise tells them apart (standard deviation 0.01 C / out_channels).
    """
    weight, bias = convolution.get_parameter("weight"), convolution.get_parameter("bias")
    out_channels, in_channels, kernel_size, _ = weight.shape
    gain = num_classes / out_channels
    group_out = torch.arange(out_channels) * num_classes // out_channels
    group_in = torch.arange(in_channels) * num_classes // in_channels
    same = (group_out[:, None] == group_in[None, :]).to(weight)
    nn.init.zeros_(bias)
    nn.init.normal_(weight, std=0.01 * gain if out_channels > num_classes else 0.0)
    with torch.no_grad():
        weight[:, :, kernel_size // 2, kernel_size // 2] += gain * same
