"""What lets a run be interrupted and end as if it had not been: random numbers, gradients kept, signals."""

import os
import signal
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from dilated_seg.data.order import mix, run_seed
from dilated_seg.runs import LAST


class SeedEveryStep(Callback):
    """Seeds dropout from the run's seed, the batch's number and the process: what a resumed run needs to draw the same."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: ANN401
        seed = mix(run_seed(), trainer.fit_loop.epoch_loop.batch_progress.total.ready, trainer.global_rank)
        torch.manual_seed(seed)


class KeepGradients(Callback):
    """Puts the gradients of an accumulation that a checkpoint falls into the checkpoint, and takes them out again.

    Of several processes, each of which has gradients of its own, it keeps the mean, which is what they come to in the end.
    """

    def __init__(self) -> None:
        self.kept: dict[str, torch.Tensor] = {}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.accumulate_grad_batches > 1 and trainer.fit_loop.epoch_loop._should_accumulate():
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


class StopOnSignal(Callback):
    """SIGTERM and SIGUSR1 end training when the step is done, with a checkpoint from which the same command continues.

    The exit status is 143. Under SLURM, SIGUSR1 (``sbatch --signal=SIGUSR1@90``) queues the job again. A signal just before
    or during a validation waits until it has ended, so that none is lost: give it that much time.
    """

    signals = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.received: int | None = None
        self.saved = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen. Lightning, whose own handler does not save, comes after this, and puts back what was there when it ends."""
        if threading.current_thread() is threading.main_thread():
            for number in self.signals:
                signal.signal(number, self._note)

    on_train_start = on_fit_start  # Lightning's has taken its place meanwhile

    def before_training(self, trainer: Trainer) -> None:
        """End this process if it was told to stop while something long goes on before the first step."""
        if self.received is not None:
            self._leave(trainer)

    def _note(self, number: int, frame: Any) -> None:  # noqa: ANN401
        self.received = number

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        loop = trainer.fit_loop.epoch_loop
        if not self._anywhere(trainer) or trainer.global_step >= trainer.max_steps > 0 or loop._should_accumulate():
            return
        if loop._should_check_val_fx(trainer.fit_loop._data_fetcher):  # type: ignore[arg-type]
            return  # until the end of the validation that comes now
        loop._batches_that_stepped += 1  # Lightning counts after this hook, and the checkpoint must know
        self._save(trainer)
        self._leave(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what the validation was of; leaving waits until other callbacks have seen its end as well."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and self._anywhere(trainer):
            self._save(trainer)
            self.saved = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: ANN401
        if self.saved:
            self._leave(trainer)

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "checkpoints" / LAST)

    def _anywhere(self, trainer: Trainer) -> bool:
        """Whether any process of the run was told to stop: all must leave after the same step."""
        told = self.received is not None
        return told if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(told, all=False)

    def _leave(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            print(f"stopped by a signal after step {trainer.global_step}: the same command continues", file=sys.stderr)
            if self.received == signal.SIGUSR1 and (job := os.environ.get("SLURM_JOB_ID")):
                try:
                    subprocess.run(["scontrol", "requeue", job], check=True)
                except (OSError, subprocess.CalledProcessError) as error:
                    print(f"the job was not queued again: {error}", file=sys.stderr)
        raise SystemExit(128 + signal.SIGTERM)


class ProcessTimeout(Callback):
    """Ends a run of several processes when one of them hangs: the others wait so long for it and then fail.

    It begins when all of them have started, however long that took.

    Args:
        seconds: To wait.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.world_size > 1:
            older = torch.distributed.distributed_c10d._set_pg_timeout  # before torch 2.15
            getattr(torch.distributed, "set_timeout", older)(timedelta(seconds=self.seconds))
