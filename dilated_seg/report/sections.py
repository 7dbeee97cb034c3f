"""The sections of the report: the result, IoU of each class, training, the protocol; and the order of all."""

from collections.abc import Sequence

import numpy as np
import torch

from dilated_seg.analysis import plots
from dilated_seg.analysis.intervals import MIN_SEEDS, NEW_TRAININGS, OTHER_IMAGES, Interval
from dilated_seg.errors import format_command
from dilated_seg.metrics.confusion import compute_metrics, percent
from dilated_seg.report import cost, differences, gallery, receptive_fields, stratified, variance, verdicts
from dilated_seg.report.blocks import Commands, Plot, ReportTable, Section
from dilated_seg.report.claims import Claim
from dilated_seg.report.comparison import Comparison, list_mean_ious
from dilated_seg.report.results import Result, describe_shared_protocol, list_differences, predict_majority
from dilated_seg.report.wording import explain_seeds, format_points, join_names

INTERVALS_EXPLAINED = {
    OTHER_IMAGES: (
        f"In brackets: 95 % intervals of {OTHER_IMAGES}, from a paired bootstrap over images. Training again, with another "
        "seed or on another machine, changes the numbers too, often by more; that is not in these intervals."
    ),
    NEW_TRAININGS: (
        f"In brackets: 95 % intervals of networks {NEW_TRAININGS}, from a paired bootstrap over images and the spread over "
        "seeds, which is estimated for each network and shrunk towards that of all."
    ),
}
TOLD_APART_EXPLAINED = (
    f"Two networks are told apart if both have at least {MIN_SEEDS} seeds and the p-value of their difference is below 0.05 "
    "after Holm's correction over all pairs; bars at the right of the plot join neighbours of which no two are. An interval of "
    "a single network is less exact than that of a difference."
)


def build_sections(
    comparison: Comparison, missing: Sequence[str], claims: Sequence[Claim], commands: Sequence[str]
) -> list[Section]:  # fmt: skip
    """Build the sections of a report, in their order."""
    sections = [
        build_result_section(comparison, missing),
        verdicts.build_section(comparison, claims),
        differences.build_section(comparison),
        variance.build_section(comparison),
        build_class_section(comparison),
        stratified.build_object_section(comparison),
        stratified.build_boundary_section(comparison),
        stratified.build_difficulty_section(comparison),
        receptive_fields.build_section(comparison, claims),
        cost.build_section(comparison),
        build_training_section(comparison),
        gallery.build_section(comparison),
    ]
    shown = [section for section in sections if section and section.blocks]
    return [*shown, build_protocol_section(comparison, commands)]


