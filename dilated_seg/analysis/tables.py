"""Numbers as people read them: in percent with one decimal, in tables that carry their protocol."""

import math
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from dilated_seg.classes import describe_labels
from dilated_seg.metrics import scores


def percent(value: Any) -> str:  # noqa: ANN401 - a float or a tensor of one
    """A fraction as a percentage with one decimal; a dash for a class that does not occur."""
    return "-" if math.isnan(float(value)) else f"{100 * float(value):.1f}"


def protocol(record: dict[str, Any]) -> str:
    """How an evaluation was made, in one line."""
    return "; ".join(f"{key}: {value}" for key, value in record["protocol"].items())


def show_evaluation(record: dict[str, Any], refined: dict[str, Any] | None = None) -> None:
    """Print one table: IoU and accuracy of every class, their means, and the protocol they were measured by.

    Args:
        record: What the evaluation wrote.
        refined: The same after a CRF, to stand beside it.
    """
    table = Table(title=f"{record['protocol']['dataset']} {record['protocol']['split']}")
    table.add_column("class")
    records = [record] + ([refined] if refined else [])
    for _, after in zip(records, ("", ", CRF"), strict=False):
        table.add_column(f"IoU %{after}", justify="right")
        table.add_column(f"accuracy %{after}", justify="right")
    values = [scores(torch.tensor(one["matrix"])) for one in records]
    for k, name in enumerate(record["classes"]):
        table.add_row(name, *(percent(one[score][k]) for one in values for score in ("iou", "accuracy")))
    table.add_section()
    table.add_row("mean", *(percent(one[score]) for one in values for score in ("mean_iou", "mean_accuracy")), style="bold")
    weighted = (percent(one[score]) for one in values for score in ("frequency_weighted_iou", "pixel_accuracy"))
    table.add_row("weighted by frequency", *weighted)
    console = Console()
    console.print(table)
    console.print(protocol(record), highlight=False, soft_wrap=True)
    for note in describe_labels(record):
        console.print(f"warning: {note}", highlight=False, soft_wrap=True, markup=False)
    if refined:
        console.print(f"CRF: {refined['protocol']['inference']}", highlight=False, soft_wrap=True)
