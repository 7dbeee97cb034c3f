"""What W&B shows of an evaluation, in forms that several runs can be compared by."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
import wandb
from lightning import Trainer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from wandb.data_types import Classes

from dilated_seg.metrics.confusion import compute_metrics
from dilated_seg.training.lightning_internals import logged_step
from dilated_seg.training.loggers import SafeWandbLogger


class GalleryImage(NamedTuple):
    """An image of an evaluation: its place in the split, RGB (H, W, 3), class ids (H, W) and confusion matrix (C, C)."""

    place: int
    name: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    matrix: np.ndarray


def show_in_wandb(trainer: Trainer, content: Callable[[], dict[str, Any]]) -> None:
    """Log tables and pictures, made only if somebody takes them, beside the numbers of the evaluation that is running."""
    for logger in trainer.loggers:
        if isinstance(logger, SafeWandbLogger):
            logger.log_metrics(content(), logged_step(trainer))


def tabulate_confusion(matrix: np.ndarray, classes: Sequence[str]) -> Any:  # noqa: ANN401 - wandb's chart
    """Return W&B's chart of a confusion matrix (C, C; rows are the ground truth) and its table: one row a pair of classes."""
    rows = [
        [truth, prediction, int(pixels), percent]
        for truth, row, shares in zip(classes, matrix, to_percent(matrix), strict=True)
        for prediction, pixels, percent in zip(classes, row, shares.tolist(), strict=True)
    ]
    return wandb.plot_table(
        "wandb/confusion_matrix/v1",
        wandb.Table(["truth", "prediction", "pixels", "percent of truth"], rows),
        {"Actual": "truth", "Predicted": "prediction", "nPredictions": "percent of truth"},
        {"title": "Confusion: percent of each class's pixels (rows: truth)"},
    )


def to_percent(matrix: np.ndarray) -> np.ndarray:
    """Return a confusion matrix in percent of each row; a class absent from the truth has zeros."""
    return 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)


def draw_confusion(matrix: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Return an image (H, W, 3) of a confusion matrix (C, C), for color-blind readers too; takes up to half a second."""
    values, side = to_percent(matrix), 2.2 + 0.42 * len(classes)
    with matplotlib.rc_context({"text.parse_math": False}):  # a class "$" is no formula
        canvas: Any = FigureCanvasAgg(Figure(figsize=(side, side), dpi=100, layout="constrained"))
        axes = canvas.figure.add_subplot()
        axes.imshow(values, cmap="cividis", vmin=0, vmax=100)
        for (row, column), value in np.ndenumerate(values):
            if value >= 0.5:
                colour = "white" if value < 55 else "black"
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8)
        places = range(len(classes))
        axes.set_xticks(places, classes, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(places, [name if row.sum() else f"{name} (absent)" for name, row in zip(classes, matrix, strict=True)])
        axes.set(xlabel="prediction", ylabel="truth")
        axes.set_title("percent of each class's pixels", fontsize=10)
        axes.tick_params(length=0)
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def tabulate_images(pictures: Sequence[GalleryImage], classes: Sequence[str], ignore_index: int) -> wandb.Table:
    """Return a table with one row an image: its id, itself under its ground truth and its prediction, and its metrics."""
    names = {**dict(enumerate(classes)), ignore_index: "not labelled"}
    known = Classes([{"id": number, "name": name} for number, name in names.items()])
    rows = []
    for picture in pictures:
        masks = {
            what: {"mask_data": ids, "class_labels": names}
            for what, ids in (("truth", picture.truth), ("prediction", picture.prediction))
        }
        values = compute_metrics(torch.from_numpy(picture.matrix))
        shown = wandb.Image(picture.image, masks=masks, classes=known)
        rows.append([picture.name, shown, float(values["mean_iou"]), float(values["pixel_accuracy"])])
    return wandb.Table(["id", "image", "mean_iou", "pixel_accuracy"], rows)
