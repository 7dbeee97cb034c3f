"""SIGTERM, SIGUSR1 and Ctrl-C end a run after a whole step, with a checkpoint to continue from."""

import os
import signal
import subprocess
import sys
import threading
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from dilated_seg.training.interruption import how_to_continue, last_checkpoint
from dilated_seg.training.lightning_internals import is_validation_due


class StopOnSignal(Callback):
    """SIGTERM, SIGUSR1 and Ctrl-C end training when the step is done, with a checkpoint from which it can be continued.

    The exit status is 143, and 130 after Ctrl-C; a second Ctrl-C does not wait for the step. Under SLURM, SIGUSR1
    (``sbatch --signal=SIGUSR1@90``) queues the job again. A signal just before or during a validation waits until it has
    ended, so that none is lost: give it that much time.
    """

    signals = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.received: int | None = None
        self.saved = False
        self.first = True  # of several processes
        self.task: Any = None
        self.before: Any = None  # who took SIGINT before training

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen. Lightning, whose own handler does not save, comes after this, and puts back what was there when it ends."""
        if threading.current_thread() is threading.main_thread():
            for number in self.signals:
                signal.signal(number, self.note)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen again, as Lightning's handlers have taken these places meanwhile, and for Ctrl-C."""
        self.on_fit_start(trainer, pl_module)
        self.task, self.first = pl_module, trainer.is_global_zero
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            self.before = signal.signal(signal.SIGINT, self.interrupt)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.before and signal.getsignal(signal.SIGINT) == self.interrupt:
            signal.signal(signal.SIGINT, self.before)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")

    def before_training(self, trainer: Trainer) -> None:
        """End this process if it was told to stop while something long goes on before the first step."""
        if self.received is not None:
            self.leave(trainer)

    def note(self, number: int, frame: Any) -> None:  # noqa: ANN401
        self.received = number

    def interrupt(self, number: int, frame: Any) -> None:  # noqa: ANN401
        if self.received is not None and not self.task.updating:
            raise KeyboardInterrupt
        self.received = number
        if self.first:  # print is not safe here
            os.write(2, b"\nstopping when this step, or the validation, is done; Ctrl-C again: at once\n")

    def on_train_batch_end(self, trainer: Trainer, task: Any, *args: Any) -> None:  # noqa: ANN401
        if not self.is_told_anywhere(trainer) or trainer.global_step >= trainer.max_steps > 0 or task.accumulating:
            return
        if is_validation_due(trainer):
            return  # until the end of the validation that comes now
        self.save(trainer)
        self.leave(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what the validation was of; leaving waits until other callbacks have seen its end as well."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and self.is_told_anywhere(trainer):
            self.save(trainer)
            self.saved = True

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:  # noqa: ANN401
        if self.saved:
            self.leave(trainer)

    def save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(last_checkpoint(trainer))

    def is_told_anywhere(self, trainer: Trainer) -> bool:
        """Whether any process of the run was told to stop: all must leave after the same step."""
        told = self.received is not None
        return told if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(told, all=False)

    def leave(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            print(f"stopped by a signal after step {trainer.global_step}: {how_to_continue(trainer)}", file=sys.stderr)
            if self.received == signal.SIGUSR1 and (job := os.environ.get("SLURM_JOB_ID")):
                try:
                    subprocess.run(["scontrol", "requeue", job], check=True)
                except (OSError, subprocess.CalledProcessError) as error:
                    print(f"the job was not queued again: {error}", file=sys.stderr)
        raise SystemExit(128 + (signal.SIGINT if self.received == signal.SIGINT else signal.SIGTERM))
