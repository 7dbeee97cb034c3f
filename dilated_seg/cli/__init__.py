"""``fit``, ``validate``, ``test``, ``predict``: task, data module and trainer from YAML, and the run directory."""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import Trainer, seed_everything

from dilated_seg.cli.explain import EVALUATIONS, describe_unused
from dilated_seg.cli.network import choose_checkpoint
from dilated_seg.cli.parser import TIMEOUT, build_parser, expand_arguments, format_config, instantiate, parse
from dilated_seg.cli.resolve import resolve_options
from dilated_seg.cli.run_directory import RUN_DIR, choose_run, keep_drawn_split, pin_dataset
from dilated_seg.data.checks import check_labels, require_labels, warn_of_shared_images
from dilated_seg.errors import LostProcessError, UserError
from dilated_seg.inference.strategies import FullImage
from dilated_seg.report.fit_summary import show_training
from dilated_seg.report.terminal import show_evaluation
from dilated_seg.runs.checkpoint import Checkpoint
from dilated_seg.runs.resume import find_resumed_checkpoint
from dilated_seg.runs.version import commit
from dilated_seg.training.checks import check_monitors
from dilated_seg.training.evaluation import get_evaluations
from dilated_seg.training.labels import NothingToLearnError
from dilated_seg.training.loggers import SafeWandbLogger, finish
from dilated_seg.training.processes import (
    end_other_processes,
    explain_lost_process,
    find_mistake,
    keep_memory,
    silence_warnings,
)
from dilated_seg.training.recipe import Recipe
from dilated_seg.training.signals import keep_signal_handlers
from dilated_seg.training.trainer import build_trainer, set_logger_directories


