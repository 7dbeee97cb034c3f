"""FCN: a classifier made convolutional, its scores upsampled and added to those of earlier poolings.

Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015,
https://arxiv.org/abs/1411.4038.

``form="authors"`` is the released network: conv1_1 (AlexNet's conv1) pads by 100 and fc6 does not pad, and the scores are
upsampled by fixed deconvolutions and cropped. ``form="any_size"`` pads by half a kernel and interpolates: the same layers
and weights, without the border of 100 pixels and without the fading that deconvolutions cause at the image's edge.
"""

from collections import OrderedDict
from collections.abc import Collection
from functools import partial
from typing import ClassVar, Literal

from torch import nn

from dilated_seg.models import resnet, timm_encoder, vgg
from dilated_seg.models.layers import (
    Scale,
    Upsample,
    bilinear_deconvolution,
    check_arguments,
    crop,
    initialize,
    scale_channels,
)
from dilated_seg.models.release import ENCODER_LAYERS, ILSVRC_MEAN, PublishedNames, Release, Variants
from dilated_seg.models.resnet import Encoder as ResNet
from dilated_seg.models.upsampling import Upsampling, build_upsampling
from dilated_seg.tensors import Logits, Maps, Planes

# Figure 3, coarse to fine, by the stride of the last scores: upsampling, and the pooling whose scores are added to it.
SKIPS = {32: (), 16: (("upscore2", "pool4"),), 8: (("upscore2", "pool4"), ("upscore_pool4", "pool3"))}
LAST = {32: "upscore", 16: "upscore16", 8: "upscore8"}

# Where the released Crop layers begin: of the scores of a pooling, and of the last upsampling.
CROP = {"pool4": 5, "pool3": 9, "upscore": 19, "upscore16": 27, "upscore8": 31}

# The at-once release scales the poolings by fixed factors, so that the initial scores are nearly the coarse ones alone.
AT_ONCE = {"pool4": 0.01, "pool3": 0.0001}

# Releases are recognized by their scores; the mean is known for VOC's 21 classes only.
RELEASES = (Release(r"score[_-]fr", ILSVRC_MEAN, num_classes=21),)
PUBLISHED_NAMES = ((r"^score-fr$", "score_fr"),)

BORDER = 100  # pixels that the first released convolution pads by

# Krizhevsky, Sutskever and Hinton (2012) as Caffe has it: kernel, stride, channels, groups, pooling and normalization after it.
ALEXNET = (
    ("conv1", 11, 4, 96, 1, True),
    ("conv2", 5, 1, 256, 2, True),
    ("conv3", 3, 1, 384, 1, False),
    ("conv4", 3, 1, 384, 2, False),
    ("conv5", 3, 1, 256, 2, True),
)
ONE_TOWER = (64, 192, 384, 256, 256)  # channels of Krizhevsky's later form (arXiv 1404.5997), which torchvision publishes


