"""DeconvNet: all of VGG-16 down to one cell of 4096 channels, and the same way back by unpooling and deconvolution.

Noh, Hong and Han, "Learning Deconvolution Network for Semantic Segmentation", ICCV 2015, https://arxiv.org/abs/1505.04366.

Differs from the release: fc6 and its deconvolution pad by 3 where the authors' 7x7 kernels shrink 7 x 7 cells to one and
back, so that any size goes in, not 224 x 224 alone; batch norm's eps is 1e-5, not 1e-9, with running averages.
"""

from collections import OrderedDict

import torch.nn.functional as F
from torch import nn

from dilated_seg.models import vgg
from dilated_seg.models.layers import conv_relu, initialise, scaled
from dilated_seg.shapes import Image, Logits

# Table 2, lower half: channels of each deconvolution, stage 5 to 1.
DECODER = ((512, 512, 512), (512, 512, 256), (256, 256, 128), (128, 64), (64, 64))


class DeconvNet(nn.Module):
    """Convolution network and deconvolution network, joined by the positions of the pooled maxima (Figure 2).

    Args:
        num_classes: C, not counting the ignored label.
        width: Multiplies the channels of all hidden layers; 1 is the paper's network.
    """

    output_stride = 1

    def __init__(self, num_classes: int, *, width: float = 1.0) -> None:
        super().__init__()
        self.encoder = vgg.stages(width, batch_norm="bn{}")
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True, return_indices=True)
        pool5, fc = scaled(vgg.VGG16[4][0], width), scaled(vgg.FC, width)
        self.bottleneck = nn.Sequential(
            conv_relu("fc6", pool5, fc, 7, batch_norm="bnfc6")
            | conv_relu("fc7", fc, fc, 1, batch_norm="bnfc7")
            | conv_relu("fc6-deconv", fc, pool5, 7, batch_norm="fc6-deconv-bn", deconvolution=True)
        )
        self.decoder = nn.ModuleList()
        in_channels = pool5
        for stage, row in zip((5, 4, 3, 2, 1), DECODER, strict=True):
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            for i, channels in enumerate(row, start=1):
                out_channels, number = scaled(channels, width), f"{stage}_{i}"
                norm = f"debn{number}"
                layers |= conv_relu(f"deconv{number}", in_channels, out_channels, batch_norm=norm, deconvolution=True)
                in_channels = out_channels
            self.decoder.append(nn.Sequential(layers))
        self.score = nn.Conv2d(in_channels, num_classes, 1)  # seg-score-voc in the release
        initialise(self)

    def forward(self, image: Image) -> Logits:
        maps, taken = image, []
        for stage in self.encoder:
            maps = stage(maps)
            size = maps.shape[-2:]
            maps, indices = self.pool(maps)
            taken.append((indices, size))
        maps = self.bottleneck(maps)
        for stage in self.decoder:
            indices, size = taken.pop()
            maps = stage(F.max_unpool2d(maps, indices, [2, 2], [2, 2], output_size=size))
        return self.score(maps)
