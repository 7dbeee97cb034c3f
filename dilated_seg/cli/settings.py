"""The values of configuration files and the command line, each with its file or option, and the short names of classes."""

import difflib
import json
import numbers
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import get_loader
from jsonargparse.typing import register_type
from lightning.pytorch import callbacks as lightning_callbacks
from torchvision.transforms import v2

from dilated_seg import data, losses, models, training
from dilated_seg.crf import DenseCRF
from dilated_seg.data.transforms import ScaleAndCrop
from dilated_seg.errors import UserError, format_error
from dilated_seg.inference import strategies
from dilated_seg.models.build import parse_call
from dilated_seg.runs.experiments import EXPERIMENTS
from dilated_seg.storage import make_relative

STRATEGIES = [kind.__name__ for kind in strategies.Inference.__subclasses__()]


def list_classes(module: Any) -> list[str]:  # noqa: ANN401
    """Return the names of the classes that a module offers."""
    return [name for name, kind in vars(module).items() if isinstance(kind, type) and name[0].isupper()]


SHORT = (
    {name: f"{v2.__name__}.{name}" for name in list_classes(v2)}
    | {name: f"{module.__name__}.{name}" for module in (models, data, losses, training) for name in module.__all__}
    | {
        **{kind.__name__: f"{kind.__module__}.{kind.__name__}" for kind in (DenseCRF, ScaleAndCrop)},
        **dict.fromkeys(
            ("SequentialLR", "torch.optim.lr_scheduler.SequentialLR"), "dilated_seg.training.schedules.SequentialLR"
        ),  # torch's class takes objects
        # torch's own class has no monitor
        "ReduceLROnPlateau": "lightning.pytorch.cli.ReduceLROnPlateau",
        "torch.optim.lr_scheduler.ReduceLROnPlateau": "lightning.pytorch.cli.ReduceLROnPlateau",
    }
)
CALL = re.compile(r"\s*[A-Za-z_][\w.]*\(.*\)\s*", re.DOTALL)  # such as FCN(stride=8)


# The options that take a class, and those to choose from by a short name.
CHOICES: dict[str, list[str]] = {
    "model.net": models.__all__,
    "data": [name for name in data.__all__ if name != "SegmentationDataModule"],
    "data.like": [name for name in data.__all__ if name != "SegmentationDataModule"],
    "data.augmentation": ["ScaleAndCrop"],
    "data.transforms": list_classes(v2),
    "model.optimizer": [name for name in list_classes(torch.optim) if name != "Optimizer"],
    "model.lr_scheduler": [
        name for name in list_classes(torch.optim.lr_scheduler) if name.endswith(("LR", "Plateau", "Restarts"))
    ],
    "trainer.callbacks": [*training.__all__, *lightning_callbacks.__all__],
    "model.loss": losses.__all__,
    "model.loss.losses": losses.__all__,
    "model.crf": ["DenseCRF"],
    "crf": ["DenseCRF"],
    "inference": STRATEGIES,
}


def read_number(value: Any) -> float:  # noqa: ANN401
    """Return a number; raise ValueError for other values, as jsonargparse expects."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("not a number")
    return value


# The type of some arguments of torchvision's transforms, which jsonargparse could read but not write.
register_type(numbers.Number, serializer=read_number, deserializer=read_number)


def load_yaml(text: str) -> Any:  # noqa: ANN401
    """Load a value or a file of YAML, with classes as `expand_class` has them."""
    return expand_classes(get_loader("yaml")(text))


def expand_classes(value: Any, key: str = "") -> Any:  # noqa: ANN401
    """Return the value of a key with `expand_class` applied wherever a class is named."""
    if isinstance(value, dict):
        return {name: expand_classes(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list):
        return [expand_classes(inner, key) for inner in value]
    names_a_class = key.rstrip("+") in ("class_path", *(option.rpartition(".")[2] for option in CHOICES))
    return expand_class(value) if names_a_class and isinstance(value, str) else value


def expand_class(text: str) -> Any:  # noqa: ANN401
    """Return the import path of a short name, and a constructor call as ``class_path`` and ``init_args``.

    Raises:
        UserError: The arguments of the call are not literals, or not given by name.
    """
    if not CALL.fullmatch(text):
        return SHORT.get(text, text)
    example = "Tiles(size=(512, 512))"
    name, args, kwargs = parse_call(text, "object", example, expand_class)
    if args:
        raise UserError(f"{text}: name the arguments in configurations and options, such as {example}")
    return {"class_path": SHORT.get(name, name), "init_args": json.loads(json.dumps(kwargs))}


@dataclass
class Setting:
    """One value, and the file or option that sets it."""

    file: str  # empty on the command line
    path: tuple[str, ...]
    value: Any

    @property
    def keys(self) -> list[str]:
        """The path without ``init_args``, as options are written."""
        return [part for part in self.path if part != "init_args"]

    def __str__(self) -> str:
        name = ".".join(self.keys)
        return f"{self.file}: {name}" if self.file else f"--{name}"


class UniqueKeys(yaml.SafeLoader):  # type: ignore[misc] # yaml has no types
    """YAML in which a key that occurs twice in one mapping is an error; PyYAML silently takes the last value."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:  # noqa: ANN401
        keys: set[Any] = set()
        for key, _ in node.value:
            if key.value in keys and key.value != "<<":
                raise yaml.MarkedYAMLError(problem=f"the key '{key.value}' occurs twice", problem_mark=key.start_mark)
            keys.add(key.value)
        return super().construct_mapping(node, deep)


