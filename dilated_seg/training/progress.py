"""Progress of a training on the terminal, and its throughput in the logs."""

import math
import sys
import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.callbacks.progress.rich_progress import ProcessingSpeedColumn
from lightning.pytorch.trainer.states import TrainerFn

from dilated_seg.data import SegmentationDataModule
from dilated_seg.metrics.confusion import percent
from dilated_seg.training.evaluation import get_evaluations
from dilated_seg.training.lightning_internals import EpochProgressBar

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]


class Throughput(Callback):
    """Prints the size of a step, and logs images/s of all processes, the peak memory in GB and the share of time without data.

    The time is that between logged steps, including reading but not validation and checkpoints. ``train/waiting`` is the part
    of it, 0 to 1, in which this process waited for a batch; without workers, it reads the images itself in that time. Memory
    is the GPU's, or this process's on a CPU.
    """

    def __init__(self) -> None:
        self.batches, self.started = 0, 0.0  # since the rate was last logged
        self.rate = 0.0  # images/s, as last logged
        self.waited = self.waiting = 0.0  # seconds waited for data until ``started``; the part of the time, as last logged

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.batches, self.started, self.rate, self.waiting = 0, 0.0, 0.0, 0.0
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.is_global_zero and isinstance(data, SegmentationDataModule):
            batch, world, passes = data.get_batch_size(), trainer.world_size, data.passes
            parts = f"{batch} in each of {world} processes" if world > 1 else f"{batch} at once"
            parts = f" ({parts}{f', {passes} times' if passes > 1 else ''})" if world * passes > 1 else ""
            unused = (
                f"; batch_size {data.batch_size} is not used" if data.global_batch_size not in (None, data.batch_size) else ""
            )
            rate = trainer.optimizers[0].defaults["lr"]
            print(f"{batch * world * passes} images a step{parts}{unused}, learning rate {rate:g}", flush=True)

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:  # noqa: ANN401
        if not self.started:
            self.started, self.waited = time.perf_counter(), sum_waiting(trainer)

    def on_train_batch_end(self, trainer: Trainer, task: Any, outputs: Any, batch: Any, *args: Any) -> None:  # noqa: ANN401
        self.batches += 1
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and trainer.global_step % every == 0 and not task.accumulating:
            now, waited = time.perf_counter(), sum_waiting(trainer)
            images = len(batch["id"]) * trainer.world_size
            self.rate = images * self.batches / (now - self.started)
            self.waiting = min(1.0, (waited - self.waited) / (now - self.started))
            memory = measure_memory(task.device)
            task.log_dict({"train/images_per_second": self.rate, "train/memory_gb": memory, "train/waiting": self.waiting})
            self.started, self.waited, self.batches = now, waited, 0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count again from the next step on."""
        self.started, self.batches = 0.0, 0


def sum_waiting(trainer: Trainer) -> float:
    """Return the seconds for which the training has waited for data; 0 with loaders of other data modules."""
    return float(getattr(trainer.train_dataloader, "waited", 0.0))


class ValidationLines(Callback):
    """Prints a line per validation during training: step, loss, mean IoU, and the best mean IoU of the run."""

    def __init__(self) -> None:
        self.best: float | None = None
        self.printed = 0  # validations

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the best mean IoU of the run's earlier sessions from the checkpoint callback."""
        best = find_best(trainer)
        self.best = float(best.best_model_score) if best and best.best_model_score is not None else None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or not trainer.is_global_zero:
            return
        self.printed += 1
        metrics = trainer.callback_metrics
        loss, mean_iou = (float(metrics.get(name, math.nan)) for name in ("val/loss", "val/mean_iou"))
        if mean_iou > (-math.inf if self.best is None else self.best):
            self.best, best = mean_iou, "best so far"
        else:
            best = "no best yet" if self.best is None else f"best so far {percent(self.best)}"
        evaluations = [evaluation.protocol.partial for evaluation in get_evaluations(trainer)[:1]]
        partial = "".join(f", {partial}" for partial in evaluations if partial)
        step = f"step {trainer.global_step}"
        print(f"{step}: validation loss {loss:.3f}, mean IoU {percent(mean_iou)} % ({best}){partial}", flush=True)


def find_best(trainer: Trainer) -> ModelCheckpoint | None:
    """Return the callback that keeps the checkpoint of the highest validation mean IoU; None if no callback does."""
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    return next((callback for callback in callbacks if callback.monitor == "val/mean_iou" and callback.mode == "max"), None)


def measure_memory(device: torch.device) -> float:
    """Return the peak memory of this process, in GB: on its GPU, or else in RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if resource is None:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


class Progress(EpochProgressBar):
    """Lightning's progress bar with images/s and the remaining time."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - as Lightning's
        super().__init__(**options)
        self.start = (0, 0.0)  # step and time of this session

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.start = trainer.global_step, time.perf_counter()

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Return Lightning's columns without batches/s, so that a line fits 80 characters."""
        return [column for column in super().configure_columns(trainer) if not isinstance(column, ProcessingSpeedColumn)]

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the metrics behind the bar."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        metrics = {name.removeprefix("train/"): value for name, value in metrics.items()}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Throughput) and callback.rate:
                metrics["img/s"] = f"{callback.rate:.3g}"
                metrics["waiting"] = f"{callback.waiting:.0%}"
        step, start = self.start
        if trainer.max_steps > 0 and trainer.global_step > step:
            seconds = (time.perf_counter() - start) / (trainer.global_step - step)
            metrics["left"] = format_duration(seconds * (trainer.max_steps - trainer.global_step))
        return metrics


def format_duration(seconds: float) -> str:
    """Return a duration as hours:minutes:seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
