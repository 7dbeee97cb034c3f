"""Exact resuming: a seed per step, accumulated gradients in checkpoints, a checkpoint after errors."""

import sys
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn

from dilated_seg.data.samplers import get_run_seed, mix_seeds
from dilated_seg.errors import format_command, format_error
from dilated_seg.runs.run import Run
from dilated_seg.training.labels import NothingToLearnError
from dilated_seg.training.lightning_internals import dump_checkpoint, set_logged_step

BATCHES, VALIDATION = "epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress"  # in the state of Lightning's loops
# Lightning repeats a validation, from its first batch on, if one was started and none completed.
NONE_STARTED = {"ready": 0, "started": 0, "processed": 0, "completed": 0}
ONE_STARTED = {"ready": 1, "started": 1, "processed": 0, "completed": 0}


class SeedEveryStep(Callback):
    """Seeds dropout from the run's seed, the batch's number and the process, so that a resumed run draws the same values."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:  # noqa: ANN401
        seed = mix_seeds(get_run_seed(), trainer.fit_loop.epoch_loop.batch_progress.total.ready, trainer.global_rank)
        torch.manual_seed(seed)


class KeepGradients(Callback):
    """Saves accumulated gradients when a checkpoint is written in the middle of an accumulation, and restores them.

    Of several processes it saves the mean gradient, which the optimizer uses. After an error the accumulation starts
    again: see SaveOnError.
    """

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        task: Any = pl_module
        accumulates = trainer.accumulate_grad_batches > 1 and not trainer.interrupted
        if accumulates and task.accumulating:
            checkpoint["gradients"] = {
                name: trainer.strategy.reduce(p.grad.clone(), reduce_op="mean")
                for name, p in pl_module.named_parameters()
                if p.grad is not None
            }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.gradients = checkpoint.get("gradients", {})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, parameter in pl_module.named_parameters():
            if name in self.gradients:
                parameter.grad = self.gradients[name].to(parameter.device)
        self.gradients = {}


class SaveOnError(Callback):
    """Saves the last complete step as ``last.ckpt`` when training ends by an exception, such as an unreadable file.

    A step is complete when the optimizer and the learning rate schedule have been updated. Before the update, the parameters
    are those of the previous step, so the buffers (of batch norm) and the position in the data are reset to its end. During
    the update nothing is saved, nor are parameters that are not finite. An unfinished validation is repeated on resuming.

    With several processes the first one saves, without the others, which may not answer any more.
    """

    def __init__(self) -> None:
        self.stepped = False  # in this session
        self.validated = False  # since the last step
        self.loops: dict[str, Any] | None = None  # state of Lightning's loops at the end of the last step, during the next one
        self.buffers: dict[str, torch.Tensor] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: ANN401
        # Lightning logs one step late when a run continues after a validation.
        set_logged_step(trainer, trainer.global_step)
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.buffers = {name: buffer.clone() for name, buffer in pl_module.named_buffers()}
            self.loops = trainer.fit_loop.state_dict()
            for counts in (self.loops[BATCHES]["total"], self.loops[BATCHES]["current"]):
                counts["ready"] = counts["completed"]  # this batch has been read, but has changed nothing

    def on_train_batch_end(self, trainer: Trainer, task: Any, *args: Any) -> None:  # noqa: ANN401
        if task.updating:
            self.stepped, self.validated, self.loops, task.updating = True, False, None, False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validated = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save, and print how to continue, unless a signal ended the run, which has saved, or there is nothing to learn."""
        rehearsal = trainer.fast_dev_run  # type: ignore[attr-defined]
        ended = isinstance(exception, SystemExit | NothingToLearnError)
        if trainer.state.fn != TrainerFn.FITTING or rehearsal or ended:
            return
        try:
            if self.can_save(trainer, pl_module):
                self.save(trainer, pl_module)
        except Exception as error:  # such as a full disk or a lost device: the first error counts
            print(f"step {trainer.global_step} cannot be saved ({format_error(error)})", file=sys.stderr)
        if trainer.is_global_zero and locate_last_checkpoint(trainer).is_file():
            print(format_continuation(trainer), file=sys.stderr)

    def can_save(self, trainer: Trainer, task: Any) -> bool:  # noqa: ANN401
        """Return whether the parameters are those of the last step, and this process can save them alone."""
        if task.updating or not (self.stepped or self.loops) or not trainer.global_step:
            return False
        if not trainer.is_global_zero or not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            return False
        if trainer.validating and any(isinstance(c, WeightAveraging) for c in trainer.callbacks):  # type: ignore[attr-defined]
            return False  # the averaged parameters replace the others
        return all(bool(torch.isfinite(parameter).all()) for parameter in task.parameters())

    @torch.no_grad()
    def save(self, trainer: Trainer, task: Any) -> None:  # noqa: ANN401
        """Write last.ckpt at the end of the last complete step."""
        if self.loops:
            task.accumulated = [0.0, 0.0]
            for name, buffer in task.named_buffers():
                buffer.copy_(self.buffers[name])
        # Trainer.save_checkpoint does the same and then waits for the other processes.
        checkpoint = dump_checkpoint(trainer)
        loops = checkpoint["loops"]["fit_loop"] = self.loops or checkpoint["loops"]["fit_loop"]
        if not self.loops and (trainer.validating or not self.validated):  # a validation is due
            for counts in (loops[BATCHES]["total"], loops[BATCHES]["current"]):
                counts["completed"] = counts["ready"]
            loops[VALIDATION] |= {"total": ONE_STARTED, "current": NONE_STARTED, "is_last_batch": False}
        trainer.strategy.save_checkpoint(checkpoint, locate_last_checkpoint(trainer))
        print(f"step {checkpoint['global_step']} is saved", file=sys.stderr)


def locate_last_checkpoint(trainer: Trainer) -> Path:
    """Return the path of the checkpoint from which a run continues."""
    return Run(trainer.default_root_dir).last_checkpoint.path


def format_continuation(trainer: Trainer) -> str:
    """Return the command that continues a run, as the end of a message."""
    run = Run(trainer.default_root_dir)
    return f"continue with: {format_command('dilated-seg', 'fit', '--config', run.config_file, '--run_dir', run.path)}"
