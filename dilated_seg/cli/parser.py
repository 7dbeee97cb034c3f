"""The options of ``fit``, ``validate``, ``test`` and ``predict``: one parser for each, and the objects that they describe."""

import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import lightning.pytorch.loggers
import yaml
from jsonargparse import ActionConfigFile, Namespace, set_loader  # type: ignore[attr-defined]
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser

from dilated_seg.cli.explain import EVALUATIONS, USAGE, explain, explain_refusal
from dilated_seg.cli.settings import CHOICES, SHORT, STRATEGIES, load_yaml, read_file
from dilated_seg.crf import DenseCRF
from dilated_seg.data import SegmentationDataModule
from dilated_seg.errors import UserError
from dilated_seg.inference.strategies import Inference
from dilated_seg.runs.config import RunConfig
from dilated_seg.runs.experiments import EXPERIMENTS, find_experiment
from dilated_seg.task import SegmentationTask
from dilated_seg.training.processes import find_mistake

TIMEOUT = 120.0  # seconds; torch's own half hour is long for a job of many machines
MODE = "dilated_seg"  # YAML whose short names of classes are ours before anybody else's
DEFAULTS = EXPERIMENTS / "defaults.yaml"

DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"  # of other kinds than the hyphen that options begin with
QUOTES = "\u2018\u2019\u201c\u201d"

# What a constructor raises to refuse its arguments. Other errors are mistakes of its author, who needs the traceback.
REFUSALS = (ValueError, TypeError, AssertionError, OverflowError, RuntimeError)


class Parser(LightningArgumentParser):
    """Raises UserError with one sentence, instead of printing the usage of two hundred options and exiting."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        set_loader(MODE, load_yaml, (yaml.YAMLError,))
        kwargs.setdefault("parser_mode", MODE)  # parsers of a class's own options are made with the mode of theirs
        super().__init__(*args, **kwargs | {"allow_abbrev": False})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        lines = [line.strip(" -") for line in message.splitlines()]
        raise UserError(" ".join(line for line in lines if line and line != "^")) from ex


def build_parser(verb: str | None) -> Parser:
    """Return the parser of a verb, or of what all verbs have.

    Raises:
        UserError: The package is installed without its experiments.
    """
    if not DEFAULTS.is_file():
        raise UserError(f"{DEFAULTS} is missing: install the package again, from its wheel or with pip install -e .")
    header = ["the resolved configuration of a run"]
    parser = Parser(default_config_files=[str(DEFAULTS)], usage=USAGE.get(verb or ""), description=None, dump_header=header)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="A configuration file in YAML.")
    parser.add_argument("--seed_everything", type=bool | int, default=True, help="The seed; true draws one.")
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_lightning_class_args(SegmentationTask, "model")
    parser.add_lightning_class_args(SegmentationDataModule, "data", subclass_mode=True)
    # What the dataset knows reaches task and network from there, never from a YAML.
    for source, target in (
        ("data.num_classes", "model.num_classes"),
        ("data.num_classes", "model.net.init_args.num_classes"),
        ("data.ignore_index", "model.ignore_index"),
        ("data.classes", "model.classes"),
    ):
        parser.link_arguments(source, target, apply_on="instantiate")
    add_options(parser, verb)
    parser.set_defaults({"trainer.use_distributed_sampler": False, "trainer.sync_batchnorm": True})
    return parser


def add_options(parser: Parser, verb: str | None) -> None:
    """Add the options that are of no class."""

    def add(name: str, kind: Any, about: str, default: Any = None) -> None:  # noqa: ANN401
        parser.add_argument(name, type=kind, default=default, help=about)

    add("--run_dir", str | None, "The run's directory; a new one if not given.")
    add("--process_timeout", float | None, f"Seconds that processes wait for one that hangs, before they end ({TIMEOUT:g}).")
    add("--wandb", bool, "Whether to log to Weights & Biases.", True)
    add("--ckpt_path", str | None, "The checkpoint that is continued or evaluated.")
    if verb == "fit":
        add("--evaluate", Literal["val", "test"] | None, "Score the last weights on this split when training has ended.")
    if verb in EVALUATIONS:
        add("--checkpoint", str | None, "Of the run: best, which it is if not given, last, or a file.")
        add("--inference", Inference | None, f"The inference strategy: {', '.join(STRATEGIES)}; FullImage if not given.")
        add("--crf", DenseCRF | None, "Refine what the network says by a dense CRF, and score both; --crf.w1 and so on.")


def parse(parser: Parser, verb: str | None, args: Sequence[str]) -> Namespace:
    """Parse the arguments that follow a verb.

    Raises:
        UserError: An argument is wrong: which one, where it stands and what may be meant.
    """
    args = find_configs(expand_run(args) if verb in EVALUATIONS else args)
    ready = complete_options(check_arguments(args))
    try:
        return parser.parse_args(ready)
    except UserError as error:
        options = list(map(str, parser.get_defaults().keys()))
        raise UserError(explain(str(error), args, options)) from error.__cause__


def expand_run(args: Sequence[str]) -> list[str]:
    """Return the arguments with the configuration and the directory of the run that they begin with.

    Raises:
        UserError: What they begin with is no run.
    """
    if not args or args[0].startswith("-") or args[0][:1] in {*DASHES, *QUOTES}:
        return list(args)
    config = Path(args[0]) / "config.yaml"
    RunConfig.read(config)
    return ["--config", str(config), *args[1:]]


def find_configs(args: Sequence[str]) -> list[str]:
    """Return the arguments with the path of each ``--config``, which may name an experiment of the package."""
    resolved: list[str] = []
    for before, arg in zip(["", *args], args, strict=False):
        option, joined, value = arg.partition("=")
        if joined and option in ("--config", "-c"):
            arg = f"{option}={find_experiment(value)}"
        resolved.append(find_experiment(arg) if before in ("--config", "-c") else arg)
    return resolved


def check_arguments(args: Sequence[str]) -> list[str]:
    """Return the arguments with import paths for short names of classes, after a look at the files that they name.

    Raises:
        UserError: An option begins with another dash, or a file is missing or no mapping in YAML.
    """
    ready = list(args)
    for number, arg in enumerate(args):
        if arg[:1] and arg[0] in DASHES:
            plain = f"--{arg.lstrip(DASHES + '-')}"
            raise UserError(f"{arg} begins with a dash of another kind, as web pages have it: type {plain}")
        if re.fullmatch(r"-(config|trainer|model|data|run_dir|ckpt_path|seed_everything|inference|crf)\b.*", arg):
            raise UserError(f"{arg} has one dash only: type -{arg}")
        if arg[:1] and arg[0] in QUOTES:
            raise UserError(f"{arg} begins with a quotation mark of another kind, as web pages have it: type ' or \" instead")
        option, joined, value = arg.partition("=")
        value = value if joined else "".join(args[number + 1 : number + 2])
        if option in ("--config", "-c"):
            read_file(value)
        key = option.removeprefix("--").removesuffix("+").removesuffix(".class_path").replace(".init_args", "")
        if option.startswith("--") and key in CHOICES and value in SHORT:
            ready[number if joined else number + 1] = f"{option}={SHORT[value]}" if joined else SHORT[value]
    return ready


def complete_options(args: Sequence[str]) -> list[str]:
    """Return the arguments with the class of a bare ``--crf``, and a place for a logger that requires one: the run's."""
    complete: list[str] = []
    for before, arg, after in zip(["", *args], args, [*args[1:], "--"], strict=False):
        complete.append(f"--crf={DenseCRF.__name__}" if arg == "--crf" and after.startswith("-") else arg)
        option, _, name = arg.rpartition("=") if arg.startswith("--") else (before, "", arg)
        logger = getattr(lightning.pytorch.loggers, name, None)
        takes_place = isinstance(logger, type) and "save_dir" in inspect.signature(logger).parameters
        if option.rstrip("+=") == "--trainer.logger" and takes_place:
            complete.append("--trainer.logger.save_dir=.")
    return complete


