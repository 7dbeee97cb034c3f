"""The parsers of ``fit``, ``validate``, ``test`` and ``predict``, and the objects that their options describe."""

import inspect
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NoReturn

import lightning.pytorch.loggers
import yaml
from jsonargparse import ActionConfigFile, Namespace, set_loader  # type: ignore[attr-defined]
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser

from dilated_seg.cli.explain import EVALUATIONS, USAGE, explain, explain_rejection
from dilated_seg.cli.network import expand_network
from dilated_seg.cli.settings import CHOICES, STRATEGIES, expand_class, load_yaml, read_arguments, read_file
from dilated_seg.crf import DenseCRF
from dilated_seg.data import SegmentationDataModule
from dilated_seg.errors import UserError
from dilated_seg.inference.strategies import Inference
from dilated_seg.models.build import find_class
from dilated_seg.runs.experiments import EXPERIMENTS, find_experiment
from dilated_seg.task import SegmentationTask
from dilated_seg.training.processes import find_mistake

TIMEOUT = 120.0  # seconds; torch's own half hour is long for a job of many machines
MODE = "dilated_seg"  # YAML in which a short name is our class, whoever else has one of that name
CLASS_ARGUMENTS = ("num_classes", "classes", "num_labels")  # of networks, here and in other packages
CHANNEL_ARGUMENTS = ("in_channels", "in_chans")  # likewise
DEFAULTS = EXPERIMENTS / "defaults.yaml"

# Errors by which a constructor rejects its arguments; others are defects of the class, which need the traceback.
REFUSALS = (ValueError, TypeError, AssertionError, OverflowError, RuntimeError)


