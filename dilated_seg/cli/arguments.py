"""The arguments of Lightning's verbs: short names of classes, configuration files, and mistakes in one sentence."""

import difflib
import inspect
import os
import re
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import get_loader, set_loader
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.cli import LightningArgumentParser

from dilated_seg import data, models, training
from dilated_seg.crf import DenseCRF
from dilated_seg.errors import UserError, format_error
from dilated_seg.inference import strategies
from dilated_seg.runs.run import EXPERIMENTS

MODE = "dilated_seg"  # YAML whose short names of classes are ours before anybody else's

INFERENCES = [
    name for name, kind in vars(strategies).items() if isinstance(kind, type) and issubclass(kind, strategies.Inference)
]
SHORT = {name: f"{module.__name__}.{name}" for module in (models, data, training) for name in module.__all__} | {
    "DenseCRF": f"{DenseCRF.__module__}.DenseCRF",
    # torch's own has no monitor, which only Lightning's says
    "ReduceLROnPlateau": "lightning.pytorch.cli.ReduceLROnPlateau",
    "torch.optim.lr_scheduler.ReduceLROnPlateau": "lightning.pytorch.cli.ReduceLROnPlateau",
}


def names(module: Any) -> list[str]:  # noqa: ANN401
    """The classes that a module offers."""
    return [name for name, kind in vars(module).items() if isinstance(kind, type) and name[0].isupper()]


# The options that take a class, and those to choose from by a short name.
CHOICES: dict[str, list[str]] = {
    "model.net": models.__all__,
    "data": [name for name in data.__all__ if name != "SegmentationDataModule"],
    "model.optimizer": [name for name in names(torch.optim) if name != "Optimizer"],
    "model.lr_scheduler": [name for name in names(torch.optim.lr_scheduler) if name.endswith(("LR", "Plateau", "Restarts"))],
    "trainer.callbacks": [*training.__all__, *lightning_callbacks.__all__],
    "model.crf": ["DenseCRF"],
    "crf": ["DenseCRF"],
    "inference": [kind.__name__ for kind in strategies.Inference.__subclasses__()],
}

# What people call options elsewhere, and what they are called here.
ELSEWHERE = {
    "learning_rate": "model.optimizer.lr", "lr": "model.optimizer.lr", "weight_decay": "model.optimizer.weight_decay",
    "momentum": "model.optimizer.momentum", "optimizer": "model.optimizer", "scheduler": "model.lr_scheduler",
    "batch_size": "data.batch_size", "workers": "data.num_workers", "num_workers": "data.num_workers", "root": "data.root",
    "crop_size": "data.crop_size", "dataset": "data", "net": "model.net", "network": "model.net",
    "epochs": "trainer.max_epochs", "max_epochs": "trainer.max_epochs", "steps": "trainer.max_steps",
    "max_steps": "trainer.max_steps", "gpus": "trainer.devices", "devices": "trainer.devices", "precision": "trainer.precision",
    "seed": "seed_everything", "out": "run_dir", "output_dir": "run_dir", "checkpoint": "ckpt_path", "resume": "run_dir",
    "weights": "model.weights", "width": "model.net.width",
}  # fmt: skip

