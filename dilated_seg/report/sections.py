"""What the report says, section by section."""

from collections.abc import Sequence

import numpy as np
import torch

from dilated_seg.analysis import plots
from dilated_seg.analysis.intervals import MIN_SEEDS, NEW_TRAININGS, OTHER_IMAGES, Difference, Interval
from dilated_seg.errors import UserError, format_command
from dilated_seg.metrics.confusion import compute_metrics
from dilated_seg.report import cost, gallery, receptive_fields, stratified, variance
from dilated_seg.report.blocks import Commands, Plot, ReportTable, Section
from dilated_seg.report.claims import Claim
from dilated_seg.report.comparison import Comparison, Verdict, seeds
from dilated_seg.report.tables import percent
from dilated_seg.report.wording import describe_pairs, explain_seeds, format_ends, format_points, join_names
from dilated_seg.runs.results import Result, different, majority, name_partial, shared_protocol
from dilated_seg.runs.run import Run

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
        arguments(comparison, claims),
        differences(comparison),
        variance.section(comparison),
        classes(comparison),
        stratified.objects(comparison),
        stratified.boundaries(comparison),
        stratified.images(comparison),
        receptive_fields.build_section(comparison, claims),
        cost.section(comparison),
        training(comparison),
        gallery.section(comparison),
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
        means = [float(one.scores["mean_iou"]) for one in group]
        iou = torch.stack([one.scores["iou"] for one in group]).nanmean(0)
        pixel = np.mean([float(one.scores["pixel_accuracy"]) for one in group])
        each = [" ".join(percent(mean) for mean in means)] if several else []
        size = f"{group[0].record['parameters']:,}"
        rows.append([name, size, str(len(group)), percent(np.mean(means)), *each, percent(pixel), *(percent(v) for v in iou)])
    name, matrix = majority(comparison.results)
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
    section = Section("Result", [
        *([f"**Not in this comparison: {'; '.join(missing)}.**"] if missing else []),
        *([best(comparison)] if comparison.pairs else []),
        *([f"**This is {partial}, not the whole split.**"] if (partial := name_partial(comparison.results[0].record)) else []),
        ReportTable("networks", header[:-number], ours, csv=(wide, numbers)),
        plot(comparison, "mean_iou"),
        f"{shared_protocol(comparison.results)}; in percent.",
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


def arguments(comparison: Comparison, claims: Sequence[Claim]) -> Section | None:
    """Test each claim of the ablation."""
    if not claims:
        return None
    rows, numbers, said = [], [], []
    for claim in claims:
        try:
            if gone := [name for name in (claim.better, claim.worse) if name not in comparison.groups]:
                raise UserError(f"{join_names(gone)} is not in this comparison")
            found = comparison.verdict(claim)
        except UserError as error:
            said.append(f"**{claim.says}: not measured.** {str(error)[0].upper()}{str(error)[1:]}.")
            continue
        here, elsewhere, verdict = found.here, found.elsewhere, judge_claim(found)
        rest = format_points(elsewhere) if elsewhere else "-"
        pair, seeds = f"{claim.better} - {claim.worse}", str(here.seeds)
        rows.append([claim.says, pair, claim.measure, seeds, format_points(here), format_ends(here.new), rest, verdict])
        low_high = [f"{100 * v:.2f}" for v in (here.value, here.low, here.high)]
        new = [f"{100 * v:.2f}" for v in (here.new.low, here.new.high)]
        words = [claim.says, claim.better, claim.worse, claim.measure, seeds]
        numbers.append([*words, *low_high, here.kind, *new, f"{here.p:.4f}", rest, verdict])
        said.append(f"**{claim.says}: {verdict}.** {in_words(claim, found)}")
    kind = f"({comparison.kind})"
    header = [
        "argument", "networks", "measure", "seeds", f"difference {kind}", "one new training of each", f"elsewhere {kind}",
        "verdict",
    ]  # fmt: skip
    full = [
        "argument", "better", "worse", "measure", "seeds", "difference", "low", "high", "interval", "new low", "new high", "p",
        "elsewhere", "verdict",
    ]  # fmt: skip
    table: list[str | ReportTable] = [ReportTable("claims", header, rows, csv=(full, numbers)), explain_verdicts(comparison)]
    return Section("The arguments, measured", [*said, *(table if rows else [])])


def explain_verdicts(comparison: Comparison) -> str:
    """Say what the verdicts on claims mean, those that this report can have."""
    few = (
        'An argument is "observed in these runs" if the 95 % interval of the difference lies above zero; to say more of the '
        f"networks takes at least {MIN_SEEDS} seeds of each. "
    )
    enough = (
        "An argument holds if the 95 % interval of the difference lies above zero, does not hold if it lies below, and is open "
        'otherwise; each stands for itself. "Holds, not only here" means that the difference elsewhere is not shown to be '
        f"smaller. With fewer than {MIN_SEEDS} seeds of one of the networks, it is observed in these runs or it is not. "
    )
    return (enough if comparison.enough else few) + (
        "Elsewhere is the same difference on the larger objects or the pixels farther from boundaries of the same "
        "classes, or on the other classes. What is tested is the difference, not its cause: networks may differ in more than "
        "what an argument names."
    )


def judge_claim(found: Verdict) -> str:
    """Say whether a claim is supported, and whether by more than elsewhere; of runs only if there are few seeds."""
    here, more = found.here, found.more
    if np.isnan(here.low):
        return "not measured"
    if here.seeds < MIN_SEEDS:
        return "observed in these runs" if here.low > 0 else "not observed in these runs"
    if here.low > 0:
        return "holds, not only here" if more is not None and not np.isnan(more.low) and more.low <= 0 else "holds"
    return "does not hold" if here.high < 0 else "is open"


def in_words(claim: Claim, found: Verdict) -> str:
    """A claim's measurement as a sentence."""
    said = f"{claim.better} minus {claim.worse}: {format_points(found.here)} points of {claim.measure}"
    if np.isnan(found.here.low):
        return f"{said}; they differ on too few images to tell."
    said = f"{said} ({found.here.kind})"
    if found.here.seeds < MIN_SEEDS:
        rest = f"; elsewhere the difference is {format_points(found.elsewhere)}" if found.elsewhere else ""
        return f"{said}{rest}; at least {MIN_SEEDS} seeds of each are needed to say more than what these runs show."
    if not found.elsewhere or not found.more or np.isnan(found.more.low) or np.isnan(found.elsewhere.low):
        return f"{said}."
    there = format_points(found.elsewhere)
    if found.here.low <= 0:
        behind = f", so {claim.better} is the worse one" if found.here.high < 0 else ""
        return f"{said}{behind}; elsewhere the difference is {there}."
    if found.more.low > 0:
        return f"{said}; more than elsewhere, where it is {there}."
    less = "less than" if found.more.high < 0 else "not distinguishable from"
    return f"{said}; {less} the difference elsewhere, {there}: the gain is not specific to what the argument names."


def differences(comparison: Comparison) -> Section | None:
    """List all pairs of networks, the one with the higher mean first."""
    pairs = comparison.pairs
    if not pairs:
        return None
    rows = [
        [
            f"{pair.better} - {pair.worse}", str(pair.seeds), format_points(pair), format_ends(pair.repeat),
            format_ends(pair.new), p_value(pair.p), p_value(pair.adjusted), say_apart(pair),
        ]
        for pair in pairs
    ]  # fmt: skip
    numbers = [
        [
            pair.better, pair.worse, pair.seeds,
            *(f"{100 * v:.3f}" for v in (pair.value, pair.low, pair.high)), pair.kind,
            *(f"{100 * v:.3f}" for v in (pair.repeat.low, pair.repeat.high, pair.new.low, pair.new.high)),
            pair.p, pair.adjusted, say_apart(pair),
        ]
        for pair in pairs
    ]  # fmt: skip
    full = [
        "better", "worse", "seeds", "difference", "low", "high", "interval", "repeat low", "repeat high", "new low", "new high",
        "p", "p adjusted", "told apart",
    ]  # fmt: skip
    header = [
        "pair", "seeds", f"difference in mean IoU ({comparison.kind})", "as many new trainings", "one new training of each",
        "p", "p, Holm", "told apart",
    ]  # fmt: skip
    how = (
        "Each interval and p is of its pair alone (two-sided); p, Holm is adjusted for all pairs. So an interval may exclude 0 "
        "beside a no. No means not shown to differ, not equal."
    )
    if comparison.kind == NEW_TRAININGS:
        how += (
            " The first interval is meant to cover the mean difference over all trainings; the next two, what will be measured "
            "when each network is trained again as often as here, and once: 95 % prediction intervals."
        )
    table = ReportTable("pairs", header, rows, csv=(full, numbers))
    title = "Differences between networks" if comparison.enough else "Differences between these runs"
    return Section(title, [*describe_pairs(pairs), table, how])


def say_apart(pair: Difference) -> str:
    """Say whether two networks are told apart, or that they have too few seeds for it."""
    return f"{pair.seeds} of {MIN_SEEDS} seeds" if pair.seeds < MIN_SEEDS else "yes" if pair.told_apart else "no"


def p_value(p: float) -> str:
    """A p-value as it is printed."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def classes(comparison: Comparison) -> Section:
    """IoU of every class and network."""
    names = list(comparison.groups)
    values = np.array([
        np.asarray(torch.stack([one.scores["iou"] for one in group]).nanmean(0)) for group in comparison.groups.values()
    ]).T  # fmt: skip
    rows = [[name, *(percent(value) for value in line)] for name, line in zip(comparison.classes, values, strict=True)]
    sheet = Plot("class_iou", "IoU of each class and network", plots.draw_class_map(names, comparison.classes, values))
    return Section("IoU of each class", [ReportTable("classes", ["class", *names], rows, heat=True, plot=sheet)])


def training(comparison: Comparison) -> Section:
    """How they learnt."""
    histories = [(one.name, Run(one.folder).history()) for group in comparison.groups.values() for one in group]
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
    apart = different(comparison.results)
    facts = {k: v for k, v in comparison.results[0].record["protocol"].items() if k not in apart}
    runs = []
    for one in comparison.results:
        own = [str(one.record["protocol"][key]) for key in apart]
        runs.append([one.name, str(one.seed), *own, str(one.folder)])
    again = evaluation_again(comparison.results[0])
    return Section("How this was measured", [
        ReportTable("protocol", ["protocol", ""], [[key, str(value)] for key, value in facts.items()]),
        *(["These commands make this page, train the first run below again, and evaluate it again."] if again else []),
        Commands([*commands, *again]),
        ReportTable("runs", ["network", "seed", *apart, "folder"], runs),
        "Mean IoU is of the whole split: one confusion matrix, never a mean over images; a class that is only "
        "predicted counts 0. All numbers were read from these "
        "folders; those of every run are in results.parquet, those of every table in a CSV file of its name.",
    ])  # fmt: skip


def evaluation_again(result: Result) -> list[str]:
    """The commands that train and evaluate a run again, as far as its protocol tells."""
    facts, folder = result.record["protocol"], result.folder
    verb = "test" if facts["split"] == "test" else "validate"
    checkpoint = facts["checkpoint"].partition(",")[0]
    config, file = folder / "config.yaml", folder / "checkpoints" / f"{checkpoint}.ckpt"
    if not config.is_file():
        return []
    commands = [format_command("dilated-seg", "fit", "--config", config, "--run_dir", f"{folder}-again")]
    if facts["inference"] == "whole image" and file.is_file() and not name_partial(result.record):
        commands.append(format_command("dilated-seg", verb, "--config", config, "--ckpt_path", file))
    return commands
