"""The command ``dilated-seg describe``."""

import json
import re
from dataclasses import asdict
from typing import TYPE_CHECKING

from dilated_seg.commands.parser import CommandParser
from dilated_seg.errors import UserError, print_table

if TYPE_CHECKING:
    from rich.table import Table

    from dilated_seg.analysis.summary import Layer, Summary

# Parts of a layer's path that name our modules, not the paper's layers.
CONTAINERS = {
    "encoder", "stages", "pools", "unpools", "classifier", "bottleneck", "decoder", "layers", "front_end", "context", "down",
    "up", "enlarge", "join",
}  # fmt: skip


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = CommandParser("describe", "'FCN(21, stride=8)' --size 360 480")
    parser.add_argument(
        "network", nargs="?", metavar="NETWORK", help="such as 'FCN(21, stride=8)' or DilatedNet; default: all networks"
    )
    parser.add_argument(
        "--size", nargs=2, type=int, default=(500, 500), metavar=("HEIGHT", "WIDTH"), help="of the image (default: 500 500)"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print all values as JSON")
    form.add_argument("--markdown", action="store_true", help="print the table of networks in docs/networks.md")
    return parser


def main(args: list[str]) -> int:
    """Run ``dilated-seg describe``."""
    options = build_parser().parse_args(args)
    if min(options.size) < 1:
        raise UserError(f"--size {options.size[0]} {options.size[1]}: an image has at least 1 x 1 pixels")
    from dilated_seg.analysis.summary import list_family, summarize
    from dilated_seg.commands.objects import parse_network

    calls = [options.network] if options.network is not None else list_family()
    summaries = [summarize(parse_network(call), call, tuple(options.size)) for call in calls]
    if options.json:
        print(json.dumps([asdict(summary) for summary in summaries], indent=1))
    elif options.markdown:
        print(format_page(summaries), end="")
    elif options.network is not None:
        print_summary(summaries[0])
    else:
        print_family(summaries)
    return 0


def print_summary(summary: "Summary") -> None:
    """Print a network's layers and sums; ReLU, dropout and padding are left out."""
    table = create_table(
        f"{summary.network} on {format_size(summary.size)}",
        ("layer", "type"),
        ("channels", "kernel", "output", "parameters", "M mult-adds", "MB", "stride", "field"),
    )
    for layer in summary.layers:
        if layer.type in ("relu", "dropout", "pad"):
            continue
        same = layer.in_channels == layer.out_channels
        table.add_row(
            format_name(layer.name),
            layer.type,
            str(layer.out_channels) if same else f"{layer.in_channels}→{layer.out_channels}",
            format_kernel(layer),
            format_size(layer.size),
            f"{layer.parameters:,}" if layer.parameters else "",
            f"{layer.multiply_adds / 1e6:,.0f}" if layer.multiply_adds else "",
            f"{layer.bytes / 1e6:,.1f}",
            "" if layer.output_stride is None else f"{layer.output_stride:g}",
            "" if layer.receptive_field is None else f"{layer.receptive_field:,}",
        )
    print_table(table)
    print(summary)


def print_family(summaries: "list[Summary]") -> None:
    """Print networks in one table."""
    headings = ("parameters", "G mult-adds", "maps, MB", "stride", "field")
    table = create_table(f"on {format_size(summaries[0].size)}", ("network",), headings)
    for summary in summaries:
        table.add_row(summary.network, *format_sums(summary))
    print_table(table)


def format_page(summaries: "list[Summary]") -> str:
    """Return the table of networks as a Markdown page."""
    height, width = summaries[0].size
    rows = "\n".join(
        f"| {' | '.join((f'`{summary.network}`', format_citation(summary.paper), *format_sums(summary)))} |"
        for summary in summaries
    )
    return f"""# Networks

Made by `dilated-seg describe --markdown --size {height} {width}`, not typed.

| network | paper | parameters | billion multiply-adds at {height} x {width} | MB of maps | output stride | receptive field |
|---|---|---:|---:|---:|---:|---:|
{rows}

Parameters include those that never learn. Multiply-adds are those of convolutions, taps in the padding included. MB of maps is
what all layers write for one image in float32: about what training keeps, without the masks of dropout. Output stride: image
pixels between two neighbouring cells of the logits before the last upsampling. Receptive field: the side, in pixels, of what
one such cell depends on in an image that is large enough.
"""


def create_table(title: str, names: tuple[str, ...], numbers: tuple[str, ...]) -> "Table":
    """Return an empty table with columns of text and, right-aligned, of numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, title=title, title_style="bold")
    for heading in names:
        table.add_column(heading, no_wrap=True)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def format_sums(summary: "Summary") -> tuple[str, ...]:
    """Return parameters, multiply-adds, maps, output stride and receptive field as text."""
    from dilated_seg.analysis.receptive_field import format_side

    return (
        f"{summary.parameters:,}",
        f"{summary.multiply_adds / 1e9:,.1f}",
        f"{summary.bytes / 1e6:,.0f}",
        str(summary.output_stride),
        format_side(summary.receptive_field),
    )


def format_name(path: str) -> str:
    """Return a layer's name without the containers of our code, unless these make it unique."""
    parts = [part for part in path.split(".") if part not in CONTAINERS]
    while len(parts) > 1 and parts[0].isdigit():
        parts.pop(0)
    return ".".join(parts)


def format_kernel(layer: "Layer") -> str:
    """Return a kernel as ``3x3 /2 d4 g2``: stride, dilation and groups where they are not 1."""
    kernel = "" if layer.kernel is None else f"{layer.kernel}x{layer.kernel}"
    marks = (("/", layer.stride), ("d", layer.dilation), ("g", layer.groups))
    return kernel + "".join(f" {mark}{n}" for mark, n in marks if n not in (None, 1))


def format_size(size: tuple[int, int]) -> str:
    """Return height and width as text."""
    return f"{size[0]} x {size[1]}"


def format_citation(citation: str) -> str:
    """Return authors, venue and year as a Markdown link: two authors by name, of more the first."""
    match = re.match(r'(.*?), "[^"]+", ([^,]+), (https?://\S+?)[,;.]*( |$)', citation)
    if not match:
        return ""
    authors = re.split(r", | and ", match[1])
    return f"{' and '.join(authors) if len(authors) < 3 else authors[0] + ' et al.'}, [{match[2]}]({match[3]})"
