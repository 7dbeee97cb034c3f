"""A network layer by layer, and the whole family side by side: sizes, parameters, multiply-adds, memory, receptive fields."""

import inspect
import json
import re
import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from torch import nn

from dilated_seg.analysis import receptive_field
from dilated_seg.errors import UserError, format_error, open_console
from dilated_seg.models.build import network

# The family in the order of the papers, as constructor calls.
FAMILY = (
    "FCNAlexNet(21)",
    "FCN(21, stride=32)",
    "FCN(21, stride=16)",
    "FCN(21, stride=8)",
    "FCN(21, stride=8, resnet=50)",
    "DeepLabV1(21)",
    "DeepLabV1(21, msc=True)",
    "DeconvNet(21)",
    "UNet(21)",
    "SegNetBasic(21)",
    "SegNet(21)",
    "DilatedNet(21, context=None)",
    "DilatedNet(21, context='basic')",
    "DilatedNet(21, context='large')",
    "DilatedNet(21, context='large', padding='reflect')",
    "DilatedNet(21, context='basic', resnet=50)",
    "FCDenseNet(21, depth=56)",
    "FCDenseNet(21, depth=67)",
    "FCDenseNet(21, depth=103)",
)


@dataclass
class Layer:
    """One layer as it runs; sizes are (height, width), None stands where the layer has no such thing.

    ``output_stride``, ``receptive_field`` and ``centre`` are in image pixels: cell i of the layer's map sees as many of them as
    its receptive field says, with pixel ``centre + i * output_stride``, counted from 0, in their middle.
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
class Description:
    """A network on one image: its layers in the order they run, and what they add up to.

    ``bytes`` adds up all maps that one image leaves behind in float32, those between layers included: about what training
    keeps, which has dropout's besides, and far more than evaluation needs at any time. ``receptive_field`` is that of the
    scores: the largest of any layer that learns; None if it is larger than any image the tracing tried.
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


def describe(text: str, size: tuple[int, int] = (500, 500)) -> Description:
    """What the network of this constructor call does with one image of ``size`` (height, width).

    Raises:
        UserError: There is no such network, or it takes no image of this size.
    """
    net = network(text).eval()
    try:
        layers, trace, output = run(net, size)
    except UserError:
        raise
    except Exception as error:  # a network of the user's own may raise anything
        raise UserError(f"{text} takes no image of {size[0]} x {size[1]}: {format_error(error)}") from error
    add_fields(net, layers)
    learning = [layer.receptive_field for layer in layers if layer.learnt and layer.type in ("conv", "deconv")]
    return Description(
        network=text,
        paper=paper(net),
        size=size,
        output=(output.shape[-2], output.shape[-1]),
        output_stride=int(getattr(net, "output_stride", 1)),
        parameters=sum(p.numel() for p in net.parameters()),
        learnt=sum(p.numel() for p in net.parameters() if p.requires_grad),
        multiply_adds=trace.multiply_adds,
        bytes=trace.bytes,
        receptive_field=None if None in learning else max(learning, default=None),  # type: ignore[type-var]
        layers=layers,
    )


def run(net: nn.Module, size: tuple[int, int], fields: bool = False) -> tuple[list[Layer], receptive_field.Trace, torch.Tensor]:
    """One forward pass on the meta device; with ``fields``, each layer's stride and receptive field too."""
    channels = next((layer.in_channels for layer in net.modules() if isinstance(layer, nn.Conv2d)), None)
    if channels is None:
        raise UserError(f"{type(net).__name__} has no convolution, so it is no network on images")
    image = torch.empty(1, channels, *size, device="meta")
    trace, layers = receptive_field.Trace(image), list[Layer]()
    before, handles = dict[nn.Module, tuple[int, int]](), []

    def enter(layer: nn.Module, args: Any) -> None:  # noqa: ANN401
        before[layer] = trace.multiply_adds, trace.bytes

    def leave(layer: nn.Module, args: Any, output: Any) -> None:  # noqa: ANN401
        maps = output[0] if isinstance(output, tuple) else output
        counted, stored = before[layer]
        row = facts(layer, args[0], maps, trace.multiply_adds - counted, trace.bytes - stored)
        row.name = names[layer]
        if fields and (field := trace.field(maps)) is not None:
            row.receptive_field, row.output_stride = receptive_field.side(field), receptive_field.stride(field)
            row.centre = receptive_field.centre(field)
        layers.append(row)

    names = {layer: name for name, layer in net.named_modules()}
    for layer in net.modules():
        if not any(True for _ in layer.children()) and not isinstance(layer, nn.Identity | nn.Sequential | nn.ModuleDict):
            handles += [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]
    try:
        with torch.no_grad(), trace:
            output = net(image)
        if not isinstance(output, torch.Tensor) or output.dim() != 4:
            raise UserError(f"{type(net).__name__} gives no logits (B, C, H, W)")
    finally:
        for handle in handles:
            handle.remove()
    return layers, trace, output


