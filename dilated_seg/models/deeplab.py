"""DeepLab v1 with a large field of view: VGG-16 with dilation where its last two poolings stop halving.

Chen, Papandreou, Kokkinos, Murphy and Yuille, "Semantic Image Segmentation with Deep Convolutional Nets and Fully
Connected CRFs", ICLR 2015, https://arxiv.org/abs/1412.7062; the LargeFOV row of its Table 1.  The CRF is not part of it.

Differs from the release: the scores are upsampled to the image's size inside the network, for training too, where the
authors compare them with every eighth pixel of the labels.
"""

from collections import OrderedDict

from torch import nn

from dilated_seg.models import vgg
from dilated_seg.models.layers import conv_relu, initialise, scaled, upsample
from dilated_seg.shapes import Image, Logits

# Section 3.1: the last two poolings keep the size, and stage 5 is dilated instead; so is fc6, over fewer taps.
#                 1  2  3  4  5
POOL_STRIDE =    (2, 2, 2, 1, 1)  # fmt: skip
DILATION =       (1, 1, 1, 1, 2)  # fmt: skip

# LargeFOV: fc6 and fc7 have 1024 channels; fc6 is 3x3 with dilation 12, a field of view of 224 pixels.
FC, FC6_KERNEL, FC6_DILATION = 1024, 3, 12


class DeepLabV1(nn.Module):
    """DeepLab-LargeFOV: class scores at stride 8, then bilinear upsampling to the image's size.

    Args:
        num_classes: C, not counting the ignored label.
        width: Multiplies the channels of all hidden layers; 1 is the paper's network.
        dropout: After fc6 and fc7.
    """

    output_stride = 8

    def __init__(self, num_classes: int, *, width: float = 1.0, dropout: float = 0.5) -> None:
        super().__init__()
        self.stages = vgg.stages(width, DILATION)
        self.pools = nn.ModuleList(nn.MaxPool2d(3, stride, padding=1, ceil_mode=True) for stride in POOL_STRIDE)
        self.pool5a = nn.AvgPool2d(3, 1, padding=1)  # the padding counts in its mean, as in Caffe
        fc, pool5 = scaled(FC, width), scaled(vgg.VGG16[4][0], width)
        self.classifier = nn.Sequential(
            conv_relu("fc6", pool5, fc, FC6_KERNEL, FC6_DILATION)
            | OrderedDict(drop6=nn.Dropout(dropout))
            | conv_relu("fc7", fc, fc, 1)
            | OrderedDict(drop7=nn.Dropout(dropout))
        )
        self.fc8 = nn.Conv2d(fc, num_classes, 1)
        initialise(self)
        nn.init.normal_(self.fc8.weight, std=0.01)

    def forward(self, image: Image) -> Logits:
        maps = image
        for stage, pool in zip(self.stages, self.pools, strict=True):
            maps = pool(stage(maps))
        scores = self.fc8(self.classifier(self.pool5a(maps)))
        return upsample(scores, self.output_stride, image.shape[-2:], corners=True)
