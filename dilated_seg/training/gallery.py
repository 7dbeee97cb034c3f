"""Callbacks that write images: some of an evaluation, or all predictions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from PIL import Image

from dilated_seg.data.bands import show_rgb
from dilated_seg.data.masks import paint_mask
from dilated_seg.runs.files import PROTOCOL
from dilated_seg.runs.gallery import write_gallery_images
from dilated_seg.runs.run import Run
from dilated_seg.runs.version import commit
from dilated_seg.storage import write_text
from dilated_seg.training.evaluation import gather, get_evaluations, name_checkpoint, name_evaluation, name_strategy
from dilated_seg.training.wandb_tables import GalleryImage, log_to_wandb, tabulate_images


class Gallery(Callback):
    """Keeps some images of an evaluation, with mask and prediction: as PNGs in the run, as a table in W&B.

    The images are the same for every network and any number of processes, so that runs can be compared image by image.

    Args:
        images: The number of images, evenly spaced in the split.
    """

    def __init__(self, images: int = 6) -> None:
        self.images = images
        self.kept: list[GalleryImage] = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.kept = []

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
                maps = (show_rgb(batch["image"][i]).permute(1, 2, 0), batch["mask"][i], outputs["prediction"][i])
                image, truth, prediction = (m[:height, :width].cpu().numpy().astype(np.uint8) for m in maps)
                matrix = outputs["matrices"][i].cpu().numpy()
                self.kept.append(GalleryImage(index, name, image, truth, prediction, matrix))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        images = gather(trainer, self.kept)
        self.kept = []
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        dataset: Any = trainer.datamodule  # type: ignore[attr-defined]
        names = [evaluation.name for evaluation in get_evaluations(trainer)] or [name_evaluation(trainer)]
        directory = Run(trainer.default_root_dir).gallery_dir(names[0])
        for kept in images:
            write_gallery_images(directory, kept.name, kept.image, kept.truth, kept.prediction, dataset.palette)
        split = "test" if trainer.testing else "val"
        log_to_wandb(trainer, lambda: {f"{split}/images": tabulate_images(images, dataset.classes, dataset.ignore_index)})

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end


class PredictionWriter(Callback):
    """Writes the predictions of ``predict``: one PNG per image, whose values are class ids, with the dataset's palette.

    The directory is ``predictions/``, or ``predictions-STRATEGY/`` if the strategy is not FullImage, with a protocol.json. If a
    test server requires other values, such as Cityscapes' label ids, PNGs with these are written to ``submission/``.
    """

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.write_protocol(trainer, finished=False)

    def write_protocol(self, trainer: Trainer, finished: bool) -> None:
        """Write protocol.json, which states whether all images of the split have been predicted."""
        if trainer.is_global_zero:
            task: Any = trainer.lightning_module
            images, available = count_predicted(trainer)
            number = images if images == available else f"{images} of {available}, partial"
            protocol = {
                "dataset": type(trainer.datamodule).__name__,  # type: ignore[attr-defined]
                "images": number if finished else f"{number}, not finished",
                "inference": f"{task.inference}, then {task.evaluation_crf}" if task.evaluation_crf else str(task.inference),
                "precision": trainer.precision,
                "checkpoint": f"{name_checkpoint(trainer)}, step {task.trained_steps}",
                "commit": commit(),
            }
            write_text(list_prediction_dirs(trainer)[0] / PROTOCOL, json.dumps(protocol, indent=1) + "\n")

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Any], *args: Any  # noqa: ANN401
    ) -> None:  # fmt: skip
        dataset: Any = trainer.datamodule  # type: ignore[attr-defined]
        predictions, submission = list_prediction_dirs(trainer)
        for name, prediction, (height, width) in zip(batch["id"], outputs, batch["size"], strict=True):
            if name:
                for directory in (predictions, submission) if dataset.submitted else (predictions,):
                    (directory / name).parent.mkdir(parents=True, exist_ok=True)  # names of a Folder may have directories
                ids = prediction[:height, :width].cpu().numpy()
                paint_mask(ids, dataset.palette).save(predictions / f"{name}.png")
                if dataset.submitted:
                    Image.fromarray(np.array(dataset.submitted, np.uint8)[ids]).save(submission / f"{name}.png")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.write_protocol(trainer, finished=True)
        if trainer.is_global_zero:
            predictions, submission = list_prediction_dirs(trainer)
            print(f"class ids as PNGs: {predictions}")
            if trainer.datamodule.submitted:  # type: ignore[attr-defined]
                print(f"the test server's values: {submission}")


def count_predicted(trainer: Trainer) -> tuple[int, int]:
    """Return the number of images that ``predict`` processes, and the number in the split."""
    loader: Any = trainer.predict_dataloaders
    available = len(loader.dataset)
    batch_size = loader.batch_sampler.batch_size * trainer.world_size
    return min(int(trainer.num_predict_batches[0]) * batch_size, available), available


def list_prediction_dirs(trainer: Trainer) -> tuple[Path, Path]:
    """Return the directories of predictions and of a test server's files; predictions of a part of a split have their own."""
    task: Any = trainer.lightning_module
    images, available = count_predicted(trainer)
    names = name_strategy(task, task.evaluation_crf is not None) + ([f"{images}of{available}"] if images < available else [])
    return Run(trainer.default_root_dir).prediction_dirs(names)
