"""Lightning's command line, with the dataset's facts linked to task and network, and a folder for every run."""

import inspect
import os
import shutil
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch.loggers
import torch
import yaml
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from dilated_seg.cli import arguments
from dilated_seg.cli.arguments import Parser
from dilated_seg.crf import DenseCRF
from dilated_seg.data import SegmentationDataModule
from dilated_seg.errors import LostProcessError, UserError
from dilated_seg.inference.strategies import Inference, Whole
from dilated_seg.report.tables import show_evaluation
from dilated_seg.report.training import show_training
from dilated_seg.runs.checkpoint import Checkpoint
from dilated_seg.runs.run import EXPERIMENTS, Run, commit, experiment_name
from dilated_seg.storage import write_text
from dilated_seg.task import SegmentationTask
from dilated_seg.training import (
    EvaluationRecord,
    KeepGradients,
    NothingToLearnError,
    PredictionWriter,
    ProcessTimeout,
    Recipe,
    SaveOnError,
    SeedEveryStep,
    StopOnSignal,
    Throughput,
    ValidationLines,
    checks,
)
from dilated_seg.training.checkpoint_io import SafeCheckpointIO, newest
from dilated_seg.training.loggers import Wandb, finish, loggers, tags
from dilated_seg.training.processes import end_other_processes, find_mistake, keep_memory, lost_process, quiet
from dilated_seg.training.recipe import differences

EVALUATIONS = ("validate", "test", "predict")
TIMEOUT = 120.0  # seconds; torch's own half hour is long for a job of many machines
RUN_DIR = "DILATED_SEG_RUN_DIR"  # tells the processes that Lightning starts which folder the first one chose


