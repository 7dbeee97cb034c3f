"""What an evaluation leaves in its run: integers, scores and protocol."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import wandb
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from dilated_seg.errors import UserError
from dilated_seg.runs.results import name_partial
from dilated_seg.runs.run import commit
from dilated_seg.runs.strata import Counts, counted, write_strata
from dilated_seg.storage import write_text
from dilated_seg.training.cost import Cost
from dilated_seg.training.wandb_tables import confusion, draw, show_in_wandb

Row = tuple[int, str, np.ndarray, Counts | None]  # its place in the split, its id, its confusion matrix, its strata if kept

ABSENT = "a class absent from masks and predictions is left out of the mean"


class EvaluationRecord(Callback):
    """Writes what an evaluation found into the run: per-image confusion matrices (Parquet), scores and protocol (JSON).

    The files are ``evaluations/SPLIT.*`` while training and ``evaluations/SPLIT-CHECKPOINT[-PROTOCOL][-crf].*`` after it. These
    have the images' strata beside them, see ``dilated_seg.metrics.stratified``, and say what the evaluation cost. W&B shows
    the split's confusion matrix. An evaluation of some of the split's images is called ``...-2of101`` and never replaces one
    of all.
    """

    def __init__(self) -> None:
        self.rows: dict[str, list[Row]] = {}
        self.area = 0  # pixels of this process's images, ignored ones too
        self.cost: Cost | None = None  # not while training
        self.records: list[dict[str, Any]] = []  # what the last evaluation wrote: as the network says, and refined by a CRF

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.records = []
        self.rows = {kind: [] for kind in ("matrices", *(["refined_matrices"] if pl_module.refine else []))}
        self.area = 0
        self.cost = None if trainer.state.fn == TrainerFn.FITTING else Cost(pl_module.device)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.cost:
            self.cost.start()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        task: Any = pl_module
        if self.cost:
            self.cost.stop(batch)
        sizes = batch.get("size") or [batch["mask"].shape[-2:]] * len(batch["id"])
        self.area += sum(height * width for (height, width), name in zip(sizes, batch["id"], strict=True) if name)
        for kind, rows in self.rows.items():
            strata: Sequence[Counts | None] = [None] * len(batch["id"])
            if self.cost:
                prediction = outputs[kind.replace("matrices", "prediction")].to(torch.int16).cpu().numpy()
                strata = counted(batch, prediction, task.num_classes, task.ignore_index)
            for name, matrix, one in zip(batch["id"], outputs[kind].cpu().numpy(), strata, strict=True):
                if name:  # a padding image has none
                    rows.append((len(rows) * trainer.world_size + trainer.global_rank, name, matrix, one))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer, pl_module, "val")

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_start = on_validation_batch_start
    on_test_batch_end = on_validation_batch_end

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer, pl_module, "test")

    def _finish(self, trainer: Trainer, task: Any, split: str) -> None:  # noqa: ANN401
        area = sum(pixels for _, pixels in gathered(trainer, [(trainer.global_rank, self.area)]))
        for kind, own in self.rows.items():
            rows = gathered(trainer, own)
            if trainer.state.fn != TrainerFn.FITTING and not any(matrix.any() for _, _, matrix, _ in rows):
                raise UserError(
                    f"{split}: the masks of its {len(rows):,} images have no pixel of any class, all {area:,} are ignored "
                    f"({task.ignore_index}), so there is nothing to score: correct the masks, or what the dataset ignores"
                )
            if not trainer.sanity_checking and trainer.is_global_zero:
                last = kind == list(self.rows)[-1]  # the CRF's time is no part of the network's
                cost = self.cost.found(trainer.world_size) if self.cost and last else None
                self.records.append(write(trainer, task, split, rows, kind != "matrices", cost, area))


def write(
    trainer: Trainer,
    task: Any,  # noqa: ANN401
    split: str,
    rows: list[Row],
    refined: bool,
    cost: dict[str, Any] | None,
    area: int,
) -> dict[str, Any]:
    """Put the matrices of a split, as the network gave them or refined by the CRF, into the run and W&B; gives the record."""
    total = np.sum([matrix for _, _, matrix, _ in rows], axis=0)
    available = count_images(trainer)
    limit = trainer.limit_test_batches if split == "test" else trainer.limit_val_batches
    if len(rows) != available and isinstance(limit, float) and limit == 1.0:  # an int counts batches
        raise RuntimeError(f"{len(rows)} of {available} images were evaluated")
    own = f", with its own {task.model.crf}" if task.model.crf else ""
    precise = "" if trainer.precision == "32-true" else f", {trainer.precision}"
    protocol = {
        "dataset": type(trainer.datamodule).__name__,  # type: ignore[attr-defined]
        "split": split,
        "images": len(rows) if len(rows) == available else f"{len(rows)} of {available}, partial",
        "pixels": int(total.sum()),
        "resolution": "the mask's own",
        "inference": f"{task.inference}{own}{precise}" + (f", then {task.refine}" if refined else ""),
        "absent classes": ABSENT,
        "checkpoint": f"{checkpoint_name(trainer)}, step {task.trained_steps}",
        "commit": commit(),
    }
    folder = Path(trainer.default_root_dir) / "evaluations"
    checkpoint = checkpoint_path(trainer)
    name = evaluation_name(trainer, refined, len(rows))
    if trainer.state.fn != TrainerFn.FITTING:  # while training, the last one counts
        name = choose_name(folder, name, checkpoint, rows)
    record = {
        "evaluation": name,
        "checkpoint_path": checkpoint,
        "protocol": protocol,
        "classes": task.classes,
        "parameters": sum(p.numel() for p in task.model.net.parameters()),
        "cost": cost,
        "matrix": total.tolist(),
        "ignored": {"value": task.ignore_index, "pixels": area - int(total.sum())},
    }
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table({"id": [r[1] for r in rows], "matrix": [r[2].ravel() for r in rows]})
    partial = folder / f"{name}.parquet.{os.getpid()}.partial"
    pq.write_table(table.replace_schema_metadata({"protocol": json.dumps(protocol)}), partial)
    partial.replace(folder / f"{name}.parquet")
    if strata := [row[3] for row in rows if row[3]]:
        facts = {key: record[key] for key in ("evaluation", "protocol", "classes")}
        write_strata(folder / f"{name}.strata.parquet", [row[1] for row in rows], strata, facts)
    write_text(folder / f"{name}.json", json.dumps(record, indent=1) + "\n")
    section = f"{split}/crf" if refined else split
    if name_partial(record):
        show_in_wandb(trainer, lambda: {f"{section}/partial": f"{protocol['images']}"})
    show_in_wandb(trainer, lambda: {f"{section}/confusion": confusion(total, task.classes)})
    if trainer.state.fn != TrainerFn.FITTING:
        show_in_wandb(trainer, lambda: {f"{section}/confusion_picture": wandb.Image(draw(total, task.classes))})
    return record


def records(trainer: Trainer) -> list[dict[str, Any]]:
    """Return what the last evaluation wrote; empty on other processes than the first."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [record for callback in callbacks if isinstance(callback, EvaluationRecord) for record in callback.records]


