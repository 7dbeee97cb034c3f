"""What lets a run be interrupted and end as if it had not been: seeds of steps, gradients in checkpoints, saving on errors."""

import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn

from dilated_seg.data.samplers import get_run_seed, mix_seeds
from dilated_seg.errors import format_error
from dilated_seg.runs.run import Run
from dilated_seg.training.labels import NothingToLearnError
from dilated_seg.training.lightning_internals import dump_checkpoint, set_logged_step

BATCHES, VALIDATION = "epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress"  # in the state of Lightning's loops
# Lightning runs a validation again, from its first batch on, if one had been started and none completed.
NONE_BEGUN = {"ready": 0, "started": 0, "processed": 0, "completed": 0}
ONE_BEGUN = {"ready": 1, "started": 1, "processed": 0, "completed": 0}


class SeedEveryStep(Callback):
    """Seeds dropout from the run's seed, the batch's number and the process: what a resumed run needs to draw the same."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:  # noqa: ANN401
        seed = mix_seeds(get_run_seed(), trainer.fit_loop.epoch_loop.batch_progress.total.ready, trainer.global_rank)
        torch.manual_seed(seed)


class KeepGradients(Callback):
    """Puts the gradients of an accumulation that a checkpoint falls into the checkpoint, and takes them out again.

    Of several processes, each of which has gradients of its own, it keeps the mean, which is what they come to in the end.
    A run that ends by an error starts the accumulation again: see SaveOnError.
    """

    def __init__(self) -> None:
        self.kept: dict[str, torch.Tensor] = {}

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
        self.kept = checkpoint.get("gradients", {})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, parameter in pl_module.named_parameters():
            if name in self.kept:
                parameter.grad = self.kept[name].to(parameter.device)
        self.kept = {}


class SaveOnError(Callback):
    """Saves the last whole step as ``last.ckpt`` when training ends by an exception, such as an unreadable file.

    A step is whole when the optimizer and the learning rate schedule have been updated. Before the update the parameters are
    those of the step before: the buffers (of batch norm) and the position in the data are set back to where that step ended.
    During the update nothing is whole, and nothing is saved. A validation that did not end is run when the run continues.
    Parameters that are not finite are not saved.

    With several processes the first one saves, without asking the others, which may not answer any more.
    """

    def __init__(self) -> None:
        self.stepped = False  # in this session
        self.validated = False  # since the last step
        self.loops: dict[str, Any] | None = None  # where the last step ended, until the next one has
        self.buffers: dict[str, torch.Tensor] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: ANN401
        # The step that metrics are logged at. Lightning counts one too many when a run continues after a validation.
        set_logged_step(trainer, trainer.global_step)
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.buffers = {name: buffer.clone() for name, buffer in pl_module.named_buffers()}
            self.loops = trainer.fit_loop.state_dict()
            for counts in (self.loops[BATCHES]["total"], self.loops[BATCHES]["current"]):
                counts["ready"] = counts["completed"]  # this batch has been read and has changed nothing

    def on_train_batch_end(self, trainer: Trainer, task: Any, *args: Any) -> None:  # noqa: ANN401
        if task.updating:
            self.stepped, self.validated, self.loops, task.updating = True, False, None, False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validated = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save, and say how to continue, unless a signal ended the run, which has saved, or there is nothing to learn."""
        rehearsal = trainer.fast_dev_run  # type: ignore[attr-defined]
        ended = isinstance(exception, SystemExit | NothingToLearnError)
        if trainer.state.fn != TrainerFn.FITTING or rehearsal or ended:
            return
        try:
            if self.is_whole(trainer, pl_module):
                self.save(trainer, pl_module)
        except Exception as error:  # such as a full disk, or a device that does not answer: the first error counts
            print(f"step {trainer.global_step} cannot be saved ({format_error(error)})", file=sys.stderr)
        if trainer.is_global_zero and last_checkpoint(trainer).is_file():
            print(how_to_continue(trainer), file=sys.stderr)

    def is_whole(self, trainer: Trainer, task: Any) -> bool:  # noqa: ANN401
        """Whether the parameters are those of the last step, and this process can save them by itself."""
        if task.updating or not (self.stepped or self.loops) or not trainer.global_step:
            return False
        if not trainer.is_global_zero or not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            return False
        if trainer.validating and any(isinstance(c, WeightAveraging) for c in trainer.callbacks):  # type: ignore[attr-defined]
            return False  # the averaged parameters have taken the place of the others
        return all(bool(torch.isfinite(parameter).all()) for parameter in task.parameters())

    @torch.no_grad()
    def save(self, trainer: Trainer, task: Any) -> None:  # noqa: ANN401
        if self.loops:
            task.accumulated = [0.0, 0.0]
            for name, buffer in task.named_buffers():
                buffer.copy_(self.buffers[name])
        # Trainer.save_checkpoint does the same and then waits for the other processes.
        checkpoint = dump_checkpoint(trainer)
        loops = checkpoint["loops"]["fit_loop"] = self.loops or checkpoint["loops"]["fit_loop"]
        if not self.loops and (trainer.validating or not self.validated):  # Lightning asks whether one is due
            for counts in (loops[BATCHES]["total"], loops[BATCHES]["current"]):
                counts["completed"] = counts["ready"]
            loops[VALIDATION] |= {"total": ONE_BEGUN, "current": NONE_BEGUN, "is_last_batch": False}
        trainer.strategy.save_checkpoint(checkpoint, last_checkpoint(trainer))
        print(f"step {checkpoint['global_step']} is saved", file=sys.stderr)


def last_checkpoint(trainer: Trainer) -> Path:
    """Return the path of the checkpoint that a run continues from."""
    return Run(trainer.default_root_dir).last_checkpoint.path


def how_to_continue(trainer: Trainer) -> str:
    """Return the command that continues a run."""
    folder = trainer.default_root_dir
    return f"continue with: dilated-seg {shlex.join(['fit', '--config', f'{folder}/config.yaml', '--run_dir', folder])}"