def add_fields(net: nn.Module, layers: list[Layer]) -> None:
    """Strides and receptive fields, on an image wide enough that no field in its middle meets an edge."""
    for wide in receptive_field.widths():
        found, _, _ = run(net, (wide, wide), fields=True)
        if all(layer.receptive_field is not None for layer in found):
            break
    for layer, other in zip(layers, found, strict=True):
        layer.output_stride, layer.receptive_field, layer.centre = other.output_stride, other.receptive_field, other.centre


# Parts of a layer's path that say where it lies in our code and not which layer of the paper it is.
CONTAINERS = {
    "encoder", "stages", "pools", "unpools", "classifier", "bottleneck", "decoder", "layers", "front_end", "context", "down",
    "up", "enlarge", "join",
}  # fmt: skip

TYPES = {
    "Conv2d": "conv", "ConvTranspose2d": "deconv", "BatchNorm": "bn", "BatchNorm2d": "bn", "MaxPool2d": "maxpool",
    "AvgPool2d": "avgpool", "MaxUnpool2d": "max_unpool", "Unpool": "max_unpool", "LocalResponseNorm": "lrn", "Scale": "scale",
    "Upsample": "upsample", "ReLU": "relu", "Dropout": "dropout", "ZeroPad2d": "pad",
}  # fmt: skip


def facts(layer: Any, maps: torch.Tensor, output: torch.Tensor, multiply_adds: int, stored: int) -> Layer:  # noqa: ANN401
    """What can be read off a layer, its input and its output."""

    def side(name: str) -> int | None:
        number = getattr(layer, name, None)
        return None if isinstance(number, str) or number is None else receptive_field.last(number)

    kind = type(layer).__name__
    return Layer(
        name="",
        type=TYPES.get(kind, kind.lower()),
        in_channels=maps.shape[1],
        out_channels=output.shape[1],
        kernel=side("kernel_size"),
        stride=side("stride"),
        padding=side("padding"),
        dilation=side("dilation"),
        groups=getattr(layer, "groups", None),
        bias=getattr(layer, "bias", None) is not None,
        parameters=sum(p.numel() for p in layer.parameters()),
        learnt=sum(p.numel() for p in layer.parameters() if p.requires_grad),
        size=(output.shape[-2], output.shape[-1]),
        multiply_adds=multiply_adds,
        bytes=stored,
    )


def paper(net: nn.Module) -> str:
    """The citation in the docstring of the network's file: its second paragraph, on one line."""
    paragraphs = (inspect.getdoc(sys.modules[type(net).__module__]) or "").split("\n\n")
    return " ".join(paragraphs[1].split()) if len(paragraphs) > 1 and "http" in paragraphs[1] else ""


def short(citation: str) -> str:
    """Authors, venue and year, as a Markdown link: two authors by name, of more the first."""
    found = re.match(r'(.*?), "[^"]+", ([^,]+), (https?://\S+?)[,;.]*( |$)', citation)
    authors = re.split(r", | and ", found[1]) if found else []
    return f"{' and '.join(authors) if len(authors) < 3 else authors[0] + ' et al.'}, [{found[2]}]({found[3]})" if found else ""