# What help begins with; the whole list of options follows it.
PARTS = ("ContextModule", "FrontEnd")  # of DilatedNet, no networks to train
CONFIG = "--config FILE           the experiment, then overlays: what comes later wins, so flags stand behind it"
DATA = "--data.root DIRECTORY   where the dataset lies, or its shards; or its environment variable"
USAGE = {
    "fit": f"""dilated-seg fit --config EXPERIMENT.yaml [--config OVERLAY.yaml ...] [OPTION ...]

such as: dilated-seg fit --config experiments/camvid/segnet.yaml --data.root data/camvid --trainer.max_steps 2000

ten options for most purposes; --print_config shows what would be run, --model.net.help CLASS the options of a class:
  {CONFIG}
  --run_dir DIRECTORY     of the run: a new one below runs/ if not given, and a run that is there continues
  {DATA}
  --data.batch_size N     images a step
  --data.num_workers N    processes that read images
  --model.net CLASS       {", ".join(models.__all__)}, or mymodule.MyNet
  --model.weights FILE    to start from: a file, a run's directory, or imagenet
  --model.optimizer.lr X  the learning rate
  --trainer.max_steps N   the length of training; set the length of the schedule along with it
  --trainer.devices N     GPUs or processes at once; more than one needs --trainer.strategy ddp

all options:""",
} | {
    verb: f"""dilated-seg {verb} --config RUN/config.yaml --ckpt_path RUN/checkpoints/best.ckpt [OPTION ...]

options for most purposes:
  {CONFIG}
  --ckpt_path FILE        the checkpoint; what is found is written into its run
  {DATA}
  --inference CLASS       how to look at an image: {", ".join(kind.__name__ for kind in strategies.Inference.__subclasses__())}
  --crf                   refine by a dense CRF; its options are --crf.w1 and so on
  --run_dir DIRECTORY     to write into, if not into the checkpoint's run

all options:"""
    for verb in ("validate", "test", "predict")
}

DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"  # of other kinds than the hyphen that options begin with
QUOTES = "\u2018\u2019\u201c\u201d"

# What jsonargparse says, and what it means.
TYPES = {
    r"<class 'int'>": "a whole number", r"<class 'float'>": "a number", r"<class 'bool'>": "true or false",
    r"<class 'str'>": "text", r"<class 'list'>": "a list", r"<class 'dict'>": "a mapping",
    r"<class 'collections\.abc\.Sequence'>": "a list", r"a typing\.Literal\[([^\]]*)\]": r"one of \1",
}  # fmt: skip
NO_CLASS = re.compile(r"Expected a path but (\S*) either not accessible|Expected a dot import path string: (\S+)")
EXPECTED = re.compile(r"Expected (?:a )?(<class '[\w.]+'>|typing\.Literal\[[^\]]*\]|tuple with .*? elements)")
UNKNOWN = re.compile(r"(?:does not accept option|Option) '([^']+)'(?: is not accepted)?")


class Parser(LightningArgumentParser):
    """Says a user's mistake in one sentence, without the usage of two hundred options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        set_loader(MODE, load, (yaml.YAMLError,))
        kwargs.setdefault("parser_mode", MODE)  # parsers of a class's own options are made with the mode of theirs
        super().__init__(*args, **kwargs | {"allow_abbrev": False})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise UserError instead of printing and exiting."""
        lines = [line.strip(" -") for line in message.splitlines()]
        raise UserError(" ".join(line for line in lines if line and line != "^")) from ex


def load(text: str) -> Any:  # noqa: ANN401
    """A value or a file of YAML, with the import paths of ours where they are named shortly."""
    return qualified(get_loader("yaml")(text))