def format_config(parser: Parser, config: Namespace) -> str:
    """Return a configuration as YAML, without what belongs to one call: directory, checkpoint, evaluation at the end."""
    config = config.clone()
    for name in ("evaluate", "checkpoint", "inference", "crf"):
        config.pop(name, None)
    config.run_dir = config.process_timeout = config.ckpt_path = None
    return str(parser.dump(config, skip_none=False))


def resolve_experiment(args: Sequence[str]) -> str:
    """Return the configuration that ``fit`` with these arguments would save in its run."""
    parser = build_parser("fit")
    return format_config(parser, parse(parser, "fit", args))


def instantiate(parser: Parser, config: Namespace) -> Namespace:
    """Return the configuration with its data module, task, callbacks and loggers built.

    The task's hyperparameters are the YAML that it was built from, as load_from_checkpoint needs them.

    Raises:
        UserError: A class of the configuration refuses its arguments.
    """
    dumped = yaml.safe_load(parser.dump(config, skip_link_targets=False, skip_none=False))

    def build_task(kind: type, /, *, applied_instantiation_links: dict[str, Any], **kwargs: Any) -> Any:  # noqa: ANN401
        task = construct(kind, **kwargs)
        hyperparameters = dumped["model"]
        for target, value in applied_instantiation_links.items():
            *path, name = target.removeprefix("model.").split(".")
            place = hyperparameters
            for key in path:
                place = place[key]
            place[name] = value
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
        UserError: Its constructor refuses the arguments; of a class of the user's own it says where.
    """
    try:
        return kind(*args, **kwargs)
    except MisconfigurationException:
        raise
    except REFUSALS as error:
        raise UserError(explain_refusal(kind, error)) from error
