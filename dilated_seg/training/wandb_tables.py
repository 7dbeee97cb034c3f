"""Tables and images of an evaluation for W&B, in forms that allow runs to be compared."""

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
from dilated_seg.training.lightning_internals import get_logged_step
from dilated_seg.training.loggers import SafeWandbLogger


class GalleryImage(NamedTuple):
    """An image of an evaluation: number in the split, RGB (H, W, 3), class ids (H, W) and confusion matrix (C, C)."""

    number: int
    name: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    matrix: np.ndarray


def log_to_wandb(trainer: Trainer, content: Callable[[], dict[str, Any]]) -> None:
    """Log tables and images at the step of the running evaluation's metrics; they are built only if there is a logger."""
    for logger in trainer.loggers:
        if isinstance(logger, SafeWandbLogger):
            logger.log_metrics(content(), get_logged_step(trainer))


def tabulate_confusion(matrix: np.ndarray, classes: Sequence[str]) -> Any:  # noqa: ANN401 - wandb's chart
    """Return W&B's chart of a confusion matrix (C, C; rows are the ground truth), whose table has a row per pair of classes."""
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
    """Return a confusion matrix in percent of each row; a class absent from the masks has zeros."""
    return 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)


def draw_confusion(matrix: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Return an image (H, W, 3) of a confusion matrix (C, C), in a palette for color-blind readers; takes up to 0.5 s."""
    values, side = to_percent(matrix), 2.2 + 0.42 * len(classes)
    with matplotlib.rc_context({"text.parse_math": False}):  # "$" in a class name is not a formula
        canvas: Any = FigureCanvasAgg(Figure(figsize=(side, side), dpi=100, layout="constrained"))
        axes = canvas.figure.add_subplot()
        axes.imshow(values, cmap="cividis", vmin=0, vmax=100)
        for (row, column), value in np.ndenumerate(values):
            if value >= 0.5:
                color = "white" if value < 55 else "black"
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=color, fontsize=8)
        ticks = range(len(classes))
        axes.set_xticks(ticks, classes, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(ticks, [name if row.sum() else f"{name} (absent)" for name, row in zip(classes, matrix, strict=True)])
        axes.set(xlabel="prediction", ylabel="truth")
        axes.set_title("percent of each class's pixels", fontsize=10)
        axes.tick_params(length=0)
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def tabulate_images(images: Sequence[GalleryImage], classes: Sequence[str], ignore_index: int) -> wandb.Table:
    """Return a table with a row per image: its id, the image under its mask and its prediction, and its metrics."""
    names = {**dict(enumerate(classes)), ignore_index: "not labelled"}
    class_list = Classes([{"id": number, "name": name} for number, name in names.items()])
    rows = []
    for image in images:
        masks = {
            kind: {"mask_data": ids, "class_labels": names}
            for kind, ids in (("truth", image.truth), ("prediction", image.prediction))
        }
        values = compute_metrics(torch.from_numpy(image.matrix))
        overlay = wandb.Image(image.image, masks=masks, classes=class_list)
        rows.append([image.name, overlay, float(values["mean_iou"]), float(values["pixel_accuracy"])])
    return wandb.Table(["id", "image", "mean_iou", "pixel_accuracy"], rows)