class SaveConfig(SaveConfigCallback):
    """Writes the resolved experiment into the folder of a run that is trained, and into W&B's config for grouping."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not trainer.is_global_zero:
            return
        if stage == "fit":
            path, text = Path(trainer.default_root_dir) / "config.yaml", resolved(self.parser, self.config)
            before = path.read_text() if path.is_file() else ""
            write_text(path, before.partition(text[:10])[0] + text)  # from which checkpoint it began stays at the top
        for logger in trainer.loggers:
            if isinstance(logger, Wandb):
                logger.log_config(self.config.as_dict())


class CLI(LightningCLI):
    """``fit``, ``validate``, ``test`` and ``predict`` for SegmentationTask on any SegmentationDataModule.

    What the dataset knows (classes, ignored label) reaches task and network from there, never from a YAML. Each run has a
    folder: a new one below ``runs/``, or ``--run_dir``; a run that finds its own configuration there continues.

    Args:
        args: What follows ``dilated-seg`` on the command line.
        run: Whether to run the verb, or only build task, data and trainer.
        summary: Whether ``fit`` ends with a table, the best checkpoint and the commands that come next.
    """

    def __init__(self, args: Sequence[str], run: bool = True, summary: bool = True) -> None:
        keep_memory()
        if not (EXPERIMENTS / "defaults.yaml").is_file():
            raise UserError(f"{EXPERIMENTS}/defaults.yaml is missing: install from a checkout, with pip install -e .")
        defaults: dict[str, Any] = {"default_config_files": [str(EXPERIMENTS / "defaults.yaml")]}
        by_verb = {verb: defaults | {"usage": arguments.USAGE[verb]} for verb in self.subcommands()}
        self.resumed, self.summary = False, summary
        self.created: Path | None = None
        quiet()
        try:
            super().__init__(
                SegmentationTask,
                SegmentationDataModule,
                subclass_mode_data=True,
                auto_configure_optimizers=False,
                save_config_callback=SaveConfig,
                parser_class=Parser,
                parser_kwargs=by_verb if run else defaults,
                args=with_places_of_loggers(with_default_crf(args)),
                run=run,
            )
        except Exception as error:
            trainer = getattr(self, "trainer", None)
            lost = lost_process(error, trainer, self._timeout) if trainer else None
            if trainer:
                end_other_processes(trainer, patience=5 if lost else 0)  # one that ends by itself says why
            if mistake := lost or find_mistake(error):
                self._discard(isinstance(mistake, NothingToLearnError))
                kind = LostProcessError if lost else UserError
                raise kind(" ".join(str(mistake).split())) from error
            raise
        for logger in self.trainer.loggers if run and hasattr(self, "trainer") else ():
            if isinstance(logger, Wandb):
                logger.end()

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The links of DESIGN, and the run's folder."""
        for source, target in (
            ("data.num_classes", "model.num_classes"),
            ("data.num_classes", "model.net.init_args.num_classes"),
            ("data.ignore_index", "model.ignore_index"),
            ("data.classes", "model.classes"),
        ):
            parser.link_arguments(source, target, apply_on="instantiate")
        parser.add_argument("--run_dir", type=str | None, default=None, help="The run's folder; a new one if not given.")
        parser.add_argument(
            "--process_timeout",
            type=float | None,
            default=None,
            help=f"Seconds that processes wait for one that hangs, before they end ({TIMEOUT:g}).",
        )
        parser.add_argument("--wandb", type=bool, default=True, help="Whether to log to Weights & Biases.")
        parser.set_defaults({"trainer.use_distributed_sampler": False, "trainer.sync_batchnorm": True})

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:  # noqa: ANN401
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "fit":
            parser.add_argument(
                "--evaluate",
                type=Literal["val", "test"] | None,
                default=None,
                help="Score the last weights on this split when training has ended, in the same processes.",
            )
        if subcommand in ("validate", "test"):
            parser.set_defaults({"verbose": False})  # our table says it once
        if subcommand in EVALUATIONS:
            parser.add_argument(
                "--inference",
                type=Inference | None,
                default=None,
                help="How to look at an image: Whole, which is how if not given, Tiles, MultiScale or ReflectedTiles.",
            )
            parser.add_argument(
                "--crf",
                type=DenseCRF | None,
                default=None,
                help="Refine what the network says by a dense CRF, and score both; its options are --crf.w1 and so on.",
            )
        if subcommand == "predict":
            parser.set_defaults({"return_predictions": False})  # they are written as they come
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:  # noqa: ANN401
        """Parse without Lightning's warning that there are arguments on the command line as well.

        Raises:
            UserError: An argument is wrong: which one, where it stands and what may be meant.
        """
        ready = arguments.prepare(args)
        try:
            self.config = parser.parse_args(ready)
        except UserError as error:
            verb = args[0] if args and args[0] in self.subcommands() else None
            options = list(map(str, self._parser(verb).get_defaults().keys()))
            raise UserError(arguments.explain(str(error), args, options)) from error.__cause__

    def instantiate_classes(self) -> None:
        """Build task, data and trainer; what a constructor says of its arguments is the user's mistake.

        Raises:
            UserError: A class of the configuration refuses its arguments.
        """
        self.parser.add_instantiator(arguments.construct, object)
        self._place_loggers()
        try:
            super().instantiate_classes()
        except arguments.REFUSALS as error:
            if hasattr(self, "model") or find_mistake(error):
                raise
            raise UserError(f"{self.config[self.subcommand].data.class_path.rpartition('.')[2]}: {error}") from error

    def _parse_ckpt_path(self) -> None:
        """Lightning would let a checkpoint's arguments silently replace those on the command line; ours stand."""

    def before_instantiate_classes(self) -> None:
        """Choose the run's folder, and continue the run in it if there is one of this configuration."""
        config = self.config[self.subcommand] if self.subcommand else self.config
        if self.subcommand in EVALUATIONS and not config.ckpt_path:
            config.ckpt_path = choose_checkpoint(config)
        self.run_dir = Path(config.run_dir or os.environ.get(RUN_DIR) or self._new_folder(config))
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined] # the others neither make the folder nor take it away
            self.created = self.created or (None if self.run_dir.exists() else self.run_dir)
        checkpoint = config.get("ckpt_path")
        if checkpoint:
            Checkpoint.at(checkpoint)
        if self.subcommand != "fit":
            return
        saved = self.run_dir / "config.yaml"
        if not saved.exists():
            return
        changes = differences(saved.read_text(), resolved(self._parser(self.subcommand), config))
        if change := next(changes, None):
            name, before, now = change
            raise UserError(
                f"{self.run_dir} holds a run of another configuration: name another folder or remove it "
                f"({name} is {before} there and {now} here; --ckpt_path continues it with that in another folder)"
            )
        own = config.ckpt_path and Path(config.ckpt_path).resolve().parent == (self.run_dir / "checkpoints").resolve()
        if not own and (last := newest(self.run_dir / "checkpoints")):  # though it once began from another run's checkpoint
            config.ckpt_path = str(last)
            self.resumed = True

    def _new_folder(self, config: Any) -> Path:  # noqa: ANN401
        checkpoint = config.get("ckpt_path")
        if self.subcommand not in (None, "fit") and checkpoint and Path(checkpoint).parent.name == "checkpoints":
            return Path(checkpoint).parents[1]  # an evaluation belongs to the run it evaluates
        if self.subcommand is None:
            return Path("runs")  # nothing is run: nothing is made
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("several processes were started from outside: name the run's folder with --run_dir")
        parent = Path("runs") / experiment_name(config)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for n in range(1, 1000):
            folder = parent / (stamp if n == 1 else f"{stamp}-{n}")
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                continue
            self.created = folder
            return folder
        raise UserError(f"{parent} holds 999 runs of this second: name the run's folder with --run_dir")

    def _place_loggers(self) -> None:
        """Let the user's loggers write into the run's folder unless they say otherwise; what was said is kept as it is."""
        self.said, self.config = self.config, self.config.clone()
        config = self.config[self.subcommand] if self.subcommand else self.config
        wanted = config.trainer.logger
        for logger in wanted if isinstance(wanted, list) else [wanted]:
            options = getattr(logger, "init_args", None) or {}
            if options.get("save_dir") in (".", ""):  # as Lightning's own defaults are
                options["save_dir"] = str(self.run_dir)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:  # noqa: ANN401
        """The trainer, with the run's folder, loggers and what every run needs."""
        commit()  # as it is now: the checkout may move on while the run lasts
        self.config = self.said  # what is written of the run
        os.environ[RUN_DIR] = str(self.run_dir)
        training = self.subcommand == "fit"
        if training:
            Run(self.run_dir).keep_history()
        wanted = self._get(self.config_init, "trainer")
        if wanted.get("default_root_dir"):
            raise UserError(f"trainer.default_root_dir {wanted.default_root_dir}: name the run's folder with --run_dir instead")
        kwargs["logger"] = self._loggers(wanted.get("logger"))
        plugins = wanted.get("plugins") or []
        kwargs |= {
            "callbacks": self._callbacks(wanted, bool(kwargs["logger"])),
            "default_root_dir": str(self.run_dir),
            "plugins": [*(plugins if isinstance(plugins, list) else [plugins]), SafeCheckpointIO()],
        }
        if isinstance(wanted.get("val_check_interval"), int) and wanted.get("check_val_every_n_epoch") is None:
            # of steps, as the experiment says it, where Lightning counts batches
            kwargs["val_check_interval"] = wanted["val_check_interval"] * wanted["accumulate_grad_batches"]
        if not torch.cuda.is_available() or wanted.get("accelerator") == "cpu":
            kwargs["sync_batchnorm"] = False  # torch has it for GPUs only
        if wanted.get("val_check_interval") == 0:
            raise UserError("trainer.val_check_interval is 0: give the steps from one validation to the next")
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except ValueError as error:  # such as a strategy for GPUs where there are none
            raise UserError(f"trainer: {error}") from error
        if trainer.world_size == 1:
            del os.environ[RUN_DIR]
        self.evaluation = EvaluationRecord()
        own: list[Callback] = []
        if training:
            own.append(Recipe(resolved(self._parser(self.subcommand), self.config[self.subcommand])))
        own += [SaveOnError(), SeedEveryStep(), KeepGradients(), StopOnSignal(), ProcessTimeout(self._timeout), Throughput()]
        own.append(ValidationLines())
        trainer.callbacks[:0] = [*own, self.evaluation, PredictionWriter()]  # type: ignore[attr-defined]
        if training and trainer.is_global_zero:
            print(f"{'continuing' if self.resumed else 'run folder:'} {self.run_dir}", flush=True)
        return trainer

    def _loggers(self, wanted: Any) -> list[Any]:  # noqa: ANN401
        """Return our loggers, and those that the user has added: a CSVLogger or WandbLogger of the same place replaces ours."""
        added = list(wanted) if isinstance(wanted, Sequence) else [wanted] if isinstance(wanted, Logger) else []
        ours: list[Any] = []
        if self.subcommand in ("fit", "validate", "test"):
            wandb = wanted is not False and self._get(self.config_init, "wandb")
            wandb = wandb and not any(isinstance(logger, WandbLogger) for logger in added)
            ours = loggers(self.run_dir, self.subcommand, tags(self.config[self.subcommand]), wandb)
        places = {Path(logger.log_dir).resolve() for logger in added if isinstance(logger, CSVLogger)}
        return [*(one for one in ours if not isinstance(one, CSVLogger) or self.run_dir.resolve() not in places), *added]

    def _callbacks(self, wanted: Any, logged: bool) -> list[Any]:  # noqa: ANN401
        """Return the experiment's callbacks that apply; of those that save, each saves into the run, and one last.ckpt."""
        without: list[type] = [ProgressBar] if wanted.get("enable_progress_bar") is False else []
        without += [] if logged else [LearningRateMonitor]
        without += [ModelCheckpoint] if wanted.get("enable_checkpointing") is False else []
        callbacks = wanted.get("callbacks") or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        chosen = [callback for callback in callbacks if not isinstance(callback, tuple(without))]
        folder = str(self.run_dir / "checkpoints")
        saving = [callback for callback in chosen if isinstance(callback, ModelCheckpoint)]
        for callback in saving:
            callback.dirpath = callback.dirpath or folder
        if (
            self.subcommand == "fit"
            and ModelCheckpoint not in without
            and not any((one.filename, one.dirpath) == ("last", folder) for one in saving)
        ):
            chosen.append(ModelCheckpoint(folder, "last", enable_version_counter=False))
        return chosen

    @property
    def _timeout(self) -> float:
        return float(self._get(self.config_init, "process_timeout") or TIMEOUT)

    def _discard(self, learnt_nothing: bool = False) -> None:
        """A mistake leaves nothing behind: the folder goes if this call made it and nothing was learnt."""
        steps = self.trainer.global_step if hasattr(self, "trainer") else 0
        kept = steps or (self.created and (self.created / "checkpoints").exists())
        if self.created and (learnt_nothing or not kept):
            finish()
            shutil.rmtree(self.created, ignore_errors=True)

    def before_fit(self) -> None:
        """Look at the data before anything starts; a checkpoint needs none of the weights it once started from."""
        if self._get(self.config_init, "ckpt_path"):
            self.model.started = True
        if self.subcommand in EVALUATIONS:
            self._require_weights()
            self.model.inference = self._get(self.config_init, "inference") or Whole()
            self.model.refine = self._get(self.config_init, "crf")
            if self.model.refine and (self.model.refine.learnable or self.model.refine.num_classes):
                raise UserError("--crf takes numbers alone: what is learnable is learnt as model.crf")
            if self.model.refine and self.model.model.crf:
                raise UserError("--crf would refine twice: this model has a CRF of its own; its options are --model.crf...")
        self.finished = self.resumed and Run(self.run_dir).finished
        if self.finished:  # be it before its last step, by early stopping: there is nothing to train, only weights to load
            self.trainer.limit_train_batches = 0
        if self.subcommand == "fit":
            checks.check_monitors(self.trainer, self.model.metric_names("val"))
        dataset = self.datamodule
        splits = {"fit": (dataset.train_split, "val"), "test": ("test",), "predict": (dataset.predict_split,)}
        for split in splits.get(str(self.subcommand), ("val",)):
            dataset.opened(split)
        if self.subcommand == "fit":
            dataset.require_labels()
            if self.trainer.is_global_zero:
                dataset.say_what_is_shared()
                if not self.finished:
                    dataset.check_labels()

    before_validate = before_test = before_predict = before_fit

    def _require_weights(self) -> None:
        """Refuse to evaluate a network that nobody has trained.

        Raises:
            UserError: There is neither a checkpoint nor a file of weights, and the network has parameters.
        """
        start = self.model.weights
        if self._get(self.config_init, "ckpt_path") or (start and start != "imagenet"):
            return
        if any(parameter.numel() for parameter in self.model.parameters()):
            raise UserError(
                f"{self.subcommand} has no trained weights: name a checkpoint with --ckpt_path RUN/checkpoints/best.ckpt, "
                "take the run's best with --config RUN/config.yaml, or name a file of published weights with --model.weights"
            )

    def after_fit(self) -> None:
        """Keep the last weights, also when training does not end on a validation, note that it has ended, and score them."""
        if not self.finished:
            self.trainer.save_checkpoint(Run(self.run_dir).last_checkpoint.path)
            if self.trainer.is_global_zero:
                Run(self.run_dir).mark_finished(self.trainer.global_step)
        if split := self._get(self.config_init, "evaluate"):
            self.trainer.limit_val_batches = self.trainer.limit_test_batches = 1.0  # the whole split, whatever training saw
            evaluate = self.trainer.test if split == "test" else self.trainer.validate
            evaluate(self.model, self.datamodule, verbose=False)
        if self.summary and self.trainer.is_global_zero:
            show_training(self.trainer, self.run_dir)

    def after_validate(self) -> None:
        """Print the table."""
        if self.evaluation.records:
            show_evaluation(*self.evaluation.records)

    after_test = after_validate


