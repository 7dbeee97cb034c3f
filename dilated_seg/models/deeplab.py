"""DeepLab v1 with a large field of view: VGG-16 with dilation instead of the strides of its last two poolings.

Chen, Papandreou, Kokkinos, Murphy and Yuille, "Semantic Image Segmentation with Deep Convolutional Nets and Fully
Connected CRFs", ICLR 2015, https://arxiv.org/abs/1412.7062; the LargeFOV and MSc-LargeFOV rows of its Table 1. The CRF is not
part of it.

The released network accepts any size, so ``form="authors"`` and ``form="any_size"`` are the same layers: 3 x 3 poolings that
round up, then scores at stride 8, upsampled with their corners aligned ((n - 1) x 8 + 1 pixels) and cropped to the image.
Images of 8 n + 1 pixels a side align exactly. Differs from the release: scores are upsampled in training too, where the
authors compare them with every eighth pixel of the mask.
"""

from collections import OrderedDict
from functools import partial
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import nn

from dilated_seg.models import timm_encoder, vgg
from dilated_seg.models.layers import build_dropout, check_arguments, crop, initialize, scale_channels
from dilated_seg.models.release import PublishedNames, Release, Variants
from dilated_seg.models.upsampling import Upsampling, build_upsampling
from dilated_seg.tensors import Logits, Maps, Planes

# Section 3.1: the last two poolings keep the size, and stage 5 is dilated instead; so is fc6, over fewer taps.
#                 1  2  3  4  5
POOL_STRIDE =    (2, 2, 2, 1, 1)  # fmt: skip
DILATION =       (1, 1, 1, 1, 2)  # fmt: skip

# LargeFOV: fc6 and fc7 have 1024 channels; fc6 is 3x3 with dilation 12, a field of view of 224 pixels.
FC, FC6_KERNEL, FC6_DILATION = 1024, 3, 12

# Section 4.3, MSc: image and first four poolings are scored too, by 128 3x3 filters that bring them to stride 8 and 128 1x1.
MSC, MSC_STRIDE = 128, (8, 4, 2, 1, 1)