def qualified(value: Any, key: str = "") -> Any:  # noqa: ANN401
    """The value, with import paths for short names wherever a class is named."""
    if isinstance(value, dict):
        return {name: qualified(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list):
        return [qualified(inner, key) for inner in value]
    names_a_class = key.rstrip("+") in ("class_path", *(option.rpartition(".")[2] for option in CHOICES))
    return SHORT.get(value, value) if names_a_class and isinstance(value, str) else value


def prepare(args: Sequence[str]) -> list[str]:
    """The arguments with import paths for short names of classes, after a look at them and at the files that they name.

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
        following = value if joined else args[number + 1] if number + 1 < len(args) else ""
        if option in ("--config", "-c"):
            read_settings(following)
        key = option.removeprefix("--").removesuffix("+").removesuffix(".class_path")
        if option.startswith("--") and key in CHOICES and following in SHORT:
            ready[number if joined else number + 1] = f"{option}={SHORT[following]}" if joined else SHORT[following]
    return ready


@dataclass
class Setting:
    """One value of a file or option, and where it stands."""

    file: str  # empty on the command line
    path: tuple[str, ...]
    value: Any

    def __str__(self) -> str:
        name = ".".join(part for part in self.path if part != "init_args")
        return f"{self.file}: {name}" if self.file else f"--{name}"


class UniqueKeys(yaml.SafeLoader):  # type: ignore[misc] # yaml has no types
    """YAML in which a key that stands twice in one mapping is a mistake, and not replaced in silence."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:  # noqa: ANN401
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.value in seen and key.value != "<<":
                raise yaml.MarkedYAMLError(problem=f"the key '{key.value}' stands there twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_settings(name: str, prefix: tuple[str, ...] = ()) -> list[Setting]:
    """All settings of a configuration file, and of the files that it names.

    Raises:
        UserError: It is missing, a directory, no text, no YAML, or no mapping.
    """
    path = Path(name)
    if "://" in name or re.search(r"[\n{]", name):
        return []  # an address, or a configuration itself
    if not path.is_file():
        raise UserError(missing(name))
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), UniqueKeys)
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is no text, so no configuration: --config takes a YAML file") from error
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror or error}") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        tabs = ": indent by spaces, not by tabs" if "\\t" in str(error.problem) else ""
        raise UserError(f"{name}{line}: {error.problem}{tabs}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{name} is no YAML: {format_error(error)}") from error
    if not isinstance(content, dict):
        kind = "empty" if content is None else "a list" if isinstance(content, list) else "a single value"
        raise UserError(f"{name} is {kind}, not a configuration: it should have keys such as model, data and trainer")
    return list(flattened(content, str(name), path.parent, prefix))