def gathered(trainer: Trainer, rows: list[Any]) -> list[Any]:
    """What all processes hold, sorted by the first of each row: its place in the split."""
    if trainer.world_size == 1:
        return rows
    parts: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(parts, rows)
    return sorted((row for part in parts for row in part), key=lambda row: row[0])


def count_images(trainer: Trainer) -> int:
    """Return the number of images of the split that is evaluated."""
    loaders: Any = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    return len(loaders.dataset)


def checkpoint_name(trainer: Trainer) -> str:
    """Which weights are evaluated: a checkpoint's name, those at the end of training, those of a file, or untrained ones."""
    if trainer.state.fn == TrainerFn.FITTING:
        return "last"
    if trainer.ckpt_path or trainer.global_step:
        return Path(trainer.ckpt_path).stem if trainer.ckpt_path else "last"
    return Path(getattr(trainer.lightning_module, "weights", None) or "untrained").stem


def checkpoint_path(trainer: Trainer) -> str | None:
    """Return the file of the evaluated weights, relative to the run directory if it is in it; None while training."""
    file = trainer.ckpt_path or (None if trainer.global_step else getattr(trainer.lightning_module, "weights", None))
    if trainer.state.fn == TrainerFn.FITTING or file is None:
        return None
    if "://" in str(file):
        return str(file)
    path, run = Path(os.path.abspath(str(file))), Path(os.path.abspath(trainer.default_root_dir))
    return str(path.relative_to(run)) if run in path.parents else str(path)


def evaluation_name(trainer: Trainer, refined: bool = False, images: int | None = None) -> str:
    """What an evaluation's files are called: the split while training, and after it with the checkpoint and the protocol.

    A whole image is the protocol that is not named, so: ``val``, ``val-best``, ``val-best-tiles-512x512-128-crf``. If
    ``images`` is less than the split has, the name ends with both numbers: ``val-best-2of101``.
    """
    parts = ["test" if trainer.testing else "val"]
    if trainer.state.fn in (TrainerFn.VALIDATING, TrainerFn.TESTING):
        parts += [checkpoint_name(trainer), *protocol_names(trainer.lightning_module, refined)]
    available = count_images(trainer)
    return "-".join([*parts, *([f"{images}of{available}"] if images not in (None, available) else [])])


def choose_name(folder: Path, name: str, checkpoint: str | None, rows: list[Row]) -> str:
    """Return the name, with a digest if the folder has an evaluation of this name of other images, masks or weights.

    So an evaluation is replaced only by one of the same images, masks and checkpoint file.
    """
    data = describe_data([row[1] for row in rows], [row[2] for row in rows])
    try:
        known = json.loads((folder / f"{name}.json").read_text())
        table = pq.read_table(folder / f"{name}.parquet")
        number = len(known["matrix"])
        matrices = table["matrix"].combine_chunks().flatten().to_numpy().reshape(-1, number, number)
        same_data = describe_data(table["id"].to_pylist(), matrices) == data
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return name  # there is none that could be read
    other_weights = None not in (checkpoint, before := known.get("checkpoint_path")) and checkpoint != before
    if same_data and not other_weights:
        return name
    own = f"{name}-{hashlib.sha256(f'{checkpoint} {data}'.encode()).hexdigest()[:8]}"
    what = "another checkpoint" if same_data else "other images or masks"
    print(f"{folder / name}.json is an evaluation of {what} and is kept: this one is {own}.json", flush=True)
    return own


def describe_data(names: Sequence[str], matrices: Sequence[np.ndarray] | np.ndarray) -> str:
    """Return what identifies evaluated images and masks: each image's name and its pixels of every class."""
    return json.dumps([[name, matrix.sum(1).tolist()] for name, matrix in zip(names, matrices, strict=True)])


def protocol_names(task: Any, refined: bool) -> list[str]:  # noqa: ANN401
    """How images are looked at, as parts of names: none for the whole image alone."""
    return [name for name in (task.inference.name, task.refine.name if refined else "") if name]
