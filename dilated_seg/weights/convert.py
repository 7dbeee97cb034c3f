"""Tensors of published files in the layouts of our networks.

Fully connected fc6 and fc7 become convolutions; DeepLab-LargeFOV takes every third tap and every fourth filter of them (its
Section 3.1). The input channels of Caffe's first convolutions, BGR, become RGB.
"""

import math

import torch
from torch import Tensor

from dilated_seg.errors import UserError
from dilated_seg.weights.readers import Weights


def convert_layout(layer: str, tensor: Tensor, target: torch.Size) -> tuple[Tensor | None, str]:
    """Return a tensor in the shape of ours and what was done to it; None if the shapes do not correspond.

    Args:
        layer: The name of our layer.
        tensor: The file's tensor.
        target: The shape of our tensor.
    """
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
    """Return a tensor in float32 and what was done to it.

    Raises:
        UserError: It holds something else than finite real numbers.
    """
    if not tensor.is_floating_point():
        raise UserError(f"{file.path} holds {name} as {str(tensor.dtype).removeprefix('torch.')}, which no weight is")
    if not tensor.isfinite().all():
        raise UserError(f"{file.path} holds numbers in {name or 'a layer'} that are not finite")
    return tensor.float(), "" if tensor.dtype == torch.float32 else f"from {tensor.dtype}"


def find_channel_order(file: Weights, layer: str, renamed: str, path: str) -> str:
    """Return the order of the input channels of a convolution that reads the image: "bgr" or "rgb".

    Caffe's images are BGR, and so are those of arrays under Caffe's names; torchvision's and ours are RGB.

    Args:
        file: The file.
        layer: The convolution's name in the file.
        renamed: The same, renamed if it is torchvision's.
        path: The path of our layer.

    Raises:
        UserError: The names are Caffe's, but the file is torch's: its channels may have been reversed, or not.
    """
    if file.kind == "caffe":
        return "bgr"
    if renamed == path or renamed != layer or "layer1.0.conv1" in file.layers or file.mean:
        return "rgb"
    if file.kind == "npz":
        return "bgr"
    raise UserError(
        f"{file.path} has Caffe's names in a file of torch, and does not say whether {layer} takes BGR or RGB: "
        "say so with dilated-seg port --channels"
    )


def format_shape(tensor: Tensor) -> str:
    """Return a tensor's shape as text."""
    return " x ".join(map(str, tensor.shape)) or "a single number"
