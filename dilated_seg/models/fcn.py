"""FCN: VGG-16 made convolutional, its scores upsampled and added to those of earlier poolings.

Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015,
https://arxiv.org/abs/1411.4038.

Differs from the released network: convolutions pad by half their kernel where conv1_1 pads by 100 and fc6 by nothing, so
that any size goes in; the released deconvolutions, which never learn, are bilinear interpolation without their fading at
the image's border.
"""

from collections import OrderedDict
from typing import Literal

from torch import nn

from dilated_seg.models import vgg
from dilated_seg.models.layers import conv_relu, initialise, scaled, upsample
from dilated_seg.shapes import Image, Logits

# Figure 3: by the stride of the last scores, the poolings whose scores are added, coarse to fine.
SKIPS = {32: (), 16: (4,), 8: (4, 3)}


class FCN(nn.Module):
    """FCN-32s, FCN-16s or FCN-8s: class scores at stride 32, refined by those of pool4 and pool3, then upsampled.

    Args:
        num_classes: C, not counting the ignored label.
        stride: Of the scores before the last upsampling: 32, 16 (adds pool4) or 8 (adds pool4 and pool3).
        width: Multiplies the channels of all hidden layers; 1 is the paper's network.
        dropout: After fc6 and fc7.
    """

    output_stride = 32

    def __init__(self, num_classes: int, stride: Literal[32, 16, 8] = 32, *, width: float = 1.0, dropout: float = 0.5) -> None:
        super().__init__()
        self.output_stride = stride
        self.stages = vgg.stages(width)
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True)
        fc, pool5 = scaled(vgg.FC, width), scaled(vgg.VGG16[4][0], width)
        self.classifier = nn.Sequential(
            conv_relu("fc6", pool5, fc, 7)
            | OrderedDict(drop6=nn.Dropout(dropout))
            | conv_relu("fc7", fc, fc, 1)
            | OrderedDict(drop7=nn.Dropout(dropout))
        )
        initialise(self)
        self.score_fr = nn.Conv2d(fc, num_classes, 1)
        self.score_pool = nn.ModuleDict(
            {str(n): nn.Conv2d(scaled(vgg.VGG16[n - 1][0], width), num_classes, 1) for n in SKIPS[stride]}
        )
        for score in (self.score_fr, *self.score_pool.values()):  # Section 4.3: zero, so the sum starts as the coarse scores
            nn.init.zeros_(score.get_parameter("weight"))
            nn.init.zeros_(score.get_parameter("bias"))

    def forward(self, image: Image) -> Logits:
        maps, pools = image, {}
        for number, stage in zip("12345", self.stages, strict=True):
            maps = pools[number] = self.pool(stage(maps))
        scores = self.score_fr(self.classifier(maps))
        for number, score in self.score_pool.items():
            finer = score(pools[number])
            scores = upsample(scores, 2, finer.shape[-2:]) + finer
        return upsample(scores, self.output_stride, image.shape[-2:])
