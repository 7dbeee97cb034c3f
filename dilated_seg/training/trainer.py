"""The Trainer of a run: what the experiment asks for, and what every run has besides."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from dilated_seg.errors import UserError
from dilated_seg.runs.run import Run
from dilated_seg.training.checkpoint_io import SafeCheckpointIO
from dilated_seg.training.evaluation import EvaluationRecord
from dilated_seg.training.gallery import PredictionWriter
from dilated_seg.training.interruption import KeepGradients, SaveOnError, SeedEveryStep
from dilated_seg.training.loggers import build_loggers, list_tags
from dilated_seg.training.processes import ProcessTimeout
from dilated_seg.training.progress import Throughput, ValidationLines
from dilated_seg.training.recipe import Recipe
from dilated_seg.training.signals import StopOnSignal


def build_trainer(options: dict[str, Any], run: Run, verb: str | None, recipe: Recipe, timeout: float, wandb: bool) -> Trainer:
    """Build the Trainer of a run.

    Args:
        options: The Trainer's arguments from the experiment, whose steps are optimizer steps; callbacks and loggers are built.
        run: The run, into whose directory everything is written.
        verb: What is done: "fit", "validate", "test" or "predict"; None for a Trainer that is used in Python.
        recipe: The resolved configuration.
        timeout: Seconds that processes wait for one that hangs.
        wandb: Whether W&B is wanted.

    Raises:
        UserError: The options cannot be followed here.
    """
    if options.get("default_root_dir"):
        raise UserError(f"trainer.default_root_dir {options['default_root_dir']}: name the run's folder with --run_dir instead")
    interval = options.get("val_check_interval")
    if interval == 0:
        raise UserError("trainer.val_check_interval is 0: give the steps from one validation to the next")
    if isinstance(interval, int) and options.get("check_val_every_n_epoch") is None:
        interval *= options["accumulate_grad_batches"]  # the experiment counts steps, Lightning batches
    loggers = choose_loggers(options.get("logger"), run, verb, recipe.config if wandb else None)
    callbacks = [
        SaveOnError(), SeedEveryStep(), KeepGradients(), StopOnSignal(), ProcessTimeout(timeout), Throughput(),
        ValidationLines(), EvaluationRecord(), PredictionWriter(), *choose_callbacks(options, run, verb, bool(loggers)), recipe,
    ]  # fmt: skip
    own = {
        "logger": loggers,
        "callbacks": callbacks,
        "default_root_dir": str(run),
        "plugins": [*as_list(options.get("plugins")), SafeCheckpointIO()],
        "val_check_interval": interval,
    }
    if not torch.cuda.is_available() or options.get("accelerator") == "cpu":
        own["sync_batchnorm"] = False  # torch has it for GPUs only
    try:
        return Trainer(**options | own)
    except ValueError as error:  # such as a strategy for GPUs where there are none
        raise UserError(f"trainer: {error}") from error


def as_list(value: Any) -> list[Any]:  # noqa: ANN401
    """Return a list as it is, a single object in a list, and None as an empty list."""
    return value if isinstance(value, list) else [] if value is None else [value]


def place_loggers(loggers: Any, run: Run) -> None:  # noqa: ANN401
    """Let the configured loggers write into the run's directory unless they name another one."""
    for logger in as_list(loggers):
        options = getattr(logger, "init_args", None) or {}
        if options.get("save_dir") in (".", ""):  # as Lightning's own defaults are
            options["save_dir"] = str(run)


def choose_loggers(wanted: Any, run: Run, verb: str | None, config: dict[str, Any] | None) -> list[Logger]:  # noqa: ANN401
    """Return our loggers and those that the user has added: a CSVLogger or WandbLogger of the same place replaces ours.

    Args:
        wanted: ``trainer.logger``.
        run: The run.
        verb: What is done.
        config: The configuration, if W&B is wanted.
    """
    added = list(wanted) if isinstance(wanted, Sequence) else [wanted] if isinstance(wanted, Logger) else []
    ours: list[Any] = []
    if verb in ("fit", "validate", "test"):
        if wanted is False or any(isinstance(logger, WandbLogger) for logger in added):
            config = None
        ours = build_loggers(run, verb, list_tags(config) if config else None)
    places = {Path(logger.log_dir).resolve() for logger in added if isinstance(logger, CSVLogger)}
    return [*(one for one in ours if not isinstance(one, CSVLogger) or run.path.resolve() not in places), *added]


def choose_callbacks(options: dict[str, Any], run: Run, verb: str | None, logged: bool) -> list[Callback]:
    """Return the experiment's callbacks that apply; of those that save, each saves into the run, and one last.ckpt."""
    saves = options.get("enable_checkpointing") is not False
    without: list[type] = [] if saves else [ModelCheckpoint]
    without += [ProgressBar] if options.get("enable_progress_bar") is False else []
    without += [] if logged else [LearningRateMonitor]
    chosen = [callback for callback in as_list(options.get("callbacks")) if not isinstance(callback, tuple(without))]
    directory, last = str(run.checkpoint_dir), False
    for callback in chosen:
        if isinstance(callback, ModelCheckpoint):
            callback.dirpath = callback.dirpath or directory
            last = last or (callback.filename, callback.dirpath) == ("last", directory)
    if verb == "fit" and saves and not last:
        chosen.append(ModelCheckpoint(directory, "last", enable_version_counter=False))
    return chosen
