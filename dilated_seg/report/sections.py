"""What the report says, section by section."""

from collections.abc import Sequence

import numpy as np
import torch

from dilated_seg import UserError
from dilated_seg.analysis import plots
from dilated_seg.analysis.results import Result, different, history, majority, shared_protocol
from dilated_seg.analysis.significance import Interval, listed, points, sentences
from dilated_seg.analysis.tables import percent
from dilated_seg.metrics import scores
from dilated_seg.report import cost, fields, gallery, where
from dilated_seg.report.claims import Claim
from dilated_seg.report.comparison import Comparison, Verdict, seeds
from dilated_seg.report.document import Commands, Plot, Section, Table
from dilated_seg.runs import name_partial
from dilated_seg.terminal import format_command

INTERVALS = (
    "In brackets: 95 % intervals of a paired bootstrap over images, and over seeds where there are several. Two networks "
    "differ only if the bootstrap says so after Holm's correction over all pairs; bars at the right of the plot join "
    "neighbours of which no two can be told apart. An interval of a single network is less sure than that of a difference."
)
ONE_SEED = "the intervals say how sure its numbers are on other images, not with other seeds."
SOME_SEEDS = "is taken to vary over seeds as the others do."


def all_of(
    comparison: Comparison, missing: Sequence[str], claims: Sequence[Claim], commands: Sequence[str]
) -> list[Section]:  # fmt: skip
    """The report."""
    made = [
        result(comparison, missing),
        arguments(comparison, claims),
        differences(comparison),
        classes(comparison),
        where.objects(comparison),
        where.boundaries(comparison),
        where.images(comparison),
        fields.section(comparison, claims),
        cost.section(comparison),
        training(comparison),
        gallery.section(comparison),
    ]
    return [section for section in made if section and section.blocks] + [measured(comparison, commands)]


def table_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the comparison, best first: the mean over seeds, every seed, and the classes."""
    groups = comparison.groups
    several = any(len(group) > 1 for group in groups.values())
    header = ["network", "parameters", "mean IoU", *(["each seed"] if several else []), "pixel acc.", *comparison.classes]
    rows = []
    for name, group in groups.items():
        means = [float(one.scores["mean_iou"]) for one in group]
        iou = torch.stack([one.scores["iou"] for one in group]).nanmean(0)
        pixel = np.mean([float(one.scores["pixel_accuracy"]) for one in group])
        each = [" ".join(percent(mean) for mean in means)] if several else []
        size = f"{group[0].record['parameters']:,}"
        rows.append([name, size, percent(np.mean(means)), *each, percent(pixel), *(percent(v) for v in iou)])
    name, matrix = majority(comparison.results)
    values = scores(matrix)
    baseline = [f"({name} everywhere)", "0", percent(values["mean_iou"]), *([""] if several else [])]
    rows.append([*baseline, percent(values["pixel_accuracy"]), *(percent(v) for v in values["iou"])])
    return header, rows


def result(comparison: Comparison, missing: Sequence[str]) -> Section:
    """Who is best, and how sure that is."""
    header, rows = table_rows(comparison)
    number = len(comparison.classes)
    at = header.index("mean IoU")
    known = comparison.intervals
    ours = [[*row[:at], points(known[row[0]]) if row[0] in known else row[at], *row[at + 1 : -number]] for row in rows]
    numbers = [[*row[:at], *ends(known.get(row[0]), row[at]), *row[at + 1 :]] for row in rows]
    wide = [*header[: at + 1], "low", "high", *header[at + 1 :]]
    section = Section("Result", [
        *([f"**Not in this comparison: {'; '.join(missing)}.**"] if missing else []),
        *([best(comparison)] if comparison.pairs else []),
        *([f"**This is {partial}, not the whole split.**"] if (partial := name_partial(comparison.results[0].record)) else []),
        Table("networks", header[:-number], ours, numbers=(wide, numbers)),
        plot(comparison, "mean_iou"),
        f"{shared_protocol(comparison.results)}; in percent.",
        INTERVALS,
    ])  # fmt: skip
    alone = [name for name, group in comparison.groups.items() if len(group) == 1]
    if len(alone) == len(comparison.groups):
        section.blocks.append(f"Each network was trained once: {ONE_SEED}")
    elif alone:
        section.blocks.append(f"Trained once only: {listed(alone)}; each {SOME_SEEDS}")
    return section


def best(comparison: Comparison) -> str:
    """The comparison in a sentence."""
    if np.isnan(next(iter(comparison.intervals.values())).value):
        return "**No image has a labelled pixel.**"
    first = next(iter(comparison.groups))
    value = points(comparison.intervals[first])
    even = [pair.worse for pair in comparison.pairs if pair.better == first and not pair.significant]
    others = "it differs from all others" if not even else f"not distinguishable from it: {listed(even)}"
    return f"**Best mean IoU: {first}, {value}; {others}.**"


def plot(comparison: Comparison, name: str) -> Plot:
    """The mean IoU of all networks."""
    figure = plots.means(comparison.intervals, seeds(comparison.groups), comparison.cliques, comparison.numbers)
    best = next(iter(comparison.groups))
    says = f"Mean IoU of {len(comparison.groups)} networks with their intervals, from {best} down"
    return Plot(name, says, figure)


def ends(interval: Interval | None, value: str) -> list[str]:
    """The same in three cells."""
    if interval is None or np.isnan(interval.low):
        return [value, "", ""]
    return [f"{100 * number:.2f}" for number in (interval.value, interval.low, interval.high)]


def arguments(comparison: Comparison, claims: Sequence[Claim]) -> Section | None:
    """What the ablation set out to show, and whether it did."""
    if not claims:
        return None
    rows, numbers, said = [], [], []
    for claim in claims:
        try:
            if gone := [name for name in (claim.better, claim.worse) if name not in comparison.groups]:
                raise UserError(f"{listed(gone)} is not in this comparison")
            found = comparison.verdict(claim)
        except UserError as error:
            said.append(f"**{claim.says}: not measured.** {str(error)[0].upper()}{str(error)[1:]}.")
            continue
        here, elsewhere, verdict = found.here, found.elsewhere, holds(found)
        rest = points(elsewhere) if elsewhere else "-"
        rows.append([claim.says, f"{claim.better} - {claim.worse}", claim.measure, points(here), rest, verdict])
        low_high = [f"{100 * number:.2f}" for number in (here.value, here.low, here.high)]
        numbers.append([claim.says, claim.better, claim.worse, claim.measure, *low_high, f"{here.p:.4f}", rest, verdict])
        said.append(f"**{claim.says}: {verdict}.** {in_words(claim, found)}")
    header = ["argument", "networks", "measure", "difference", "elsewhere", "verdict"]
    full = ["argument", "better", "worse", "measure", "difference", "low", "high", "p", "elsewhere", "verdict"]
    how = (
        "An argument holds if the 95 % interval of the difference lies above zero, does not hold if it lies below, and is open "
        'otherwise; each stands for itself. "Holds, not only here" means that the difference elsewhere is not shown to be '
        "smaller. Elsewhere is the same difference on the larger objects or the pixels farther from boundaries of the same "
        "classes, or on the other classes. What is tested is the difference, not its cause: networks may differ in more than "
        "what an argument names."
    )
    table: list[str | Table] = [Table("claims", header, rows, numbers=(full, numbers)), how] if rows else []
    return Section("The arguments, measured", [*said, *table])


def holds(found: Verdict) -> str:
    """Whether an argument stands, and whether more than elsewhere."""
    here, more = found.here, found.more
    if np.isnan(here.low):
        return "not measured"
    if here.low > 0:
        return "holds, not only here" if more is not None and not np.isnan(more.low) and more.low <= 0 else "holds"
    return "does not hold" if here.high < 0 else "is open"


def in_words(claim: Claim, found: Verdict) -> str:
    """A claim's measurement as a sentence."""
    said = f"{claim.better} minus {claim.worse}: {points(found.here)} points of {claim.measure}"
    if np.isnan(found.here.low):
        return f"{said}; they differ on too few images to tell."
    if not found.elsewhere or not found.more or np.isnan(found.more.low) or np.isnan(found.elsewhere.low):
        return f"{said}."
    there = points(found.elsewhere)
    if found.here.low <= 0:
        behind = f", so {claim.better} is the worse one" if found.here.high < 0 else ""
        return f"{said}{behind}; elsewhere the difference is {there}."
    if found.more.low > 0:
        return f"{said}; more than elsewhere, where it is {there}."
    less = "less than" if found.more.high < 0 else "not distinguishable from"
    return f"{said}; {less} the difference elsewhere, {there}: the gain is not specific to what the argument names."


