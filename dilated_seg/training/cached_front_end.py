"""CachedFrontEnd: trains a context module on features of its frozen front end that are computed once."""

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from lightning import LightningModule, Trainer
from rich.progress import track
from torch.utils.data import DataLoader

from dilated_seg import storage
from dilated_seg.data import SegmentationDataModule
from dilated_seg.data.workers import initialize_worker
from dilated_seg.errors import UserError
from dilated_seg.models.layers import reflect
from dilated_seg.training.feature_key import describe_features, hash_text
from dilated_seg.training.freeze import Freeze
from dilated_seg.training.signals import StopOnSignal
from dilated_seg.training.stored_features import ROWS, Block, StoredFeatures, stack_features


class CachedFrontEnd(Freeze):
    """Freezes DilatedNet's front end and trains the context module on features that the front end computes only once.

    The features (float32) and the masks are kept in shards in ``folder``/KEY. The key depends on all inputs: the front end's
    weights, normalization, precision, images, augmentation, the run's seed, and the code. When one changes, the features are
    computed in another directory. An interrupted computation continues; only what this run reads is computed. Several
    processes share the work and need a shared directory; several runs wait for each other.

    In its first ``variants`` epochs a run has the same losses as one with `Freeze`; then the augmentations repeat. Only
    training batches are replaced: data module, evaluation, network and task are those of any other run.

    Args:
        folder: The directory of features; an image of VOC takes about 0.6 MB per variant.
        variants: The number of augmentations of each training image, one per epoch, before they repeat.
    """

    def __init__(self, folder: str = "runs/scores", variants: int = 2) -> None:
        super().__init__(["net.front_end"])
        if variants < 1:
            raise UserError(f"CachedFrontEnd.variants is {variants}: it must be at least 1")
        self.folder, self.variants = Path(folder), variants

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:  # noqa: ANN401 - a SegmentationTask
        if stage == "fit":
            net: Any = pl_module.model.net
            if not (hasattr(net, "front_end") and hasattr(net, "context") and len(list(net.context.parameters()))):
                raise UserError("CachedFrontEnd is for a DilatedNet with a context module: set model.net, or use Freeze")
            if any(
                isinstance(layer, torch.nn.Dropout | torch.nn.Dropout2d) and layer.p > 0 for layer in net.front_end.modules()
            ):
                raise UserError("CachedFrontEnd caches features without dropout: set model.net.init_args.dropout to 0")
            if pl_module.hparams.get("compile"):
                raise UserError("CachedFrontEnd does not compile the context module: set model.compile to false")
            if pl_module.model.crf:
                raise UserError("CachedFrontEnd caches features instead of images, which a CRF needs: set model.crf to null")
            if not isinstance(trainer.datamodule, SegmentationDataModule):  # type: ignore[attr-defined]
                raise UserError("CachedFrontEnd needs one of our datasets: give the trainer a SegmentationDataModule")
        super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the missing features that this run reads, and replace the training loader."""
        super().on_fit_start(trainer, pl_module)
        if trainer.limit_train_batches == 0:
            return  # nothing is trained
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        key = trainer.strategy.broadcast(json.dumps(describe_features(trainer, pl_module, data), indent=1))
        directory = self.folder / hash_text(key)[:16]
        features = StoredFeatures(directory, len(data.open_training_images()), self.variants)
        with lock_directory(directory) if trainer.is_global_zero else nullcontext():
            missing: list[Block] = []
            if trainer.is_global_zero:
                storage.write_text(directory / "key.json", key + "\n")
                missing = sorted(features.find_missing() & find_needed(trainer, data, features))
            missing = trainer.strategy.broadcast(missing)
            if not (directory / "key.json").is_file():
                raise UserError(f"{directory} is not visible to every process: name a directory that all machines share")
            self.compute(trainer, pl_module, features, missing)
            trainer.strategy.barrier()
        features.find_shards()
        if any(block not in features.shards for block in missing):
            raise UserError(f"{directory} lacks shards that were written to it: name a directory that all machines share")
        data.train_dataloader = partial(data.load_training, features, stack_features)

    @torch.no_grad()
    def compute(self, trainer: Trainer, task: Any, features: StoredFeatures, missing: list[Block]) -> None:  # noqa: ANN401
        """Compute and write this process's part of the missing shards, image by image."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        blocks: Sequence[Block] = missing[trainer.global_rank :: trainer.world_size]
        loader = DataLoader(
            data.open_training_images(),
            sampler=[(variant, index) for variant, block in blocks for index in features.rows(block)],
            batch_size=None,
            num_workers=min(data.num_workers, 4) if blocks else 0,
            worker_init_fn=initialize_worker,
        )
        if trainer.is_global_zero:
            work = f", {len(missing)} shards to compute" if missing else ""
            print(f"front end's features: {features.directory}{work}", flush=True)
        no_bar = not (trainer.is_global_zero and missing and sys.stdout.isatty())
        training = task.model.net.front_end.training
        task.model.net.front_end.eval()
        samples = (compute_sample(trainer, task, sample) for sample in loader)
        for number, (variant, block) in enumerate(track(blocks, "Front end", disable=no_bar, transient=True)):
            size = features.write(variant, block, list(islice(samples, len(features.rows(block)))))
            if number == 0 and trainer.is_global_zero:
                require_space(features.directory, size * (len(missing) - 1))
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, StopOnSignal):
                    callback.before_training(trainer)
        task.model.net.front_end.train(training)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:  # noqa: ANN401
        """Make the front end return the batch's cached features; of the batch's image only the size is used."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        features, front_end = batch.pop("features"), pl_module.model.net.front_end
        batch["image"] = torch.zeros((), dtype=torch.uint8, device=features.device).expand(
            len(features), len(pl_module.model.mean), *batch["mask"].shape[1:]
        )
        front_end.forward = lambda image: features

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:  # noqa: ANN401
        """Restore the front end's forward, for validation."""
        vars(pl_module.model.net.front_end).pop("forward", None)

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:  # noqa: ANN401
        super().teardown(trainer, pl_module, stage)
        if stage == "fit":
            self.on_train_batch_end(trainer, pl_module)
            vars(trainer.datamodule).pop("train_dataloader", None)  # type: ignore[attr-defined]


