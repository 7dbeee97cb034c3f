"""SIGTERM, SIGUSR1 and Ctrl-C end a run after a complete step, with a checkpoint to continue from."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from dilated_seg.training.interruption import format_continuation, locate_last_checkpoint
from dilated_seg.training.lightning_internals import is_validation_due


@contextmanager
def keep_signal_handlers() -> Iterator[None]:
    """Restore the handlers of SIGINT, SIGTERM and SIGUSR1 at the end, also after an error.

    After an error, Lightning would restore the handlers of `StopOnSignal`, and SIGTERM would no longer end this process or its
    forks.
    """
    numbers = (signal.SIGINT, *StopOnSignal.signals)
    handlers = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in handlers.items() if handler is not None}  # None: installed by C code
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


class StopOnSignal(Callback):
    """Ends training after the current step on SIGTERM, SIGUSR1 and Ctrl-C, with a checkpoint to continue from.

    The exit status is 143, and 130 after Ctrl-C; a second Ctrl-C does not wait for the step. Under SLURM, SIGUSR1
    (``sbatch --signal=SIGUSR1@90``) requeues the job. A signal just before or during a validation takes effect after it.
    """

    signals = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.received: int | None = None
        self.saved = False
        self.first = True  # of several processes
        self.task: Any = None
        self.before: dict[int, Any] = {}  # the handler of each signal before training

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handle SIGTERM and SIGUSR1. Lightning's own handlers, which do not save, replace these after this hook."""
        for number in self.signals:
            self.handle(number, self.record_signal)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handlers, and handle Ctrl-C unless it is ignored, as in a shell's background job."""
        self.on_fit_start(trainer, pl_module)
        self.task, self.first = pl_module, trainer.is_global_zero
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            self.handle(signal.SIGINT, self.interrupt)

    def handle(self, number: int, handler: Callable[[int, Any], None]) -> None:
        """Install a handler, and keep the one from before training."""
        if threading.current_thread() is threading.main_thread():
            self.before.setdefault(number, signal.signal(number, handler))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the handlers from before training; it is not called after an error, see `keep_signal_handlers`."""
        for number, handler in self.before.items():
            if signal.getsignal(number) in (self.record_signal, self.interrupt):
                signal.signal(number, handler)
        self.before.clear()

    def before_training(self, trainer: Trainer) -> None:
        """End this process if a signal came during long work before the first step."""
        if self.received is not None:
            self.leave(trainer)

    def record_signal(self, number: int, frame: Any) -> None:  # noqa: ANN401
        """Handle SIGTERM and SIGUSR1."""
        self.received = number

    def interrupt(self, number: int, frame: Any) -> None:  # noqa: ANN401
        """Handle Ctrl-C: the second one ends training at once, unless the optimizer is updating."""
        if self.received is not None and not self.task.updating:
            raise KeyboardInterrupt
        self.received = number
        if self.first:  # print is not safe here
            os.write(2, b"\nstopping when this step, or the validation, is done; Ctrl-C again: at once\n")

    def on_train_batch_end(self, trainer: Trainer, task: Any, *args: Any) -> None:  # noqa: ANN401
        if not self.is_any_signaled(trainer) or trainer.global_step >= trainer.max_steps > 0 or task.accumulating:
            return
        if is_validation_due(trainer):
            return  # after the validation
        self.save(trainer)
        self.leave(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the validated step; training ends when all callbacks have seen the end of the validation."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and self.is_any_signaled(trainer):
            self.save(trainer)
            self.saved = True

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:  # noqa: ANN401
        if self.saved:
            self.leave(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write last.ckpt."""
        trainer.save_checkpoint(locate_last_checkpoint(trainer))

    def is_any_signaled(self, trainer: Trainer) -> bool:
        """Return whether any process of the run got a signal: all must end after the same step."""
        signaled = self.received is not None
        return signaled if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(signaled, all=False)

    def leave(self, trainer: Trainer) -> None:
        """End this process, and requeue its SLURM job after SIGUSR1.

        Raises:
            SystemExit: Always, with the exit status of the signal.
        """
        if trainer.is_global_zero:
            print(f"stopped by a signal after step {trainer.global_step}: {format_continuation(trainer)}", file=sys.stderr)
            if self.received == signal.SIGUSR1 and (job := os.environ.get("SLURM_JOB_ID")):
                try:
                    subprocess.run(["scontrol", "requeue", job], check=True)
                except (OSError, subprocess.CalledProcessError) as error:
                    print(f"the job was not requeued: {error}", file=sys.stderr)
        raise SystemExit(128 + (signal.SIGINT if self.received == signal.SIGINT else signal.SIGTERM))
