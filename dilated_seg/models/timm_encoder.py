"""Encoders of timm in place of VGG-16: features at the strides that the rest of a network needs.

Wightman, "PyTorch Image Models", https://github.com/huggingface/pytorch-image-models.
"""

import difflib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from dilated_seg.errors import format_error, require_extra
from dilated_seg.models import resnet, vgg
from dilated_seg.models.layers import build_dropout, scale_channels
from dilated_seg.models.upsampling import Upsampling
from dilated_seg.tensors import Maps, Planes

# Suggestions for messages, from five families: each has all strides that the networks need.
SUGGESTED = "resnet50, regnety_016, convnext_tiny, efficientnet_b0 or mobilenetv3_large_100"


class Encoder(nn.Module):
    """An encoder of timm that returns the deepest features of each stride.

    Images are padded with zeros at their right and bottom to a multiple of the largest stride, since timm's networks differ in
    whether they round sizes up or down. timm initializes the weights.

    Args:
        name: timm's name of the network and, after a dot, of its weights: ``convnext_tiny.fb_in1k``.
        strides: Strides of the features, in increasing order; all strides of the encoder if None.
        output_stride: 32, or 8 for dilation instead of stride in the last two stages, which some encoders of timm support.
        in_channels: Channels of the image.

    Raises:
        UserError: timm is not installed.
        ValueError: timm does not have the encoder, or not with these strides and for images of any size.
    """

    initialized = True  # by timm: `layers.initialize` skips it

    def __init__(
        self, name: str, strides: Sequence[int] | None = None, output_stride: Literal[32, 8] = 32, in_channels: int = 3
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        require_extra(f"encoder={name!r}", "timm", "timm")
        options: dict[str, Any] = {} if output_stride == 32 else {"output_stride": output_stride}
        options |= {} if in_channels == 3 else {"in_chans": in_channels}
        with torch.device("meta"):
            sketch = build(name, options)
        index = {stride: number for number, stride in enumerate(sketch.feature_info.reduction())}  # last of a stride
        wanted = list(index) if strides is None else list(strides)
        if not set(wanted) <= set(index):
            raise ValueError(
                f"encoder={name!r} has features at strides {join(index)}, and this network needs {join(wanted)}: choose "
                f"another, such as {SUGGESTED}"
            )
        if any(getattr(part, "strict_img_size", False) for part in sketch.modules()):
            options["strict_img_size"] = False
            with torch.device("meta"):
                sketch = build(name, options)
        self.name, self.strides = name, wanted
        self.channels = [sketch.feature_info.channels()[index[stride]] for stride in wanted]
        check_any_size(name, sketch, [index[stride] for stride in wanted], wanted, self.channels, in_channels)
        self.upsampling: Upsampling = "aligned" if starts_at_corners(sketch) else "bilinear"
        self.net = build(name, options | {"out_indices": tuple(index[stride] for stride in wanted)})
        weights = self.net.pretrained_cfg
        self.hub = weights.get("hf_hub_id")
        mean, std = weights.get("mean"), weights.get("std")
        self.normalization = (scale_to_bytes(mean), scale_to_bytes(std)) if mean and std and in_channels == 3 else None

    def forward(self, image: Planes) -> list[Maps]:
        height, width = image.shape[-2:]
        multiple = self.strides[-1]
        return get_features(self.net, F.pad(image, (0, -width % multiple, 0, -height % multiple)))


def replace_vgg(
    depth: resnet.Depth | None, encoder: str | None, width: float, strides: Sequence[int], in_channels: int = 3
) -> resnet.Encoder | Encoder:
    """Return the encoder in place of VGG-16: a ResNet of this package or an encoder of timm; dilated if ``strides`` are (8,).

    Raises:
        ValueError: Both ``depth`` and ``encoder`` are given, or `Encoder` raises it.
    """
    output_stride: Literal[32, 8] = 8 if strides[-1] == 8 else 32
    if encoder is None:
        return resnet.Encoder(depth or 50, width, output_stride, in_channels)
    if depth is not None:
        raise ValueError(f"resnet={depth} and encoder={encoder!r} both replace VGG-16: give one of them")
    return Encoder(encoder, strides, output_stride, in_channels)


def build_classifier(
    encoder: resnet.Encoder | Encoder, width: float, fc_channels: int | None, fc6_dilation: int, dropout: float, spatial: bool
) -> tuple[nn.Sequential, int]:
    """Return the layers between an encoder and the scores, and their number of channels.

    ImageNet classifiers after VGG have a single fully connected layer, which the scores replace, as in FCN-GoogLeNet (Long et
    al., 2015, Section 4.1). To an encoder of timm, ``fc_channels`` adds fc6 and fc7 of ``fc_channels * width`` channels.
    """
    if fc_channels is None or isinstance(encoder, resnet.Encoder):
        return nn.Sequential(OrderedDict(drop=build_dropout(dropout, spatial))), encoder.channels[-1]
    fc = scale_channels(fc_channels, width)
    return nn.Sequential(vgg.classifier(encoder.channels[-1], fc, 7, fc6_dilation, dropout, spatial=spatial)), fc


def require_vgg(used: bool, option: str, pooling: vgg.Pooling) -> None:
    """Raise ValueError if an option that needs VGG-16 is used, or pooling other than max pooling."""
    if used:
        raise ValueError(f"{option} needs VGG-16: leave it out with resnet and encoder")
    if pooling != "max":
        raise ValueError(f"pooling={pooling!r} needs VGG-16: leave it out with resnet and encoder")


def build(name: str, options: dict[str, Any]) -> Any:  # noqa: ANN401 - timm states no type
    """Return timm's network without its classifier and with random weights.

    Raises:
        ValueError: timm does not have the network or the weights, or cannot build the network with these options.
    """
    import timm

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):  # also of hf-hub:..., which would be downloaded
        near = difflib.get_close_matches(architecture, timm.list_models(), 1)
        raise ValueError(f"encoder={name!r} is not a network of timm: {f'did you mean {near[0]}?' if near else SUGGESTED}")
    if name not in (architecture, *(tagged := timm.list_models(f"{architecture}.*", pretrained=True))):
        raise ValueError(
            f"encoder={name!r}: timm has no such weights of {architecture}: leave them out, or {', '.join(tagged)}"
        )
    try:
        return timm.create_model(name, pretrained=False, features_only=True, **options)
    except Exception as error:  # each of timm's families has its own
        dilated = "output_stride" in options
        problem = "cannot have an output stride of 8 in timm" if dilated else f"cannot be an encoder ({format_error(error)})"
        raise ValueError(f"encoder={name!r} {problem}: choose another, such as {SUGGESTED}") from error


