"""The callback that collects an evaluation's integers and writes them into the run and to W&B."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import wandb
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from dilated_seg.errors import UserError
from dilated_seg.runs import EvaluatedImage, Evaluation, EvaluationProtocol, Run
from dilated_seg.runs.strata import Counts, counted
from dilated_seg.runs.version import commit
from dilated_seg.training.cost import Cost
from dilated_seg.training.wandb_tables import draw_confusion, show_in_wandb, tabulate_confusion

Row = tuple[int, EvaluatedImage]  # its index in the split, and its counts
REFINED = "refined_"  # prefix of the task's outputs after the dense CRF


class EvaluationRecord(Callback):
    """Writes an evaluation into the run: per-image confusion matrices, metrics and protocol; W&B shows the confusion matrix.

    The files are ``evaluations/SPLIT.*`` while training and ``evaluations/SPLIT-CHECKPOINT[-STRATEGY][-crf].*`` after it. The
    latter hold counts stratified by object size and boundary distance, and throughput and memory. An evaluation of some of
    the split's images is called ``...-2of101`` and never replaces one of all.
    """

    def __init__(self) -> None:
        self.rows: dict[str, list[Row]] = {}  # by prefix of the task's outputs
        self.area = 0  # pixels of this process's images, ignored ones too
        self.cost: Cost | None = None  # not while training
        self.evaluations: list[Evaluation] = []  # of the latest evaluation: without the dense CRF, and with it

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.evaluations = []
        self.rows = {prefix: [] for prefix in ("", *([REFINED] if pl_module.refine else []))}
        self.area = 0
        self.cost = None if trainer.state.fn == TrainerFn.FITTING else Cost(pl_module.device)

    def on_validation_batch_start(self, *args: Any) -> None:  # noqa: ANN401
        if self.cost:
            self.cost.start()

    def on_validation_batch_end(
        self, trainer: Trainer, task: Any, outputs: Any, batch: dict[str, Any], *args: Any  # noqa: ANN401
    ) -> None:  # fmt: skip
        if self.cost:
            self.cost.stop(batch)
        sizes = batch.get("size") or [batch["mask"].shape[-2:]] * len(batch["id"])
        self.area += sum(height * width for (height, width), name in zip(sizes, batch["id"], strict=True) if name)
        for prefix, rows in self.rows.items():
            counts: Sequence[Counts | None] = [None] * len(batch["id"])
            if self.cost:
                prediction = outputs[f"{prefix}prediction"].to(torch.int16).cpu().numpy()
                counts = counted(batch, prediction, task.num_classes, task.ignore_index)
            for name, matrix, strata in zip(batch["id"], outputs[f"{prefix}matrices"].cpu().numpy(), counts, strict=True):
                if name:  # padding that makes processes equal has none
                    index = len(rows) * trainer.world_size + trainer.global_rank
                    rows.append((index, EvaluatedImage(name, matrix, strata)))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer, pl_module, "val")

    on_test_epoch_start = on_validation_epoch_start

    def on_test_batch_start(self, *args: Any) -> None:  # noqa: ANN401
        self.on_validation_batch_start(*args)

    def on_test_batch_end(self, *args: Any) -> None:  # noqa: ANN401
        self.on_validation_batch_end(*args)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer, pl_module, "test")

    def _finish(self, trainer: Trainer, task: Any, split: str) -> None:  # noqa: ANN401
        area = sum(pixels for _, pixels in gather(trainer, [(trainer.global_rank, self.area)]))
        for prefix, rows in self.rows.items():
            images = [image for _, image in gather(trainer, rows)]
            if trainer.state.fn != TrainerFn.FITTING and not any(image.matrix.any() for image in images):
                raise UserError(
                    f"{split}: the masks of its {len(images):,} images have no pixel of any class, all {area:,} are ignored "
                    f"({task.ignore_index}), so there is nothing to score: correct the masks, or what the dataset ignores"
                )
            if not trainer.sanity_checking and trainer.is_global_zero:
                last = prefix == list(self.rows)[-1]  # the CRF's time is no part of the network's
                cost = self.cost.found(trainer.world_size) if self.cost and last else None
                evaluation = build_evaluation(trainer, task, split, images, bool(prefix), area, cost)
                if trainer.state.fn != TrainerFn.FITTING:  # while training, the last one counts
                    evaluation = evaluation.with_free_name(images)
                evaluation.save(images)
                show_evaluation_in_wandb(trainer, evaluation, f"{split}/crf" if prefix else split)
                self.evaluations.append(evaluation)


def build_evaluation(
    trainer: Trainer,
    task: Any,  # noqa: ANN401
    split: str,
    images: Sequence[EvaluatedImage],
    refined: bool,
    area: int,
    cost: dict[str, Any] | None,
) -> Evaluation:
    """Return the evaluation of these images: their sum, and the protocol of the trainer and the task.

    Raises:
        RuntimeError: An image of the split was left out.
    """
    available = count_images(trainer)
    limit = trainer.limit_test_batches if split == "test" else trainer.limit_val_batches
    if len(images) != available and isinstance(limit, float) and limit == 1.0:  # an int counts batches
        raise RuntimeError(f"{len(images)} of {available} images were evaluated")
    matrix = np.sum([image.matrix for image in images], axis=0)
    pixels = int(matrix.sum())
    protocol = EvaluationProtocol(
        dataset=type(trainer.datamodule).__name__,  # type: ignore[attr-defined]
        split=split,
        images=len(images),
        available=available,
        pixels=pixels,
        inference=str(task.inference),
        model_crf=str(task.model.crf) if task.model.crf else None,
        precision=str(trainer.precision),
        crf=str(task.refine) if refined else None,
        checkpoint=name_checkpoint(trainer),
        step=task.trained_steps,
        commit=commit(),
    )
    return Evaluation(
        directory=Run(trainer.default_root_dir).evaluation_dir,
        name=name_evaluation(trainer, refined, len(images)),
        protocol=protocol,
        classes=list(task.classes),
        matrix=matrix,
        parameters=sum(parameter.numel() for parameter in task.model.net.parameters()),
        ignore_index=task.ignore_index,
        ignored_pixels=area - pixels,
        cost=cost,
        checkpoint_path=locate_checkpoint(trainer),
    )


def show_evaluation_in_wandb(trainer: Trainer, evaluation: Evaluation, section: str) -> None:
    """Log the confusion matrix, as a table and after training as an image too, and whether the evaluation is partial."""
    protocol, matrix, classes = evaluation.protocol, evaluation.matrix, evaluation.classes
    if protocol.partial:
        show_in_wandb(trainer, lambda: {f"{section}/partial": protocol.describe()["images"]})
    show_in_wandb(trainer, lambda: {f"{section}/confusion": tabulate_confusion(matrix, classes)})
    if trainer.state.fn != TrainerFn.FITTING:
        show_in_wandb(trainer, lambda: {f"{section}/confusion_picture": wandb.Image(draw_confusion(matrix, classes))})


def written_evaluations(trainer: Trainer) -> list[Evaluation]:
    """Return what the latest evaluation wrote; empty on other processes than the first."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [one for callback in callbacks if isinstance(callback, EvaluationRecord) for one in callback.evaluations]


