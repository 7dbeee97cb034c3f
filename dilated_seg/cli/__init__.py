"""``fit``, ``validate``, ``test``, ``predict``: task, data module and trainer from YAML, and a directory for the run."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import Trainer, seed_everything

from dilated_seg.cli.explain import EVALUATIONS
from dilated_seg.cli.parser import TIMEOUT, build_parser, format_config, instantiate, parse
from dilated_seg.cli.run_directory import RUN_DIR, choose_checkpoint, choose_run
from dilated_seg.data.checks import check_labels, require_labels, warn_of_shared_images
from dilated_seg.errors import LostProcessError, UserError
from dilated_seg.inference.strategies import FullImage
from dilated_seg.report.fit_summary import show_training
from dilated_seg.report.terminal import show_evaluation
from dilated_seg.runs.checkpoint import Checkpoint
from dilated_seg.runs.resume import find_resumed_checkpoint
from dilated_seg.runs.version import commit
from dilated_seg.training.checks import check_monitors
from dilated_seg.training.evaluation import written_evaluations
from dilated_seg.training.labels import NothingToLearnError
from dilated_seg.training.loggers import SafeWandbLogger, finish
from dilated_seg.training.processes import end_other_processes, find_mistake, keep_memory, lost_process, quiet
from dilated_seg.training.recipe import Recipe
from dilated_seg.training.signals import keep_signal_handlers
from dilated_seg.training.trainer import build_trainer, place_loggers


class CLI:
    """Builds ``model``, ``datamodule`` and ``trainer`` from a command line, and runs its verb.

    What the dataset knows (classes, ignored label) reaches task and network from there, never from a YAML. Each run has a
    directory: a new one below ``runs/``, or ``--run_dir``; see `runs.resume` for how a run continues.

    Args:
        args: What follows ``dilated-seg`` on the command line; without the verb if it is not run.
        run: Whether to run the verb, or only build task, data and trainer.
        summary: Whether a training or evaluation ends with its table, and ``fit`` with the commands that come next too.
    """

    def __init__(self, args: Sequence[str], run: bool = True, summary: bool = True) -> None:
        self.verb, self.summary = args[0] if run else None, summary
        self.resumed, self.timeout = False, TIMEOUT
        self.created: Path | None = None
        self.trainer: Trainer = None  # type: ignore[assignment] # until it is built
        keep_memory()
        quiet()
        try:
            self.parser = build_parser(self.verb)
            self.config = parse(self.parser, self.verb, args[1:] if run else args)
            self.choose_run()
            self.build()
            with keep_signal_handlers():
                if self.verb == "fit":
                    self.fit()
                elif self.verb:
                    self.evaluate(self.verb)
        except Exception as error:
            self.fail(error)
            raise
        for logger in self.trainer.loggers if run else ():
            if isinstance(logger, SafeWandbLogger):
                logger.end()

    def choose_run(self) -> None:
        """Choose the seed, the run's directory, and the checkpoint that is evaluated or continued."""
        config = self.config
        if config.seed_everything is not False:
            seed = None if config.seed_everything is True else config.seed_everything
            config.seed_everything = seed_everything(seed, workers=True)
        if self.verb in EVALUATIONS:
            config.ckpt_path = config.ckpt_path or choose_checkpoint(config)
        self.run, self.created = choose_run(self.verb, config)
        if config.ckpt_path:
            Checkpoint.at(config.ckpt_path)
        self.text = format_config(self.parser, config)
        if self.verb == "fit" and (checkpoint := find_resumed_checkpoint(self.run, self.text, config.ckpt_path)):
            config.ckpt_path, self.resumed = str(checkpoint), True

    def build(self) -> None:
        """Build data module, task and trainer."""
        commit()  # as it is now: the checkout may move on while the run lasts
        os.environ[RUN_DIR] = str(self.run)
        if self.verb == "fit":
            self.run.keep_history()
        placed = self.config.clone()  # what is saved of the run is as the user said it
        place_loggers(placed.trainer.logger, self.run)
        self.built = instantiate(self.parser, placed)
        self.datamodule, self.model = self.built.data, self.built.model
        self.timeout = float(self.built.process_timeout or TIMEOUT)
        recipe = Recipe(self.text, self.config.as_dict())
        self.trainer = build_trainer({**self.built.trainer}, self.run, self.verb, recipe, self.timeout, self.built.wandb)
        if self.trainer.world_size == 1:
            del os.environ[RUN_DIR]
        if self.verb == "fit" and self.trainer.is_global_zero:
            print(f"{'continuing' if self.resumed else 'run folder:'} {self.run}", flush=True)

    def fit(self) -> None:
        """Train, keep the last weights, also when training does not end on a validation, and evaluate them if asked to."""
        trainer, data = self.trainer, self.datamodule
        self.model.started = bool(self.config.ckpt_path)  # a checkpoint needs none of the weights it once started from
        finished = self.resumed and self.run.finished
        if finished:  # be it before its last step, by early stopping: there is nothing to train, only weights to load
            trainer.limit_train_batches = 0
        check_monitors(trainer, self.model.metric_names("val"))
        for split in (data.train_split, "val"):
            data.open_split(split)
        require_labels(data)
        if trainer.is_global_zero:
            warn_of_shared_images(data)
            if not finished:
                check_labels(data)
        trainer.fit(self.model, datamodule=data, ckpt_path=self.config.ckpt_path)
        if not finished:
            trainer.save_checkpoint(self.run.last_checkpoint.path)
            if trainer.is_global_zero:
                self.run.mark_finished(trainer.global_step)
        if self.config.evaluate:
            trainer.limit_val_batches = trainer.limit_test_batches = 1.0  # the whole split, whatever training saw
            evaluate = trainer.test if self.config.evaluate == "test" else trainer.validate
            evaluate(self.model, self.datamodule, verbose=False)
        if self.summary and trainer.is_global_zero:
            show_training(trainer, self.run.path)

    def evaluate(self, verb: str) -> None:
        """Evaluate a checkpoint by the inference strategy, and the CRF, that the command line names; print the table."""
        self.model.started = bool(self.config.ckpt_path)
        self.require_weights()
        self.model.inference, self.model.refine = self.built.inference or FullImage(), self.built.crf
        if self.model.refine and (self.model.refine.learnable or self.model.refine.num_classes):
            raise UserError("--crf takes numbers alone: what is learnable is learnt as model.crf")
        if self.model.refine and self.model.model.crf:
            raise UserError("--crf would refine twice: this model has a CRF of its own; its options are --model.crf...")
        self.datamodule.open_split({"validate": "val", "test": "test"}.get(verb, self.datamodule.predict_split))
        quiet: dict[str, Any] = {"return_predictions": False} if verb == "predict" else {"verbose": False}
        getattr(self.trainer, verb)(self.model, datamodule=self.datamodule, ckpt_path=self.config.ckpt_path, **quiet)
        if self.summary and verb != "predict" and (found := written_evaluations(self.trainer)):
            show_evaluation(*found)

    def require_weights(self) -> None:
        """Refuse to evaluate a network that has not been trained.

        Raises:
            UserError: There is neither a checkpoint nor a file of weights, and the network has parameters.
        """
        start = self.model.weights
        if self.config.ckpt_path or (start and start != "imagenet"):
            return
        if any(parameter.numel() for parameter in self.model.parameters()):
            raise UserError(
                f"{self.verb} has no trained weights: name a checkpoint with --ckpt_path RUN/checkpoints/best.ckpt, "
                "take the run's best with --config RUN/config.yaml, or name a file of published weights with --model.weights"
            )

    def fail(self, error: Exception) -> None:
        """End the other processes, and raise a mistake of the user as one sentence.

        A mistake leaves nothing behind: the directory goes if this call made it and nothing was learned.
        """
        lost = lost_process(error, self.trainer, self.timeout) if self.trainer else None
        if self.trainer:
            end_other_processes(self.trainer, patience=5 if lost else 0)  # one that ends by itself says why
        if mistake := lost or find_mistake(error):
            kept = (self.trainer and self.trainer.global_step) or (self.created and (self.created / "checkpoints").exists())
            if self.created and (isinstance(mistake, NothingToLearnError) or not kept):
                finish()
                shutil.rmtree(self.created, ignore_errors=True)
            raise (LostProcessError if lost else UserError)(" ".join(str(mistake).split())) from error