class FCN(nn.Module):
    """FCN-32s, FCN-16s or FCN-8s: class scores at stride 32, refined by those of pool4 and pool3, then upsampled.

    Args:
        num_classes: C, not counting the ignored label.
        stride: Pixels per score before the last upsampling: 32, 16 (skip connection from pool4) or 8 (from pool4 and pool3).
        form: The released layers, or the same with padding for any size; see the module.
        width: Multiplies the channels of all hidden layers; 1 is the paper's network.
        dropout: Probability of dropout after fc6 and fc7.
        fc_channels: Channels of fc6 and fc7, before ``width``; None: the published 4096, or with ``encoder`` no such layers.
        at_once: Whether fixed factors scale pool4 and pool3 before their scores, as in the release trained in one stage.
        resnet: Depth of a ResNet that replaces VGG-16, fc6 and fc7 (not in the paper): scores of its last stage, skip
            connections from the two before; for form="any_size" only.
        encoder: timm's name of an encoder that replaces VGG-16, likewise; see `timm_encoder.Encoder`.
        upsampling: One of `models.upsampling`, for all steps. If None, that of the release, fixed, with form="authors", and
            otherwise the interpolation that fits the encoder: "bilinear", or "aligned" with a ResNet or likewise. The paper
            learns all but the last step (Section 4.3); its release learns none.
        spatial_dropout: Whether dropout drops whole maps; see `models.layers.build_dropout`.
        pooling: VGG-16's poolings: "max" or "average" (compared by Boureau, Ponce and LeCun, "A Theoretical Analysis of Feature
            Pooling in Visual Recognition", ICML 2010).
        in_channels: Channels of the image.
    """

    output_stride = 32
    variants: ClassVar[Variants] = ({"stride": 32}, {"stride": 16}, {"stride": 8}, {"stride": 8, "resnet": 50})
    releases: ClassVar[tuple[Release, ...]] = RELEASES
    published_names: ClassVar[PublishedNames] = PUBLISHED_NAMES

    def __init__(
        self,
        num_classes: int,
        stride: Literal[32, 16, 8] = 32,
        form: Literal["any_size", "authors"] = "any_size",
        width: float = 1.0,
        *,
        dropout: float = 0.5,
        fc_channels: int | None = None,
        at_once: bool = False,
        resnet: resnet.Depth | None = None,
        encoder: str | None = None,
        upsampling: Upsampling | None = None,
        spatial_dropout: bool = False,
        pooling: vgg.Pooling = "max",
        in_channels: int = 3,
    ) -> None:
        check_arguments(FCN, locals())
        super().__init__()
        self.output_stride, self.in_channels = stride, in_channels
        self.crop = CROP if form == "authors" else dict.fromkeys(CROP, 0)
        authors = form == "authors"
        self.encoder: vgg.Encoder | ResNet | timm_encoder.Encoder
        if resnet is None and encoder is None:
            vgg16 = build_vgg(width, fc_channels, dropout, authors, spatial_dropout, pooling, in_channels)
            self.encoder, self.classifier, fc = vgg16
            kind = upsampling or ("fixed" if authors else "bilinear")
        else:
            timm_encoder.require_vgg(authors, "form='authors'", pooling)
            strides = (32, 16, 8)[len(SKIPS[stride]) :: -1]
            other = timm_encoder.replace_vgg(resnet, encoder, width, strides, in_channels)
            self.encoder = other
            self.classifier, fc = timm_encoder.build_classifier(other, width, fc_channels, 1, dropout, spatial_dropout)
            kind = upsampling or other.upsampling
        initialize(self)
        self.score_fr = nn.Conv2d(fc, num_classes, 1)
        self.decoder = nn.ModuleDict()
        for step, pool in SKIPS[stride]:
            pooled = self.encoder.channels[int(pool[-1]) - 6]  # pool5 is the last
            self.decoder[step] = build_upsampling(kind, num_classes, 2, pad=not authors)
            self.decoder[f"scale_{pool}"] = Scale(pooled, AT_ONCE[pool]) if at_once else nn.Identity()
            self.decoder[f"score_{pool}"] = nn.Conv2d(pooled, num_classes, 1)
        self.decoder[LAST[stride]] = build_upsampling(kind, num_classes, stride, pad=not authors)
        for score in (self.score_fr, *(self.decoder[f"score_{pool}"] for _, pool in SKIPS[stride])):
            nn.init.zeros_(score.get_parameter("weight"))  # Section 4.3: zero, so the sum starts as the coarse scores
            nn.init.zeros_(score.get_parameter("bias"))

    def forward(self, image: Planes) -> Logits:
        pooled = self.encoder(image)
        scores = self.score_fr(self.classifier(pooled[-1]))
        if self.output_stride <= 16:
            scores = self.add_skip("upscore2", scores, "pool4", pooled[-2])
        if self.output_stride == 8:
            scores = self.add_skip("upscore_pool4", scores, "pool3", pooled[-3])
        last = LAST[self.output_stride]
        return crop(self.decoder[last](scores), self.crop[last], image)

    def add_skip(self, upsampling: str, scores: Maps, pool: str, pooled: Maps) -> Maps:
        """Upsample scores by 2 and add those of an earlier pooling (Figure 3)."""
        scores = self.decoder[upsampling](scores)
        finer = self.decoder[f"score_{pool}"](self.decoder[f"scale_{pool}"](pooled))
        finer = crop(finer, self.crop[pool], scores)
        return crop(scores, 0, finer) + finer

    def check_weights(self, in_file: Collection[str], loaded: Collection[str]) -> str | None:
        """Return the end of a message if a file's weights are of another value of ``at_once``, else None.

        Args:
            in_file: Names of the file's layers.
            loaded: Names of our layers that the file has weights for.
        """
        ours = any(isinstance(layer, Scale) for layer in self.decoder.values())
        theirs = any(name.startswith("scale_pool") for name in in_file)
        if ours == theirs or not any(name.startswith("score_pool") for name in loaded):
            return None
        return f"was trained {'with' if theirs else 'without'} fixed scales: set at_once={theirs}"


