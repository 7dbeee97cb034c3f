"""What happens around training: randomness that can resume, progress, records and pictures of evaluations."""

import difflib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, RichProgressBar
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image

from dilated_seg import UserError
from dilated_seg.checkpoints import LAST
from dilated_seg.data.order import mix, run_seed
from dilated_seg.runs import commit, write_text

ABSENT = "a class absent from masks and predictions is left out of the mean"


class SeedEveryStep(Callback):
    """Seeds dropout from the run's seed, the batch's number and the process: what a resumed run needs to draw the same."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: ANN401
        seed = mix(run_seed(), trainer.fit_loop.epoch_loop.batch_progress.total.ready, trainer.global_rank)
        torch.manual_seed(seed)


class KeepGradients(Callback):
    """Puts the gradients of an accumulation that a checkpoint falls into the checkpoint, and takes them out again.

    For one process: each process of several has gradients of its own, and only the first one saves.
    """

    def __init__(self) -> None:
        self.kept: dict[str, torch.Tensor] = {}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.accumulate_grad_batches > 1 and trainer.fit_loop.epoch_loop._should_accumulate():
            checkpoint["gradients"] = {name: p.grad for name, p in pl_module.named_parameters() if p.grad is not None}

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

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning, whose own handler does not save, puts back what was there when it ends."""
        if threading.current_thread() is threading.main_thread():
            for number in self.signals:
                signal.signal(number, self._note)

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


class Freeze(BaseFinetuning):
    """Leaves parts of the task as they are for the first steps, so that new layers learn first, and then thaws them.

    A frozen batch norm normalises by its running statistics, as in evaluation, and keeps them. To train what has thawed at a
    lower rate, name it in ``model.lr_factors``. With ``until``, for one process: DistributedDataParallel does not exchange the
    gradients of what was frozen when it started.

    Args:
        layers: Parts of the task by name, such as ``net.encoder``; no part of them may be frozen by another Freeze.
        until: The step at which they thaw; None for never.
    """

    def __init__(self, layers: list[str], until: int | None = None) -> None:
        super().__init__()
        if not layers:
            raise UserError("Freeze: name at least one of its layers, such as net.encoder")
        self.layers, self.until = layers, until
        self.frozen: list[torch.nn.Parameter] = []
        self.norms: dict[torch.nn.modules.batchnorm._BatchNorm, bool] = {}  # and whether they track statistics

    @property
    def state_key(self) -> str:
        """Tells several of these callbacks apart."""
        return self._generate_state_key(layers=self.layers, until=self.until)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if trainer.world_size > 1 and self.until is not None:
            raise UserError("Freeze works on one process: DistributedDataParallel leaves out what thaws later; use devices: 1")
        super().setup(trainer, pl_module, stage)

    def parts(self, pl_module: LightningModule) -> list[torch.nn.Module]:
        """The parts of the task that ``layers`` names."""
        found = dict(pl_module.named_modules())
        for name in self.layers:
            if name not in found:
                near = difflib.get_close_matches(name, found, 1)
                hint = f"did you mean {near[0]}?" if near else "name one such as net.encoder"
                raise UserError(f"Freeze: there is no {name} in the task: {hint}")
        return [found[name] for name in self.layers]

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        parts, fixed = self.parts(pl_module), getattr(pl_module, "fixed", ())
        inside = {id(parameter) for part in parts for parameter in part.parameters()}
        for name, parameter in pl_module.named_parameters():
            if id(parameter) in inside and not parameter.requires_grad and name not in fixed:
                raise UserError(f"Freeze: {name} is frozen by another Freeze already: name each layer once")
        self.frozen = [p for part in parts for p in part.parameters() if p.requires_grad]
        norms = (layer for part in parts for layer in part.modules())
        self.norms = {n: n.track_running_stats for n in norms if isinstance(n, torch.nn.modules.batchnorm._BatchNorm)}
        self.freeze(parts, train_bn=False)
        if not any(p.requires_grad for p in pl_module.parameters()):
            raise UserError(f"Freeze: {', '.join(self.layers)} leave nothing to learn: name fewer layers")

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        """Lightning's hook for epochs: steps are what counts here."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning would put back the optimiser's groups as they were stored: all of ours are there from the start."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: ANN401
        if self.frozen and self.until is not None and trainer.global_step >= self.until:
            self.thaw()
        for norm in self.norms:  # Lightning puts the whole task into training mode again after each validation
            norm.eval()

    def thaw(self) -> None:
        """Let the layers learn again."""
        for norm, tracks in self.norms.items():
            norm.track_running_stats = tracks
            norm.train()
        for parameter in self.frozen:
            parameter.requires_grad = True
        self.norms, self.frozen = {}, []

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing stays frozen beyond the fit it was asked for."""
        self.thaw()


