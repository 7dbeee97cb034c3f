"""SegNet: VGG-16's convolutions, mirrored, with every pooling undone at the positions it took its maxima from.

Badrinarayanan, Kendall and Cipolla, "SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image Segmentation",
PAMI 2017, https://arxiv.org/abs/1511.00561.

Differs from the release: batch norm's eps is 1e-5, not 1e-9, and its running averages serve for evaluation, where the
authors compute the statistics in a pass of their own over the training set.
"""

from collections import OrderedDict

import torch.nn.functional as F
from torch import nn

from dilated_seg.models import vgg
from dilated_seg.models.layers import conv_relu, initialise, scaled
from dilated_seg.shapes import Image, Logits

# Section 3: the decoder is the encoder reversed.  Channels of each convolution, stage 5 to 1; the last one scores.
DECODER = ((512, 512, 512), (512, 512, 256), (256, 256, 128), (128, 64), (64,))


class SegNet(nn.Module):
    """Encoder and decoder of 13 convolutions each, joined by the positions of the pooled maxima (Figure 2).

    Args:
        num_classes: C, not counting the ignored label.
        width: Multiplies the channels of all hidden layers; 1 is the paper's network.
    """

    output_stride = 1

    def __init__(self, num_classes: int, *, width: float = 1.0) -> None:
        super().__init__()
        self.encoder = vgg.stages(width, batch_norm="conv{}_bn")
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True, return_indices=True)
        self.decoder = nn.ModuleList()
        in_channels = scaled(vgg.VGG16[4][0], width)
        for stage, row in zip((5, 4, 3, 2, 1), DECODER, strict=True):
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            last = vgg.VGG16[stage - 1][1]
            for number, out_channels in zip(range(last, 0, -1), (scaled(c, width) for c in row), strict=False):
                name = f"conv{stage}_{number}_D"
                layers |= conv_relu(name, in_channels, out_channels, batch_norm=f"{name}_bn")
                in_channels = out_channels
            self.decoder.append(nn.Sequential(layers))
        self.conv1_1_D = nn.Conv2d(in_channels, num_classes, 3, padding=1)
        initialise(self)

    def forward(self, image: Image) -> Logits:
        maps, taken = image, []
        for stage in self.encoder:
            maps = stage(maps)
            size = maps.shape[-2:]
            maps, indices = self.pool(maps)
            taken.append((indices, size))
        for stage in self.decoder:
            indices, size = taken.pop()
            maps = stage(F.max_unpool2d(maps, indices, [2, 2], [2, 2], output_size=size))
        return self.conv1_1_D(maps)
