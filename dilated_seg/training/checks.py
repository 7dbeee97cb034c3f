"""Checks of arguments and monitored metrics before the first step, and of gradients and parameters during training."""

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning import Callback, Trainer
from torch import nn

from dilated_seg.errors import UserError

LOGGED = ("train/loss", "train/gradient_norm", "train/images_per_second", "train/memory_gb", "train/waiting")


def check_monitors(trainer: Trainer, metrics: Sequence[str]) -> None:
    """Require that every callback monitors a metric that is logged, with the right mode.

    Args:
        trainer: The trainer, with its callbacks.
        metrics: The metrics that a validation logs.

    Raises:
        UserError: A metric is not logged, or the mode is the wrong one.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    if any(type(callback).__module__.partition(".")[0] not in ("lightning", "dilated_seg") for callback in callbacks):
        metrics = []  # the callback may log the metric itself
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str):
            check_monitor(type(callback).__name__, monitor, getattr(callback, "mode", None), metrics)


def check_monitor(name: str, monitor: str, mode: str | None, metrics: Sequence[str]) -> None:
    """Require that a metric is logged, and that the mode is the one in which it improves.

    Raises:
        UserError: The metric is not logged, or the mode is the wrong one.
    """
    known = [*metrics, *LOGGED]
    if metrics and monitor not in known and not monitor.startswith("lr-"):
        near = difflib.get_close_matches(monitor, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}"
        raise UserError(f"{name}: monitor {monitor} is not a logged metric: {hint}")
    best = "min" if monitor.endswith("/loss") else "max" if monitor.startswith(("val/", "test/")) else mode
    if mode in ("min", "max") and mode != best:
        better = "lower" if best == "min" else "higher"
        raise UserError(f"{name}: {monitor} is better the {better} it is, but mode is {mode}: set mode {best}")


def require_measured(
    data: Any, class_weights: Sequence[float] | str | None, mean: Sequence[float] | None, std: Sequence[float] | None  # noqa: ANN401
) -> Sequence[float] | None:  # fmt: skip
    """Return the class weights, after checking that nothing is missing which ``fit`` measures on the command line.

    Raises:
        UserError: The class weights are the name of a method, or the images are not RGB and there is no mean or deviation.
    """
    if isinstance(class_weights, str):
        raise UserError(
            f"model.class_weights {class_weights} is counted by fit: in Python, give the weights of "
            f"dilated_seg.data.class_weights.count_class_weights(data, '{class_weights}')"
        )
    channels = getattr(data, "in_channels", 3)
    if channels != 3 and None in (mean, std):
        raise UserError(
            f"model.mean and model.std of {channels} channels are measured by fit: in Python, give the task those of "
            "dilated_seg.data.normalization.measure_normalization(data)"
        )
    return class_weights


def check_arguments(
    classes: Sequence[str],
    class_weights: Sequence[float] | None,
    bias_factors: Mapping[str, float],
    lr_factors: Mapping[str, float],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> None:
    """Require values of the task's arguments with which a network can learn.

    Raises:
        UserError: There is not one finite weight of at least 0 for each class, or all are 0; a factor of a learning rate or
            weight decay, or a mean, is not finite, a factor is negative, or a standard deviation is not above 0.
    """
    if class_weights is not None and len(class_weights) != len(classes):
        raise UserError(f"model.class_weights has {len(class_weights)} values, but there are {len(classes)} classes")
    for name, weight in zip(classes, class_weights or (), strict=False):
        if not 0 <= weight <= torch.finfo(torch.float32).max:  # excludes NaN
            raise UserError(
                f"model.class_weights: the weight {weight:g} of class {name} is not a finite number of at least 0: "
                "0 leaves a class out of the loss, such as one without a pixel in the training masks"
            )
    if class_weights is not None and not any(class_weights):
        raise UserError("model.class_weights are all 0: set the weight of at least one class above 0")
    for name, factor in (*bias_factors.items(), *((f"lr_factors: {name}:", factor) for name, factor in lr_factors.items())):
        if not 0 <= factor < math.inf:
            raise UserError(f"model.{name} {factor:g} is not a finite number of at least 0")
    if mean and not all(math.isfinite(value) for value in mean):
        raise UserError(f"model.mean {list(mean)}: finite values are required, one for each channel (RGB, 0 to 255)")
    if std and not all(0 < value < math.inf for value in std):
        raise UserError(f"model.std {list(std)}: finite values above 0 are required, one for each channel (RGB, 0 to 255)")


def read_classes(
    data: Any, num_classes: int | None, ignore_index: int, classes: Sequence[str] | None  # noqa: ANN401
) -> tuple[int, int, Sequence[str] | None]:  # fmt: skip
    """Return the task's number of classes, ignore index and class names: those of a data module if there is one.

    Raises:
        UserError: There is neither a data module nor a number of classes, or they differ.
    """
    if data is None and num_classes is None:
        raise UserError("the task has no number of classes: pass it the data module, SegmentationTask(net=..., data=...)")
    if data is None:
        return int(num_classes), ignore_index, classes  # type: ignore[arg-type] # one of the two is given
    if num_classes not in (None, data.num_classes):
        raise UserError(f"num_classes is {num_classes}, but {type(data).__name__} has {data.num_classes}: pass only data")
    return data.num_classes, data.ignore_index, list(data.classes)


def check_gradient(norm: torch.Tensor, step: int, images: Sequence[str]) -> None:
    """Require a finite gradient.

    Raises:
        UserError: The norm is infinite or NaN at this step, with these images.
    """
    if not torch.isfinite(norm):
        raise UserError(
            f"the gradient is not finite at step {step}, images {', '.join(images)}: lower model.optimizer's learning rate "
            "or set trainer.gradient_clip_val; earlier checkpoints are intact"
        )


def check_parameters(model: nn.Module, step: int) -> None:
    """Require finite parameters.

    Raises:
        UserError: A parameter is infinite or NaN after this step.
    """
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise UserError(
                f"{name} is not finite after step {step}: lower model.optimizer's learning rate "
                "or set trainer.gradient_clip_val"
            )
