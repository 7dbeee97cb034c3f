"""The report's sections on how networks were trained and evaluated: curves, settings that differ, the protocol."""

from collections.abc import Mapping, Sequence

from dilated_seg.analysis import plots
from dilated_seg.errors import format_command
from dilated_seg.report.blocks import Commands, Fold, Plot, ReportTable, Section
from dilated_seg.report.comparison import Comparison
from dilated_seg.report.results import Result, list_differences
from dilated_seg.report.settings import find_kind
from dilated_seg.report.wording import join_names

SHOWN_RUNS = 8  # rows of the table of runs above which it is folded
SETTING_COLUMNS = 8  # networks, above which the table of settings has a row for each value
SETTINGS_EXPLAINED = (
    "From the resolved configuration of each run (config.yaml); seeds, output paths and what only affects display are left "
    "out. A dash: the network has no such setting. Two values (400 | 800): the seeds of a network differ."
)


def build_curve_section(comparison: Comparison) -> Section:
    """Build the section of training curves; a run that was evaluated several times is drawn once."""
    runs = {result.run.path: (result.name, result.run) for group in comparison.groups.values() for result in reversed(group)}
    histories = [(name, run.history()) for name, run in sorted(runs.values(), key=lambda item: comparison.numbers[item[0]])]
    curves = (
        ("curve_mean_iou", "Validation mean IoU over training steps", "val/mean_iou", "validation mean IoU, %", True),
        ("curve_loss", "Training loss over steps", "train/loss", "training loss", False),
    )
    figures = [
        (name, alt, plots.draw_curves(histories, key, label, comparison.numbers, percent))
        for name, alt, key, label, percent in curves
    ]
    return Section("Training curves", [Plot(name, alt, figure) for name, alt, figure in figures if figure])


def build_setting_section(comparison: Comparison) -> Section | None:
    """Build the section of settings in which the runs differ; None for a single network whose seeds agree."""
    networks = list(comparison.groups)
    if not comparison.settings:
        if len(networks) == 1:
            return None
        return Section("Settings that differ", ["The configurations of these runs differ in nothing but the seed."])
    without = [str(result.run) for result in comparison.results if not result.run.is_run]
    missing = f"**Without a configuration, so their settings are not known: {', '.join(without)}.**"
    csv = (["setting", *networks], [[name, *row.values()] for name, row in comparison.settings.items()])
    labelled = {f"{name} (!)" if find_kind(name) else name: row for name, row in comparison.settings.items()}
    if len(networks) > SETTING_COLUMNS:
        rows = [[name, *cells] for name, row in labelled.items() for cells in group_by_value(row)]
        table = ReportTable("settings", ["setting", "value", "networks"], rows, csv=csv)
    else:
        rows = [[name, *row.values()] for name, row in labelled.items()]
        table = ReportTable("settings", ["setting", *networks], rows, csv=csv)
    note = "(!): the training budget or data." if any(map(find_kind, comparison.settings)) else ""
    return Section("Settings that differ", [*([missing] if without else []), table, f"{SETTINGS_EXPLAINED} {note}".strip()])


def group_by_value(row: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return each value of a setting with the networks that have it, the most frequent value first."""
    groups: dict[str, list[str]] = {}
    for network, value in row.items():
        groups.setdefault(value, []).append(network)
    return [(value, join_names(names)) for value, names in sorted(groups.items(), key=lambda item: -len(item[1]))]


def build_protocol_section(comparison: Comparison, commands: Sequence[str]) -> Section:
    """Build the section on the evaluation protocol, with commands and the directory of every run."""
    differing = list_differences(comparison.results)
    shared = {k: v for k, v in comparison.results[0].evaluation.protocol.describe().items() if k not in differing}
    runs = []
    for result in comparison.results:
        values = [result.evaluation.protocol.describe()[key] for key in differing]
        runs.append([result.name, str(result.seed), *values, str(result.run)])
    table = ReportTable("runs", ["network", "seed", *differing, "directory"], runs)
    repeat = list_commands(comparison.results[0])
    return Section("Evaluation protocol", [
        ReportTable("protocol", ["protocol", ""], [[key, value] for key, value in shared.items()]),
        "Mean IoU is computed from one confusion matrix of the whole split, not as a mean over images; a class that is only "
        "predicted counts 0. All values are read from the runs below. results.parquet has those of each run, a CSV file those "
        "of each table.",
        *(["These commands create this page, and repeat training and evaluation of the first run below."] if repeat else []),
        Commands([*commands, *repeat]),
        table if len(runs) <= SHOWN_RUNS else Fold(f"{len(runs)} runs", [table]),
    ])  # fmt: skip


def list_commands(result: Result) -> list[str]:
    """Return the commands that repeat the training and the evaluation of a result."""
    protocol, run = result.evaluation.protocol, result.run
    if not run.is_run:
        return []
    run_dir = ("--run_dir", f"{run}-again") if run.checkpoints() else ()
    commands = [format_command("dilated-seg", "fit", "--config", run.config_file, *run_dir)]
    weights = run.checkpoint_dir / f"{protocol.checkpoint}.ckpt"
    if protocol.is_whole_image and weights.is_file() and not protocol.partial:
        command = "test" if protocol.split == "test" else "validate"
        commands.append(format_command("dilated-seg", command, "--config", run.config_file, "--ckpt_path", weights))
    return commands
