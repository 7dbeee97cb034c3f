"""DilatedNet: a VGG-16 front end, then a context module of dilated convolutions.

Yu and Koltun, "Multi-Scale Context Aggregation by Dilated Convolutions", ICLR 2016, https://arxiv.org/abs/1511.07122.

``padding="reflect"`` is the paper's and the released network: the image is reflected by 186 pixels once, and no convolution of
the front end pads; published weights need it. ``padding="zeros"`` pads every convolution instead: a third of the pixels to
compute at 500 x 500, and the better choice to train from scratch. In both, scores are upsampled to the image's size inside
the network, for training too; the Basic module starts as the exact identity of Equation 4, to which the release's filler
adds noise (``context_noise=0.01``); and the front end's last bias starts above zero, so that a context module starts from the
scores of the front end, and both can be trained from scratch together (HEADROOM).
"""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Literal

from torch import nn

from dilated_seg.models import resnet, timm_encoder, vgg
from dilated_seg.models.context import CONTEXT_LAYERS, Arrangement, ContextModule
from dilated_seg.models.layers import check_arguments, check_size, initialize, reflect, scale_channels
from dilated_seg.models.release import PublishedNames, Release, Variants
from dilated_seg.models.upsampling import Upsampling, build_upsampling
from dilated_seg.tensors import Logits, Maps, Planes

# Section 4: pool4 and pool5 are removed; after each removed pooling, the dilation doubles.
#                1     2     3      4      5
POOL =        (True, True, True, False, False)  # fmt: skip
DILATION =    (   1,    1,    1,     1,     2)  # fmt: skip
FC6_DILATION = 4
MARGIN = 186  # pixels of the receptive field on each side of a score's own 8 x 8: (380 - 8) / 2

# The mean of a release is that of its dataset, which follows from the number of classes and of context layers.
RELEASES = tuple(
    Release(r"(fc-)?final", mean, num_classes, (CONTEXT_LAYERS, layers))
    for mean, num_classes, layers in (
        ((116.52, 111.36, 102.93), 21, 8),  # VOC
        ((105.41212523, 108.77808759, 110.70313206), 11, 8),  # CamVid
        ((91.34692262, 95.55136972, 96.19429688), 11, 7),  # KITTI
        ((73.16, 82.91, 72.39), 19, 10),  # Cityscapes
    )
)

# Initial bias of the front end's scores. Softmax ignores it. The ReLUs of a context module, trained jointly or in a later
# stage, do not: with a bias of 0 they cut off every class whose score is below average, and such a class may get no gradient
# again. Released weights have their own bias.
HEADROOM = 8.0


class DilatedNet(nn.Module):
    """Front end, context module, then bilinear upsampling to the image's size.

    Args:
        num_classes: C, not counting the ignored label.
        context: Width of the context module (a column of Table 1), or None for the front end alone.
        context_layers: Number of layers of the context module: 8 (VOC, CamVid), 7 (KITTI) or 10 (Cityscapes).
        padding: "reflect" pads the image once by reflection, as in the paper and the releases; "zeros" pads each convolution;
            see the module. With "reflect", a score belongs to the first of its 8 x 8 pixels, as in the released networks,
            except with 10 context layers: then it belongs to their middle, by the fixed deconvolution of the Cityscapes
            release. With "zeros" it belongs to the middle, the center of its receptive field.
        width: Multiplies the front end's hidden channels; 1 is the paper's network.
        dropout: Probability of dropout after fc6 and fc7.
        fc_channels: Channels of fc6 and fc7, before ``width``; None: the published 4096, or with ``encoder`` no such layers.
        dilated: False sets every dilation of the context module to 1, for an ablation of dilation.
        resnet: Depth of a ResNet that replaces VGG-16, fc6 and fc7 (not in the paper); for padding="zeros" only.
        encoder: timm's name of an encoder that replaces VGG-16, likewise; see `timm_encoder.Encoder`.
        upsampling: One of `models.upsampling`; if None, "bilinear", "aligned" with padding="reflect" or a ResNet, and "fixed"
            with reflection and 10 context layers.
        spatial_dropout: Whether dropout drops whole maps; see `models.layers.build_dropout`.
        pooling: "max", or "average" in place of VGG-16's three max poolings.
        dilations: Dilations of the context module's 3 x 3 layers, a free sequence; see `ContextModule`.
        arrangement: Arrangement of the context module's layers: "sequential" or "parallel"; see `ContextModule`.
        context_noise: Standard deviation of the context module's weights around the identity; see ``noise`` of `ContextModule`.
        in_channels: Channels of the image.
    """

    output_stride = 8
    variants: ClassVar[Variants] = (
        {"context": None},
        {"context": "basic"},
        {"context": "large"},
        {"context": "large", "padding": "reflect"},
        {"context": "basic", "resnet": 50},
    )
    releases: ClassVar[tuple[Release, ...]] = RELEASES

    def __init__(
        self,
        num_classes: int,
        context: Literal["basic", "large"] | None = "basic",
        context_layers: Literal[7, 8, 10] = 8,
        padding: Literal["zeros", "reflect"] = "zeros",
        width: float = 1.0,
        *,
        dropout: float = 0.5,
        fc_channels: int | None = None,
        dilated: bool = True,
        resnet: resnet.Depth | None = None,
        encoder: str | None = None,
        upsampling: Upsampling | None = None,
        spatial_dropout: bool = False,
        pooling: vgg.Pooling = "max",
        dilations: Sequence[int] | None = None,
        arrangement: Arrangement = "sequential",
        context_noise: float | None = None,
        in_channels: int = 3,
    ) -> None:
        check_arguments(DilatedNet, locals())
        super().__init__()
        self.in_channels = in_channels
        reflected = padding == "reflect"
        self.margin = MARGIN if reflected else 0
        self.front_end = FrontEnd(
            num_classes,
            "valid" if reflected else "zeros",
            width,
            dropout=dropout,
            fc_channels=fc_channels,
            resnet=resnet,
            encoder=encoder,
            spatial_dropout=spatial_dropout,
            pooling=pooling,
            in_channels=in_channels,
        )
        self.context: nn.Module = nn.Identity()
        nn.init.constant_(self.front_end.final.get_parameter("bias"), HEADROOM)
        if context:
            once = reflected and context == "large" and arrangement == "sequential"
            self.context = ContextModule(
                num_classes,
                context,
                context_layers,
                "once" if once else "zeros",
                dilated=dilated,
                dilations=dilations,
                arrangement=arrangement,
                noise=context_noise,
            )
        kind: Upsampling = "aligned" if reflected else self.front_end.upsampling
        if reflected and context and context_layers == 10:
            kind = "fixed"
        self.ctx_upsample = build_upsampling(upsampling or kind, num_classes, self.output_stride)

    def forward(self, image: Planes) -> Logits:
        features = self.front_end(reflect(image, self.margin) if self.margin else image)
        return self.ctx_upsample(self.context(features))[..., : image.shape[-2], : image.shape[-1]]


