"""Building blocks of several networks: convolutions, batch norm, upsampling, cropping, and initialization."""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dilated_seg.errors import UserError
from dilated_seg.tensors import Maps

# Batch norm of the Caffe releases: a tiny epsilon, and an initial shift a little above zero.
CAFFE_EPS, CAFFE_SHIFT = 1e-9, 0.001


# Type and range of arguments of all networks, and the end of the message if they are violated.
RANGES: dict[str, tuple[Any, float, float, str]] = {
    "num_classes": (Integral, 1, math.inf, "not an integer of at least 1"),
    "in_channels": (Integral, 1, math.inf, "not an integer of at least 1"),
    "fc_channels": (Integral, 1, math.inf, "not an integer of at least 1"),
    "width": (Real, 1e-6, 100, "not a number above 0 and up to 100 (1 is the paper's)"),
    "dropout": (Real, 0, 1, "not a number from 0 to 1"),
    "fc6_dilation": (Integral, 1, math.inf, "not an integer of at least 1"),
    "context_noise": (Real, 0, math.inf, "not a number of at least 0"),
    "noise": (Real, 0, math.inf, "not a number of at least 0"),
}


def check_arguments(network: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Check a network's arguments against the Literal types of its constructor and the ranges in `RANGES`.

    A network that passes its ``locals()`` keeps its arguments as its attribute ``arguments``; see `build.describe_network`.

    Args:
        network: The network's class, or a function that returns a network.
        arguments: Values by name; names that are not arguments of the constructor are ignored.

    Raises:
        ValueError: A value is not one of its Literal's, or out of its range.
    """
    try:
        hints = get_type_hints(network.__init__ if isinstance(network, type) else network)  # type: ignore[misc] # of this class
    except NameError:  # other packages name types that they import for type checkers only
        return
    for name, hint in hints.items():
        if name not in arguments:
            continue
        value = arguments[name]
        listed = [choice for part in (hint, *get_args(hint)) if get_origin(part) is Literal for choice in get_args(part)]
        allowed = [*listed, None] if type(None) in get_args(hint) else listed
        if listed and not any(value == choice and type(value) is type(choice) for choice in allowed):
            raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, allowed))}")
        if value is None and type(None) in get_args(hint):
            continue
        kind, least, most, problem = RANGES.get(name, (object, 0, 0, ""))
        if value is None and type(None) in get_args(hint):
            continue
        if name in RANGES and (not isinstance(value, kind) or isinstance(value, bool) or not least <= value <= most):
            raise ValueError(f"{name}={value!r} is {problem}")
    built: Any = arguments.get("self")
    if type(built) is network:  # not a subclass, whose arguments may be others
        built.arguments = {name: arguments[name] for name in hints if name in arguments}


def scale_channels(channels: int, width: float) -> int:
    """Return a hidden layer's number of channels at this width, at least 1; width 1 is the paper's."""
    return max(1, round(channels * width))


def build_dropout(p: float, spatial: bool) -> nn.Module:
    """Return dropout of single values, as in the releases, or of whole maps (Tompson et al., CVPR 2015, Section 3.2)."""
    return nn.Dropout2d(p) if spatial else nn.Dropout(p)


def promote(maps: Maps) -> Maps:
    """Return maps in float32, or float64 if they are float64."""
    return maps.to(torch.promote_types(maps.dtype, torch.float32))


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that raises a clear error where a batch has one value per channel, whose variance is 0."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() == input.shape[1]:
            raise UserError(
                "batch norm cannot be trained on a single value per channel (one image, maps of 1 x 1): raise "
                "data.init_args.batch_size or use larger images"
            )
        return super().forward(input)


def conv_relu(
    name: str,
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    dilation: int = 1,
    batch_norm: str = "",
    deconvolution: bool = False,
    padding: int | None = None,
    groups: int = 1,
    relu: bool = True,
) -> "OrderedDict[str, nn.Module]":
    """Return a convolution, a batch norm named ``batch_norm`` unless that is empty, and a ReLU, by name.

    Height and width stay the same unless ``padding`` is given. With ``deconvolution`` the convolution is a transposed one of
    stride 1, as in DeconvNet's decoder.
    """
    convolution = nn.ConvTranspose2d if deconvolution else nn.Conv2d
    padding = dilation * (kernel_size // 2) if padding is None else padding
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers[name] = convolution(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, groups=groups)
    if batch_norm:
        layers[batch_norm] = BatchNorm(out_channels)
    if relu:
        layers[f"{name}_relu"] = nn.ReLU(inplace=True)
    return layers


def use_caffe_batch_norm(network: nn.Module) -> None:
    """Give every batch norm the epsilon and the initial shift of the Caffe releases."""
    for layer in network.modules():
        if isinstance(layer, BatchNorm):
            layer.eps = CAFFE_EPS
            nn.init.constant_(layer.bias, CAFFE_SHIFT)


class Upsample(nn.Module):
    """Bilinear upsampling by exactly ``stride``, n cells to stride x n pixels, which `crop` cuts to the image.

    Interpolation to the image's size would stretch the maps wherever a pooling rounded up, and shift every value from the
    pixels it was computed from.

    Args:
        stride: Pixels per cell.
        corners: Whether a cell's value is that of its first pixel, as after 3 x 3 poolings with padding 1 or the strides of a
            ResNet, or that of its middle, as after 2 x 2 poolings.
    """

    def __init__(self, stride: int, corners: bool = False) -> None:
        super().__init__()
        self.stride, self.corners = stride, corners

    def forward(self, maps: Maps) -> Maps:
        if self.corners:  # repeat the last cell: the pixels after its first are interpolated with it
            height, width = maps.shape[-2:]
            maps = F.pad(maps, (0, 1, 0, 1), mode="replicate")
            size = (self.stride * height + 1, self.stride * width + 1)
            return F.interpolate(maps, size, mode="bilinear", align_corners=True)[..., :-1, :-1]
        return F.interpolate(maps, scale_factor=self.stride, mode="bilinear", align_corners=False)

    def extra_repr(self) -> str:
        return f"{self.stride}, corners={self.corners}"


def bilinear_deconvolution(
    channels: int, kernel_size: int, stride: int, padding: int = 0, groups: int = 1
) -> nn.ConvTranspose2d:
    """Return the upsampling of the Caffe releases: a transposed convolution with fixed bilinear weights and no bias."""
    layer = nn.ConvTranspose2d(channels, channels, kernel_size, stride, padding, groups=groups, bias=False)
    half = (kernel_size + 1) // 2
    centre = half - 1 if kernel_size % 2 else half - 0.5
    taps = 1 - (torch.arange(kernel_size, device="cpu") - centre).abs() / half
    with torch.no_grad():
        nn.init.zeros_(layer.weight)
        index = torch.arange(channels)
        layer.weight[index, index if groups == 1 else 0] = (taps[:, None] * taps[None, :]).to(index.device)
    return layer.requires_grad_(False)


class Unpool(nn.MaxUnpool2d):
    """Unpooling of 2 x 2: every value goes to the position of its maximum, with zeros elsewhere.

    torch's unpooling fails if deterministic algorithms are required. Windows do not overlap here, so scatter gives the
    same result on any device and in any order.
    """

    def __init__(self) -> None:
        super().__init__(2, 2)

    def forward(self, input: Tensor, indices: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        if not torch.are_deterministic_algorithms_enabled():
            return super().forward(input, indices, list(output_size) if output_size else None)
        height, width = output_size or [2 * n for n in input.shape[-2:]]
        flat = input.new_zeros(*input.shape[:2], height * width)
        return flat.scatter(2, indices.flatten(2), input.flatten(2)).view(*input.shape[:2], height, width)


class Scale(nn.Module):
    """A fixed factor per channel: Caffe's Scale layer without bias."""

    def __init__(self, channels: int, factor: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), factor), requires_grad=False)

    def forward(self, maps: Maps) -> Maps:
        return maps * self.weight[:, None, None]


