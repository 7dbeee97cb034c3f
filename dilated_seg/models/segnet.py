"""SegNet: VGG-16's convolutions and their mirror image, which unpools by the encoder's pooling indices; and SegNet-Basic.

Badrinarayanan, Kendall and Cipolla, "SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image Segmentation",
PAMI 2017, https://arxiv.org/abs/1511.00561.

``form="authors"`` has the release's batch norm (epsilon 1e-9, shift starting at 0.001) and, in SegNet-Basic, its local
response normalization of the raw image; ``form="any_size"`` has torch's batch norm, and no second normalization of the image.
Sizes are the same: the release states those of 360 x 480, and here every unpooling restores the input size of its pooling.
Differs from the paper: evaluation uses running averages, where the authors compute the statistics in a separate pass over the
training set. The release is the one for CamVid; that for VOC has dropout and another initialization.
"""

from collections import OrderedDict
from functools import partial
from typing import ClassVar, Literal

from torch import nn

from dilated_seg.models import vgg
from dilated_seg.models.layers import Unpool, check_arguments, conv_relu, initialize, scale_channels, use_caffe_batch_norm
from dilated_seg.models.release import ENCODER_LAYERS, Release
from dilated_seg.tensors import Logits, Planes

# Section 3: the decoder is the encoder reversed.  Channels of each convolution, stage 5 to 1; the last one scores.
DECODER = ((512, 512, 512), (512, 512, 256), (256, 256, 128), (128, 64), (64,))

# The releases subtract no mean: batch norm normalizes, and in SegNet-Basic a layer normalizes the image too.
RELEASES = (Release(r"conv1(_1)?_bn", (0.0, 0.0, 0.0)),)

BASIC = 64  # channels of all of SegNet-Basic's convolutions (Section 4), four down and four up, 7 x 7 each


class SegNet(nn.Module):
    """Encoder and decoder of 13 convolutions each, joined by pooling indices (Figure 2).

    Args:
        num_classes: C, not counting the ignored label.
        form: The release's batch norm, or torch's; see the module.
        width: Multiplies the channels of all hidden layers; 1 is the paper's network.
        in_channels: Channels of the image.
    """

    output_stride = 1
    releases: ClassVar[tuple[Release, ...]] = RELEASES
    imagenet: ClassVar[str] = "VGG16_Weights.IMAGENET1K_FEATURES"  # the authors' own convolutions, without a classifier

    def __init__(
        self,
        num_classes: int,
        form: Literal["any_size", "authors"] = "any_size",
        width: float = 1.0,
        *,
        in_channels: int = 3,
    ) -> None:
        check_arguments(SegNet, locals())
        super().__init__()
        self.in_channels = in_channels
        pool = partial(vgg.pool2x2, return_indices=True)
        self.encoder = vgg.Encoder(width, pool=pool, batch_norm="conv{}_bn", in_channels=in_channels)
        self.decoder, self.unpools = nn.ModuleList(), nn.ModuleDict()
        inputs = self.encoder.channels[4]
        for stage, row in zip((5, 4, 3, 2, 1), DECODER, strict=True):
            self.unpools[f"upsample{stage}"] = Unpool()
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            last = vgg.VGG16[stage - 1][1]
            for number, out_channels in zip(range(last, 0, -1), (scale_channels(c, width) for c in row), strict=False):
                name = f"conv{stage}_{number}_D"
                layers |= conv_relu(name, inputs, out_channels, batch_norm=f"{name}_bn")
                inputs = out_channels
            self.decoder.append(nn.Sequential(layers))
        self.conv1_1_D = nn.Conv2d(inputs, num_classes, 3, padding=1)
        initialize(self)
        if form == "authors":
            use_caffe_batch_norm(self)

    def forward(self, image: Planes) -> Logits:
        maps, pool_indices = image, []
        for stage, pool in zip(self.encoder.stages, self.encoder.pools.values(), strict=True):
            maps = stage(maps)
            size = maps.shape[-2:]
            maps, indices = pool(maps)
            pool_indices.append((indices, size))
        for stage, unpool in zip(self.decoder, self.unpools.values(), strict=True):
            indices, size = pool_indices.pop()
            maps = stage(unpool(maps, indices, output_size=size))
        return self.conv1_1_D(maps)


class SegNetBasic(nn.Module):
    """SegNet's small form: four stages of one 7 x 7 convolution down and up, no ReLU in the decoder (Section 4).

    Args:
        num_classes: C, not counting the ignored label.
        form: The release's batch norm and normalization of the image, or torch's and none; see the module.
        width: Multiplies the channels of all hidden layers; 1 is the paper's network.
        in_channels: Channels of the image.
    """

    output_stride = 1
    releases: ClassVar[tuple[Release, ...]] = RELEASES
    indivisible: ClassVar[str] = ENCODER_LAYERS

    def __init__(
        self,
        num_classes: int,
        form: Literal["any_size", "authors"] = "any_size",
        width: float = 1.0,
        *,
        in_channels: int = 3,
    ) -> None:
        check_arguments(SegNetBasic, locals())
        super().__init__()
        self.in_channels = in_channels
        authors, channels = form == "authors", scale_channels(BASIC, width)
        self.norm = nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0) if authors else nn.Identity()
        self.encoder, self.pools = nn.ModuleList(), nn.ModuleDict()
        for stage, inputs in zip((1, 2, 3, 4), (in_channels, channels, channels, channels), strict=True):
            layers = conv_relu(f"conv{stage}", inputs, channels, 7, batch_norm=f"conv{stage}_bn")
            self.encoder.append(nn.Sequential(layers))
            self.pools[f"pool{stage}"] = vgg.pool2x2(stage, return_indices=True)
        self.decoder, self.unpools = nn.ModuleList(), nn.ModuleDict()
        for name in ("conv_decode4", "conv_decode3", "conv_decode2", "conv_decode1"):
            self.unpools[f"upsample{name[-1]}"] = Unpool()
            self.decoder.append(nn.Sequential(conv_relu(name, channels, channels, 7, batch_norm=f"{name}_bn", relu=False)))
        self.conv_classifier = nn.Conv2d(channels, num_classes, 1)
        initialize(self)
        if authors:
            use_caffe_batch_norm(self)

    def forward(self, image: Planes) -> Logits:
        maps, pool_indices = self.norm(image), []
        for stage, pool in zip(self.encoder, self.pools.values(), strict=True):
            maps = stage(maps)
            size = maps.shape[-2:]
            maps, indices = pool(maps)
            pool_indices.append((indices, size))
        for stage, unpool in zip(self.decoder, self.unpools.values(), strict=True):
            indices, size = pool_indices.pop()
            maps = stage(unpool(maps, indices, output_size=size))
        return self.conv_classifier(maps)