class CLI:
    """Builds ``model``, ``datamodule`` and ``trainer`` from a command line, and runs its command.

    Task and network get classes and ignore index from the dataset, never from YAML. Each run has a directory: a new one below
    ``runs/``, or ``--run_dir``; see `runs.resume` for how a run continues.

    Args:
        args: The command line after ``dilated-seg``; without the command if ``run`` is false.
        run: Whether to run the command, or only build task, data module and trainer.
        summary: Whether to end with a table, and ``fit`` with the next commands too.
    """

    def __init__(self, args: Sequence[str], run: bool = True, summary: bool = True) -> None:
        self.command, self.summary = args[0] if run else None, summary
        self.resumed, self.timeout = False, TIMEOUT
        self.created: Path | None = None
        self.trainer: Trainer = None  # type: ignore[assignment] # until it is built
        keep_memory()
        silence_warnings()
        try:
            args = expand_arguments(self.command, args[1:] if run else args)
            self.parser = build_parser(self.command, args)
            self.config = parse(self.parser, args)
            self.warn_of_unused(args)
            self.choose_run()
            self.build()
            with keep_signal_handlers():
                if self.command == "fit":
                    self.fit()
                elif self.command:
                    self.evaluate(self.command)
        except Exception as error:
            self.fail(error)
            raise
        for logger in self.trainer.loggers if run else ():
            if isinstance(logger, SafeWandbLogger):
                logger.end()

    def warn_of_unused(self, args: Sequence[str]) -> None:
        """Print the options of a dataset that another one has replaced."""
        data = self.config.data
        arguments = data.get("init_args")
        unused = describe_unused(args, vars(arguments) if arguments else {}, str(data.class_path).rpartition(".")[2])
        if unused and os.environ.get("LOCAL_RANK", "0") == "0":
            print(unused, file=sys.stderr)

    def choose_run(self) -> None:
        """Choose the seed, the run's directory, and the checkpoint that is evaluated or continued."""
        config = self.config
        if config.seed_everything is not False:
            seed = None if config.seed_everything is True else config.seed_everything
            config.seed_everything = seed_everything(seed, workers=True)
        if self.command in EVALUATIONS:
            config.ckpt_path = config.ckpt_path or choose_checkpoint(config)
        self.run, self.created = choose_run(self.command, config)
        if config.ckpt_path:
            Checkpoint.at(config.ckpt_path)
        if self.command == "fit":
            pin_dataset(config, self.run)
        resolve_options(self.parser, config)
        self.text = format_config(self.parser, config)
        if self.command == "fit" and (checkpoint := find_resumed_checkpoint(self.run, self.text, config.ckpt_path)):
            config.ckpt_path, self.resumed = str(checkpoint), True

    def build(self) -> None:
        """Build data module, task and trainer."""
        commit()  # read once: the checkout may change during the run
        os.environ[RUN_DIR] = str(self.run)
        if self.command == "fit":
            self.run.keep_history()
        config = self.config.clone()  # the saved configuration is the user's
        set_logger_directories(config.trainer.logger, self.run)
        self.built = instantiate(self.parser, config)
        self.datamodule, self.model = self.built.data, self.built.model
        self.timeout = float(self.built.process_timeout or TIMEOUT)
        recipe = Recipe(self.text, self.config.as_dict())
        self.trainer = build_trainer({**self.built.trainer}, self.run, self.command, recipe, self.timeout, self.built.wandb)
        if self.trainer.world_size == 1:
            del os.environ[RUN_DIR]
        if self.command == "fit" and self.trainer.is_global_zero:
            print(f"{'continuing' if self.resumed else 'run directory:'} {self.run}", flush=True)

    def fit(self) -> None:
        """Train, save the last weights and, with ``--evaluate``, evaluate them."""
        trainer, data = self.trainer, self.datamodule
        self.model.weights_loaded = bool(self.config.ckpt_path)  # a checkpoint replaces initial weights
        finished = self.resumed and self.run.finished
        if finished:  # also by early stopping: load the weights only
            trainer.limit_train_batches = 0
        check_monitors(trainer, self.model.metric_names("val"))
        validated = bool(trainer.limit_val_batches)
        for split in (data.train_split, "val") if validated else (data.train_split,):
            data.open_split(split)
        require_labels(data)
        keep_drawn_split(self.run, data, trainer.is_global_zero)
        if trainer.is_global_zero:
            if validated:
                warn_of_shared_images(data)
            if not finished:
                check_labels(data, validated)
        trainer.fit(self.model, datamodule=data, ckpt_path=self.config.ckpt_path)
        if not finished:
            trainer.save_checkpoint(self.run.last_checkpoint.path)
            if trainer.is_global_zero:
                self.run.mark_finished(trainer.global_step)
        if self.config.evaluate:
            trainer.limit_val_batches = trainer.limit_test_batches = 1.0  # the whole split
            evaluate = trainer.test if self.config.evaluate == "test" else trainer.validate
            evaluate(self.model, self.datamodule, verbose=False)
        if self.summary and trainer.is_global_zero:
            show_training(trainer, self.run.path)

    def evaluate(self, command: str) -> None:
        """Evaluate a checkpoint with the inference strategy and the CRF of the command line; print a table.

        Raises:
            UserError: There are no trained weights, or the CRF cannot be applied.
        """
        self.model.weights_loaded = bool(self.config.ckpt_path)
        self.require_weights()
        self.model.inference, self.model.evaluation_crf = self.built.inference or FullImage(), self.built.crf
        if self.built.crf and (self.built.crf.learnable or self.built.crf.num_classes):
            raise UserError("--crf is not learnable: train a learnable CRF as model.crf")
        if self.built.crf and self.model.model.crf:
            raise UserError("--crf would be applied twice: this model has a CRF of its own; its options are --model.crf...")
        self.datamodule.open_split({"validate": "val", "test": "test"}.get(command, self.datamodule.predict_split))
        keep_drawn_split(self.run, self.datamodule, write=False)
        options: dict[str, Any] = {"return_predictions": False} if command == "predict" else {"verbose": False}
        getattr(self.trainer, command)(self.model, datamodule=self.datamodule, ckpt_path=self.config.ckpt_path, **options)
        if self.summary and command != "predict" and (evaluations := get_evaluations(self.trainer)):
            show_evaluation(*evaluations)

    def require_weights(self) -> None:
        """Require trained weights.

        Raises:
            UserError: There is neither a checkpoint nor a file of weights, and the network has parameters.
        """
        if self.config.ckpt_path or self.model.weights not in (None, "imagenet"):
            return
        if any(parameter.numel() for parameter in self.model.parameters()):
            raise UserError(
                f"{self.command} has no trained weights: name a trained network, as in `dilated-seg {self.command} RUN`, a "
                "checkpoint with --ckpt_path, or published weights with --model.weights"
            )

    def fail(self, error: Exception) -> None:
        """End the other processes, and raise a mistake of the user as one sentence.

        The run directory is removed if this call created it and no step was trained.

        Raises:
            UserError: The error is a mistake of the user, or shows that another process has ended.
        """
        lost = explain_lost_process(error, self.trainer, self.timeout) if self.trainer else None
        if self.trainer:
            end_other_processes(self.trainer, patience=5 if lost else 0)  # a process that ends by itself prints why
        if mistake := lost or find_mistake(error):
            kept = (self.trainer and self.trainer.global_step) or (self.created and (self.created / "checkpoints").exists())
            if self.created and (isinstance(mistake, NothingToLearnError) or not kept):
                finish()
                shutil.rmtree(self.created, ignore_errors=True)
            raise (LostProcessError if lost else UserError)(" ".join(str(mistake).split())) from error
