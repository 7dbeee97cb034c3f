"""What became of every tensor, printed."""

import re
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from dilated_seg.errors import open_console
from dilated_seg.weights.mapping import Report, some


def show(report: Report) -> None:
    """Print every tensor: taken, left over or missing."""
    table = Table(box=SIMPLE_HEAD)
    for heading in ("in the file", "shape", "in the network", "what was done"):
        table.add_column(heading, no_wrap=True)
    for name, size, ours, how in report.taken:
        table.add_row(name, "x".join(map(str, size)), ours, how)
    for name, size in report.left_over:
        table.add_row(name, "x".join(map(str, size)), Text("left over", "yellow"), "")
    for name, size in report.missing:
        table.add_row(Text("missing", "yellow"), "x".join(map(str, size)), name, "keeps its start")
    console = open_console()
    width = Measurement.get(console, console.options.update(width=1000), table).maximum
    open_console(width=max(console.width, width)).print(table)


def summary(report: Report) -> str:
    """How many tensors were taken, and which layers were left over or are missing, on one line."""

    def layers(tensors: Sequence[tuple[str, tuple[int, ...]]]) -> str:
        names = list(dict.fromkeys(re.sub(r"[./][^./]*$", "", name) for name, _ in tensors))
        return f" ({some(names)})" if names else ""

    return (
        f"{len(report.taken)} tensors taken, {len(report.left_over)} left over{layers(report.left_over)}, "
        f"{len(report.missing)} missing{layers(report.missing)}"
        + (f"; names without their prefix {report.stripped}" if report.stripped else "")
    )
