"""The first section of the report: what was compared, the answer in one sentence, images, the main plot, a table."""

from collections.abc import Sequence

import numpy as np
import torch

from dilated_seg.analysis import plots
from dilated_seg.analysis.intervals import MIN_SEEDS, NEW_TRAININGS, OTHER_IMAGES, Interval
from dilated_seg.metrics.confusion import compute_metrics, percent
from dilated_seg.report.blocks import Block, Fold, Plot, ReportTable, Section
from dilated_seg.report.comparison import Comparison, list_mean_ious
from dilated_seg.report.results import describe_shared_protocol, predict_majority
from dilated_seg.report.settings import list_warnings
from dilated_seg.report.wording import explain_seeds, format_points, join_names

INTERVALS_EXPLAINED = {
    OTHER_IMAGES: (
        f"In brackets: 95 % intervals ({OTHER_IMAGES}) from a paired bootstrap over images. They do not contain the variance "
        "over trainings, with another seed or on another machine, which is often larger."
    ),
    NEW_TRAININGS: (
        f"In brackets: 95 % intervals ({NEW_TRAININGS}) from a paired bootstrap over images and the variance over seeds, which "
        "is estimated for each network and shrunk towards that of all networks."
    ),
}
TOLD_APART_EXPLAINED = (
    f"Two networks are told apart if both have at least {MIN_SEEDS} seeds and the p-value of their difference is below 0.05 "
    "after Holm's correction over all pairs. A bar at the right of the plot joins networks that are not told apart. The "
    "interval of a single network is less exact than that of a difference."
)


def build_section(comparison: Comparison, missing: Sequence[str], images: Sequence[Block]) -> Section:
    """Build the section that a reader sees first.

    Args:
        comparison: The comparison of the networks.
        missing: Names of runs that are not finished.
        images: Blocks with images of the split and their predictions.
    """
    partial = comparison.results[0].evaluation.protocol.partial
    explained = [f"{describe_shared_protocol(comparison.results)}; in percent."]
    explained += [INTERVALS_EXPLAINED[comparison.kind], *([TOLD_APART_EXPLAINED] if comparison.pairs else [])]
    alone = [name for name, group in comparison.groups.items() if len(group) == 1]
    if comparison.kind == NEW_TRAININGS and alone:
        explained.append(
            f"Trained once only: {join_names(alone)}; their variance over seeds is taken from another network, at random."
        )
    return Section("Result", [
        describe_comparison(comparison),
        *([describe_best(comparison)] if comparison.pairs else []),
        *([f"**Not in this comparison: {'; '.join(missing)}.**"] if missing else []),
        *([f"**This is {partial}, not the whole split.**"] if partial else []),
        *list_warnings(comparison.settings),
        *images,
        plot_means(comparison),
        tabulate_intervals(comparison),
        Fold("How to read the intervals", explained),
    ])  # fmt: skip


def describe_comparison(comparison: Comparison) -> str:
    """Describe what was compared: networks, seeds, images."""
    protocol, rows = comparison.results[0].evaluation.protocol, len(comparison.groups)
    number = len({frozenset(result.run.path for result in group) for group in comparison.groups.values()})
    seeds = sorted({len(group) for group in comparison.groups.values()})
    span = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    trained = "once" if seeds == [1] else f"with {span} seeds"
    networks = f"{number} networks, each" if number > 1 else "1 network,"
    where = f"{protocol.images:,} images of {protocol.dataset}'s {protocol.split} split, {len(comparison.classes)} classes"
    several = f" {rows} rows: the same weights may be evaluated by several protocols." if rows > number else ""
    return f"{networks} trained {trained}, evaluated on {where}.{several}"


def tabulate_intervals(comparison: Comparison) -> ReportTable:
    """Tabulate the networks with their intervals; the CSV has the classes too."""
    header, rows = tabulate_networks(comparison)
    at, classes = header.index("mean IoU"), len(comparison.classes)
    shown, lines = [], []
    for row in rows:
        interval = comparison.intervals.get(row[0])  # none of the baseline
        shown.append([*row[:at], format_points(interval) if interval else row[at], *row[at + 1 : -classes]])
        lines.append([*row[:at], *list_interval_cells(interval, row[at], comparison.kind), *row[at + 1 :]])
    csv_header = [*header[: at + 1], "low", "high", "interval", *header[at + 1 :]]
    header[at] = f"mean IoU ({comparison.kind})"
    return ReportTable("networks", header[:-classes], shown, csv=(csv_header, lines))


def describe_best(comparison: Comparison) -> str:
    """State the network with the highest mean, and what follows from that with this number of seeds."""
    if np.isnan(next(iter(comparison.intervals.values())).value):
        return "**No image has a labelled pixel.**"
    first = next(iter(comparison.groups))
    value = format_points(comparison.intervals[first])
    if not comparison.enough:
        sentence = f"**Highest mean IoU of these runs: {first}, {value} ({comparison.kind}).**"
        return f"{sentence} {explain_seeds(comparison.pairs)}"
    even = [pair.worse for pair in comparison.pairs if pair.better == first and not pair.told_apart]
    others = "it differs from all others" if not even else f"not told apart from it: {join_names(even)}"
    return f"**Highest mean IoU: {first}, {value} ({comparison.kind}); {others}.**"


def plot_means(comparison: Comparison) -> Plot:
    """Plot the mean IoU of all networks."""
    figure = plots.draw_means(comparison.intervals, list_mean_ious(comparison.groups), comparison.cliques, comparison.numbers)
    best = next(iter(comparison.groups))
    alt = f"Mean IoU of {len(comparison.groups)} networks with their intervals, from {best} down"
    return Plot("mean_iou", alt, figure)


def list_interval_cells(interval: Interval | None, value: str, kind: str) -> list[str]:
    """Return the four cells of an interval in a CSV: value, ends, kind of repetition."""
    if interval is None or np.isnan(interval.low):
        return [value, "", "", ""]
    return [*(f"{100 * number:.2f}" for number in (interval.value, interval.low, interval.high)), kind]


def tabulate_networks(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the comparison, best first: the mean over seeds, every seed, and the classes."""
    groups = comparison.groups
    several = any(len(group) > 1 for group in groups.values())
    seeds = ["each seed"] if several else []
    header = ["network", "parameters", "seeds", "mean IoU", *seeds, "pixel acc.", *comparison.classes]
    rows = []
    for name, group in groups.items():
        means = [result.evaluation.mean_iou for result in group]
        iou = torch.stack([result.evaluation.metrics["iou"] for result in group]).nanmean(0)
        pixel = np.mean([float(result.evaluation.metrics["pixel_accuracy"]) for result in group])
        each = [" ".join(percent(mean) for mean in means)] if several else []
        size = f"{group[0].evaluation.parameters:,}"
        rows.append([name, size, str(len(group)), percent(np.mean(means)), *each, percent(pixel), *(percent(v) for v in iou)])
    name, matrix = predict_majority(comparison.results)
    values = compute_metrics(matrix)
    baseline = [f"({name} everywhere)", "0", "-", percent(values["mean_iou"]), *([""] if several else [])]
    rows.append([*baseline, percent(values["pixel_accuracy"]), *(percent(v) for v in values["iou"])])
    return header, rows
