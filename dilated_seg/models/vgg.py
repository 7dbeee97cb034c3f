"""The convolutions of VGG-16, which the encoder of every network here is made of.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015,
https://arxiv.org/abs/1409.1556.
"""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from dilated_seg.models.layers import conv_relu, scaled

# Table 1, column D, one pair a stage: channels, 3x3 convolutions.  A pooling follows each stage.
VGG16 = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))

# The two layers of the classifier that dense prediction turned into convolutions.
FC = 4096


def stages(width: float = 1.0, dilation: Sequence[int] = (1, 1, 1, 1, 1), batch_norm: str = "") -> nn.ModuleList:
    """The five stages without their poolings, which differ from paper to paper.

    Args:
        width: Multiplies the channels.
        dilation: Of the convolutions of each stage.
        batch_norm: How the paper names its batch norms, with ``{}`` for the layer's number ("bn{}": bn1_1); none if empty.
    """
    encoder = nn.ModuleList()
    in_channels = 3
    for stage, (channels, convolutions) in enumerate(VGG16, start=1):
        out_channels = scaled(channels, width)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number in (f"{stage}_{i}" for i in range(1, convolutions + 1)):
            norm = batch_norm.format(number)
            layers |= conv_relu(f"conv{number}", in_channels, out_channels, 3, dilation[stage - 1], norm)
            in_channels = out_channels
        encoder.append(nn.Sequential(layers))
    return encoder
