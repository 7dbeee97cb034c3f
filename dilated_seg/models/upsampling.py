"""Upsampling of class scores to the image's size: the choices of the papers and of their reimplementations.

- ``bilinear``: interpolation; a score is that of the middle of its pixels (``align_corners=False``), as after 2 x 2 poolings.
- ``aligned``: interpolation; a score is that of the first of its pixels (``align_corners=True``), as after 3 x 3 poolings with
  padding 1 or the strides of a ResNet; DeepLab's Interp layer. After 2 x 2 poolings it shifts the scores by half a stride.
- ``transposed``: a learned transposed convolution, one filter per class, that starts as ``bilinear``; only within a cell of the
  border it is weaker, since there are zeros beyond it (Long et al., CVPR 2015, Section 3.3: the filter "need not be fixed").
- ``transposed_full``: the same from every class to every class, as the released FCN lays out its (fixed) filters.
- ``fixed``: the same without learning, one filter per class as in DilatedNet's release for Cityscapes; in the released form of
  FCN from every class to every class, with zeros between different ones.
"""

from typing import Literal

from torch import nn

from dilated_seg.models.layers import Upsample, bilinear_deconvolution

Upsampling = Literal["bilinear", "aligned", "transposed", "transposed_full", "fixed"]


def build_upsampling(kind: Upsampling, num_classes: int, stride: int, pad: bool = True) -> nn.Module:
    """Return a layer that upsamples C score maps by ``stride``, an even number.

    Args:
        kind: See the module.
        num_classes: C.
        stride: Pixels per cell: n cells become stride x n pixels.
        pad: Without it, transposed convolutions give stride / 2 more pixels on each side, as the released FCN crops them.

    Raises:
        ValueError: Interpolation is to be without padding.
    """
    if kind in ("bilinear", "aligned"):
        if not pad:
            raise ValueError(
                f"form='authors' upsamples by transposed convolutions, not upsampling={kind!r}: choose one of 'fixed', "
                "'transposed', 'transposed_full', or form='any_size'"
            )
        return Upsample(stride, corners=kind == "aligned")
    groups = 1 if kind == "transposed_full" or (kind == "fixed" and not pad) else num_classes
    layer = bilinear_deconvolution(num_classes, 2 * stride, stride, padding=stride // 2 if pad else 0, groups=groups)
    return layer.requires_grad_(kind != "fixed")
