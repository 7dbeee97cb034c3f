"""Parameter groups of the optimizer, with the learning rates of the papers' Caffe solvers, and the steps of schedulers."""

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from dilated_seg.errors import UserError
from dilated_seg.training.checks import check_monitor

# The Caffe solvers of all these papers: a bias learns twice as fast as a weight, and does not decay.
BIAS_RATE = 2.0


def build_optimizer(
    build: Callable[[list[dict[str, Any]]], Optimizer], model: nn.Module, factors: Mapping[str, float], fixed: Collection[str]
) -> Optimizer:
    """Build an optimizer of a model's parameters: biases have twice the learning rate and no weight decay.

    Args:
        build: Builds the optimizer from parameter groups.
        model: Its parameters that a callback has frozen for now are among them.
        factors: Multiplies the learning rate of the parameters whose names start with the key.
        fixed: The names of the parameters that the network itself never learns.

    Raises:
        UserError: No parameter's name starts with a key of ``factors``.
    """
    names = [name for name, _ in model.named_parameters()]
    if unused := [prefix for prefix in factors if not any(name.startswith(prefix) for name in names)]:
        raise UserError(f"model.lr_factors names {unused[0]}, but no parameter of the network starts so")
    by_factor: dict[float, tuple[list[Tensor], list[Tensor]]] = {}
    for name, parameter in model.named_parameters():
        if name not in fixed:
            factor = next((value for prefix, value in factors.items() if name.startswith(prefix)), 1.0)
            by_factor.setdefault(factor, ([], []))[name.endswith("bias")].append(parameter)
    groups: list[dict[str, Any]] = []
    rates: list[float] = []
    for factor, (weights, biases) in by_factor.items():
        groups += [{"params": weights}, {"params": biases, "weight_decay": 0.0}]
        rates += [factor, factor * BIAS_RATE]
    optimizer = build(groups)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] *= rate
    return optimizer


def schedule(scheduler: LRScheduler, metrics: Sequence[str]) -> dict[str, Any]:
    """Return when a scheduler steps, as Lightning wants it: once an iteration, or on a plateau by `step_on_plateau`.

    Raises:
        UserError: It watches none of the metrics of a validation.
    """
    if not isinstance(scheduler, ReduceLROnPlateau):
        return {"scheduler": scheduler, "interval": "step"}
    monitor = getattr(scheduler, "monitor", "val/loss")
    check_monitor("ReduceLROnPlateau", monitor, scheduler.mode, metrics)
    return {"scheduler": scheduler, "interval": "step", "monitor": monitor, "frequency": sys.maxsize}


def step_on_plateau(task: Any) -> None:  # noqa: ANN401 - a SegmentationTask
    """Let a scheduler that watches a metric see what the validation found, before a checkpoint is saved."""
    if task.trainer.state.fn != TrainerFn.FITTING or task.trainer.sanity_checking:
        return
    for scheme in task.trainer.lr_scheduler_configs:
        if scheme.reduce_on_plateau and scheme.monitor in task.trainer.callback_metrics:
            task.lr_scheduler_step(scheme.scheduler, task.trainer.callback_metrics[scheme.monitor])