def crop(maps: Maps, offset: int, like: Tensor) -> Maps:
    """Return the part of ``maps`` that starts at (offset, offset) and is at most as high and wide as ``like``."""
    height, width = like.shape[-2:]
    return maps[..., offset : offset + height, offset : offset + width]


def reflect(image: Tensor, margin: int) -> Tensor:
    """Return the image padded by reflection at its edges, as often as the margin needs; edge pixels are not repeated."""
    for axis in (2, 3):
        image = image.index_select(axis, mirror_indices(image.shape[axis], margin).to(image.device))
    return image


def mirror_indices(n: int, margin: int) -> Tensor:
    """Return the index among n pixels of each of the n + 2 margin pixels of a reflected row."""
    position = torch.arange(-margin, n + margin, device="cpu")
    period = position.new_full((), torch.sym_max(2 * (n - 1), 1))  # a tensor and a maximum: ONNX has no branches
    return n - 1 - (position % period - (n - 1)).abs()


def check_size(image: Tensor, least: int, network: str) -> None:
    """Raise UserError if a side of the image has fewer than ``least`` pixels, which convolutions without padding need."""
    height, width = image.shape[-2:]
    if min(height, width) < least:
        raise UserError(
            f"{network} needs images of at least {least} x {least} pixels, not {height} x {width}: enlarge or pad them"
        )


def initialize(network: nn.Module, uniform: bool = False) -> None:
    """Initialize every convolution as He et al. (fan in; normal or ``uniform``) and every bias to zero.

    The published networks are initialized with ImageNet's VGG-16; this is for training from scratch. A part with the attribute
    ``initialized``, such as an encoder of timm, keeps its values.
    """
    kept = {layer for part in network.modules() if getattr(part, "initialized", False) for layer in part.modules()}
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer not in kept:
            # At stride 1 each output of a transposed convolution sums in_channels x k x k products, as a convolution's does.
            taps = layer.kernel_size[0] * layer.kernel_size[1]
            std = (2 / (layer.in_channels // layer.groups * taps)) ** 0.5
            if uniform:
                nn.init.uniform_(layer.weight, -std * 3**0.5, std * 3**0.5)
            else:
                nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
