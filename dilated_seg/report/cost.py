"""The report's section on what networks cost."""

from collections.abc import Mapping
from typing import Any

from dilated_seg import models
from dilated_seg.analysis.summary import summarize
from dilated_seg.models import build
from dilated_seg.report.blocks import ReportTable, Section
from dilated_seg.report.comparison import Comparison
from dilated_seg.report.results import Result

FEW = 5  # timed batches, below which a median says little


def build_section(comparison: Comparison) -> Section:
    """What each network costs."""
    rows, numbers = [], []
    for name, group in comparison.groups.items():
        evaluation = group[0].evaluation
        measured = evaluation.cost or {}
        speed, memory = measured.get("images_per_second"), measured.get("memory_gb")
        low, high = measured.get("quartiles") or ("", "")
        facts = described(group[0])
        theirs = [f"{facts[0] / 1e9:.3g}", f"{facts[1] / 1e6:.3g}"] if facts else ["-", "-"]
        shown = [format_speed(measured), f"{memory:.2f}" if memory else "-"]
        rows.append([name, f"{evaluation.parameters:,}", *theirs, *shown])
        numbers.append(
            [
                name,
                evaluation.parameters,
                *(facts or ("", "")),
                speed or "",
                low,
                high,
                measured.get("batches", ""),
                memory or "",
                measured.get("device", ""),
                measured.get("batch_size", ""),
            ]
        )
    header = [
        "network",
        "parameters",
        "multiply-adds, 10⁹",
        "feature maps of one image, MB",
        "images a second",
        "GPU memory, GB",
    ]
    full = [
        "network",
        "parameters",
        "multiply_adds",
        "bytes_of_maps",
        "images_per_second",
        "lower_quartile",
        "upper_quartile",
        "batches",
        "memory_gb",
        "device",
        "batch_size",
    ]
    costs = [group[0].evaluation.cost for group in comparison.groups.values()]
    places = {f"{one['device']}, {one['batch_size']} at a time" for one in costs if one}
    sizes = {f"{one['size'][0]} x {one['size'][1]}" for one in costs if one}
    if not places:
        return Section("Cost", [ReportTable("cost", header, rows, csv=(full, numbers))])
    where = f"on {places.pop()}" if len(places) == 1 else "on different devices or batches (see cost.csv)"
    how = (
        f"Of each network's first seed. Images a second are those of the evaluation, {where}, from the image on the device to "
        "its confusion matrix: the median over batches, in brackets the quartiles, which lie far apart if the machine was busy "
        f"with other work. The first batch is not timed if there are several; fewer than {FEW} timed batches are said. "
        f"Multiply-adds and maps are of one image of {' or '.join(sorted(sizes))} pixels."
    )
    return Section("Cost", [ReportTable("cost", header, rows, csv=(full, numbers)), how])


def format_speed(measured: Mapping[str, Any]) -> str:
    """Return images a second with their quartiles, and with the number of timings if these are few or were not counted."""
    speed = measured.get("images_per_second")
    if not speed:
        return "-"
    if "quartiles" not in measured:  # recorded by an earlier version
        return f"{speed:.3g}, spread not recorded"
    quartiles, batches = measured["quartiles"], measured["batches"]
    few = f", {batches} batch{'es' if batches > 1 else ''}" if batches < FEW else ""
    spread = f" [{quartiles[0]:.3g}, {quartiles[1]:.3g}]" if batches > 1 else ""
    return f"{speed:.3g}{spread}{few}"


def described(result: Result) -> tuple[int, int] | None:
    """Multiply-adds of the run's network on an image of its evaluation, and the bytes of its maps; None if nobody can tell."""
    measured = result.evaluation.cost
    if not measured or not result.run.is_run:
        return None
    net = result.run.config.net
    module, _, name = net.class_path.rpartition(".")
    if not module.startswith("dilated_seg.models") or name not in models.__all__:
        return None  # nothing is imported because a file names it
    given = net.init_args | {"num_classes": len(result.evaluation.classes)}
    call = build.format_call(name, **given)
    summary = summarize(build.construct(name, (), given, call), call, tuple(measured["size"]))
    return summary.multiply_adds, summary.bytes