def tabulate_networks(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the comparison, best first: the mean over seeds, every seed, and the classes."""
    groups = comparison.groups
    several = any(len(group) > 1 for group in groups.values())
    seeds = ["each seed"] if several else []
    header = ["network", "parameters", "seeds", "mean IoU", *seeds, "pixel acc.", *comparison.classes]
    rows = []
    for name, group in groups.items():
        means = [one.evaluation.mean_iou for one in group]
        iou = torch.stack([one.evaluation.metrics["iou"] for one in group]).nanmean(0)
        pixel = np.mean([float(one.evaluation.metrics["pixel_accuracy"]) for one in group])
        each = [" ".join(percent(mean) for mean in means)] if several else []
        size = f"{group[0].evaluation.parameters:,}"
        rows.append([name, size, str(len(group)), percent(np.mean(means)), *each, percent(pixel), *(percent(v) for v in iou)])
    name, matrix = predict_majority(comparison.results)
    values = compute_metrics(matrix)
    baseline = [f"({name} everywhere)", "0", "-", percent(values["mean_iou"]), *([""] if several else [])]
    rows.append([*baseline, percent(values["pixel_accuracy"]), *(percent(v) for v in values["iou"])])
    return header, rows


def build_result_section(comparison: Comparison, missing: Sequence[str]) -> Section:
    """Build the section on the mean IoU of each network with its interval."""
    partial = comparison.results[0].evaluation.protocol.partial
    section = Section("Result", [
        *([f"**Not in this comparison: {'; '.join(missing)}.**"] if missing else []),
        *([describe_best(comparison)] if comparison.pairs else []),
        *([f"**This is {partial}, not the whole split.**"] if partial else []),
        tabulate_intervals(comparison),
        plot_means(comparison),
        f"{describe_shared_protocol(comparison.results)}; in percent.",
        INTERVALS_EXPLAINED[comparison.kind],
        TOLD_APART_EXPLAINED,
    ])  # fmt: skip
    alone = [name for name, group in comparison.groups.items() if len(group) == 1]
    if comparison.kind == NEW_TRAININGS and alone:
        section.blocks.append(f"Trained once only: {join_names(alone)}; taken to vary over seeds as one of the others does.")
    return section


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
    """Say who has the highest mean, and what that means with so many seeds."""
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
    """List the four cells of an interval in a CSV: its value, its ends and what it is about."""
    if interval is None or np.isnan(interval.low):
        return [value, "", "", ""]
    return [*(f"{100 * number:.2f}" for number in (interval.value, interval.low, interval.high)), kind]


def build_class_section(comparison: Comparison) -> Section:
    """Build the section on the IoU of every class and network."""
    names = list(comparison.groups)
    values = np.array([
        np.asarray(torch.stack([one.evaluation.metrics["iou"] for one in group]).nanmean(0))
        for group in comparison.groups.values()
    ]).T  # fmt: skip
    rows = [[name, *(percent(value) for value in line)] for name, line in zip(comparison.classes, values, strict=True)]
    sheet = Plot("class_iou", "IoU of each class and network", plots.draw_class_map(names, comparison.classes, values))
    return Section("IoU of each class", [ReportTable("classes", ["class", *names], rows, heat=True, plot=sheet)])


def build_training_section(comparison: Comparison) -> Section:
    """Build the section of learning curves."""
    histories = [(one.name, one.run.history()) for group in comparison.groups.values() for one in group]
    drawn = (
        ("curve_mean_iou", "Validation mean IoU over training steps", "val/mean_iou", "validation mean IoU, %", True),
        ("curve_loss", "Training loss over steps", "train/loss", "training loss", False),
    )
    made = [
        (name, alt, plots.draw_curves(histories, key, label, comparison.numbers, percent))
        for name, alt, key, label, percent in drawn
    ]
    return Section("Training", [Plot(name, alt, figure) for name, alt, figure in made if figure])


def build_protocol_section(comparison: Comparison, commands: Sequence[str]) -> Section:
    """Build the section on how all was measured: protocol, commands, and the directory of every run."""
    apart = list_differences(comparison.results)
    facts = {k: v for k, v in comparison.results[0].evaluation.protocol.describe().items() if k not in apart}
    runs = []
    for one in comparison.results:
        values = [one.evaluation.protocol.describe()[key] for key in apart]
        runs.append([one.name, str(one.seed), *values, str(one.run)])
    again = list_commands(comparison.results[0])
    return Section("How this was measured", [
        ReportTable("protocol", ["protocol", ""], [[key, value] for key, value in facts.items()]),
        *(["These commands make this page, train the first run below again, and evaluate it again."] if again else []),
        Commands([*commands, *again]),
        ReportTable("runs", ["network", "seed", *apart, "folder"], runs),
        "Mean IoU is of the whole split: one confusion matrix, never a mean over images; a class that is only "
        "predicted counts 0. All numbers were read from these "
        "folders; those of every run are in results.parquet, those of every table in a CSV file of its name.",
    ])  # fmt: skip


def list_commands(result: Result) -> list[str]:
    """Return the commands that train and evaluate a run again, as far as its protocol tells."""
    protocol, run = result.evaluation.protocol, result.run
    if not run.is_run:
        return []
    commands = [format_command("dilated-seg", "fit", "--config", run.config_file, "--run_dir", f"{run}-again")]
    weights = run.checkpoint_dir / f"{protocol.checkpoint}.ckpt"
    if protocol.is_whole_image and weights.is_file() and not protocol.partial:
        command = "test" if protocol.split == "test" else "validate"
        commands.append(format_command("dilated-seg", command, "--config", run.config_file, "--ckpt_path", weights))
    return commands