def differences(comparison: Comparison) -> Section | None:
    """All pairs."""
    if not comparison.pairs:
        return None
    rows = [
        [
            f"{pair.better} over {pair.worse}",
            points(pair),
            p_value(pair.p),
            p_value(pair.adjusted),
            "yes" if pair.significant else "no",
        ]
        for pair in comparison.pairs
    ]
    numbers = [
        [pair.better, pair.worse, *(f"{100 * v:.3f}" for v in (pair.value, pair.low, pair.high)), pair.p, pair.adjusted]
        for pair in comparison.pairs
    ]
    full = ["better", "worse", "difference", "low", "high", "p", "p adjusted"]
    header = ["pair", "difference in mean IoU", "p", "p, Holm", "differ"]
    how = (
        "Each interval and p is of its pair alone (two-sided); p, Holm is adjusted for all pairs, and below 0.05 two networks "
        "differ. So an interval may exclude 0 beside a no. No means not shown to differ, not equal."
    )
    table = Table("pairs", header, rows, numbers=(full, numbers))
    return Section("Which differences are sure", [*sentences(comparison.pairs), table, how])


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
    sheet = Plot("class_iou", "IoU of each class and network", plots.class_map(names, comparison.classes, values))
    return Section("IoU of each class", [Table("classes", ["class", *names], rows, heat=True, sheet=sheet)])


def training(comparison: Comparison) -> Section:
    """How they learnt."""
    histories = [(one.name, history(one.folder)) for group in comparison.groups.values() for one in group]
    drawn = (
        ("curve_mean_iou", "Validation mean IoU over training steps", "val/mean_iou", "validation mean IoU, %", True),
        ("curve_loss", "Training loss over steps", "train/loss", "training loss", False),
    )
    made = [(name, says, plots.curves(histories, key, label, comparison.numbers, pct)) for name, says, key, label, pct in drawn]
    return Section("Training", [Plot(name, says, figure) for name, says, figure in made if figure])


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
        Table("protocol", ["protocol", ""], [[key, str(value)] for key, value in facts.items()]),
        *(["These commands make this page, train the first run below again, and evaluate it again."] if again else []),
        Commands([*commands, *again]),
        Table("runs", ["network", "seed", *apart, "folder"], runs),
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
