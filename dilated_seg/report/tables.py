"""Numbers as people read them: in percent with one decimal, in tables that carry their protocol."""

from rich.table import Table

from dilated_seg.errors import open_console
from dilated_seg.metrics.confusion import percent as percent
from dilated_seg.runs import Evaluation


def show_evaluation(evaluation: Evaluation, refined: Evaluation | None = None) -> None:
    """Print one table: IoU and accuracy of every class, their means, and the protocol they were measured by.

    Args:
        evaluation: What the evaluation wrote.
        refined: The same after a dense CRF, for columns of its own.
    """
    protocol = evaluation.protocol
    table = Table(title=", ".join(filter(None, (f"{protocol.dataset} {protocol.split}", protocol.partial))))
    table.add_column("class")
    evaluations = [evaluation] + ([refined] if refined else [])
    for _, after in zip(evaluations, ("", ", CRF"), strict=False):
        table.add_column(f"IoU %{after}", justify="right")
        table.add_column(f"accuracy %{after}", justify="right")
    values = [one.metrics for one in evaluations]
    for k, name in enumerate(evaluation.classes):
        table.add_row(name, *(percent(one[score][k]) for one in values for score in ("iou", "accuracy")))
    table.add_section()
    table.add_row("mean", *(percent(one[score]) for one in values for score in ("mean_iou", "mean_accuracy")), style="bold")
    weighted = (percent(one[score]) for one in values for score in ("frequency_weighted_iou", "pixel_accuracy"))
    table.add_row("weighted by frequency", *weighted)
    console = open_console()
    console.print(table)
    console.print(str(protocol), soft_wrap=True)
    for note in evaluation.describe_labels():
        console.print(f"warning: {note}", soft_wrap=True)
    if refined:
        console.print(f"CRF: {refined.protocol.describe()['inference']}", soft_wrap=True)