def choose_checkpoint(config: Any) -> str | None:  # noqa: ANN401
    """Return the best checkpoint of the run that is evaluated, or its last one if none was the best; None without a run.

    The run is the one of --run_dir or of --config RUN/config.yaml. It is left alone if other weights than those that it
    started from are named with --model.weights.
    """
    configs = [Path(str(path)) for path in config.get("config") or []]
    runs = [Path(config.run_dir)] if config.run_dir else []
    runs += [file.parent for file in reversed(configs) if file.name == "config.yaml"]
    for run in runs:
        saved = run / "config.yaml"
        if not saved.is_file() or yaml.safe_load(saved.read_text())["model"].get("weights") != config.model.weights:
            continue
        best = run / "checkpoints" / "best.ckpt"
        if checkpoint := best if best.is_file() else newest(run / "checkpoints"):
            if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
                print(f"no --ckpt_path: evaluating {checkpoint}", flush=True)
            return str(checkpoint)
    return None


def with_default_crf(args: Sequence[str]) -> list[str]:
    """The arguments, a bare ``--crf`` among them with its class: all its options have values."""
    following = [*args[1:], "--"]
    return [
        f"--crf={DenseCRF.__name__}" if arg == "--crf" and after.startswith("-") else arg
        for arg, after in zip(args, following, strict=True)
    ]


