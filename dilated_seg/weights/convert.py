"""Convert tensors of published files to the layouts of our networks.

Fully connected fc6 and fc7 become convolutions; DeepLab-LargeFOV has every third tap and every fourth filter of them (its
Section 3.1). The input channels of Caffe's first convolutions, BGR, become RGB.
"""

import math

import torch
from torch import Tensor

from dilated_seg.errors import UserError
from dilated_seg.weights.readers import Weights


def convert_layout(layer: str, tensor: Tensor, target: torch.Size) -> tuple[Tensor | None, str]:
    """Return a file's tensor in the shape of our layer's and a name of the conversion; None if the shapes do not correspond."""
    if tensor.shape == target:
        return tensor, ""
    sides = [n for n in tensor.shape if n != 1]
    if sides == [n for n in target if n != 1]:
        return tensor.reshape(target), "as convolution" if len(target) == 4 else ""
    if len(target) == 4 and len(sides) == 2 and sides[0] == target[0] and sides[1] == math.prod(target[1:]):
        return tensor.reshape(target), "as convolution"
    if layer in ("fc6", "fc7") and tensor.numel() and target[0] * 4 == next(iter(sides), 0):
        return decimate(tensor.reshape(sides or [1]), target)
    return None, ""


def decimate(tensor: Tensor, target: torch.Size) -> tuple[Tensor | None, str]:
    """Return every 4th filter of VGG's fc6 or fc7, and every 3rd of 7 x 7 taps, which LargeFOV spreads again by dilation 12."""
    if len(target) == 1:
        return tensor[::4], "every 4th filter"
    if target[2] == 3 and tensor[0].numel() == target[1] * 49:
        return tensor.reshape(-1, target[1], 7, 7)[::4, :, ::3, ::3], "as convolution, every 4th filter, every 3rd tap"
    if target[2] == 1 and tensor[0].numel() == 4 * target[1]:
        return tensor.reshape(-1, 4 * target[1])[::4, ::4].reshape(target), "as convolution, every 4th filter of every 4th"
    return None, ""


def convert_precision(file: Weights, name: str, tensor: Tensor) -> tuple[Tensor, str]:
    """Return a tensor in float32 and a name of the conversion; raise UserError unless its values are finite real numbers."""
    if not tensor.is_floating_point():
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise UserError(f"{file.path} has {name} as {dtype}: save weights as floating-point numbers")
    if not tensor.isfinite().all():
        raise UserError(f"{file.path} has values in {name or 'a layer'} that are not finite: use another checkpoint")
    return tensor.float(), "" if tensor.dtype == torch.float32 else f"from {tensor.dtype}"


def find_channel_order(file: Weights, layer: str, renamed: str, path: str) -> str:
    """Return the channel order, "bgr" or "rgb", of a convolution that reads the image.

    It is BGR in Caffe's files, in arrays with Caffe's names and in Keras' VGG, RGB in torchvision's files and ours.

    Raises:
        UserError: The names are Caffe's but the file is torch's: the conversion may have reversed the channels; or the file is
            Keras' but not of its VGG.
    """
    if file.kind == "caffe":
        return "bgr"
    if renamed == path or renamed != layer or "layer1.0.conv1" in file.layers or file.mean:
        return "rgb"
    if file.kind == "npz" or (file.kind == "keras" and layer == "block1_conv1"):
        return "bgr"
    if file.kind == "keras":
        raise UserError(
            f"{file.path}: the channel order of {layer} is unknown: give it as --channels bgr or rgb to dilated-seg port"
        )
    raise UserError(
        f"{file.path} has Caffe's names in a file of torch, so the channel order of {layer} is unknown: give it as "
        "--channels bgr or rgb to dilated-seg port"
    )


def format_shape(tensor: Tensor) -> str:
    """Return a tensor's shape as text."""
    return " x ".join(map(str, tensor.shape)) or "a scalar"