def read_file(name: str, prefix: tuple[str, ...] = ()) -> list[Setting]:
    """Return all settings of a configuration file, and of the files that it names.

    Raises:
        UserError: The file is missing, a directory, or not a mapping in YAML.
    """
    path = Path(name)
    if "://" in name or re.search(r"[\n{]", name):
        return []  # a URL, or a configuration itself
    if not path.is_file():
        raise UserError(explain_missing_file(name))
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), UniqueKeys)
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not a text file: --config takes a YAML file") from error
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror or error}") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        tabs = ": indent by spaces, not by tabs" if "\\t" in str(error.problem) else ""
        raise UserError(f"{name}{line}: {error.problem}{tabs}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{name} is not YAML: {format_error(error)}") from error
    if not isinstance(content, dict):
        kind = "empty" if content is None else "a list" if isinstance(content, list) else "a single value"
        raise UserError(f"{name} is {kind}, not a configuration: it should have keys such as model, data and trainer")
    return list(flatten(content, str(name), path.parent, prefix))


def explain_missing_file(name: str) -> str:
    """Return a sentence about a configuration file that does not exist, with the most similar one that does."""
    path = Path(name)
    if not name:
        return "--config is empty: name a YAML file, such as experiments/quickstart.yaml"
    if path.is_dir():
        inside = path / "config.yaml"
        return f"{name} is a directory: --config takes a file{f', such as {inside}' if inside.is_file() else ''}"
    files = [*path.parent.glob("*.y*ml")] or [*EXPERIMENTS.glob("**/*.yaml")]
    near = difflib.get_close_matches(path.name, [file.name for file in files], 1, 0.75)
    hint = next((f": did you mean {make_relative(file)}?" for file in files if [file.name] == near), ": see experiments/")
    return f"there is no file {name}{hint}"


def flatten(value: Any, file: str, directory: Path, path: tuple[str, ...]) -> Iterator[Setting]:  # noqa: ANN401
    """Yield every key of a mapping, at any depth, and those of the files that it names."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield Setting(file, (*path, str(key)), inner)
            yield from flatten(inner, file, directory, (*path, str(key)))
    elif isinstance(value, list):
        for inner in value:
            yield from flatten(inner, file, directory, path)
    elif isinstance(value, str) and value.endswith((".yaml", ".yml")) and (directory / value).is_file():
        yield from read_file(os.path.normpath(directory / value), path)


def read_arguments(args: Sequence[str]) -> list[Setting]:
    """Return all settings of the arguments, in order, and of the files that they name."""
    settings: list[Setting] = []
    for arg, after in zip(args, [*args[1:], ""], strict=False):
        option, joined, value = arg.partition("=")
        value = value if joined else after
        if option == "--config":
            settings += read_file(value)
        elif option.startswith("--"):
            settings.append(Setting("", tuple(option[2:].removesuffix("+").split(".")), value))
            try:
                inner = get_loader("yaml")(value) if value.startswith(("{", "[")) else None
            except yaml.YAMLError:
                inner = None
            settings += flatten(inner, "", Path(), settings[-1].path)
    return settings
