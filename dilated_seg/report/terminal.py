"""An evaluation and a comparison as tables in the terminal, in percent, with their protocol."""

from rich.table import Table

from dilated_seg.data.classes import describe_labels
from dilated_seg.errors import open_console
from dilated_seg.metrics.confusion import percent
from dilated_seg.report.comparison import Comparison
from dilated_seg.report.results import describe_shared_protocol
from dilated_seg.report.sections.result import tabulate_networks
from dilated_seg.report.settings import list_warnings
from dilated_seg.report.wording import describe_pairs
from dilated_seg.runs import Evaluation


def show_evaluation(evaluation: Evaluation, refined: Evaluation | None = None) -> None:
    """Print a table with the IoU and accuracy of every class and their means, and the evaluation protocol.

    Args:
        evaluation: The evaluation.
        refined: The evaluation after a dense CRF, shown in additional columns.
    """
    protocol = evaluation.protocol
    table = Table(title=", ".join(filter(None, (f"{protocol.dataset} {protocol.split}", protocol.partial))))
    table.add_column("class")
    evaluations = [evaluation] + ([refined] if refined else [])
    for _, after in zip(evaluations, ("", ", CRF"), strict=False):
        table.add_column(f"IoU %{after}", justify="right")
        table.add_column(f"accuracy %{after}", justify="right")
    metrics = [evaluation.metrics for evaluation in evaluations]
    for k, name in enumerate(evaluation.classes):
        table.add_row(name, *(percent(values[score][k]) for values in metrics for score in ("iou", "accuracy")))
    table.add_section()
    table.add_row(
        "mean", *(percent(values[score]) for values in metrics for score in ("mean_iou", "mean_accuracy")), style="bold"
    )
    weighted = (percent(values[score]) for values in metrics for score in ("frequency_weighted_iou", "pixel_accuracy"))
    table.add_row("weighted by frequency", *weighted)
    console = open_console()
    console.print(table)
    console.print(str(protocol), soft_wrap=True)
    for note in list_label_notes(evaluation):
        console.print(f"warning: {note}", soft_wrap=True)
    if refined:
        console.print(f"CRF: {refined.protocol.describe()['inference']}", soft_wrap=True)


def show_comparison(comparison: Comparison) -> None:
    """Print the comparison in two tables that fit a narrow terminal: a row per network, and a row per class."""
    header, rows = tabulate_networks(comparison)
    classes = comparison.classes
    title = ", ".join(filter(None, ("comparison, in percent", comparison.results[0].evaluation.protocol.partial)))
    means, per_class = Table(title=title), Table(title="IoU of each class, in percent")
    for column in header[: -len(classes)]:
        means.add_column(column, justify="left" if column == "network" else "right", no_wrap=column != "network")
    for row in rows:
        means.add_row(*row[: -len(classes)], style="dim" if row is rows[-1] else None)
    for column in ["class", *(row[0] for row in rows[:-1])]:
        per_class.add_column(column, justify="left" if column == "class" else "right", overflow="fold", min_width=5)
    for k, name in enumerate(classes):
        per_class.add_row(name, *(row[len(row) - len(classes) + k] for row in rows[:-1]))
    console = open_console()
    console.print(means, per_class)
    for sentence in describe_pairs(comparison.pairs):
        console.print(sentence, soft_wrap=True)
    console.print(describe_shared_protocol(comparison.results), soft_wrap=True)
    if comparison.settings:
        console.print(f"settings that differ: {', '.join(comparison.settings)}", soft_wrap=True)
    for warning in list_warnings(comparison.settings):
        console.print(f"warning: {warning.replace('**', '')}", soft_wrap=True)


def list_label_notes(evaluation: Evaluation) -> list[str]:
    """Return sentences on missing classes and unlabelled pixels, which affect the interpretation of metrics."""
    pixels, split = evaluation.matrix.sum(1).tolist(), evaluation.protocol.split
    return describe_labels(pixels, evaluation.ignored_pixels, evaluation.classes, split, evaluation.ignore_index)
