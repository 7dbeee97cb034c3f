"""Numbers as people read them: in percent with one decimal, in tables that carry their protocol."""

import math
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from dilated_seg.metrics import scores


def percent(value: Any) -> str:  # noqa: ANN401 - a float or a tensor of one
    """A fraction as a percentage with one decimal; a dash for a class that does not occur."""
    return "-" if math.isnan(float(value)) else f"{100 * float(value):.1f}"


def protocol(record: dict[str, Any]) -> str:
    """How an evaluation was made, in one line."""
    return "; ".join(f"{key}: {value}" for key, value in record["protocol"].items())


def show_evaluation(record: dict[str, Any]) -> None:
    """Print one table: IoU and accuracy of every class, their means, and the protocol they were measured by."""
    values = scores(torch.tensor(record["matrix"]))
    table = Table(title=f"{record['protocol']['dataset']} {record['protocol']['split']}")
    table.add_column("class")
    table.add_column("IoU %", justify="right")
    table.add_column("accuracy %", justify="right")
    for name, iou, accuracy in zip(record["classes"], values["iou"], values["accuracy"], strict=True):
        table.add_row(name, percent(iou), percent(accuracy))
    table.add_section()
    table.add_row("mean", percent(values["mean_iou"]), percent(values["mean_accuracy"]), style="bold")
    table.add_row("weighted by frequency", percent(values["frequency_weighted_iou"]), percent(values["pixel_accuracy"]))
    console = Console()
    console.print(table)
    console.print(protocol(record), highlight=False, soft_wrap=True)
