"""What a run says of itself while it trains."""

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
from dilated_seg.training.evaluation import written_evaluations
from dilated_seg.training.lightning_internals import EpochProgressBar

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]


class Throughput(Callback):
    """Says how large a step is, and logs images per second and the peak of memory; all processes together.

    The seconds are those between steps that are logged, reading included, validation and what it saves not. Memory is the
    device's, or without one that of this process, in GB.
    """

    def __init__(self) -> None:
        self.batches, self.started = 0, 0.0  # since the rate was last logged
        self.rate = 0.0  # images a second, last time that it was logged

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.batches, self.started, self.rate = 0, 0.0, 0.0
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.is_global_zero and isinstance(data, SegmentationDataModule):
            at_once, world, passes = data.get_batch_size(), trainer.world_size, data.passes
            among = f"{at_once} in each of {world} processes" if world > 1 else f"{at_once} at once"
            how = f" ({among}{f', {passes} times' if passes > 1 else ''})" if world * passes > 1 else ""
            unused = (
                f"; batch_size {data.batch_size} is not used" if data.global_batch_size not in (None, data.batch_size) else ""
            )
            rate = trainer.optimizers[0].defaults["lr"]
            print(f"{at_once * world * passes} images a step{how}{unused}, learning rate {rate:g}", flush=True)

    def on_train_batch_start(self, *args: Any) -> None:  # noqa: ANN401
        if not self.started:
            self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, task: Any, outputs: Any, batch: Any, *args: Any) -> None:  # noqa: ANN401
        self.batches += 1
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and trainer.global_step % every == 0 and not task.accumulating:
            now = time.perf_counter()
            images = len(batch["id"]) * trainer.world_size
            self.rate = images * self.batches / (now - self.started)
            task.log_dict({"train/images_per_second": self.rate, "train/memory_gb": memory(task.device)})
            self.started, self.batches = now, 0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What comes now is no training: count from the next step on."""
        self.started, self.batches = 0.0, 0


class ValidationLines(Callback):
    """Prints one line for each validation while training: step, loss, mean IoU, and the best mean IoU so far."""

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
        partial = "".join(f", {one.protocol.partial}" for one in written_evaluations(trainer)[:1] if one.protocol.partial)
        step = f"step {trainer.global_step}"
        print(f"{step}: validation loss {loss:.3f}, mean IoU {percent(mean_iou)} % ({best}){partial}", flush=True)


def find_best(trainer: Trainer) -> ModelCheckpoint | None:
    """Return the callback that keeps the checkpoint of the highest validation mean IoU; None if no callback does."""
    kept = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    return next((callback for callback in kept if callback.monitor == "val/mean_iou" and callback.mode == "max"), None)


def memory(device: torch.device) -> float:
    """The most memory that this process has held so far, on its device or else in RAM, in GB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if resource is None:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


class Progress(EpochProgressBar):
    """Lightning's progress bar, without a number of epochs that nobody set, with images a second and the time that is left."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - as Lightning's
        super().__init__(**options)
        self.begun = (0, 0.0)  # the step and the time at which this session began

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.begun = trainer.global_step, time.perf_counter()

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Lightning's, without batches a second: images a second are said, and a line has 80 columns."""
        return [column for column in super().configure_columns(trainer) if not isinstance(column, ProcessingSpeedColumn)]

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What stands behind the bar."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        metrics = {name.removeprefix("train/"): value for name, value in metrics.items()}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Throughput) and callback.rate:
                metrics["img/s"] = f"{callback.rate:.3g}"
        step, start = self.begun
        if trainer.max_steps > 0 and trainer.global_step > step:
            each = (time.perf_counter() - start) / (trainer.global_step - step)
            metrics["left"] = duration(each * (trainer.max_steps - trainer.global_step))
        return metrics


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as a clock has them."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
