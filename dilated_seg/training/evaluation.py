"""The callback that stores evaluations: confusion matrices, stratified counts, throughput."""

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
from dilated_seg.runs.strata import Counts, count_batch
from dilated_seg.runs.version import commit
from dilated_seg.training.cost import Cost
from dilated_seg.training.wandb_tables import draw_confusion, log_to_wandb, tabulate_confusion

Row = tuple[int, EvaluatedImage]  # index of an image in the split, its counts
CRF = "crf_"  # prefix of keys in the output of validation_step, for results after the dense CRF


class EvaluationRecord(Callback):
    """Writes evaluations (per-image confusion matrices, metrics, protocol) into the run, and confusion matrices to W&B.

    The files are ``evaluations/SPLIT.*`` during training and ``evaluations/SPLIT-CHECKPOINT[-STRATEGY][-crf].*`` after
    training. The latter also have counts stratified by object size and boundary distance, throughput and memory. An evaluation
    of only some images has a suffix such as ``-2of101``, so it never replaces an evaluation of the whole split.
    """

    def __init__(self) -> None:
        self.rows: dict[str, list[Row]] = {}  # by key prefix: "" and, with --crf, CRF
        self.pixels = 0  # pixels evaluated by this process, including ignored pixels
        self.cost: Cost | None = None  # None during training
        self.evaluations: list[Evaluation] = []  # of the last split: without and, with --crf, with the CRF

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.evaluations = []
        self.rows = {prefix: [] for prefix in ("", *([CRF] if pl_module.evaluation_crf else []))}
        self.pixels = 0
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
        self.pixels += sum(height * width for (height, width), name in zip(sizes, batch["id"], strict=True) if name)
        for prefix, rows in self.rows.items():
            counts: Sequence[Counts | None] = [None] * len(batch["id"])
            if self.cost:
                prediction = outputs[f"{prefix}prediction"].to(torch.int16).cpu().numpy()
                counts = count_batch(batch, prediction, task.num_classes, task.ignore_index)
            for name, matrix, strata in zip(batch["id"], outputs[f"{prefix}matrices"].cpu().numpy(), counts, strict=True):
                if name:  # empty for images that only pad the last batch
                    index = len(rows) * trainer.world_size + trainer.global_rank
                    rows.append((index, EvaluatedImage(name, matrix, strata)))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.write(trainer, pl_module, "val")

    on_test_epoch_start = on_validation_epoch_start

    def on_test_batch_start(self, *args: Any) -> None:  # noqa: ANN401
        self.on_validation_batch_start(*args)

    def on_test_batch_end(self, *args: Any) -> None:  # noqa: ANN401
        self.on_validation_batch_end(*args)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.write(trainer, pl_module, "test")

    def write(self, trainer: Trainer, task: Any, split: str) -> None:  # noqa: ANN401
        """Gather the counts of all processes, and write and log the evaluation.

        Raises:
            UserError: The masks have no valid pixel (in an evaluation after training).
        """
        pixels = sum(count for _, count in gather(trainer, [(trainer.global_rank, self.pixels)]))
        for prefix, rows in self.rows.items():
            images = [image for _, image in gather(trainer, rows)]
            if trainer.state.fn != TrainerFn.FITTING and not any(image.matrix.any() for image in images):
                raise UserError(
                    f"{split}: the masks of its {len(images):,} images have no pixel of any class, all {pixels:,} are ignored "
                    f"({task.ignore_index}), so there is nothing to evaluate: correct the masks, or the ignore index"
                )
            if not trainer.sanity_checking and trainer.is_global_zero:
                last = prefix == list(self.rows)[-1]  # measured with the CRF, if there is one
                cost = self.cost.summarize(trainer.world_size) if self.cost and last else None
                evaluation = build_evaluation(trainer, task, images, bool(prefix), pixels, cost)
                if trainer.state.fn != TrainerFn.FITTING:  # during training, each validation replaces the last
                    evaluation = evaluation.with_free_name(images)
                evaluation.save(images)
                show_evaluation_in_wandb(trainer, evaluation, f"{split}/crf" if prefix else split)
                self.evaluations.append(evaluation)


