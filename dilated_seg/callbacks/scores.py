"""The context stage without its front end, which is frozen: its scores of the training images are computed once."""

import hashlib
import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from rich.progress import track
from torch.utils.data import DataLoader

from dilated_seg import UserError, __version__
from dilated_seg.callbacks.freeze import Freeze
from dilated_seg.data.scores import ROWS, StoredScores
from dilated_seg.runs import write_text


class CachedFrontEnd(Freeze):
    """Freezes DilatedNet's front end for good and trains the rest on its scores of the training images, computed once.

    The scores, in float32, and the masks lie in shards in ``folder``/KEY. The key is of all that decides them: the front
    end's weights, mean and deviation, precision, the images, their augmentations and the run's seed. When one of these
    changes, they are computed anew, into another folder; an earlier one can be removed when nobody trains on it. What was
    interrupted goes on where it was. Several processes share the work, and need a folder that all of them see.

    The data need ``variants``: there are as many augmentations of each image as it says. A run with plain `Freeze` on the
    same variants and no dropout in the front end has the same losses; it takes the front end's time for them.

    Args:
        folder: Where to keep them. An image of VOC takes about 0.6 MB for each variant.
    """

    def __init__(self, folder: str = "runs/scores") -> None:
        super().__init__(["net.front_end"])
        self.folder = Path(folder)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            net: Any = pl_module.net
            if not (hasattr(net, "score") and hasattr(net, "finish") and len(list(net.context.parameters()))):
                raise UserError("CachedFrontEnd is for a DilatedNet with a context module: set model.net, or use Freeze")
            if trainer.datamodule.variants is None:  # type: ignore[attr-defined]
                raise UserError(
                    "CachedFrontEnd keeps the scores of so many augmentations of each image as data.init_args.variants says: "
                    "set it, such as to 2"
                )
        super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute what is missing; then training reads it."""
        super().on_fit_start(trainer, pl_module)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        facts = json.dumps(
            {**identity(pl_module), "precision": str(trainer.precision), **data.identity()}, indent=1, default=str
        )
        folder = self.folder / hashlib.sha256(facts.encode()).hexdigest()[:16]
        if trainer.is_global_zero:
            write_text(folder / "key.json", facts + "\n")
        trainer.strategy.barrier()
        if not (folder / "key.json").is_file():
            raise UserError(f"{folder} is not seen by every process: name a folder that all machines share")
        scores = StoredScores(folder, len(data.training_images()), data.variants)
        missing = scores.missing()
        trainer.strategy.barrier()
        mine: Iterable[tuple[int, int]] = missing[trainer.global_rank :: trainer.world_size]
        if trainer.is_global_zero:
            print(f"front end's scores: {folder}" + (f", {len(missing)} shards to compute" if missing else ""), flush=True)
            mine = track(mine, "Front end", disable=not missing or not sys.stdout.isatty(), transient=True)
        for number, (variant, block) in enumerate(mine):
            size = scores.write(variant, block, self.compute(trainer, pl_module, data, variant, block))
            if number == 0 and trainer.is_global_zero:
                require_space(folder, size * (len(missing) - 1))
        trainer.strategy.barrier()
        if missing and scores.missing():
            raise UserError(f"{folder} does not hold what was written to it: name a folder that all machines share")
        data.scores = scores

    @torch.no_grad()
    def compute(self, trainer: Trainer, task: Any, data: Any, variant: int, block: int) -> Iterator[dict[str, Any]]:  # noqa: ANN401
        """Samples of one shard, image by image, each with the scores that the network as it stands gives it."""
        images = data.training_images()
        keys = [(variant, index) for index in range(block * ROWS, min(len(images), (block + 1) * ROWS))]
        loader = DataLoader(images, sampler=keys, batch_size=None, num_workers=min(data.num_workers, 4))
        front_end = task.net.front_end
        mode = front_end.training
        front_end.eval()
        for sample in loader:
            data.on_before_batch_transfer(sample, 0)
            image = sample["image"][None].to(task.device)
            with trainer.precision_plugin.forward_context():
                scores = task.net.score(task.normalised(image))
            yield {"scores": scores[0].float().cpu(), "mask": sample["mask"], "id": sample["id"]}
        front_end.train(mode)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        if stage == "fit":
            trainer.datamodule.scores = None  # type: ignore[attr-defined]


def identity(task: Any) -> dict[str, Any]:  # noqa: ANN401
    """What decides the scores of an image: version, structure and weights of the front end, and what the image goes through."""
    weights = hashlib.sha256()
    for name, tensor in task.net.front_end.state_dict().items():
        weights.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    numbers = {name: getattr(task, name).flatten().tolist() for name in ("mean", "std")}
    structure = {"front_end": repr(task.net.front_end), "margin": task.net.margin}
    return {"version": __version__, "weights": weights.hexdigest(), **numbers, **structure}


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
