"""A network layer by layer on one image: sizes, parameters, multiply-adds, memory, receptive fields."""

import copy
import inspect
import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dilated_seg import models
from dilated_seg.analysis import receptive_field
from dilated_seg.errors import UserError, format_error
from dilated_seg.models import build
from dilated_seg.models.outputs import split_outputs
from dilated_seg.models.release import Variants


@dataclass
class Layer:
    """One call of a layer. Sizes are (height, width); attributes are None where a layer has no such property.

    ``output_stride``, ``receptive_field`` and ``centre`` are in image pixels: cell i of the layer's map depends on
    ``receptive_field`` pixels around pixel ``centre + i * output_stride``, counted from 0.
    """

    name: str
    type: str
    in_channels: int
    out_channels: int
    kernel: int | None
    stride: int | None
    padding: int | None
    dilation: int | None
    groups: int | None
    bias: bool
    parameters: int
    learnt: int
    size: tuple[int, int]
    multiply_adds: int
    bytes: int
    output_stride: float | None = None
    receptive_field: int | None = None
    centre: float | None = None


@dataclass
class Summary:
    """A network on one image: its layers in the order they run, and their sums.

    ``bytes`` counts the float32 maps of one image, those between layers included: about what training keeps, without the masks
    of dropout, and far more than evaluation needs. ``receptive_field`` is that of the logits before their upsampling: the
    largest of any layer with parameters; None if it is larger than every image that was traced, or unknown after ``lost``.
    """

    network: str
    paper: str
    size: tuple[int, int]
    output: tuple[int, int]
    output_stride: int
    parameters: int
    learnt: int
    multiply_adds: int
    bytes: int
    receptive_field: int | None
    layers: list[Layer]
    lost: str = ""  # the operation after which receptive fields are unknown

    def __str__(self) -> str:
        fixed = self.parameters - self.learnt
        field = f"{receptive_field.format_side(self.receptive_field)} pixels a side, before the last upsampling"
        if self.lost:
            field = f"cannot be derived beyond {self.lost}; dilated-seg probe measures that of a trained network"
        lines = (
            ("paper", self.paper),
            ("parameters", f"{self.parameters:,}" + (f", {fixed:,} of them fixed" if fixed else "")),
            ("multiply-adds", f"{self.multiply_adds / 1e9:,.1f} billion, convolutions only"),
            ("maps", f"{self.bytes / 1e6:,.0f} MB in float32, all layers together"),
            ("output stride", str(self.output_stride)),
            ("receptive field", field),
        )
        return "\n".join(f"{name + ':':<17} {value}" for name, value in lines)


def list_family(num_classes: int = 21) -> list[str]:
    """Return the constructor calls of all networks and their variants, in the order of the papers on arXiv."""
    calls = []
    for name in models.__all__:
        variants: Variants = getattr(getattr(models, name), "variants", ({},))
        nets = [build.construct(name, [num_classes], kwargs, name) for kwargs in variants]
        for net, kwargs in zip(nets, variants, strict=True):
            number = re.search(r"arxiv\.org/abs/(\d+\.\d+)", find_citation(net))
            # Of two networks of one paper, the smaller first.
            key = (number[1] if number else "9999", count_parameters(nets[0]), name)
            calls.append((key, build.format_call(name, num_classes, **kwargs)))
    return [call for _, call in sorted(calls, key=lambda pair: pair[0])]


def summarize(net: nn.Module, name: str, size: tuple[int, int] = (500, 500)) -> Summary:
    """Trace a network on one image.

    Args:
        net: The network, on the meta device, on which nothing is computed.
        name: The network's name in the summary and in messages.
        size: Height and width of the image.

    Raises:
        UserError: The network does not accept images of this size.
    """
    net.eval()
    try:
        layers, trace, output = run(net, size)
    except UserError:
        raise
    except Exception as error:  # a network of the user's own may raise anything
        raise UserError(f"{name} does not accept an image of {size[0]} x {size[1]}: {format_error(error)}") from error
    lost = add_receptive_fields(net, layers)
    learning = [layer.receptive_field for layer in layers if layer.learnt and layer.type in ("conv", "deconv")]
    return Summary(
        network=name,
        paper=find_citation(net),
        size=size,
        output=(output.shape[-2], output.shape[-1]),
        output_stride=int(getattr(net, "output_stride", 1)),
        parameters=count_parameters(net),
        learnt=count_parameters(net, learnt=True),
        multiply_adds=trace.multiply_adds,
        bytes=trace.bytes,
        receptive_field=None if None in learning else max(learning, default=None),  # type: ignore[type-var]
        layers=layers,
        lost=lost,
    )


def describe(net: nn.Module, size: tuple[int, int] = (500, 500)) -> Summary:
    """Return the summary of any network that maps an image to logits; printed, it shows the sums; ``layers`` has the details.

    A copy on the meta device is traced, so the network does not change.
    """
    arguments = (build.describe_network(net) or {}).get("init_args", {})
    defaults = inspect.signature(type(net)).parameters
    changed = {name: value for name, value in arguments.items() if value != defaults[name].default}
    name = build.format_call(type(net).__name__, **changed) if arguments else type(net).__name__
    return summarize(copy.deepcopy(net).to("meta"), name, size)


