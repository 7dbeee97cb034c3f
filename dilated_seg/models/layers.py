"""What several networks share: scaled widths, blocks of convolution, upsampling that keeps pixels in place, He's start."""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dilated_seg.errors import UserError
from dilated_seg.tensors import Maps

# Batch norm of the Caffe releases: next to no epsilon, and a shift that starts a little above zero.
CAFFE_EPS, CAFFE_SHIFT = 1e-9, 0.001


# Values that the arguments of these names take, in every network.
RANGES: dict[str, tuple[Any, float, float, str]] = {
    "num_classes": (Integral, 1, math.inf, "no whole number from 1 on"),
    "in_channels": (Integral, 1, math.inf, "no whole number from 1 on"),
    "width": (Real, 1e-6, 100, "no number above 0 and up to 100 (1 is the paper's)"),
    "dropout": (Real, 0, 1, "no number from 0 to 1"),
}


def check_arguments(network: type, arguments: Mapping[str, Any]) -> None:
    """Require that a network is built with values that its constructor documents.

    Args:
        network: Its class; where a type of the constructor is a Literal, this lists the values.
        arguments: By name; others than the constructor's are passed over.

    Raises:
        ValueError: A value is not one of those listed, or outside the range that `RANGES` has for its name.
    """
    for name, hint in get_type_hints(network.__init__).items():  # type: ignore[misc] # of the class that is meant
        if name not in arguments:
            continue
        given = arguments[name]
        listed = [value for part in (hint, *get_args(hint)) if get_origin(part) is Literal for value in get_args(part)]
        allowed = [*listed, None] if type(None) in get_args(hint) else listed
        if listed and not any(given == value and type(given) is type(value) for value in allowed):
            raise ValueError(f"{name}={given!r} is not one of {', '.join(map(repr, allowed))}")
        kind, least, most, problem = RANGES.get(name, (object, 0, 0, ""))
        if name in RANGES and (not isinstance(given, kind) or isinstance(given, bool) or not least <= given <= most):
            raise ValueError(f"{name}={given!r} is {problem}")


def scaled(channels: int, width: float) -> int:
    """A hidden layer's channels at this width: at least one, and as published at width 1."""
    return max(1, round(channels * width))


def promote(maps: Maps) -> Maps:
    """Return maps in float32 at least: 16-bit floats become float32, float64 stays."""
    return maps.to(torch.promote_types(maps.dtype, torch.float32))


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that says what to do where a batch holds one value a channel, whose variance is nothing."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() == input.shape[1]:
            raise UserError(
                "batch norm has a single value a channel here (one image, maps of 1 x 1), so nothing to train on: "
                "raise data.init_args.batch_size or use larger images"
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
    """A convolution, batch norm if ``batch_norm`` names one, and ReLU, by their names.

    It keeps height and width unless ``padding`` says otherwise. ``deconvolution`` takes a transposed convolution of
    stride 1 instead, as DeconvNet's decoder does.
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


def as_in_caffe(network: nn.Module) -> None:
    """Give every batch norm the epsilon and the first shift that it has in the Caffe releases."""
    for layer in network.modules():
        if isinstance(layer, BatchNorm):
            layer.eps = CAFFE_EPS
            nn.init.constant_(layer.bias, CAFFE_SHIFT)


class Upsample(nn.Module):
    """Bilinear upsampling by exactly ``stride``, n cells to stride x n pixels; `crop` cuts what the image does not have.

    Interpolating to the image's size itself would stretch the maps whenever a pooling rounded up, and move every score away
    from the pixels it was computed from.

    Args:
        stride: Pixels a cell.
        corners: Whether a cell's score belongs to the first of its pixels, as after poolings of 3 x 3 with padding 1 or a
            ResNet's strides, and not to the middle of them, as after poolings of 2 x 2.
    """

    def __init__(self, stride: int, corners: bool = False) -> None:
        super().__init__()
        self.stride, self.corners = stride, corners

    def forward(self, maps: Maps) -> Maps:
        if self.corners:  # the last cell is repeated, or the pixels after its first would have no right neighbour
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
    """The Caffe releases' upsampling: a transposed convolution without bias that holds bilinear weights and never learns."""
    layer = nn.ConvTranspose2d(channels, channels, kernel_size, stride, padding, groups=groups, bias=False)
    half = (kernel_size + 1) // 2
    centre = half - 1 if kernel_size % 2 else half - 0.5
    taps = 1 - (torch.arange(kernel_size, device="cpu") - centre).abs() / half
    with torch.no_grad():
        nn.init.zeros_(layer.weight)
        own = torch.arange(channels)
        layer.weight[own, own if groups == 1 else 0] = (taps[:, None] * taps[None, :]).to(own.device)
    return layer.requires_grad_(False)


class Unpool(nn.MaxUnpool2d):
    """Undoes a pooling of 2 x 2: every value back to the place its maximum was taken from, zeros elsewhere.

    torch's own unpooling refuses to run where deterministic algorithms are asked for. Windows do not overlap here, so
    scattering gives the same, on any device and in any order.
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
    """A fixed factor for each channel, as Caffe's Scale layer without its bias."""

    def __init__(self, channels: int, factor: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), factor), requires_grad=False)

    def forward(self, maps: Maps) -> Maps:
        return maps * self.weight[:, None, None]


def crop(maps: Maps, offset: int, like: Tensor) -> Maps:
    """The part of ``maps`` from (offset, offset) on, no higher and no wider than ``like``."""
    height, width = like.shape[-2:]
    return maps[..., offset : offset + height, offset : offset + width]


def reflect(image: Tensor, margin: int) -> Tensor:
    """The image with a border of its own pixels, mirrored without repeating the edge; as often as a small image needs."""
    for axis in (2, 3):
        image = image.index_select(axis, mirrored(image.shape[axis], margin).to(image.device))
    return image


def mirrored(n: int, margin: int) -> Tensor:
    """Which of n pixels stands at each of the n + 2 x margin places of a reflected row."""
    place = torch.arange(-margin, n + margin, device="cpu")
    period = place.new_full((), torch.sym_max(2 * (n - 1), 1))  # as tensor and maximum, which ONNX knows, and not as branch
    return n - 1 - (place % period - (n - 1)).abs()


def require(image: Tensor, least: int, network: str) -> None:
    """Refuse an image whose sides are too short for convolutions that do not pad.

    Raises:
        UserError: A side has fewer than ``least`` pixels.
    """
    height, width = image.shape[-2:]
    if min(height, width) < least:
        raise UserError(
            f"{network} needs images of at least {least} x {least} pixels, not {height} x {width}: enlarge or pad them"
        )


def initialise(network: nn.Module, uniform: bool = False) -> None:
    """Start every convolution from He's distribution (fan in; normal or ``uniform``) and every bias from zero.

    The published networks start from ImageNet's VGG-16 instead; this is the start of those that train from nothing.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            # At stride 1 each output of a transposed convolution sums in_channels x k x k products, as a convolution's does.
            taps = layer.kernel_size[0] * layer.kernel_size[1]
            std = (2 / (layer.in_channels // layer.groups * taps)) ** 0.5
            if uniform:
                nn.init.uniform_(layer.weight, -std * 3**0.5, std * 3**0.5)
            else:
                nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