def compute_sample(trainer: Trainer, task: Any, sample: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
    """Return a sample with the front end's features instead of its image."""
    trainer.datamodule.on_before_batch_transfer(sample, 0)  # type: ignore[attr-defined]
    with trainer.precision_plugin.forward_context():
        image = task.model.normalize(sample["image"][None].to(task.device))
        features = task.model.net.front_end(reflect(image, task.model.net.margin) if task.model.net.margin else image)
    return {"features": features[0].float().cpu(), "mask": sample["mask"], "id": sample["id"]}


@contextmanager
def lock_directory(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory of features; wait while another run holds it."""
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"front end's features: waiting for another run that computes them in {directory}", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def find_needed(trainer: Trainer, data: SegmentationDataModule, features: StoredFeatures) -> set[Block]:
    """Return the shards that the run reads: all, unless it takes few steps."""
    if trainer.max_steps < 0:
        return features.blocks
    order = data.make_training_order(0, int)
    batches, needed = trainer.max_steps * data.passes, set[Block]()
    for epoch in range(-(-batches // len(order))):
        if needed == features.blocks:
            break
        for rank in range(trainer.world_size):
            order = data.make_training_order(rank, partial(int, epoch * len(order)))
            for batch in islice(order, batches - epoch * len(order)):
                needed |= {(epoch % features.variants, key[1] // ROWS) for key in batch if isinstance(key, tuple)}
    return needed


def require_space(directory: Path, needed: int) -> None:
    """Require free disk space.

    Raises:
        UserError: The free disk space is smaller than ``needed`` bytes.
    """
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise UserError(
            f"{directory} needs {needed / 1e9:.1f} GB more for the front end's features, but the disk has {free / 1e9:.1f} GB: "
            "name another CachedFrontEnd.folder, or lower its variants"
        )
