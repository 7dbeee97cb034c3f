"""The Trainer of a run: the experiment's options, and the callbacks and loggers of every run."""

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


def build_trainer(
    options: dict[str, Any], run: Run, command: str | None, recipe: Recipe, timeout: float, wandb: bool
) -> Trainer:
    """Build the Trainer of a run.

    Args:
        options: The Trainer's arguments from the experiment, whose steps are optimizer steps; callbacks and loggers are built.
        run: The run, whose directory gets all files.
        command: "fit", "validate", "test" or "predict"; None for a Trainer that is used in Python.
        recipe: The resolved configuration.
        timeout: Seconds after which processes stop waiting for one that hangs.
        wandb: Whether to log to W&B.

    Raises:
        UserError: An option is not supported.
    """
    if options.get("default_root_dir"):
        raise UserError(f"trainer.default_root_dir {options['default_root_dir']}: use --run_dir instead")
    interval = options.get("val_check_interval")
    if interval == 0:
        raise UserError("trainer.val_check_interval is 0: set the number of steps between validations")
    if isinstance(interval, int) and options.get("check_val_every_n_epoch") is None:
        interval *= options["accumulate_grad_batches"]  # the experiment counts steps, Lightning batches
    loggers = choose_loggers(options.get("logger"), run, command, recipe.config if wandb else None)
    callbacks = [
        SaveOnError(), SeedEveryStep(), KeepGradients(), StopOnSignal(), ProcessTimeout(timeout), Throughput(),
        ValidationLines(), EvaluationRecord(), PredictionWriter(), *choose_callbacks(options, run, command, bool(loggers)),
        recipe,
    ]  # fmt: skip
    ours = {
        "logger": loggers,
        "callbacks": callbacks,
        "default_root_dir": str(run),
        "plugins": [*as_list(options.get("plugins")), SafeCheckpointIO()],
        "val_check_interval": interval,
    }
    if not torch.cuda.is_available() or options.get("accelerator") == "cpu":
        ours["sync_batchnorm"] = False  # torch supports it on GPUs only
    try:
        return Trainer(**options | ours)
    except ValueError as error:  # such as a strategy for GPUs where there are none
        raise UserError(f"trainer: {error}") from error


def as_list(value: Any) -> list[Any]:  # noqa: ANN401
    """Return a list unchanged, a single object as a list, and None as an empty list."""
    return value if isinstance(value, list) else [] if value is None else [value]


def set_logger_directories(loggers: Any, run: Run) -> None:  # noqa: ANN401
    """Set the run's directory as ``save_dir`` of the configured loggers that name no other."""
    for logger in as_list(loggers):
        options = getattr(logger, "init_args", None) or {}
        if options.get("save_dir") in (".", ""):  # Lightning's defaults
            options["save_dir"] = str(run)


def choose_loggers(option: Any, run: Run, command: str | None, config: dict[str, Any] | None) -> list[Logger]:  # noqa: ANN401
    """Return the default loggers and those of the experiment, whose WandbLogger or CSVLogger replaces the default one.

    Args:
        option: ``trainer.logger``.
        run: The run.
        command: The command, as in `build_trainer`.
        config: The configuration; None without W&B.
    """
    added = list(option) if isinstance(option, Sequence) else [option] if isinstance(option, Logger) else []
    ours: list[Any] = []
    if command in ("fit", "validate", "test"):
        if option is False or any(isinstance(logger, WandbLogger) for logger in added):
            config = None
        ours = build_loggers(run, command, list_tags(config) if config else None)
    directories = {Path(logger.log_dir).resolve() for logger in added if isinstance(logger, CSVLogger)}
    if run.path.resolve() in directories:
        ours = [logger for logger in ours if not isinstance(logger, CSVLogger)]
    return [*ours, *added]


def choose_callbacks(options: dict[str, Any], run: Run, command: str | None, logged: bool) -> list[Callback]:
    """Return the experiment's callbacks that apply, with checkpoints in the run, and a last.ckpt when training."""
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
    if command == "fit" and saves and not last:
        chosen.append(ModelCheckpoint(directory, "last", enable_version_counter=False))
    return chosen
