"""A callback that records a training in Python, with a plain Trainer, as a run: configuration and checkpoints."""

from collections.abc import Mapping
from typing import Any

import yaml
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from dilated_seg.data.samplers import get_run_seed
from dilated_seg.errors import UserError
from dilated_seg.models.build import describe_network
from dilated_seg.runs.run import Run
from dilated_seg.storage import write_text

HEADER = "# Trained in Python: enough to evaluate the run again. Loss, optimizer, schedule and augmentation are not recorded.\n"
PLAIN = (str, int, float, bool, type(None))
UNRECORDED = ("augmentation", "transforms")  # arguments of the dataset that do not affect evaluations


class RunRecord(ModelCheckpoint):
    """Writes config.yaml and the checkpoints best (by val/mean_iou) and last into the Trainer's default_root_dir.

    Together with `EvaluationRecord`, it makes the directory a run like those of ``fit``, for `Run`, ``validate`` and
    ``report``. Each training needs a directory of its own, such as ``Run.create(Path("runs")).path``.
    """

    def __init__(self) -> None:
        super().__init__(
            monitor="val/mean_iou", mode="max", filename="best", save_last=True, enable_version_counter=False
        )  # fmt: skip

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set the directory and write the configuration before training.

        Raises:
            UserError: The directory has a finished run.
        """
        run = Run(trainer.default_root_dir)
        self.dirpath = str(run.checkpoint_dir)
        if stage == "fit":
            if run.finished and not trainer.ckpt_path:
                raise UserError(
                    f"{run} has a finished run: give the Trainer another default_root_dir, such as "
                    'Run.create(Path("runs")).path'
                )
            if trainer.is_global_zero:
                write_config(run, trainer, pl_module)
        super().setup(trainer, pl_module, stage)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last weights and mark the run as finished."""
        super().on_train_end(trainer, pl_module)
        run = Run(trainer.default_root_dir)
        trainer.save_checkpoint(run.last_checkpoint.path)
        if trainer.is_global_zero:
            run.mark_finished(trainer.global_step)


def write_config(run: Run, trainer: Trainer, task: Any) -> None:  # noqa: ANN401 - a SegmentationTask, a layer above
    """Write a run's config.yaml, from which `validate` rebuilds network and dataset; or print why it cannot."""
    data, net = describe_data(trainer.datamodule), describe_network(task.model.net)  # type: ignore[attr-defined]
    if net is None or data is None:
        kind = type(task.model.net if net is None else trainer.datamodule).__name__  # type: ignore[attr-defined]
        print(f"{run} has no config.yaml: the arguments of {kind} are unknown, so `validate {run}` cannot rebuild it")
        return
    model = {
        "net": net,
        "weights": task.weights,
        "class_weights": task.hparams["class_weights"],
        "mean": task.model.mean.flatten().tolist(),
        "std": task.model.std.flatten().tolist(),
    }
    if crf := task.model.crf:
        model["crf"] = crf.description
    options = {name: getattr(trainer, name) for name in ("max_steps", "max_epochs", "accumulate_grad_batches", "precision")}
    content = {"seed_everything": get_run_seed(), "model": model, "data": data, "trainer": options}
    write_text(run.config_file, HEADER + yaml.safe_dump(make_plain(content), sort_keys=False))


def describe_data(data: Any) -> dict[str, Any] | None:  # noqa: ANN401 - any data module
    """Return the class path and the arguments of a data module; None if these are unknown or not plain values."""
    kind, arguments = type(data), getattr(data, "arguments", None)
    if not isinstance(arguments, Mapping):
        return None
    arguments = {name: value for name, value in arguments.items() if name not in UNRECORDED}
    if not all(is_plain(value) for value in arguments.values()):
        return None
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": arguments}


def is_plain(value: Any) -> bool:  # noqa: ANN401
    """Return whether YAML can hold a value."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and is_plain(inner) for key, inner in value.items())
    return all(map(is_plain, value)) if isinstance(value, list | tuple) else isinstance(value, PLAIN)


def make_plain(value: Any) -> Any:  # noqa: ANN401
    """Replace tuples, which YAML does not have, by lists."""
    if isinstance(value, Mapping):
        return {key: make_plain(inner) for key, inner in value.items()}
    return [make_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