def build_evaluation(
    trainer: Trainer,
    task: Any,  # noqa: ANN401
    images: Sequence[EvaluatedImage],
    crf: bool,
    pixels: int,
    cost: dict[str, Any] | None,
) -> Evaluation:
    """Build the evaluation from the counts of all images and the protocol that trainer and task define.

    Args:
        trainer: The trainer that runs the evaluation.
        task: The SegmentationTask.
        images: Counts of the images of all processes.
        crf: Whether the counts are of predictions after the dense CRF.
        pixels: The number of pixels of the images, including ignored ones.
        cost: Throughput and memory, if measured.

    Raises:
        RuntimeError: An image of the split was not evaluated.
    """
    available = count_images(trainer)
    limit = trainer.limit_test_batches if trainer.testing else trainer.limit_val_batches
    if len(images) != available and isinstance(limit, float) and limit == 1.0:  # an int is a number of batches
        raise RuntimeError(f"{len(images)} of {available} images were evaluated")
    matrix = np.sum([image.matrix for image in images], axis=0)
    protocol = EvaluationProtocol(
        dataset=getattr(trainer.datamodule, "dataset_name", type(trainer.datamodule).__name__),  # type: ignore[attr-defined]
        split="test" if trainer.testing else "val",
        images=len(images),
        available=available,
        pixels=int(matrix.sum()),
        inference=str(task.inference),
        model_crf=str(task.model.crf) if task.model.crf else None,
        precision=str(trainer.precision),
        crf=str(task.evaluation_crf) if crf else None,
        checkpoint=name_checkpoint(trainer),
        step=task.trained_steps,
        commit=commit(),
    )
    return Evaluation(
        directory=Run(trainer.default_root_dir).evaluation_dir,
        name=name_evaluation(trainer, crf, len(images)),
        protocol=protocol,
        classes=list(task.classes),
        matrix=matrix,
        parameters=sum(parameter.numel() for parameter in task.model.net.parameters()),
        ignore_index=task.ignore_index,
        ignored_pixels=pixels - protocol.pixels,
        cost=cost,
        checkpoint_path=locate_checkpoint(trainer),
    )


def show_evaluation_in_wandb(trainer: Trainer, evaluation: Evaluation, section: str) -> None:
    """Log the confusion matrix as a table and, after training, as an image; note it if the evaluation is partial."""
    protocol, matrix, classes = evaluation.protocol, evaluation.matrix, evaluation.classes
    if protocol.partial:
        log_to_wandb(trainer, lambda: {f"{section}/partial": protocol.describe()["images"]})
    log_to_wandb(trainer, lambda: {f"{section}/confusion": tabulate_confusion(matrix, classes)})
    if trainer.state.fn != TrainerFn.FITTING:
        log_to_wandb(trainer, lambda: {f"{section}/confusion_picture": wandb.Image(draw_confusion(matrix, classes))})


def get_evaluations(trainer: Trainer) -> list[Evaluation]:
    """Return the latest evaluations, without and with the dense CRF; empty in all processes but the first."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    records = [callback for callback in callbacks if isinstance(callback, EvaluationRecord)]
    return [evaluation for record in records for evaluation in record.evaluations]


def gather(trainer: Trainer, rows: list[Any]) -> list[Any]:
    """Return the rows of all processes, sorted by the first value of each row (the index in the split)."""
    if trainer.world_size == 1:
        return rows
    parts: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(parts, rows)
    return sorted((row for part in parts for row in part), key=lambda row: row[0])


def count_images(trainer: Trainer) -> int:
    """Return the number of images in the evaluated split."""
    loaders: Any = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    return len(loaders.dataset)


def name_checkpoint(trainer: Trainer) -> str:
    """Return the name of the evaluated weights.

    It is "last" during and after training, or else the name of the checkpoint or file without suffix, or "untrained".
    """
    if trainer.state.fn == TrainerFn.FITTING:
        return "last"
    if trainer.ckpt_path or trainer.global_step:
        return Path(trainer.ckpt_path).stem if trainer.ckpt_path else "last"
    return Path(getattr(trainer.lightning_module, "weights", None) or "untrained").stem


def locate_checkpoint(trainer: Trainer) -> str | None:
    """Return the path of the evaluated weights, relative to the run directory if inside; None during training."""
    file = trainer.ckpt_path or (None if trainer.global_step else getattr(trainer.lightning_module, "weights", None))
    if trainer.state.fn == TrainerFn.FITTING or file is None:
        return None
    if "://" in str(file):
        return str(file)
    path, run = Path(os.path.abspath(str(file))), Path(os.path.abspath(trainer.default_root_dir))
    return str(path.relative_to(run)) if run in path.parents else str(path)


def name_evaluation(trainer: Trainer, crf: bool = False, images: int | None = None) -> str:
    """Return the name of an evaluation's files: the split and, after training, checkpoint, inference strategy and CRF.

    Examples: ``val`` (during training), ``val-best`` (full images), ``val-best-tiles-512x512-128-crf``, and ``val-best-2of101``
    for 2 of the split's 101 images.
    """
    parts = ["test" if trainer.testing else "val"]
    if trainer.state.fn in (TrainerFn.VALIDATING, TrainerFn.TESTING):
        parts += [name_checkpoint(trainer), *name_strategy(trainer.lightning_module, crf)]
    available = count_images(trainer)
    return "-".join([*parts, *([f"{images}of{available}"] if images not in (None, available) else [])])


def name_strategy(task: Any, crf: bool) -> list[str]:  # noqa: ANN401
    """Return the file name parts of the inference strategy and the dense CRF; empty for FullImage without a CRF."""
    return [name for name in (task.inference.name, task.evaluation_crf.name if crf else "") if name]