def with_places_of_loggers(args: Sequence[str]) -> list[str]:
    """The arguments, a bare ``--trainer.logger NAME`` among them with the folder that it requires: the run's."""
    found = []
    for before, arg in zip(["", *args], args, strict=False):
        found.append(arg)
        option, _, name = arg.rpartition("=") if arg.startswith("--") else (before, "", arg)
        known = getattr(lightning.pytorch.loggers, name, None)
        takes_place = isinstance(known, type) and "save_dir" in inspect.signature(known).parameters
        if option.rstrip("+=") == "--trainer.logger" and takes_place:
            found.append("--trainer.logger.save_dir=.")
    return found


def resolved(parser: LightningArgumentParser, config: Any) -> str:  # noqa: ANN401
    """The configuration as YAML, without what belongs to one call of it: folder, checkpoint, evaluation at the end."""
    config = config.clone()
    config.run_dir = None
    config.pop("evaluate", None)
    config.process_timeout = None
    if "ckpt_path" in config:
        config.ckpt_path = None
    return str(parser.dump(config, skip_none=False))


class Resolve(CLI):
    """Parses the arguments of ``fit`` and builds nothing: ``text`` is the configuration that the run would save."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        self.text, self.data = resolved(self._parser(self.subcommand), config), config.data

    def dataset(self) -> SegmentationDataModule:
        """The dataset that the run would train on."""
        module, _, name = self.data.class_path.rpartition(".")
        init_args = self.data.init_args.as_dict()
        built: SegmentationDataModule = getattr(import_module(module), name)(**init_args)
        return built

    def instantiate_classes(self) -> None:
        """Nothing is built."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing is run."""