class Progress(RichProgressBar):
    """Lightning's progress bar, without a number of epochs that nobody set and a version that names nothing."""

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Training, epoch {current_epoch}"

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What stands behind the bar."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class EvaluationRecord(Callback):
    """Writes what an evaluation found into the run: per-image confusion matrices (Parquet), scores and protocol (JSON).

    The files are ``evaluations/SPLIT.*`` while training and ``evaluations/SPLIT-CHECKPOINT.*`` after it.
    """

    def __init__(self) -> None:
        self.rows: list[tuple[int, str, np.ndarray]] = []
        self.record: dict[str, Any] | None = None  # the last one written

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rows = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        matrices = outputs["matrices"].cpu().numpy()
        for name, matrix in zip(batch["id"], matrices, strict=True):
            if name:  # a padding image has none
                self.rows.append((len(self.rows) * trainer.world_size + trainer.global_rank, name, matrix))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer, pl_module, "val")

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer, pl_module, "test")

    def _finish(self, trainer: Trainer, task: Any, split: str) -> None:  # noqa: ANN401
        rows = self._gather(trainer)
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        total = np.sum([matrix for _, _, matrix in rows], axis=0)
        loaders: Any = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
        available = len(loaders.dataset)
        limit = trainer.limit_test_batches if split == "test" else trainer.limit_val_batches
        if len(rows) != available and isinstance(limit, float) and limit == 1.0:  # an int counts batches
            raise RuntimeError(f"{len(rows)} of {available} images were evaluated")
        protocol = {
            "dataset": type(trainer.datamodule).__name__,  # type: ignore[attr-defined]
            "split": split,
            "images": len(rows) if len(rows) == available else f"{len(rows)} of {available}",
            "pixels": int(total.sum()),
            "resolution": "the mask's own",
            "inference": "whole image",
            "absent classes": ABSENT,
            "checkpoint": f"{checkpoint_name(trainer)}, step {task.trained_steps}",
            "commit": commit(),
        }
        name = evaluation_name(trainer)
        self.record = {
            "evaluation": name,
            "protocol": protocol,
            "classes": task.classes,
            "parameters": sum(p.numel() for p in task.net.parameters()),
            "matrix": total.tolist(),
        }
        folder = Path(trainer.default_root_dir) / "evaluations"
        folder.mkdir(parents=True, exist_ok=True)
        table = pa.table({"id": [r[1] for r in rows], "matrix": [r[2].ravel() for r in rows]})
        partial = folder / f"{name}.parquet.partial"
        pq.write_table(table.replace_schema_metadata({"protocol": json.dumps(protocol)}), partial)
        partial.replace(folder / f"{name}.parquet")
        write_text(folder / f"{name}.json", json.dumps(self.record, indent=1) + "\n")

    def _gather(self, trainer: Trainer) -> list[tuple[int, str, np.ndarray]]:
        if trainer.world_size == 1:
            return self.rows
        parts: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(parts, self.rows)
        return sorted((row for part in parts for row in part), key=lambda row: row[0])


