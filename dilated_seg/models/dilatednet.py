"""DilatedNet: a VGG-16 front end, then a context module of dilated convolutions.

Yu and Koltun, "Multi-Scale Context Aggregation by Dilated Convolutions", ICLR 2016, https://arxiv.org/abs/1511.07122.

``padding="reflect"`` is the paper's and the released network: the image is reflected by 186 pixels once, and no convolution of
the front end pads; published weights need it. ``padding="zeros"`` pads every convolution instead: a third of the pixels to
compute at 500 x 500, and the better choice to train from scratch. In both, scores are upsampled to the image's size inside
the network, for training too; the Basic module starts as the exact identity of Equation 4, to which the release's filler
adds noise (0.01); and the front end's last bias starts above zero, so that a context module starts from the scores of the
front end, and both can be trained from scratch together (HEADROOM).
"""

from collections import OrderedDict
from typing import ClassVar, Literal

import torch
from torch import nn

from dilated_seg.models import resnet, vgg
from dilated_seg.models.layers import (
    Upsample,
    bilinear_deconvolution,
    check_arguments,
    check_size,
    conv_relu,
    initialize,
    reflect,
    scale_channels,
)
from dilated_seg.models.release import PublishedNames, Release, Variants
from dilated_seg.tensors import Image, Logits, Maps

# Section 4: pool4 and pool5 are removed; after each removed pooling, the dilation doubles.
#                1     2     3      4      5
POOL =        (True, True, True, False, False)  # fmt: skip
DILATION =    (   1,    1,    1,     1,     2)  # fmt: skip
FC6_DILATION = 4
MARGIN = 186  # pixels of the receptive field on each side of a score's own 8 x 8: (380 - 8) / 2

# Table 1, one row a layer, and the two that the authors add for Cityscapes; channels in multiples of C, the number of classes.
#                  kernel, dilation, basic, large     receptive field
CONTEXT = {
    "ctx_conv1_1": (3,      1,        1,      2),  #    3 x  3
    "ctx_conv1_2": (3,      1,        1,      2),  #    5 x  5
    "ctx_conv2_1": (3,      2,        1,      4),  #    9 x  9
    "ctx_conv3_1": (3,      4,        1,      8),  #   17 x 17
    "ctx_conv4_1": (3,      8,        1,     16),  #   33 x 33
    "ctx_conv5_1": (3,     16,        1,     32),  #   65 x 65
    "ctx_conv6_1": (3,     32,        1,     32),  #  129 x 129
    "ctx_conv7_1": (3,     64,        1,     32),  #  257 x 257
    "ctx_fc1":     (3,      1,        1,     32),  #  two more than before it
    "ctx_final":   (1,      1,        1,      1),
}  # fmt: skip
COLUMN = {"basic": 2, "large": 3}
# The appendix: KITTI's images are too low for dilation 16; Cityscapes' are large enough for two more layers.
LEFT_OUT = {7: ("ctx_conv5_1", "ctx_conv6_1", "ctx_conv7_1"), 8: ("ctx_conv6_1", "ctx_conv7_1"), 10: ()}

# Names of the context module's layers in published files. The mean of a release is that of its dataset, which follows from
# the number of classes and of context layers.
CONTEXT_LAYERS = r"ctx?_(conv|fc|final).*"
RELEASES = tuple(
    Release(r"(fc-)?final", mean, num_classes, (CONTEXT_LAYERS, layers))
    for mean, num_classes, layers in (
        ((116.52, 111.36, 102.93), 21, 8),  # VOC
        ((105.41212523, 108.77808759, 110.70313206), 11, 8),  # CamVid
        ((91.34692262, 95.55136972, 96.19429688), 11, 7),  # KITTI
        ((73.16, 82.91, 72.39), 19, 10),  # Cityscapes
    )
)

NOISE = 0.01  # standard deviation around the Large module's identity in its first two layers; later over their width

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
        fc_channels: Channels of fc6 and fc7, before ``width``; the published weights have 4096.
        dilated: False sets every dilation of the context module to 1, for an ablation of dilation.
        resnet: Depth of a ResNet that replaces VGG-16, fc6 and fc7 (not in the paper); for padding="zeros" only.
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
        fc_channels: int = vgg.FC,
        dilated: bool = True,
        resnet: resnet.Depth | None = None,
    ) -> None:
        check_arguments(DilatedNet, locals())
        super().__init__()
        reflected = padding == "reflect"
        self.margin = MARGIN if reflected else 0
        self.front_end = FrontEnd(
            num_classes,
            "valid" if reflected else "zeros",
            width,
            dropout=dropout,
            fc_channels=fc_channels,
            resnet=resnet,
        )
        self.context: nn.Module = nn.Identity()
        self.ctx_upsample: nn.Module = Upsample(self.output_stride, corners=reflected or resnet is not None)
        nn.init.constant_(self.front_end.final.get_parameter("bias"), HEADROOM)
        if context:
            border: Literal["zeros", "once"] = "once" if reflected and context == "large" else "zeros"
            self.context = ContextModule(num_classes, context, context_layers, border, dilated=dilated)
            if reflected and context_layers == 10:
                self.ctx_upsample = bilinear_deconvolution(num_classes, 16, 8, padding=4, groups=num_classes)

    def forward(self, image: Image) -> Logits:
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
        fc_channels: Channels of fc6 and fc7, before ``width``; the published weights have 4096.
        resnet: Depth of a ResNet that replaces VGG-16, fc6 and fc7, with dilation in place of its last two strides; padded.
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
        fc_channels: int = vgg.FC,
        resnet: resnet.Depth | None = None,
    ) -> None:
        check_arguments(FrontEnd, locals())
        super().__init__()
        self.smallest = 2 * MARGIN + 1 if padding == "valid" else 1
        fc = scale_channels(fc_channels, width)
        self.encoder, layers, fc = build_encoder_and_classifier(padding, width, fc, dropout, resnet)
        self.classifier = nn.Sequential(layers)
        self.final = nn.Conv2d(fc, num_classes, 1)
        initialize(self)
        nn.init.normal_(self.final.weight, std=0.001)

    def forward(self, image: Image) -> Maps:
        check_size(image, self.smallest, "the front end without padding")
        return self.final(self.classifier(self.encoder(image)[4]))