class DeepLabV1(nn.Module):
    """DeepLab-LargeFOV: class scores at stride 8, then bilinear upsampling to the image's size.

    Args:
        num_classes: C, not counting the ignored label.
        form: Both are the released network; see the module.
        width: Multiplies the channels of all hidden layers; 1 is the paper's network.
        dropout: Probability of dropout after fc6 and fc7, and in the branches of ``msc``.
        msc: The multi-scale form, DeepLab-MSc-LargeFOV: the scores of the image and of the first four poolings are added.
            An image is padded with zeros at its right and bottom to 8 n + 1 pixels, where all of them align. The names of its
            layers are ours: the authors' file is not available, and two independent ports agree on the layers.
        encoder: timm's name of an encoder that replaces VGG-16 (not in the paper), dilated in place of its last two strides;
            see `timm_encoder.Encoder`. fc6 and fc7 stay.
        upsampling: One of `models.upsampling`; if None, "aligned", the release's Interp layer, or that which fits ``encoder``.
        spatial_dropout: Whether dropout drops whole maps; see `models.layers.build_dropout`.
        pooling: "max", or "average" in place of the five max poolings.
        pool5a: Whether an average pooling (3 x 3, stride 1) follows pool5, as in the release.
        fc6_dilation: Dilation of fc6, whose kernel is 3 x 3. LargeFOV has 12; Table 2 compares it with kernels of 7 x 7 with
            dilation 4 and of 4 x 4 with 4 and 8, and DeepLab v2 (2016) combines 6, 12, 18 and 24.
        in_channels: Channels of the image.
    """

    output_stride = 8
    variants: ClassVar[Variants] = ({}, {"msc": True})
    releases: ClassVar[tuple[Release, ...]] = (Release(r"fc8_.*", (122.675, 116.669, 104.008)),)
    published_names: ClassVar[PublishedNames] = ((r"^fc8_.*", "fc8"),)
    image_layers: ClassVar[tuple[str, ...]] = ("conv1_1", "image_ms1")

    def __init__(
        self,
        num_classes: int,
        form: Literal["any_size", "authors"] = "any_size",
        width: float = 1.0,
        *,
        dropout: float = 0.5,
        msc: bool = False,
        encoder: str | None = None,
        upsampling: Upsampling | None = None,
        spatial_dropout: bool = False,
        pooling: vgg.Pooling = "max",
        pool5a: bool = True,
        fc6_dilation: int = FC6_DILATION,
        in_channels: int = 3,
    ) -> None:
        check_arguments(DeepLabV1, locals())
        super().__init__()
        self.in_channels = in_channels
        other = None
        if encoder is not None:
            timm_encoder.require_vgg(msc, "msc=True", pooling)
            other = timm_encoder.Encoder(encoder, (8,), 8, in_channels)
        self.encoder = other or vgg.Encoder(width, DILATION, partial(pool3x3, pooling=pooling), in_channels=in_channels)
        # The padding counts in its mean, as in Caffe.
        self.pool5a = nn.AvgPool2d(3, 1, padding=1, ceil_mode=True) if pool5a else nn.Identity()
        fc, pool5 = scale_channels(FC, width), self.encoder.channels[-1]
        classifier = vgg.classifier(pool5, fc, FC6_KERNEL, fc6_dilation, dropout, spatial=spatial_dropout)
        self.classifier = nn.Sequential(classifier)
        self.fc8 = nn.Conv2d(fc, num_classes, 1)
        self.branches = nn.ModuleDict()
        initialize(self)
        nn.init.normal_(self.fc8.weight, std=0.01)
        if msc:
            sources = ("image", "pool1", "pool2", "pool3", "pool4")
            channels = (in_channels, *self.encoder.channels[:4])
            for source, inputs, stride in zip(sources, channels, MSC_STRIDE, strict=True):
                layers = branch(source, inputs, scale_channels(MSC, width), num_classes, stride, dropout, spatial_dropout)
                self.branches[source] = layers
        self.upsample = build_upsampling(
            upsampling or (other.upsampling if other else "aligned"), num_classes, self.output_stride
        )

    def forward(self, image: Planes) -> Logits:
        padded = pad_to_multiple(image) if self.branches else image
        pooled = self.encoder(padded)
        scores = self.fc8(self.classifier(self.pool5a(pooled[-1])))
        for score, maps in zip(self.branches.values(), (padded, *pooled), strict=False):
            scores = scores + score(maps)
        return crop(self.upsample(scores), 0, image)


def pool3x3(stage: int, pooling: vgg.Pooling = "max") -> nn.Module:
    """Return the pooling after this stage: 3x3, padded by 1, rounding up."""
    kind = nn.MaxPool2d if pooling == "max" else nn.AvgPool2d
    return kind(3, POOL_STRIDE[stage - 1], padding=1, ceil_mode=True)


def branch(
    source: str, in_channels: int, hidden: int, num_classes: int, stride: int, dropout: float, spatial: bool
) -> nn.Sequential:
    """Return a two-layer perceptron and its scores (Section 4.3), initialized small (0.001) compared with fc8."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers[f"{source}_ms1"] = nn.Conv2d(in_channels, hidden, 3, stride, padding=1)
    layers[f"{source}_ms1_relu"], layers[f"{source}_drop1"] = nn.ReLU(inplace=True), build_dropout(dropout, spatial)
    layers[f"{source}_ms2"] = nn.Conv2d(hidden, hidden, 1)
    layers[f"{source}_ms2_relu"], layers[f"{source}_drop2"] = nn.ReLU(inplace=True), build_dropout(dropout, spatial)
    layers[f"{source}_ms_score"] = nn.Conv2d(hidden, num_classes, 1)
    network = nn.Sequential(layers)
    initialize(network)
    nn.init.normal_(network[-1].get_parameter("weight"), std=0.001)
    return network


def pad_to_multiple(image: Maps) -> Maps:
    """Return the image padded with zeros, the mean color, at its right and bottom to 8 n + 1 pixels a side."""
    height, width = image.shape[-2:]
    return F.pad(image, (0, (1 - width) % 8, 0, (1 - height) % 8))