class Parser(LightningArgumentParser):
    """Raises UserError with one sentence, instead of printing the usage of two hundred options and exiting."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        set_loader(MODE, load_yaml, (yaml.YAMLError,))
        kwargs.setdefault("parser_mode", MODE)  # parsers of a class's own options are made with the mode of theirs
        super().__init__(*args, **kwargs | {"allow_abbrev": False})

    def add_function_arguments(
        self,
        function: Callable[..., Any],
        *args: Any,  # noqa: ANN401
        linked_targets: Iterable[str] = (),
        **kwargs: Any,  # noqa: ANN401
    ) -> list[str]:
        """Add the arguments of a function that builds a network; those that are linked to the data are not required.

        jsonargparse 4.53 passes ``linked_targets``, but takes them for classes only.
        """
        names: list[str] = super().add_function_arguments(function, *args, **kwargs)
        self.set_defaults(dict.fromkeys(set(names) & set(linked_targets)))
        return names

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        lines = [line.strip(" -") for line in message.splitlines()]
        raise UserError(" ".join(line for line in lines if line and line != "^")) from ex


def build_parser(command: str | None, args: Sequence[str] = ()) -> Parser:
    """Return the parser of a command; without one, that of the options that all have.

    Args:
        command: One of Lightning's four commands, or None.
        args: The command's expanded arguments, which may name the user's subclass as ``task``.

    Raises:
        UserError: The package is installed without its experiments, or there is no such task.
    """
    if not DEFAULTS.is_file():
        raise UserError(f"{DEFAULTS} is missing: install the package again, from its wheel or with pip install -e .")
    header = ["the resolved configuration of a run"]
    parser = Parser(default_config_files=[str(DEFAULTS)], usage=USAGE.get(command or ""), description=None, dump_header=header)
    parser.add_argument("--config", action=ActionConfigFile, help="A configuration file in YAML.")
    parser.add_argument("--seed_everything", type=bool | int, default=True, help="The seed; true draws one.")
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_argument(
        "--task", type=str | None, default=None, help="A subclass of SegmentationTask, such as mypackage.MyTask."
    )
    parser.add_class_arguments(find_task(args), "model", fail_untyped=False, sub_configs=True, skip={"data"})  # linked below
    parser.add_lightning_class_args(SegmentationDataModule, "data", subclass_mode=True)
    # Task and network get these from the dataset, never from YAML.
    for source, target in (
        ("data.num_classes", "model.num_classes"),
        *(("data.num_classes", f"model.net.init_args.{name}") for name in CLASS_ARGUMENTS),
        *(("data.in_channels", f"model.net.init_args.{name}") for name in CHANNEL_ARGUMENTS),
        ("data.ignore_index", "model.ignore_index"),
        ("data.ignore_index", "model.loss.init_args.ignore_index"),
        ("data.classes", "model.classes"),
    ):
        parser.link_arguments(source, target, apply_on="instantiate")
    add_options(parser, command)
    parser.set_defaults({"trainer.use_distributed_sampler": False, "trainer.sync_batchnorm": True})
    return parser


def find_task(args: Sequence[str]) -> type[SegmentationTask]:
    """Return the class of the task that arguments or their files name by ``task``; SegmentationTask if none does.

    Raises:
        UserError: There is no such subclass of SegmentationTask.
    """
    names = [setting.value for setting in read_arguments(args) if setting.keys == ["task"] and setting.value]
    known = {SegmentationTask.__name__: SegmentationTask}
    return find_class(str(names[-1]), known, SegmentationTask, "task") if names else SegmentationTask


def add_options(parser: Parser, command: str | None) -> None:
    """Add the options that belong to no class."""

    def add(name: str, kind: Any, about: str, default: Any = None) -> None:  # noqa: ANN401
        parser.add_argument(name, type=kind, default=default, help=about)

    add("--run_dir", str | None, "The run's directory; default: a new one.")
    add("--process_timeout", float | None, f"Seconds after which processes stop waiting for one that hangs ({TIMEOUT:g}).")
    add("--wandb", bool, "Whether to log to Weights & Biases.", True)
    add("--ckpt_path", str | None, "The checkpoint to continue or evaluate.")
    if command == "fit":
        add("--evaluate", Literal["val", "test"] | None, "Evaluate the last weights on this split after training.")
    if command in EVALUATIONS:
        add("--checkpoint", str | None, "Of the run: best (default), last, or a file.")
        add("--inference", Inference | None, f"The inference strategy: {', '.join(STRATEGIES)}; default: FullImage.")
        add("--crf", DenseCRF | None, "Refine with a dense CRF, and evaluate both; --crf.w1 and so on.")


def expand_arguments(command: str | None, args: Sequence[str]) -> list[str]:
    """Return the arguments that follow a command with all names of networks, files and classes written out.

    Raises:
        UserError: A network or a file that they name is missing.
    """
    return expand_options(expand_network(args) if command in EVALUATIONS else args)


def parse(parser: Parser, args: Sequence[str]) -> Namespace:
    """Parse the expanded arguments that follow a command.

    Raises:
        UserError: An argument is wrong: which one, where, and the nearest match.
    """
    try:
        return parser.parse_args(complete_options(args))
    except UserError as error:
        options = list(map(str, parser.get_defaults().keys()))
        raise UserError(explain(str(error), args, options)) from error.__cause__


def expand_options(args: Sequence[str]) -> list[str]:
    """Return the arguments with the paths of configuration files, which are checked, and classes as `expand_class` has them.

    Raises:
        UserError: A configuration file is missing or not a mapping in YAML, or a constructor call cannot be parsed.
    """
    expanded = list(args)
    for number, arg in enumerate(args):
        option, joined, value = arg.partition("=")
        value = value if joined else "".join(args[number + 1 : number + 2])
        text = find_experiment(value) if option in ("--config", "--data", "--model", "--trainer") else value
        if option == "--config":
            read_file(text)
        key = option.removeprefix("--").removesuffix("+").removesuffix(".class_path").replace(".init_args", "")
        if option.startswith("--") and key in CHOICES and (kind := expand_class(value)) != value:
            text = kind if isinstance(kind, str) else json.dumps(kind)
        if text != value:
            expanded[number if joined else number + 1] = f"{option}={text}" if joined else text
    return expanded


def complete_options(args: Sequence[str]) -> list[str]:
    """Return the arguments with the class of a bare ``--crf``, and a ``save_dir`` for a logger that requires one."""
    complete: list[str] = []
    for before, arg, after in zip(["", *args], args, [*args[1:], "--"], strict=False):
        complete.append(f"--crf={DenseCRF.__name__}" if arg == "--crf" and after.startswith("-") else arg)
        option, _, name = arg.rpartition("=") if arg.startswith("--") else (before, "", arg)
        logger = getattr(lightning.pytorch.loggers, name, None)
        has_directory = isinstance(logger, type) and "save_dir" in inspect.signature(logger).parameters
        if option.rstrip("+=") == "--trainer.logger" and has_directory:
            complete.append("--trainer.logger.save_dir=.")
    return complete


def format_config(parser: Parser, config: Namespace) -> str:
    """Return a configuration as YAML, without the options of one call: directory, checkpoint, evaluation."""
    config = config.clone()
    for name in ("evaluate", "checkpoint", "inference", "crf"):
        config.pop(name, None)
    config.run_dir = config.process_timeout = config.ckpt_path = None
    return str(parser.dump(config, skip_none=False))


def instantiate(parser: Parser, config: Namespace) -> Namespace:
    """Return the configuration with its data module, task, callbacks and loggers built.

    The task's hyperparameters are the YAML that it was built from, as load_from_checkpoint needs them.

    Raises:
        UserError: A class of the configuration rejects its arguments.
    """
    dumped = yaml.safe_load(parser.dump(config, skip_link_targets=False, skip_none=False))

    def build_task(kind: type, /, *, applied_instantiation_links: dict[str, Any], **kwargs: Any) -> Any:  # noqa: ANN401
        task = construct(kind, **kwargs)
        hyperparameters = dumped["model"]
        for target, value in applied_instantiation_links.items():
            *path, name = target.removeprefix("model.").split(".")
            mapping = hyperparameters
            for key in path:
                mapping = mapping[key] if mapping else None
            if mapping and name in mapping:  # there may be no loss, and a network has one of CLASS_ARGUMENTS
                mapping[name] = value
        task.save_hyperparameters(hyperparameters | {"_instantiator": "lightning.pytorch.cli.instantiate_module"})
        return task

    parser.add_instantiator(build_task, SegmentationTask)
    parser.add_instantiator(construct, object)
    try:
        return parser.instantiate_classes(config)
    except REFUSALS as error:
        if find_mistake(error):
            raise
        raise UserError(f"{config.data.class_path.rpartition('.')[2]}: {error}") from error


def construct(kind: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as jsonargparse's
    """Build an object of a class that the configuration names.

    Raises:
        UserError: The constructor rejects the arguments; for a user's class the message has the line.
    """
    try:
        return kind(*args, **kwargs)
    except MisconfigurationException:
        raise
    except REFUSALS as error:
        raise UserError(explain_rejection(kind, error)) from error