class FrontEnd(nn.Module):
    """VGG-16 without its last two poolings, dilated instead (Section 4): class scores at stride 8.

    An image of height H and width W gives scores of ceil(H / 8) x ceil(W / 8), each with a receptive field of 380 x 380 pixels.
    Without padding it gives ceil((H - 372) / 8) x ceil((W - 372) / 8), and needs 373 pixels a side.

    Args:
        num_classes: C, not counting the ignored label.
        padding: Zeros around the maps of every convolution, or "valid", none, as published.
        width: Multiplies the hidden channels; 1 is the paper's network.
        dropout: Probability of dropout after fc6 and fc7.
        fc_channels: Channels of fc6 and fc7, before ``width``; None: the published 4096, or with ``encoder`` no such layers.
        resnet: Depth of a ResNet that replaces VGG-16, fc6 and fc7, with dilation in place of its last two strides; padded.
        encoder: timm's name of an encoder that replaces VGG-16, likewise.
        spatial_dropout: Whether dropout drops whole maps.
        pooling: VGG-16's poolings: "max" or "average".
        in_channels: Channels of the image.
    """

    output_stride = 8
    variants: ClassVar[Variants] = ()  # a part of DilatedNet
    published_names: ClassVar[PublishedNames] = ((r"^fc-final$", "final"),)

    def __init__(
        self,
        num_classes: int,
        padding: Literal["zeros", "valid"] = "zeros",
        width: float = 1.0,
        *,
        dropout: float = 0.5,
        fc_channels: int | None = None,
        resnet: resnet.Depth | None = None,
        encoder: str | None = None,
        spatial_dropout: bool = False,
        pooling: vgg.Pooling = "max",
        in_channels: int = 3,
    ) -> None:
        check_arguments(FrontEnd, locals())
        super().__init__()
        self.in_channels = in_channels
        self.smallest = 2 * MARGIN + 1 if padding == "valid" else 1
        self.upsampling: Upsampling = "bilinear"  # that fits the encoder
        if resnet is None and encoder is None:
            pad, fc = 0 if padding == "valid" else None, scale_channels(fc_channels or vgg.FC, width)
            pool = partial(pool2x2_or_none, pooling=pooling)
            vgg16 = vgg.Encoder(width, DILATION, pool, padding=pad, in_channels=in_channels)
            layers = vgg.classifier(vgg16.channels[4], fc, 7, FC6_DILATION, dropout, pad, spatial_dropout)
            self.encoder: nn.Module = vgg16
            self.classifier = nn.Sequential(layers)
        else:
            timm_encoder.require_vgg(padding == "valid", "padding='reflect' or 'valid'", pooling)
            other = timm_encoder.replace_vgg(resnet, encoder, width, (8,), in_channels)
            self.encoder, self.upsampling = other, other.upsampling
            self.classifier, fc = timm_encoder.build_classifier(
                other, width, fc_channels, FC6_DILATION, dropout, spatial_dropout
            )
        self.final = nn.Conv2d(fc, num_classes, 1)
        initialize(self)
        nn.init.normal_(self.final.weight, std=0.001)

    def forward(self, image: Planes) -> Maps:
        check_size(image, self.smallest, "the front end without padding")
        return self.final(self.classifier(self.encoder(image)[-1]))


def pool2x2_or_none(stage: int, pooling: vgg.Pooling) -> nn.Module:
    """Return the pooling after this stage, or the identity after stages 4 and 5."""
    return vgg.pool2x2(stage, pooling=pooling) if POOL[stage - 1] else nn.Identity()