def get_features(net: Any, image: torch.Tensor) -> list[torch.Tensor]:  # noqa: ANN401
    """Return the features (B, C, h, w) of a network of timm, some of which return (B, h, w, C)."""
    last = str(getattr(net, "output_fmt", "")).endswith("NHWC")
    return [maps.permute(0, 3, 1, 2) if last else maps for maps in net(image)]


def check_any_size(
    name: str, sketch: Any, indices: Sequence[int], strides: Sequence[int], channels: Sequence[int], in_channels: int  # noqa: ANN401
) -> None:  # fmt: skip
    """Check that an image of unusual size gives features of these strides and channels.

    Args:
        name: The encoder's name, for the message.
        sketch: timm's network on the meta device, on which nothing is computed.
        indices: Indices of the features among all of the network's.
        strides: Strides of the features.
        channels: Channels of the features.
        in_channels: Channels of the image.

    Raises:
        ValueError: The network needs images of a certain size, or rounds sizes so that the features do not align.
    """
    size = 3 * strides[-1], 5 * strides[-1]
    try:
        with torch.no_grad(), torch.device("meta"):
            features = get_features(sketch.eval(), torch.empty(1, in_channels, *size))
        shapes: Any = [tuple(features[index].shape[1:]) for index in indices]
    except Exception as error:  # of timm's network
        shapes = format_error(error)
    if shapes != [(c, size[0] // stride, size[1] // stride) for c, stride in zip(channels, strides, strict=True)]:
        raise ValueError(f"encoder={name!r} does not accept images of any size: choose another, such as {SUGGESTED}")


def starts_at_corners(net: nn.Module) -> bool:
    """Return whether a cell's features are centered on its top left pixel, as with 3 x 3 windows and padding 1.

    Otherwise they are centered on its middle. The last strided layer decides, since it shifts the center by the most pixels.
    """
    strided = [
        layer
        for layer in net.modules()
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d)
        and first(layer.stride) > 1
        and first(layer.kernel_size) > 1
    ]
    return bool(strided) and first(strided[-1].padding) > 0


def first(sizes: Any) -> int:  # noqa: ANN401
    """Return the height's value of a number or of a pair (height, width)."""
    return int(sizes[0] if isinstance(sizes, tuple) else sizes)


def scale_to_bytes(values: Sequence[float]) -> tuple[float, float, float]:
    """Convert a mean or standard deviation of colors from the range 0 to 1 to 0 to 255, with four digits."""
    red, green, blue = (round(255 * value, 4) for value in values)
    return red, green, blue


def join(strides: Sequence[int] | dict[int, int]) -> str:
    """Return strides as text."""
    return ", ".join(map(str, strides))