def pool2x2_or_none(stage: int) -> nn.Module:
    """Return the pooling after this stage, or the identity after stages 4 and 5."""
    return vgg.pool2x2(stage) if POOL[stage - 1] else nn.Identity()


def build_encoder_and_classifier(
    padding: str, width: float, fc: int, dropout: float, depth: resnet.Depth | None
) -> tuple[nn.Module, "OrderedDict[str, nn.Module]", int]:
    """Return VGG-16, and fc6 and fc7, or a ResNet without these; and the number of output channels."""
    if depth is None:
        pad = 0 if padding == "valid" else None
        encoder = vgg.Encoder(width, DILATION, pool2x2_or_none, padding=pad)
        return encoder, vgg.classifier(encoder.channels[4], fc, 7, FC6_DILATION, dropout, padding=pad), fc
    if padding == "valid":
        raise ValueError("padding='reflect' and 'valid' need VGG-16: with resnet use padding='zeros'")
    residual = resnet.Encoder(depth, width, output_stride=8)
    return residual, OrderedDict(drop=nn.Dropout(dropout)), residual.channels[4]


class ContextModule(nn.Module):
    """C score maps in, C score maps of the same size out, with a receptive field of 67 x 67 scores (Table 1).

    It starts as the identity (Equations 4 and 5) of scores of at least zero; the ReLU of the first layer sets negative scores
    to zero.

    Args:
        num_classes: C.
        size: The column of Table 1 that gives the channels. The Large module is published with 8 layers only.
        layers: 8, or 7 without dilation 16 (KITTI; receptive field 35 x 35), or 10 with dilations of 32 and 64 too (Cityscapes;
            259 x 259).
        padding: "zeros" around every layer's maps, as the released Basic modules have it; "once", all of it (33 cells
            for 8 layers) around the first layer's, as the released Large module has it; or "valid", none: n cells give n - 66.
        dilated: False sets every dilation to 1: same layers and weights, receptive field 15 x 15.
    """

    variants: ClassVar[Variants] = ()  # a part of DilatedNet
    published_names: ClassVar[PublishedNames] = ((r"^ct_", "ctx_"),)
    image_layers: ClassVar[tuple[str, ...]] = ()
    indivisible: ClassVar[str] = CONTEXT_LAYERS

    def __init__(
        self,
        num_classes: int,
        size: Literal["basic", "large"] = "basic",
        layers: Literal[7, 8, 10] = 8,
        padding: Literal["zeros", "valid", "once"] = "zeros",
        *,
        dilated: bool = True,
    ) -> None:
        check_arguments(ContextModule, locals())
        super().__init__()
        rows = {name: row for name, row in CONTEXT.items() if name not in LEFT_OUT[layers]}
        dilations = {name: row[1] if dilated else 1 for name, row in rows.items()}
        border = sum(dilations[name] * (row[0] // 2) for name, row in rows.items())
        built: OrderedDict[str, nn.Module] = OrderedDict()
        in_channels = num_classes
        for number, (name, row) in enumerate(rows.items(), start=1):
            out_channels = num_classes * row[COLUMN[size]]
            pad = {"zeros": None, "valid": 0, "once": border if number == 1 else 0}[padding]
            built |= conv_relu(name, in_channels, out_channels, row[0], dilations[name], padding=pad)
            noise = NOISE if number <= 2 else NOISE * num_classes / max(in_channels, out_channels)
            identity_(built[name], num_classes, noise if size == "large" else 0.0)
            in_channels = out_channels
        built.popitem()  # the last layer gives logits: no ReLU
        self.layers = nn.Sequential(built)

    def forward(self, maps: Maps) -> Maps:
        return self.layers(maps)


def identity_(convolution: nn.Module, num_classes: int, noise: float = 0.0) -> None:
    """Initialize a layer as the identity of class maps (Equations 4 and 5).

    Input and output channels are divided into C groups of equal size, one per class. The center tap between
    channels of one group is C / out_channels, so that a class's output maps add up to its input. All else is zero in the Basic
    module (Equation 4); in the Large one it is ``noise``, a standard deviation, so that channels of one class come to differ.
    """
    weight, bias = convolution.get_parameter("weight"), convolution.get_parameter("bias")
    out_channels, in_channels, kernel_size, _ = weight.shape
    group_out = torch.arange(out_channels, device="cpu") * num_classes // out_channels
    group_in = torch.arange(in_channels, device="cpu") * num_classes // in_channels
    same = group_out[:, None] == group_in[None, :]
    nn.init.zeros_(bias)
    nn.init.normal_(weight, std=noise)
    with torch.no_grad():
        weight[:, :, kernel_size // 2, kernel_size // 2].masked_fill_(same.to(weight.device), num_classes / out_channels)