def run(net: nn.Module, size: tuple[int, int], fields: bool = False) -> tuple[list[Layer], receptive_field.Trace, torch.Tensor]:
    """Run one forward pass on the meta device; with ``fields``, add the stride and receptive field of each layer."""
    channels = next((layer.in_channels for layer in net.modules() if isinstance(layer, nn.Conv2d)), None)
    if channels is None:
        raise UserError(f"{type(net).__name__} has no convolution: pass a network on images")
    image = torch.empty(1, channels, *size, device="meta")
    trace, layers = receptive_field.Trace(image), list[Layer]()
    before, handles = dict[nn.Module, tuple[int, int]](), []

    def enter(layer: nn.Module, args: Any) -> None:  # noqa: ANN401
        before[layer] = trace.multiply_adds, trace.bytes

    def leave(layer: nn.Module, args: Any, output: Any) -> None:  # noqa: ANN401
        maps = output[0] if isinstance(output, tuple) else output
        multiply_adds, stored = before[layer]
        row = measure_layer(names[layer], layer, args[0], maps)
        row.multiply_adds, row.bytes = trace.multiply_adds - multiply_adds, trace.bytes - stored
        if fields and (field := trace.field(maps)) is not None:
            row.receptive_field, row.output_stride = receptive_field.side(field), receptive_field.stride(field)
            row.centre = receptive_field.centre(field)
        layers.append(row)

    names = {layer: name for name, layer in net.named_modules()}
    for layer in names:
        if not any(True for _ in layer.children()) and not isinstance(layer, nn.Identity | nn.Sequential | nn.ModuleDict):
            handles += [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]
    try:
        with torch.no_grad(), trace:
            output = net(image)
        with suppress(UserError):
            output, _ = split_outputs(output)
        if not isinstance(output, torch.Tensor) or output.dim() != 4:
            raise UserError(f"{type(net).__name__} does not return logits (B, C, H, W): return one tensor")
    finally:
        for handle in handles:
            handle.remove()
    return layers, trace, output


def add_receptive_fields(net: nn.Module, layers: list[Layer]) -> str:
    """Add strides and receptive fields, from an image so wide that no field in the middle of a map meets an edge.

    Returns:
        The operation after which fields are unknown, or an empty string.
    """
    for width in receptive_field.widths():
        traced, trace, _ = run(net, (width, width), fields=True)
        if trace.lost or all(layer.receptive_field is not None for layer in traced):
            break
    for layer, wide in zip(layers, traced, strict=True):
        layer.output_stride, layer.receptive_field, layer.centre = wide.output_stride, wide.receptive_field, wide.centre
    return trace.lost


TYPES = {
    "Conv2d": "conv", "ConvTranspose2d": "deconv", "BatchNorm": "bn", "BatchNorm2d": "bn", "MaxPool2d": "maxpool",
    "AvgPool2d": "avgpool", "MaxUnpool2d": "max_unpool", "Unpool": "max_unpool", "LocalResponseNorm": "lrn", "Scale": "scale",
    "Upsample": "upsample", "ReLU": "relu", "Dropout": "dropout", "Dropout2d": "dropout",
    "ZeroPad2d": "pad",
}  # fmt: skip


def measure_layer(name: str, layer: Any, maps: torch.Tensor, output: torch.Tensor) -> Layer:  # noqa: ANN401
    """Return the properties of a layer, its input and its output."""

    def last_side(attribute: str) -> int | None:
        sides = getattr(layer, attribute, None)
        return None if isinstance(sides, str) or sides is None else receptive_field.last(sides)

    return Layer(
        name=name,
        type=TYPES.get(type(layer).__name__, type(layer).__name__.lower()),
        in_channels=maps.shape[1],
        out_channels=output.shape[1],
        kernel=last_side("kernel_size"),
        stride=last_side("stride"),
        padding=last_side("padding"),
        dilation=last_side("dilation"),
        groups=getattr(layer, "groups", None),
        bias=getattr(layer, "bias", None) is not None,
        parameters=count_parameters(layer),
        learnt=count_parameters(layer, learnt=True),
        size=(output.shape[-2], output.shape[-1]),
        multiply_adds=0,
        bytes=0,
    )


def count_parameters(net: nn.Module, learnt: bool = False) -> int:
    """Return the number of a network's parameters; with ``learnt``, of those that an optimizer changes."""
    return sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad or not learnt)


def find_citation(net: nn.Module) -> str:
    """Return the citation in the docstring of the network's file, its second paragraph, in one line."""
    paragraphs = (inspect.getdoc(sys.modules[type(net).__module__]) or "").split("\n\n")
    return " ".join(paragraphs[1].split()) if len(paragraphs) > 1 and "http" in paragraphs[1] else ""