def build_vgg(
    width: float,
    fc_channels: int | None,
    dropout: float,
    authors: bool,
    spatial_dropout: bool,
    pooling: vgg.Pooling,
    in_channels: int,
) -> tuple[vgg.Encoder, nn.Sequential, int]:
    """Return VGG-16, fc6 and fc7, and the number of their output channels."""
    fc, padding = scale_channels(fc_channels or vgg.FC, width), 0 if authors else None
    pool, border = partial(vgg.pool2x2, pooling=pooling), BORDER if authors else None
    encoder = vgg.Encoder(width, pool=pool, border=border, in_channels=in_channels)
    return encoder, nn.Sequential(vgg.classifier(encoder.channels[4], fc, 7, 1, dropout, padding, spatial_dropout)), fc


class FCNAlexNet(nn.Module):
    """FCN-AlexNet: class scores at stride 32 of AlexNet made convolutional (Table 1), then upsampled.

    Args:
        num_classes: C, not counting the ignored label.
        form: The released layers, or the same with padding for any size; see the module.
        width: Multiplies the channels of all hidden layers; 1 is the paper's network.
        dropout: Probability of dropout after fc6 and fc7.
        one_tower: AlexNet without groups and without local response normalization, whose weights torchvision publishes.
        in_channels: Channels of the image.
    """

    output_stride = 32
    releases: ClassVar[tuple[Release, ...]] = RELEASES
    published_names: ClassVar[PublishedNames] = PUBLISHED_NAMES
    indivisible: ClassVar[str] = ENCODER_LAYERS

    def __init__(
        self,
        num_classes: int,
        form: Literal["any_size", "authors"] = "any_size",
        width: float = 1.0,
        *,
        dropout: float = 0.5,
        one_tower: bool = False,
        in_channels: int = 3,
    ) -> None:
        check_arguments(FCNAlexNet, locals())
        super().__init__()
        self.in_channels = in_channels
        authors = form == "authors"
        self.imagenet = "AlexNet_Weights.IMAGENET1K_V1" if one_tower else None
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for (name, kernel, stride, channels, groups, pooled), single in zip(ALEXNET, ONE_TOWER, strict=True):
            # with two towers every layer has two halves, whether or not its filters are split between them
            groups, out_channels = (
                (1, scale_channels(single, width)) if one_tower else (groups, 2 * scale_channels(channels // 2, width))
            )
            padding = BORDER if authors and stride > 1 else kernel // 2
            layers[name] = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups)
            layers[f"{name}_relu"] = nn.ReLU(inplace=True)
            if pooled:  # padded by 1 for any size, which gives ceil(n / 2) cells as VGG's
                layers[f"pool{name[-1]}"] = nn.MaxPool2d(3, 2, padding=0 if authors else 1, ceil_mode=authors)
                if name != "conv5" and not one_tower:
                    layers[f"norm{name[-1]}"] = nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0)
            in_channels = out_channels
        fc = scale_channels(vgg.FC, width)
        if not authors:  # centers the even kernel of 6 on a cell's 32 pixels
            layers["pad6"] = nn.ZeroPad2d((2, 3, 2, 3))
        self.layers = nn.Sequential(layers | vgg.classifier(in_channels, fc, 6, 1, dropout, padding=0))
        initialize(self)
        self.score_fr = nn.Conv2d(fc, num_classes, 1)
        nn.init.zeros_(self.score_fr.weight)
        nn.init.zeros_(self.score_fr.get_parameter("bias"))
        self.upscore = bilinear_deconvolution(num_classes, 63, 32) if authors else Upsample(32)
        self.offset = 18 if authors else 0

    def forward(self, image: Planes) -> Logits:
        return crop(self.upscore(self.score_fr(self.layers(image))), self.offset, image)
