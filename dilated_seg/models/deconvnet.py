"""DeconvNet: all of VGG-16 down to one cell of 4096 channels, then its mirror image of unpooling and deconvolution.

Noh, Hong and Han, "Learning Deconvolution Network for Semantic Segmentation", ICCV 2015, https://arxiv.org/abs/1505.04366.

``form="authors"`` is the released network: fc6 and its deconvolution do not pad, so that 7 x 7 cells become one and 7 x 7
again, and batch norm's epsilon is 1e-9; images need at least 193 x 193 pixels, and it was trained on 224 x 224. The
deconvolutions and the scores are initialized from a normal distribution (0.01). ``form="any_size"`` pads both by 3, with
torch's epsilon of 1e-5 and the initialization of He et al. Differs from the paper: evaluation uses running averages,
where the authors collect the statistics in a separate pass over the training set.
"""

from collections import OrderedDict
from functools import partial
from typing import ClassVar, Literal

from torch import nn

from dilated_seg.models import vgg
from dilated_seg.models.layers import (
    Unpool,
    check_arguments,
    check_size,
    conv_relu,
    initialize,
    scale_channels,
    use_caffe_batch_norm,
)
from dilated_seg.models.release import ILSVRC_MEAN, PublishedNames, Release
from dilated_seg.tensors import Logits, Planes

# Table 2, lower half: channels of each deconvolution, stage 5 to 1.
DECODER = ((512, 512, 512), (512, 512, 256), (256, 256, 128), (128, 64), (64, 64))

SMALLEST = 193  # pixels that leave 7 cells after five poolings


class DeconvNet(nn.Module):
    """Convolution network and deconvolution network, joined by pooling indices (Figure 2).

    Args:
        num_classes: C, not counting the ignored label.
        form: The released layers, or the same with padding for any size; see the module.
        width: Multiplies the channels of all hidden layers; 1 is the paper's network.
        fc_channels: Channels of fc6 and fc7, before ``width``; the published weights have 4096.
        in_channels: Channels of the image.
    """

    output_stride = 1
    releases: ClassVar[tuple[Release, ...]] = (Release(r"bnfc6", ILSVRC_MEAN),)
    published_names: ClassVar[PublishedNames] = (
        (r"^seg-score.*", "score"),
        (r"^conv(\d_\d)_bn$", r"bn\1"),  # torchvision's VGG-16 with batch norm
    )

    def __init__(
        self,
        num_classes: int,
        form: Literal["any_size", "authors"] = "any_size",
        width: float = 1.0,
        *,
        fc_channels: int = vgg.FC,
        in_channels: int = 3,
    ) -> None:
        check_arguments(DeconvNet, locals())
        super().__init__()
        self.in_channels = in_channels
        padding, self.smallest = (0, SMALLEST) if form == "authors" else (3, 1)
        pool = partial(vgg.pool2x2, return_indices=True)
        self.encoder = vgg.Encoder(width, pool=pool, batch_norm="bn{}", in_channels=in_channels)
        pool5, fc = self.encoder.channels[4], scale_channels(fc_channels, width)
        self.bottleneck = nn.Sequential(
            conv_relu("fc6", pool5, fc, 7, batch_norm="bnfc6", padding=padding)
            | conv_relu("fc7", fc, fc, 1, batch_norm="bnfc7")
            | conv_relu("fc6-deconv", fc, pool5, 7, batch_norm="fc6-deconv-bn", deconvolution=True, padding=padding)
        )
        self.decoder, self.unpools = nn.ModuleList(), nn.ModuleDict()
        inputs = pool5
        for stage, row in zip((5, 4, 3, 2, 1), DECODER, strict=True):
            self.unpools[f"unpool{stage}"] = Unpool()
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            for i, channels in enumerate(row, start=1):
                out_channels, number = scale_channels(channels, width), f"{stage}_{i}"
                norm = f"debn{number}"
                layers |= conv_relu(f"deconv{number}", inputs, out_channels, batch_norm=norm, deconvolution=True)
                inputs = out_channels
            self.decoder.append(nn.Sequential(layers))
        self.score = nn.Conv2d(inputs, num_classes, 1)  # seg-score-voc in the release
        initialize(self)
        if form == "authors":
            use_caffe_batch_norm(self)
            for layer in self.modules():
                if isinstance(layer, nn.ConvTranspose2d) or layer is self.score:
                    nn.init.normal_(layer.get_parameter("weight"), std=0.01)

    def forward(self, image: Planes) -> Logits:
        check_size(image, self.smallest, "DeconvNet in its authors' form")
        maps, pool_indices = image, []
        for stage, pool in zip(self.encoder.stages, self.encoder.pools.values(), strict=True):
            maps = stage(maps)
            size = maps.shape[-2:]
            maps, indices = pool(maps)
            pool_indices.append((indices, size))
        maps = self.bottleneck(maps)
        for stage, unpool in zip(self.decoder, self.unpools.values(), strict=True):
            indices, size = pool_indices.pop()
            maps = stage(unpool(maps, indices, output_size=size))
        return self.score(maps)
