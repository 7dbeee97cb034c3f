"""What the report says, section by section."""

from collections.abc import Sequence

import numpy as np
import torch

from dilated_seg.analysis import plots
from dilated_seg.analysis.intervals import MIN_SEEDS, NEW_TRAININGS, OTHER_IMAGES, Interval
from dilated_seg.errors import format_command
from dilated_seg.metrics.confusion import compute_metrics
from dilated_seg.report import cost, differences, gallery, receptive_fields, stratified, variance, verdicts
from dilated_seg.report.blocks import Commands, Plot, ReportTable, Section
from dilated_seg.report.claims import Claim
from dilated_seg.report.comparison import Comparison, seeds
from dilated_seg.report.results import Result, describe_shared_protocol, list_differences, predict_majority
from dilated_seg.report.tables import percent
from dilated_seg.report.wording import explain_seeds, format_points, join_names

INTERVALS = {
    OTHER_IMAGES: (
        f"In brackets: 95 % intervals of {OTHER_IMAGES}, from a paired bootstrap over images. Training again, with another "
        "seed or on another machine, changes the numbers too, often by more; that is not in these intervals."
    ),
    NEW_TRAININGS: (
        f"In brackets: 95 % intervals of networks {NEW_TRAININGS}, from a paired bootstrap over images and the spread over "
        "seeds, which is estimated for each network and shrunk towards that of all."
    ),
}
BARS = (
    f"Two networks are told apart if both have at least {MIN_SEEDS} seeds and the p-value of their difference is below 0.05 "
    "after Holm's correction over all pairs; bars at the right of the plot join neighbours of which no two are. An interval of "
    "a single network is less exact than that of a difference."
)


def all_of(
    comparison: Comparison, missing: Sequence[str], claims: Sequence[Claim], commands: Sequence[str]
) -> list[Section]:  # fmt: skip
    """The report."""
    made = [
        result(comparison, missing),
        verdicts.build_section(comparison, claims),
        differences.build_section(comparison),
        variance.build_section(comparison),
        classes(comparison),
        stratified.build_object_section(comparison),
        stratified.build_boundary_section(comparison),
        stratified.build_difficulty_section(comparison),
        receptive_fields.build_section(comparison, claims),
        cost.build_section(comparison),
        training(comparison),
        gallery.build_section(comparison),
    ]
    return [section for section in made if section and section.blocks] + [measured(comparison, commands)]


def table_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the comparison, best first: the mean over seeds, every seed, and the classes."""
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


def result(comparison: Comparison, missing: Sequence[str]) -> Section:
    """The mean IoU of each network with its interval."""
    header, rows = table_rows(comparison)
    number = len(comparison.classes)
    at = header.index("mean IoU")
    known = comparison.intervals
    ours = [[*row[:at], format_points(known[row[0]]) if row[0] in known else row[at], *row[at + 1 : -number]] for row in rows]
    numbers = [[*row[:at], *cells(known.get(row[0]), row[at], comparison.kind), *row[at + 1 :]] for row in rows]
    wide = [*header[: at + 1], "low", "high", "interval", *header[at + 1 :]]
    header[at] = f"mean IoU ({comparison.kind})"
    partial = comparison.results[0].evaluation.protocol.partial
    section = Section("Result", [
        *([f"**Not in this comparison: {'; '.join(missing)}.**"] if missing else []),
        *([best(comparison)] if comparison.pairs else []),
        *([f"**This is {partial}, not the whole split.**"] if partial else []),
        ReportTable("networks", header[:-number], ours, csv=(wide, numbers)),
        plot(comparison, "mean_iou"),
        f"{describe_shared_protocol(comparison.results)}; in percent.",
        INTERVALS[comparison.kind],
        BARS,
    ])  # fmt: skip
    alone = [name for name, group in comparison.groups.items() if len(group) == 1]
    if comparison.kind == NEW_TRAININGS and alone:
        section.blocks.append(f"Trained once only: {join_names(alone)}; taken to vary over seeds as one of the others does.")
    return section


def best(comparison: Comparison) -> str:
    """Say who has the highest mean, and what that means with so many seeds."""
    if np.isnan(next(iter(comparison.intervals.values())).value):
        return "**No image has a labelled pixel.**"
    first = next(iter(comparison.groups))
    value = format_points(comparison.intervals[first])
    if not comparison.enough:
        said = f"**Highest mean IoU of these runs: {first}, {value} ({comparison.kind}).**"
        return f"{said} {explain_seeds(comparison.pairs)}"
    even = [pair.worse for pair in comparison.pairs if pair.better == first and not pair.told_apart]
    others = "it differs from all others" if not even else f"not told apart from it: {join_names(even)}"
    return f"**Highest mean IoU: {first}, {value} ({comparison.kind}); {others}.**"


def plot(comparison: Comparison, name: str) -> Plot:
    """The mean IoU of all networks."""
    figure = plots.draw_means(comparison.intervals, seeds(comparison.groups), comparison.cliques, comparison.numbers)
    best = next(iter(comparison.groups))
    says = f"Mean IoU of {len(comparison.groups)} networks with their intervals, from {best} down"
    return Plot(name, says, figure)


def cells(interval: Interval | None, value: str, kind: str) -> list[str]:
    """Format an interval in four cells of a CSV: its value, its ends and what it is about."""
    if interval is None or np.isnan(interval.low):
        return [value, "", "", ""]
    return [*(f"{100 * number:.2f}" for number in (interval.value, interval.low, interval.high)), kind]


def classes(comparison: Comparison) -> Section:
    """IoU of every class and network."""
    names = list(comparison.groups)
    values = np.array([
        np.asarray(torch.stack([one.evaluation.metrics["iou"] for one in group]).nanmean(0))
        for group in comparison.groups.values()
    ]).T  # fmt: skip
    rows = [[name, *(percent(value) for value in line)] for name, line in zip(comparison.classes, values, strict=True)]
    sheet = Plot("class_iou", "IoU of each class and network", plots.draw_class_map(names, comparison.classes, values))
    return Section("IoU of each class", [ReportTable("classes", ["class", *names], rows, heat=True, plot=sheet)])


def training(comparison: Comparison) -> Section:
    """How they learnt."""
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


def measured(comparison: Comparison, commands: Sequence[str]) -> Section:
    """The protocol, the commands, and the folder of every run."""
    apart = list_differences(comparison.results)
    facts = {k: v for k, v in comparison.results[0].evaluation.protocol.describe().items() if k not in apart}
    runs = []
    for one in comparison.results:
        own = [one.evaluation.protocol.describe()[key] for key in apart]
        runs.append([one.name, str(one.seed), *own, str(one.run)])
    again = evaluation_again(comparison.results[0])
    return Section("How this was measured", [
        ReportTable("protocol", ["protocol", ""], [[key, value] for key, value in facts.items()]),
        *(["These commands make this page, train the first run below again, and evaluate it again."] if again else []),
        Commands([*commands, *again]),
        ReportTable("runs", ["network", "seed", *apart, "folder"], runs),
        "Mean IoU is of the whole split: one confusion matrix, never a mean over images; a class that is only "
        "predicted counts 0. All numbers were read from these "
        "folders; those of every run are in results.parquet, those of every table in a CSV file of its name.",
    ])  # fmt: skip


def evaluation_again(result: Result) -> list[str]:
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