def checkpoint_name(trainer: Trainer) -> str:
    """Which weights are evaluated: a checkpoint's name, those at the end of training, those of a file, or untrained ones."""
    if trainer.ckpt_path or trainer.global_step:
        return Path(trainer.ckpt_path).stem if trainer.ckpt_path else "last"
    return Path(getattr(trainer.lightning_module, "weights", None) or "untrained").stem


def evaluation_name(trainer: Trainer) -> str:
    """What an evaluation's files are called: the split while training, and with the checkpoint's name after it."""
    split = "test" if trainer.testing else "val"
    after = trainer.state.fn in (TrainerFn.VALIDATING, TrainerFn.TESTING)
    return f"{split}-{checkpoint_name(trainer)}" if after else split


class Gallery(Callback):
    """Keeps some images of an evaluation as pictures: image, truth and prediction, in the run and in W&B.

    Args:
        images: How many, evenly spread over the split.
    """

    def __init__(self, images: int = 6) -> None:
        self.images = images

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        loaders: Any = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
        wanted = set(np.linspace(0, len(loaders.dataset) - 1, self.images).astype(int).tolist())
        for i, name in enumerate(batch["id"]):
            index = (batch_idx * loaders.batch_sampler.batch_size + i) * trainer.world_size + trainer.global_rank
            if name and index in wanted:
                height, width = batch["size"][i]
                maps = (batch["image"][i], batch["mask"][i], outputs["prediction"][i])
                self._keep(trainer, name, *(m[..., :height, :width] for m in maps))

    on_test_batch_end = on_validation_batch_end

    def _keep(self, trainer: Trainer, name: str, image: Any, mask: Any, prediction: Any) -> None:  # noqa: ANN401
        folder = Path(trainer.default_root_dir) / "gallery" / evaluation_name(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        picture = image.permute(1, 2, 0).cpu().numpy()
        Image.fromarray(picture).save(folder / f"{name}.image.png")
        palette = trainer.datamodule.palette  # type: ignore[attr-defined]
        for what, ids in (("truth", mask), ("prediction", prediction)):
            save_mask(folder / f"{name}.{what}.png", ids, palette)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                names = dict(enumerate(trainer.datamodule.classes))  # type: ignore[attr-defined]
                masks = {
                    what: {"mask_data": ids.cpu().numpy(), "class_labels": names}
                    for what, ids in (("truth", mask), ("prediction", prediction))
                }
                logger.log_image(f"gallery/{name}", [picture], step=trainer.global_step, masks=[masks])


class PredictionWriter(Callback):
    """Writes what ``predict`` finds: one PNG an image, its values the class ids, its palette the dataset's.

    Where a test server wants other values, such as Cityscapes' label ids, PNGs of these lie in ``submission/`` as well.
    """

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        dataset: Any = trainer.datamodule  # type: ignore[attr-defined]
        folder, submission = (Path(trainer.default_root_dir) / name for name in ("predictions", "submission"))
        for made in (folder, submission) if dataset.submitted else (folder,):
            made.mkdir(parents=True, exist_ok=True)
        for name, prediction, (height, width) in zip(batch["id"], outputs, batch["size"], strict=True):
            if name:
                ids = prediction[:height, :width].cpu()
                save_mask(folder / f"{name}.png", ids, dataset.palette)
                if dataset.submitted:
                    Image.fromarray(np.array(dataset.submitted, np.uint8)[ids.numpy()]).save(submission / f"{name}.png")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            print(f"class ids as PNGs: {Path(trainer.default_root_dir) / 'predictions'}")
            if trainer.datamodule.submitted:  # type: ignore[attr-defined]
                print(f"the test server's values: {Path(trainer.default_root_dir) / 'submission'}")


def save_mask(path: Path, ids: torch.Tensor, palette: Sequence[tuple[int, int, int]]) -> None:
    """Class ids (H, W) as a PNG with a palette, as VOC's labels are; 255 shows as the off-white of VOC."""
    picture = Image.fromarray(ids.cpu().numpy().astype(np.uint8))
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette
    colours[255] = (224, 224, 192)
    picture.putpalette(colours.ravel().tolist())  # now it has mode P
    picture.save(path)