def missing(name: str) -> str:
    """What to say of a file that is none, with the most similar one that is."""
    path = Path(name)
    if not name:
        return "--config is empty: give a YAML file, such as experiments/quickstart.yaml"
    if path.is_dir():
        inside = path / "config.yaml"
        return f"{name} is a directory: --config takes a file{f', such as {inside}' if inside.is_file() else ''}"
    around = [file for file in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    everywhere = around or [*EXPERIMENTS.glob("**/*.yaml")]
    near = difflib.get_close_matches(path.name, [file.name for file in everywhere], 1, 0.75)
    hint = next((f": did you mean {shown(file)}?" for file in everywhere if [file.name] == near), ": see experiments/")
    return f"there is no file {name}{hint}"


def shown(file: Path) -> Path:
    """A path as it is typed from here."""
    return file.relative_to(Path.cwd()) if file.is_absolute() and file.is_relative_to(Path.cwd()) else file


def flattened(value: Any, file: str, folder: Path, path: tuple[str, ...]) -> Iterator[Setting]:  # noqa: ANN401
    """Every key of a mapping, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield Setting(file, (*path, str(key)), inner)
            yield from flattened(inner, file, folder, (*path, str(key)))
    elif isinstance(value, list):
        for inner in value:
            yield from flattened(inner, file, folder, path)
    elif isinstance(value, str) and value.endswith((".yaml", ".yml")) and (folder / value).is_file():
        yield from read_settings(os.path.normpath(folder / value), path)


def settings(args: Sequence[str]) -> list[Setting]:
    """All that the arguments say, in order, and the files that they name."""
    found: list[Setting] = []
    for arg, after in zip(args, [*args[1:], ""], strict=True):
        option, joined, value = arg.partition("=")
        value = value if joined else after
        if option in ("--config", "-c"):
            found += read_settings(value)
        elif option.startswith("--"):
            found.append(Setting("", tuple(option[2:].removesuffix("+").split(".")), value))
            try:
                inner = get_loader("yaml")(value) if value.startswith(("{", "[")) else None
            except yaml.YAMLError:
                inner = None
            found += flattened(inner, "", Path(), found[-1].path)
    return found


def class_of(key: str, among: Iterable[Setting]) -> type | None:
    """The class that the settings choose for an option, the last of them if several do."""
    chosen = None
    for setting in among:
        path = ".".join(part for part in setting.path if part != "init_args")
        if path.removesuffix(".class_path") == key and isinstance(setting.value, str):
            chosen = setting.value
    if chosen is None and key in ("crf", "model.crf"):
        return DenseCRF
    for place in ("", "torch.optim.", "torch.optim.lr_scheduler.", "lightning.pytorch.callbacks."):
        module, _, name = SHORT.get(str(chosen), f"{place}{chosen}").rpartition(".")
        try:
            kind = getattr(import_module(module), name, None) if module else None
        except Exception:  # whatever a module raises where it is imported: then there is no hint
            kind = None
        if isinstance(kind, type):
            return kind
    return None


def parameters(kind: type) -> list[str]:
    """What a class's constructor takes by name, and those of its bases to which it passes the rest."""
    found: dict[str, None] = {}
    for base in kind.__mro__:
        if "__init__" in vars(base) and base is not object:
            known = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
            found |= {p.name: None for p in known if p.name not in ("self", "params", "optimizer") and p.kind not in (2, 4)}
            if all(p.kind != 4 for p in known):
                break
    return list(found)


def explain(sentence: str, args: Sequence[str], options: Sequence[str]) -> str:
    """What is wrong, where, and the most similar of what would be right, from what jsonargparse says.

    Args:
        sentence: jsonargparse's.
        args: The command line.
        options: All options without those of classes that are chosen.
    """
    said = settings(args)
    if missing_key := re.search(r"the following arguments are required: ([\w.]+(?:, [\w.]+)*)", sentence):
        return explain_missing(sentence, missing_key[1])
    if stray := re.match(r"unrecognized arguments: (.*)", sentence):
        first = next((arg for arg in args if arg.startswith("--") and stray[1].startswith(arg)), stray[1].split()[0])
        return explain_option(first.partition("=")[0], said, options)
    if unknown := UNKNOWN.search(sentence):
        return explain_key(unknown[1], said, options) or sentence
    return explain_value(sentence, said) if sentence.startswith("Parser key") else sentence


def explain_missing(sentence: str, needed: str) -> str:
    """What an experiment or a class cannot do without."""
    if "model.net" in needed or needed.endswith("data"):
        return "a network and a dataset are needed: --config experiments/….yaml has both, or say --model.net and --data"
    key = re.match(r'Parser key "([^"]+)"', sentence)
    own = f"{key[1]} " if key else ""
    return f"{own}needs {needed}: say it by --{key[1]}.{needed.split(', ')[0]}, or in init_args" if key else sentence


def explain_option(option: str, said: Sequence[Setting], options: Sequence[str]) -> str:
    """An option that there is not."""
    if not option.startswith("-"):
        return f"{option} belongs to no option: options begin with --, and their values follow them (a list is one: [1,2])"
    return explain_key(option.lstrip("-"), said, options) or f"there is no option {option}"


def explain_key(name: str, said: Sequence[Setting], options: Sequence[str]) -> str:
    """A key that nothing takes: where it stands, and what was probably meant; nothing if it stands nowhere."""
    wanted = tuple(name.split("."))
    place = next((s for s in reversed(said) if s.path[-len(wanted) :] == wanted), None)
    place = place or next((s for s in reversed(said) if wanted[0] in s.path), None)
    if place is None:
        return ""
    path = [part for part in place.path if part != "init_args"]
    for depth in range(len(path) - 1, 0, -1):
        kind = class_of(".".join(path[:depth]), said)
        if kind:
            near = difflib.get_close_matches(path[depth], [*parameters(kind), "class_path", "init_args", "dict_kwargs"], 1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(parameters(kind)) or 'nothing'}"
            return f"{place}: {kind.__name__} takes no {path[depth]}: {hint}"
    full = ".".join(path)
    near = difflib.get_close_matches(full, options, 1, 0.75)
    known = difflib.get_close_matches(path[-1], ELSEWHERE, 1, 0.8)
    meant = near[0] if near else ELSEWHERE[known[0]] if known else ""
    sign = "" if place.file else "--"
    return f"{place}: there is no such {'key' if place.file else 'option'}" + (
        f": did you mean {sign}{meant}?" if meant else ""
    )


def explain_value(sentence: str, said: Sequence[Setting]) -> str:
    """A value that an option does not take."""
    key = ".".join(re.findall(r'Parser key "([^"]+)":', sentence))
    rest = sentence.rpartition('":')[2].strip()
    place = next((setting for setting in reversed(said) if ends(setting.path, key.split("."))), None)
    where = f"{place}" if place else key
    if no_class := NO_CLASS.search(rest):
        return explain_class(no_class[1] or no_class[2] or "", rest, where, key)
    expected = [part for part in dict.fromkeys(EXPECTED.findall(rest)) if "NoneType" not in part]
    if not expected:
        return f"{where}: {rest.partition(' Not a valid subclass')[0]}"
    text = " or ".join(f"a {part}" if not part.startswith("<") else part for part in expected)
    for pattern, meaning in TYPES.items():
        text = re.sub(pattern, meaning, text)
    value: Any = place.value if place else None
    given = f" {value}" if isinstance(value, str | int | float) else ""
    hint = f": write {float(value):.0f}" if text == "a whole number" and is_whole(value) else ""
    return f"{where}{given}: {text} is expected{hint}"


def ends(path: Sequence[str], key: Sequence[str]) -> bool:
    """Whether a path is, or ends with, this key, be there ``init_args`` in it or not."""
    bare = [part for part in path if part != "init_args"]
    return bare[-len(key) :] == list(key)


def is_whole(value: Any) -> bool:  # noqa: ANN401
    """Whether a text is a whole number in another spelling, such as 1e5."""
    try:
        return float(value).is_integer()
    except (TypeError, ValueError):
        return False


def explain_class(name: str, rest: str, where: str, key: str) -> str:
    """A class that cannot be had."""
    if "." not in name:
        option = next((option for option in CHOICES if option == key or option.endswith(f".{key}")), key)
        lower = {choice.lower(): choice for choice in CHOICES.get(option, SHORT)}
        near = difflib.get_close_matches(name.lower(), lower, 1)
        hint = f"did you mean {lower[near[0]]}?" if near else f"take {', '.join(lower.values())}, or give an import path"
        return f"{where} {name}: there is no such class: {hint}"
    if "does not correspond to a subclass of" in rest:
        return f"{where} {name}: this is no {rest.rpartition(' ')[2]}"
    problem = re.search(r"Problem with given class_path '[^']*': (.*?)(?: Expected| Given value|$)", rest)
    file = Path(f"{name.partition('.')[0]}.py")
    hidden = f"; an installed module hides ./{file}: rename it" if "no attribute" in rest and file.is_file() else ""
    return f"{where} {name}: {problem[1] if problem else rest}{hidden}"


# What a constructor raises to refuse its arguments. Other errors are mistakes of its author, who needs the traceback.
REFUSALS = (ValueError, TypeError, AssertionError, OverflowError, RuntimeError)


def construct(kind: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as jsonargparse's
    """An object of a class that the configuration names.

    Raises:
        UserError: Its constructor refuses the arguments; of a class of the user's own it says where.
    """
    try:
        return kind(*args, **kwargs)
    except MisconfigurationException:
        raise
    except REFUSALS as error:
        raise UserError(refusal(kind, error)) from error


def refusal(kind: type, error: Exception) -> str:
    """What a constructor says of its arguments, and the line that says it if it is none of an installed package."""
    file = Path(str(inspect.getsourcefile(kind) or ""))
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
    installed = "site-packages" in file.parts or Path(models.__file__).parents[1] in file.parents
    where = "" if installed or not lines else f" ({shown(file)}, line {lines[-1]})"
    return f"{kind.__name__}: {format_error(error)}{where}"
