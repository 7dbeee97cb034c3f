"""Values that nothing can be learned with, and metrics that nobody logs: refused before the first step."""

import difflib
import math
from collections.abc import Mapping, Sequence

import torch
from lightning import Callback, Trainer
from torch import nn

from dilated_seg.errors import UserError

LOGGED = ("train/loss", "train/gradient_norm", "train/images_per_second", "train/memory_gb")


def check_monitors(trainer: Trainer, metrics: Sequence[str]) -> None:
    """Require that every callback watches a metric that is logged, in its right direction.

    Args:
        trainer: With its callbacks.
        metrics: What a validation logs.

    Raises:
        UserError: A metric is not logged, or watched for the wrong extreme.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    if any(type(callback).__module__.partition(".")[0] not in ("lightning", "dilated_seg") for callback in callbacks):
        metrics = []  # such a callback may log metrics of its own
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str):
            check_monitor(type(callback).__name__, monitor, getattr(callback, "mode", None), metrics)


def check_monitor(who: str, monitor: str, mode: str | None, metrics: Sequence[str]) -> None:
    """Require that one metric is logged, and watched for the extreme that is good.

    Raises:
        UserError: It is not.
    """
    known = [*metrics, *LOGGED]
    if metrics and monitor not in known and not monitor.startswith("lr-"):
        near = difflib.get_close_matches(monitor, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}"
        raise UserError(f"{who}: monitor {monitor} is no metric that is logged: {hint}")
    best = "min" if monitor.endswith("/loss") else "max" if monitor.startswith(("val/", "test/")) else mode
    if mode in ("min", "max") and mode != best:
        better = "lower" if best == "min" else "higher"
        raise UserError(f"{who}: {monitor} is better the {better} it is, and mode is {mode}: say mode {best}")


def check_class_weights(weights: Sequence[float], classes: Sequence[str]) -> None:
    """Require one finite weight of the loss for each class: 0, which leaves a class out, or more.

    Raises:
        UserError: There are more or fewer, one is negative or not finite in single precision, or all are zero.
    """
    if len(weights) != len(classes):
        raise UserError(f"model.class_weights has {len(weights)} numbers, but there are {len(classes)} classes")
    for name, weight in zip(classes, weights, strict=True):
        if not 0 <= weight <= torch.finfo(torch.float32).max:  # NaN neither
            raise UserError(
                f"model.class_weights: the weight {weight:g} of class {name} is not a finite number from 0 on: "
                "0 leaves a class out of the loss, such as one that no training mask holds"
            )
    if not any(weights):
        raise UserError("model.class_weights are all 0: no class would count in the loss, give at least one a number above 0")


def check_values(
    lr_factors: Mapping[str, float], mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> None:
    """Require factors of the learning rate and a normalization that can be trained with.

    Raises:
        UserError: A factor or a mean is not finite, a factor is negative, or a standard deviation is not above 0.
    """
    for name, factor in lr_factors.items():
        if not 0 <= factor < math.inf:
            raise UserError(f"model.lr_factors: {name}: {factor:g} is not a finite number from 0 on")
    if mean and not all(math.isfinite(number) for number in mean):
        raise UserError(f"model.mean {list(mean)}: three finite numbers are needed (RGB, 0 to 255)")
    if std and not all(0 < number < math.inf for number in std):
        raise UserError(f"model.std {list(std)}: three finite numbers above 0 are needed (RGB, 0 to 255)")


def check_gradient(norm: torch.Tensor, step: int, images: Sequence[str]) -> None:
    """Require a finite gradient.

    Raises:
        UserError: The norm is infinite or NaN at this step, with these images.
    """
    if not torch.isfinite(norm):
        raise UserError(
            f"the gradient is not finite at step {step}, images {', '.join(images)}: lower model.optimizer's learning rate "
            "or set trainer.gradient_clip_val; the checkpoints before it are whole"
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
