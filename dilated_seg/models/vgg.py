"""The convolutions of VGG-16, the encoder of most networks here.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015,
https://arxiv.org/abs/1409.1556.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

from torch import nn

from dilated_seg.models.layers import build_dropout, conv_relu, scale_channels
from dilated_seg.models.release import ENCODER_LAYERS, PublishedNames
from dilated_seg.tensors import Maps, Planes

# Table 1, column D, one pair a stage: channels, 3x3 convolutions.  A pooling follows each stage.
VGG16 = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))

FC = 4096  # channels of the classifier's fc6 and fc7, here convolutions


Pooling = Literal["max", "average"]


def pool2x2(stage: int, return_indices: bool = False, pooling: Pooling = "max") -> nn.Module:
    """Return VGG's pooling, which rounds sizes up as Caffe does.

    torch rounds down by default, and so do many reimplementations: the cells at the right and bottom border are then missing,
    up to 31 pixels of the image, and the scores are stretched or cropped differently from those of the released networks.
    """
    if pooling == "average":
        return nn.AvgPool2d(2, 2, ceil_mode=True)
    return nn.MaxPool2d(2, 2, ceil_mode=True, return_indices=return_indices)


class Encoder(nn.Module):
    """Five stages of convolutions and their poolings, which differ from paper to paper; returns the maps of each pooling.

    Args:
        width: Multiplies the channels.
        dilation: Dilation of the convolutions of each stage.
        pool: Builds the pooling after a stage, given its number, 1 to 5.
        batch_norm: The paper's name of its batch norms, with ``{}`` for the layer's number ("bn{}": bn1_1); none if empty.
        padding: Padding of every convolution; None keeps the size.
        border: Padding of the first convolution, if it differs.
        in_channels: Channels of the image.
    """

    indivisible: ClassVar[str] = ENCODER_LAYERS
    imagenet: ClassVar[str] = "VGG16_Weights.IMAGENET1K_V1"
    published_names: ClassVar[PublishedNames] = (  # Keras'
        (r"^block(\d)_conv(\d)$", r"conv\1_\2"),
        (r"^fc1$", "fc6"),
        (r"^fc2$", "fc7"),
    )

    def __init__(
        self,
        width: float = 1.0,
        dilation: Sequence[int] = (1, 1, 1, 1, 1),
        pool: Callable[[int], nn.Module] = pool2x2,
        batch_norm: str = "",
        padding: int | None = None,
        border: int | None = None,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.channels = [scale_channels(channels, width) for channels, _ in VGG16]
        self.stages, self.pools = nn.ModuleList(), nn.ModuleDict()
        for stage, (out_channels, (_, convolutions)) in enumerate(zip(self.channels, VGG16, strict=True), start=1):
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            for number in (f"{stage}_{i}" for i in range(1, convolutions + 1)):
                norm, pad = batch_norm.format(number), border if number == "1_1" and border is not None else padding
                layers |= conv_relu(f"conv{number}", in_channels, out_channels, 3, dilation[stage - 1], norm, padding=pad)
                in_channels = out_channels
            self.stages.append(nn.Sequential(layers))
            self.pools[f"pool{stage}"] = pool(stage)

    def forward(self, image: Planes) -> list[Maps]:
        maps, pooled = image, []
        for stage, pool in zip(self.stages, self.pools.values(), strict=True):
            maps = pool(stage(maps))
            pooled.append(maps)
        return pooled


def classifier(
    pool5: int,
    fc: int,
    kernel_size: int,
    dilation: int,
    dropout: float,
    padding: int | None = None,
    spatial: bool = False,
) -> "OrderedDict[str, nn.Module]":
    """Return fc6 and fc7 as convolutions, with dropout after each.

    fc7 is 1x1 and never padded, as in every release. Some reimplementations pad it by 1: that adds a border of cells without
    any input, so the score map grows by two rows and columns and no longer fits the image.
    """
    return (
        conv_relu("fc6", pool5, fc, kernel_size, dilation, padding=padding)
        | OrderedDict(drop6=build_dropout(dropout, spatial))
        | conv_relu("fc7", fc, fc, 1)
        | OrderedDict(drop7=build_dropout(dropout, spatial))
    )
