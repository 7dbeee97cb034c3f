"""Schedules of the learning rate: when they step, and several one after the other."""

import sys
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim import Optimizer
from torch.optim import lr_scheduler as torch_schedules
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from dilated_seg.errors import UserError
from dilated_seg.training.checks import check_monitor


class SequentialLR(torch_schedules.SequentialLR):
    """Several schedules in sequence, such as a warm-up and then poly. Each begins at its step 0 with the optimizer's rate.

    torch's class of the same name needs schedulers that have an optimizer already, which YAML cannot express.

    Args:
        optimizer: The optimizer whose learning rates are scheduled.
        schedulers: The schedules, at least two.
        milestones: The steps at which the second and following schedules begin, ascending.

    Raises:
        UserError: The milestones are not one fewer than the schedules or do not ascend, or a schedule depends on a metric.
    """

    def __init__(self, optimizer: Optimizer, schedulers: list[LRSchedulerCallable], milestones: list[int]) -> None:
        if len(schedulers) < 2 or len(milestones) != len(schedulers) - 1:
            raise UserError(
                f"SequentialLR has {len(schedulers)} schedulers and {len(milestones)} milestones: give two or more schedulers, "
                "and the step at which each but the first begins"
            )
        if any(after <= before for before, after in zip([0, *milestones], milestones, strict=False)):
            raise UserError(f"SequentialLR: milestones {milestones} do not ascend from above 0")
        built = [scheduler(optimizer) for scheduler in schedulers]
        if any(isinstance(scheduler, ReduceLROnPlateau) for scheduler in built):
            raise UserError("SequentialLR: ReduceLROnPlateau follows a metric, and not the step: use it alone")
        super().__init__(optimizer, built, milestones)


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
