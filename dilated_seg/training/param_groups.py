"""Parameter groups with the learning rates of the papers' Caffe solvers, and the steps of schedulers."""

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from dilated_seg.errors import UserError
from dilated_seg.training.checks import check_monitor

# In the Caffe solvers of all these papers, biases have twice the learning rate of weights, and no weight decay.
BIAS_RATE = 2.0


def configure(task: Any) -> dict[str, Any]:  # noqa: ANN401 - a SegmentationTask, a layer above
    """Return Lightning's configuration of a task's optimizer and scheduler, of the parameters of its model and loss.

    Raises:
        UserError: See `build_optimizer` and `schedule`.
    """
    parameters = [*task.model.named_parameters(), *task.loss.named_parameters("loss")]
    optimizer = build_optimizer(task.optimizer, parameters, task.lr_factors, task.fixed)
    if task.lr_scheduler is None:
        return {"optimizer": optimizer}
    return {"optimizer": optimizer, "lr_scheduler": schedule(task.lr_scheduler(optimizer), task.metric_names("val"))}


def build_optimizer(
    build: Callable[[list[dict[str, Any]]], Optimizer],
    parameters: Sequence[tuple[str, Tensor]],
    factors: Mapping[str, float],
    fixed: Collection[str],
) -> Optimizer:
    """Build an optimizer of parameters: biases have twice the learning rate and no weight decay.

    Args:
        build: Builds the optimizer from parameter groups.
        parameters: By name, also those that a callback has frozen.
        factors: Factor of the learning rate of parameters whose names start with the key.
        fixed: The names of parameters that the network never learns, which are left out.

    Raises:
        UserError: No parameter's name starts with a key of ``factors``.
    """
    names = [name for name, _ in parameters]
    if unused := [prefix for prefix in factors if not any(name.startswith(prefix) for name in names)]:
        raise UserError(f"model.lr_factors: {unused[0]} is not the beginning of any parameter's name, such as {names[0]}")
    by_factor: dict[float, tuple[list[Tensor], list[Tensor]]] = {}
    for name, parameter in parameters:
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
    """Return Lightning's configuration of a scheduler: a step per iteration, or by `step_on_plateau`.

    Raises:
        UserError: The scheduler monitors a metric that a validation does not log.
    """
    if not isinstance(scheduler, ReduceLROnPlateau):
        return {"scheduler": scheduler, "interval": "step"}
    monitor = getattr(scheduler, "monitor", "val/loss")
    check_monitor("ReduceLROnPlateau", monitor, scheduler.mode, metrics)
    return {"scheduler": scheduler, "interval": "step", "monitor": monitor, "frequency": sys.maxsize}


def step_on_plateau(task: Any) -> None:  # noqa: ANN401 - a SegmentationTask
    """Step a scheduler that monitors a metric after a validation, before a checkpoint is saved."""
    if task.trainer.state.fn != TrainerFn.FITTING or task.trainer.sanity_checking:
        return
    for config in task.trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and config.monitor in task.trainer.callback_metrics:
            task.lr_scheduler_step(config.scheduler, task.trainer.callback_metrics[config.monitor])