def show(description: Description) -> None:
    """Print a network's layers and sums; ReLU, dropout and padding are left out."""
    table = Table(box=SIMPLE_HEAD, title=f"{description.network} on {times(description.size)}", title_style="bold")
    for heading in ("layer", "type"):
        table.add_column(heading, no_wrap=True)
    for heading in ("channels", "kernel", "output", "parameters", "M mult-adds", "MB", "stride", "field", "centre"):
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in description.layers:
        if layer.type in ("relu", "dropout", "pad"):
            continue
        kernel = "" if layer.kernel is None else f"{layer.kernel}x{layer.kernel}"
        kernel += "".join(
            f" {mark}{n}" for mark, n in (("/", layer.stride), ("d", layer.dilation), ("g", layer.groups)) if n not in (None, 1)
        )
        table.add_row(
            label(layer.name),
            layer.type,
            f"{layer.in_channels}→{layer.out_channels}" if layer.in_channels != layer.out_channels else str(layer.out_channels),
            kernel,
            times(layer.size),
            f"{layer.parameters:,}" if layer.parameters else "",
            f"{layer.multiply_adds / 1e6:,.0f}" if layer.multiply_adds else "",
            f"{layer.bytes / 1e6:,.1f}",
            "" if layer.output_stride is None else f"{layer.output_stride:g}",
            "" if layer.receptive_field is None else f"{layer.receptive_field:,}",
            "" if layer.centre is None else f"{layer.centre:g}",
        )
    console = wide_enough(table)
    console.print(table)
    fixed = description.parameters - description.learnt
    console.print(f"paper:            {description.paper}", soft_wrap=True)
    console.print(f"parameters:       {description.parameters:,}" + (f", {fixed:,} of them fixed" if fixed else ""))
    console.print(f"multiply-adds:    {description.multiply_adds / 1e9:,.1f} billion, convolutions only")
    console.print(f"maps:             {description.bytes / 1e6:,.0f} MB in float32, all layers together")
    console.print(f"output stride:    {description.output_stride}")
    console.print(f"receptive field:  {field(description.receptive_field)} pixels a side, of a score")


def wide_enough(table: Table) -> Console:
    """A console that cuts no column off: a narrower terminal wraps the lines."""
    console = open_console()
    return open_console(width=max(console.width, Measurement.get(console, console.options.update(width=1000), table).maximum))


def label(path: str) -> str:
    """A layer's name without the containers it lies in, which a published name needs none of."""
    parts = [part for part in path.split(".") if part not in CONTAINERS]
    while len(parts) > 1 and parts[0].isdigit():
        parts.pop(0)
    return ".".join(parts)


def show_family(descriptions: list[Description]) -> None:
    """Print networks side by side."""
    table = Table(box=SIMPLE_HEAD, title=f"on {times(descriptions[0].size)}", title_style="bold")
    table.add_column("network", no_wrap=True)
    for heading in ("parameters", "G mult-adds", "maps, MB", "stride", "field"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in descriptions:
        table.add_row(
            row.network,
            f"{row.parameters:,}",
            f"{row.multiply_adds / 1e9:,.1f}",
            f"{row.bytes / 1e6:,.0f}",
            str(row.output_stride),
            field(row.receptive_field),
        )
    wide_enough(table).print(table)


def markdown(descriptions: list[Description]) -> str:
    """The family as a Markdown page."""
    size = times(descriptions[0].size)
    rows = "\n".join(
        f"| `{d.network}` | {short(d.paper)} | {d.parameters:,} | {d.multiply_adds / 1e9:,.1f} | {d.bytes / 1e6:,.0f} "
        f"| {d.output_stride} | {field(d.receptive_field)} |"
        for d in descriptions
    )
    return f"""# The family

Made by `dilated-seg describe --markdown --size {descriptions[0].size[0]} {descriptions[0].size[1]}`, not typed.

| network | paper | parameters | billion multiply-adds at {size} | MB of maps | output stride | receptive field |
|---|---|---:|---:|---:|---:|---:|
{rows}

Parameters include those that never learn. Multiply-adds are those of convolutions, taps in the padding included. MB of maps is
what all layers write for one image in float32: about what training keeps, without dropout's. Output stride: image pixels
between two neighbouring scores before the last upsampling. Receptive field: the side, in pixels, of what one score depends on
in an image that is large enough; a smaller one is seen whole.
"""


def times(size: tuple[int, int]) -> str:
    """Height and width as people write them."""
    return f"{size[0]} x {size[1]}"


def field(side: int | None) -> str:
    """A receptive field, or that no image was wide enough for it."""
    return f"{side:,}" if side is not None else f"over {receptive_field.WIDEST:,}"


def as_json(descriptions: list[Description]) -> str:
    """Everything, for machines."""
    return json.dumps([asdict(d) for d in descriptions], indent=1)
