"""The report's section on the cost of networks: parameters, multiply-adds, memory, throughput."""

from collections.abc import Mapping
from typing import Any

from dilated_seg import models
from dilated_seg.analysis.summary import summarize
from dilated_seg.models import build
from dilated_seg.report.blocks import ReportTable, Section
from dilated_seg.report.comparison import Comparison
from dilated_seg.report.results import Result

MIN_BATCHES = 5  # timed; the median of fewer is unreliable

HEADER = (
    "network", "parameters", "multiply-adds, 10⁹", "feature maps of one image, MB", "images a second", "GPU memory, GB",
)  # fmt: skip
CSV_HEADER = (
    "network", "parameters", "multiply_adds", "bytes_of_maps", "images_per_second", "lower_quartile", "upper_quartile",
    "batches", "memory_gb", "device", "batch_size",
)  # fmt: skip


def build_section(comparison: Comparison) -> Section:
    """Build the section of what each network's first seed costs."""
    rows, lines = [], []
    for name, (result, *_) in comparison.groups.items():
        cost = result.evaluation.cost or {}
        parameters = result.evaluation.parameters
        multiply_adds, size = count_operations(result) or (None, None)
        memory = cost.get("memory_gb")
        rows.append([
            name, f"{parameters:,}",
            f"{multiply_adds / 1e9:.3g}" if multiply_adds else "-", f"{size / 1e6:.3g}" if size else "-",
            format_throughput(cost), f"{memory:.2f}" if memory else "-",
        ])  # fmt: skip
        timing = [cost.get("images_per_second"), *(cost.get("quartiles") or ("", "")), cost.get("batches")]
        cells = [multiply_adds, size, *timing, memory, cost.get("device"), cost.get("batch_size")]
        lines.append([name, parameters, *(cell or "" for cell in cells)])
    table = ReportTable("cost", HEADER, rows, csv=(CSV_HEADER, lines))
    costs = [first.evaluation.cost for first, *_ in comparison.groups.values() if first.evaluation.cost]
    return Section("Cost", [table, explain_costs(costs)] if costs else [table])


def explain_costs(costs: list[dict[str, Any]]) -> str:
    """Describe where and how throughput was measured."""
    places = {f"{cost['device']}, {cost['batch_size']} at a time" for cost in costs}
    sizes = {f"{cost['size'][0]} x {cost['size'][1]}" for cost in costs}
    where = f"on {places.pop()}" if len(places) == 1 else "on different devices or batches (see cost.csv)"
    return (
        f"Measured with each network's first seed. Images a second are those of the evaluation, {where}, from the image on the "
        "device to its confusion matrix: the median over batches, in brackets the quartiles, which are far apart if the "
        f"machine was busy. The first of several batches is not timed; fewer than {MIN_BATCHES} timed batches are noted. "
        f"Multiply-adds and maps are of one image of {' or '.join(sorted(sizes))} pixels."
    )


def format_throughput(cost: Mapping[str, Any]) -> str:
    """Format images a second with their quartiles, and with the number of timings if these are few."""
    if not cost.get("images_per_second"):
        return "-"
    (low, high), batches = cost["quartiles"], cost["batches"]
    few = f", {batches} batch{'es' if batches > 1 else ''}" if batches < MIN_BATCHES else ""
    spread = f" [{low:.3g}, {high:.3g}]" if batches > 1 else ""
    return f"{cost['images_per_second']:.3g}{spread}{few}"


def count_operations(result: Result) -> tuple[int, int] | None:
    """Count the multiply-adds of a run's network on one evaluated image, and the bytes of its maps; None if not known."""
    cost = result.evaluation.cost
    if not cost or not result.run.is_run:
        return None
    net = result.run.config.net
    module, _, name = net.class_path.rpartition(".")
    if not module.startswith("dilated_seg.models") or name not in models.__all__:
        return None  # nothing is imported because a file names it
    arguments = net.init_args | {"num_classes": len(result.evaluation.classes)}
    call = build.format_call(name, **arguments)
    summary = summarize(build.construct(name, (), arguments, call), call, tuple(cost["size"]))
    return summary.multiply_adds, summary.bytes
