"""Numbers as people read them: in percent with one decimal, in tables that carry their protocol."""

from typing import Any

import torch
from rich.table import Table

from dilated_seg.data.classes import describe_labels
from dilated_seg.errors import open_console
from dilated_seg.metrics.confusion import compute_metrics
from dilated_seg.metrics.confusion import percent as percent
from dilated_seg.runs.results import name_partial, protocol


def show_evaluation(record: dict[str, Any], refined: dict[str, Any] | None = None) -> None:
    """Print one table: IoU and accuracy of every class, their means, and the protocol they were measured by.

    Args:
        record: What the evaluation wrote.
        refined: The same after a CRF, to stand beside it.
    """
    title = f"{record['protocol']['dataset']} {record['protocol']['split']}"
    table = Table(title=", ".join(filter(None, (title, name_partial(record)))))
    table.add_column("class")
    records = [record] + ([refined] if refined else [])
    for _, after in zip(records, ("", ", CRF"), strict=False):
        table.add_column(f"IoU %{after}", justify="right")
        table.add_column(f"accuracy %{after}", justify="right")
    values = [compute_metrics(torch.tensor(one["matrix"])) for one in records]
    for k, name in enumerate(record["classes"]):
        table.add_row(name, *(percent(one[score][k]) for one in values for score in ("iou", "accuracy")))
    table.add_section()
    table.add_row("mean", *(percent(one[score]) for one in values for score in ("mean_iou", "mean_accuracy")), style="bold")
    weighted = (percent(one[score]) for one in values for score in ("frequency_weighted_iou", "pixel_accuracy"))
    table.add_row("weighted by frequency", *weighted)
    console = open_console()
    console.print(table)
    console.print(protocol(record), soft_wrap=True)
    for note in describe_labels(record):
        console.print(f"warning: {note}", soft_wrap=True)
    if refined:
        console.print(f"CRF: {refined['protocol']['inference']}", soft_wrap=True)
