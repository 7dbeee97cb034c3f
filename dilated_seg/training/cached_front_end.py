"""The context stage without its front end, which is frozen: its scores of the training images are computed once."""

import hashlib
import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from filelock import FileLock, Timeout
from lightning import LightningModule, Trainer
from rich.progress import track
from torch.utils.data import DataLoader

from dilated_seg.data import SegmentationDataModule, collate, decode, pairs, samplers, shards, transforms
from dilated_seg.data.collate import initialize_worker
from dilated_seg.data.feature_cache import ROWS, StoredScores
from dilated_seg.errors import UserError
from dilated_seg.storage import write_text
from dilated_seg.training.freeze import Freeze
from dilated_seg.training.lightning_internals import wait_without_timeout
from dilated_seg.training.signals import StopOnSignal

# The modules that decide the tensors of a training image: finding, decoding, seeding and augmenting it.
READING = (decode, collate, pairs, samplers, shards, transforms)


class CachedFrontEnd(Freeze):
    """Freezes DilatedNet's front end for good and trains the rest on its scores of the training images, computed once.

    The scores, in float32, and the masks lie in shards in ``folder``/KEY. The key is of all that decides them: the front
    end's weights, mean and deviation, precision, the images, their augmentations, the run's seed, and the code that reads
    and scores them. When one of these changes, they are computed anew, into another folder; an earlier one can be removed
    when nobody trains on it. What was interrupted goes on where it was; what this run will not read is left out. Several
    processes share the work, and need a folder that all of them see; several runs wait for each other.

    The data need ``variants``: there are as many augmentations of each image as it says. A run with plain `Freeze` on the
    same variants has the same losses; it takes the front end's time for them. ``model.compile`` does nothing here.

    Args:
        folder: Where to keep them. An image of VOC takes about 0.6 MB for each variant.
    """

    def __init__(self, folder: str = "runs/scores") -> None:
        super().__init__(["net.front_end"])
        self.folder = Path(folder)

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:  # noqa: ANN401 - a SegmentationTask
        if stage == "fit":
            net: Any = pl_module.model.net
            data = trainer.datamodule  # type: ignore[attr-defined]
            if not (hasattr(net, "score") and hasattr(net, "finish") and len(list(net.context.parameters()))):
                raise UserError("CachedFrontEnd is for a DilatedNet with a context module: set model.net, or use Freeze")
            if any(isinstance(layer, torch.nn.Dropout) and layer.p > 0 for layer in net.front_end.modules()):
                raise UserError("CachedFrontEnd keeps scores without dropout: set model.net.init_args.dropout to 0")
            if pl_module.model.crf:
                raise UserError("CachedFrontEnd keeps scores and not images, which a CRF needs: set model.crf to null")
            if not isinstance(data, SegmentationDataModule):
                raise UserError("CachedFrontEnd needs one of our datasets: give the trainer a SegmentationDataModule")
            if data.variants is None:
                raise UserError(
                    "CachedFrontEnd keeps the scores of so many augmentations of each image as data.init_args.variants says: "
                    "set it, such as to 2"
                )
        super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute what is missing of what this run will read; then training reads it."""
        super().on_fit_start(trainer, pl_module)
        if trainer.limit_train_batches == 0:
            return  # nothing is to be trained
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        facts = identity(pl_module) | data.identity() | {"precision": str(trainer.precision)}
        facts["data_code"] = hash_code(sys.modules[type(data).__module__], *READING)
        text = trainer.strategy.broadcast(json.dumps(facts, indent=1))
        folder = self.folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        scores = StoredScores(folder, len(data.training_images()), data.variants)
        missing: list[tuple[int, int]] = []
        with ExitStack() as stack:
            with wait_without_timeout():  # checksums of many gigabytes, or another run, take their time
                if trainer.is_global_zero:
                    stack.enter_context(claimed(folder))
                    for begun in folder.glob("*.partial"):  # of a run that was killed
                        begun.unlink(missing_ok=True)
                    write_text(folder / "key.json", text + "\n")
                    missing = sorted(set(scores.missing()) & needed(trainer, data))
            missing = trainer.strategy.broadcast(missing)
            if not (folder / "key.json").is_file():
                raise UserError(f"{folder} is not seen by every process: name a folder that all machines share")
            with wait_without_timeout():
                self.compute(trainer, pl_module, scores, missing)
        for path in folder.glob("*-*-*.safetensors"):
            scores.add(path)
        if any(shard not in scores.places for shard in missing):
            raise UserError(f"{folder} does not hold what was written to it: name a folder that all machines share")
        data.scores = scores

    @torch.no_grad()
    def compute(self, trainer: Trainer, task: Any, scores: StoredScores, missing: list[tuple[int, int]]) -> None:  # noqa: ANN401
        """This process's share of the missing shards, image by image, with the network as it stands."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        mine: Iterable[tuple[int, int]] = missing[trainer.global_rank :: trainer.world_size]
        keys = [[(variant, index) for index in scores.rows(block)] for variant, block in mine]
        loader = DataLoader(
            data.training_images(),
            sampler=list(chain(*keys)),
            batch_size=None,
            num_workers=min(data.num_workers, 4) if keys else 0,
            worker_init_fn=initialize_worker,
        )
        if trainer.is_global_zero:
            print(
                f"front end's scores: {scores.folder}" + (f", {len(missing)} shards to compute" if missing else ""), flush=True
            )
            mine = track(mine, "Front end", disable=not missing or not sys.stdout.isatty(), transient=True)
        mode = task.model.net.front_end.training
        task.model.net.front_end.eval()
        samples = (self.scored(trainer, task, sample) for sample in loader)
        for number, (variant, block) in enumerate(mine):
            size = scores.write(variant, block, islice(samples, len(scores.rows(block))))
            if number == 0 and trainer.is_global_zero:
                require_space(scores.folder, size * (len(missing) - 1))
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, StopOnSignal):
                    callback.before_training(trainer)
        task.model.net.front_end.train(mode)

    @staticmethod
    def scored(trainer: Trainer, task: Any, sample: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
        """A sample with the scores of its image in the image's place."""
        trainer.datamodule.on_before_batch_transfer(sample, 0)  # type: ignore[attr-defined]
        with trainer.precision_plugin.forward_context():
            scores = task.model.net.score(task.model.normalize(sample["image"][None].to(task.device)))
        return {"scores": scores[0].float().cpu(), "mask": sample["mask"], "id": sample["id"]}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        if stage == "fit" and isinstance(data := trainer.datamodule, SegmentationDataModule):  # type: ignore[attr-defined]
            data.scores = None


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Let one run at a time compute the scores in a folder; another one waits, and finds them there."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"front end's scores: another run computes them in {folder}, waiting for it", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def needed(trainer: Trainer, data: SegmentationDataModule) -> set[tuple[int, int]]:
    """The shards (variant, block) that the run will read: all, but in a few steps, as of a rehearsal."""
    variants, order = data.variants or 1, data.training_order(0, int)
    everything = {(v, b) for v in range(variants) for b in range(-(-len(data.training_images()) // ROWS))}
    if trainer.max_steps < 0:
        return everything
    batches, found = trainer.max_steps * data.passes, set[tuple[int, int]]()
    for epoch in range(-(-batches // len(order))):
        if found == everything:
            break
        for rank in range(trainer.world_size):
            order = data.training_order(rank, partial(int, epoch * len(order)))
            for batch in islice(order, batches - epoch * len(order)):
                found |= {(epoch % variants, key[1] // ROWS) for key in batch if isinstance(key, tuple)}
    return found


def hash_code(*modules: ModuleType) -> str:
    """Return the SHA-256 of the source files of some modules; what was typed into a console has no file."""
    paths = sorted({file for module in modules if (file := getattr(module, "__file__", None))})
    return hashlib.sha256(b"".join(Path(path).read_bytes() for path in paths)).hexdigest()


def identity(task: Any) -> dict[str, Any]:  # noqa: ANN401
    """What decides the scores of an image: code, structure and weights of the front end, and what the image goes through."""
    weights = hashlib.sha256()
    for name, tensor in task.model.net.front_end.state_dict().items():
        weights.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    numbers = {name: getattr(task.model, name).flatten().tolist() for name in ("mean", "std")}
    structure = {"front_end": repr(task.model.net.front_end), "margin": task.model.net.margin}
    names = {type(layer).__module__ for layer in (task.model.net, *task.model.net.front_end.modules())}
    ours = hash_code(*(sys.modules[name] for name in names if not name.startswith("torch.")))
    return {"weights": weights.hexdigest(), **numbers, **structure, "network_code": ours}


def require_space(folder: Path, needed: int) -> None:
    """Say before hours of work that the disk is too small for its result.

    Raises:
        UserError: It is.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder} needs {needed / 1e9:.1f} GB more for the front end's scores and the disk has {free / 1e9:.1f} GB: "
            "name another CachedFrontEnd.folder, or lower data.init_args.variants"
        )