def gather(trainer: Trainer, rows: list[Any]) -> list[Any]:
    """Return the rows of all processes, sorted by the first value of each row: its index in the split."""
    if trainer.world_size == 1:
        return rows
    parts: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(parts, rows)
    return sorted((row for part in parts for row in part), key=lambda row: row[0])


def count_images(trainer: Trainer) -> int:
    """Return the number of images of the split that is evaluated."""
    loaders: Any = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    return len(loaders.dataset)


def name_checkpoint(trainer: Trainer) -> str:
    """Return the name of the evaluated weights: a checkpoint's, "last" at the end of training, a file's, or "untrained"."""
    if trainer.state.fn == TrainerFn.FITTING:
        return "last"
    if trainer.ckpt_path or trainer.global_step:
        return Path(trainer.ckpt_path).stem if trainer.ckpt_path else "last"
    return Path(getattr(trainer.lightning_module, "weights", None) or "untrained").stem


def locate_checkpoint(trainer: Trainer) -> str | None:
    """Return the file of the evaluated weights, relative to the run directory if it is in it; None while training."""
    file = trainer.ckpt_path or (None if trainer.global_step else getattr(trainer.lightning_module, "weights", None))
    if trainer.state.fn == TrainerFn.FITTING or file is None:
        return None
    if "://" in str(file):
        return str(file)
    path, run = Path(os.path.abspath(str(file))), Path(os.path.abspath(trainer.default_root_dir))
    return str(path.relative_to(run)) if run in path.parents else str(path)


def name_evaluation(trainer: Trainer, refined: bool = False, images: int | None = None) -> str:
    """Return the name of an evaluation's files: the split while training, and after it with the checkpoint and the protocol.

    The strategy FullImage is not named, so: ``val``, ``val-best``, ``val-best-tiles-512x512-128-crf``. If ``images`` is less
    than the split has, the name ends with both numbers: ``val-best-2of101``.
    """
    parts = ["test" if trainer.testing else "val"]
    if trainer.state.fn in (TrainerFn.VALIDATING, TrainerFn.TESTING):
        parts += [name_checkpoint(trainer), *name_strategy(trainer.lightning_module, refined)]
    available = count_images(trainer)
    return "-".join([*parts, *([f"{images}of{available}"] if images not in (None, available) else [])])


def name_strategy(task: Any, refined: bool) -> list[str]:  # noqa: ANN401
    """Return the inference strategy and the dense CRF as parts of file names: none for the whole image alone."""
    return [name for name in (task.inference.name, task.refine.name if refined else "") if name]
