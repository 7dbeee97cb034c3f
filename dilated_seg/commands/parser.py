"""The parser that all commands but Lightning's four share: options, YAML files of options, and objects."""

import argparse
import difflib
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from dilated_seg.commands import COMMANDS
from dilated_seg.errors import UserError, format_error


class CommandParser(argparse.ArgumentParser):
    """Parses the options of one command. A mistake is one sentence, with the most similar option.

    Options may also be in YAML files, ``--config FILE``; the command line wins. An option added by `add_object` takes a
    constructor call, and its arguments as options of their own: ``--crf 'DenseCRF(w1=5)'`` and ``--crf --crf.w1 5`` are equal.

    Args:
        command: A key of `COMMANDS`.
        example: Arguments that help shows.
    """

    def __init__(self, command: str, example: str) -> None:
        about, prog = COMMANDS[command], f"dilated-seg {command}"
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, description=about, epilog=f"such as: {prog} {example}", formatter_class=raw, allow_abbrev=False)
        self.example = example
        self.objects: dict[str, str | None] = {}  # the class that an option without a value stands for
        self.imports = False
        self.add_argument("--config", metavar="FILE", help="YAML with options by name; those on the command line win")

    def add_import(self) -> None:
        """Add ``--import``, whose modules `parse_args` imports: a checkpoint that names a class does not cause an import."""
        self.imports = True
        self.add_argument(
            "--import", dest="imports", action="append", default=[], metavar="MODULE",
            help="of a network that is not of this package, such as mypackage or torchvision.models.segmentation",
        )  # fmt: skip

    def add_object(self, name: str, default_class: str | None = None, **options: Any) -> None:  # noqa: ANN401 - as add_argument's
        """Add an option that takes a constructor call; without a value it stands for ``default_class``."""
        self.objects[name] = default_class
        if default_class:
            options |= {"nargs": "?", "const": default_class}
        self.add_argument(f"--{name}", **options)

    def parse_args(self, args: Sequence[str]) -> argparse.Namespace:  # type: ignore[override] # no caller has a namespace
        """Parse the arguments of the command.

        Raises:
            UserError: An argument or a key of a file is wrong.
        """
        files = [after for before, after in pairwise(args) if before == "--config"]
        files += [arg.partition("=")[2] for arg in args if arg.startswith("--config=")]
        # each file is named again after its options: it ends the values of the last one
        options = [word for file in files for word in (*self.read_options(Path(file)), f"--config={file}")]
        namespace = super().parse_args(self.fold_objects(args, options))
        for name in namespace.imports if self.imports else ():
            import_for_user(name)
        return namespace

    def read_options(self, file: Path) -> Iterator[str]:
        """Yield the options of a YAML file as words of a command line.

        Raises:
            UserError: The file cannot be read, or has a key that is not an option.
        """
        import yaml  # 30 ms that --help does without

        try:
            content = yaml.safe_load(file.read_text("utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"--config {file} cannot be read: {format_error(error)}") from error
        if not isinstance(content, dict):
            raise UserError(f"--config {file} is not a mapping: write options by name, such as 'overwrite: true'")
        for key, value in content.items():
            if f"--{key}" not in self.list_options():
                raise UserError(f"{file}: unknown option {key}: {self.suggest(str(key)).replace('--', '')}")
            if isinstance(value, list):
                yield from (f"--{key}", *map(str, value))
            elif value is True:
                yield f"--{key}"
            elif value not in (None, False):
                yield f"--{key}={format_object(value)}"

    def fold_objects(self, args: Sequence[str], before: Sequence[str]) -> list[str]:
        """Return the arguments, behind those of files, with ``--NAME.KEY VALUE`` as arguments of NAME's constructor call."""
        words, nested = [], dict[str, list[str]]()
        remaining = iter(args)
        for word in remaining:
            option, joined, value = word.partition("=")
            name, _, key = option.removeprefix("--").partition(".")
            if key and option.startswith("--") and name in self.objects:
                nested.setdefault(name, []).append(f"{key}={value if joined else next(remaining, '')}")
            else:
                words.append(word)
        for name, arguments in nested.items():
            call = find_value([*before, *words], f"--{name}") or self.objects[name]
            if not call:
                self.error(f"--{name}.{arguments[0]} is an argument of no class: name the class with --{name}")
            head = call.rstrip().removesuffix(")") if call.rstrip().endswith(")") else f"{call}("
            words += [f"--{name}={head}{'' if head.endswith('(') else ', '}{', '.join(arguments)})"]
        return [*before, *words]

    def list_options(self) -> list[str]:
        """Return all options of the command."""
        return re.findall(r"--\w+", self.format_usage())

    def suggest(self, option: str) -> str:
        """Return the option that was probably meant, as the end of a message."""
        near = difflib.get_close_matches(f"--{option.lstrip('-').partition('=')[0]}", self.list_options(), 1)
        return f"did you mean {near[0]}?" if near else f"see {self.prog} --help"

    def error(self, message: str) -> NoReturn:
        """Raise the mistake instead of printing the usage and exiting."""
        if unknown := re.match("unrecognized arguments: (.*)", message):
            option = next((word for word in unknown[1].split() if word.startswith("-")), unknown[1])
            message = f"unknown option {option}: {self.suggest(option)}"
        raise UserError(message)


def import_for_user(name: str) -> None:
    """Import the module that ``--import`` names.

    Raises:
        UserError: There is no such module, or it cannot be imported.
    """
    try:
        import_module(name)
    except Exception as error:  # an import may raise anything
        raise UserError(f"--import {name}: the module cannot be imported: {format_error(error)}") from error


def find_value(words: Sequence[str], option: str) -> str | None:
    """Return the last value of an option in a command line; None if it has none."""
    value = None
    for word, after in zip(words, [*words[1:], "--"], strict=True):
        if word == option and not after.startswith("-"):
            value = after
        elif word.startswith(f"{option}="):
            value = word.partition("=")[2]
    return value


def format_object(value: Any) -> str:  # noqa: ANN401
    """Return an object of YAML, with ``class_path`` and ``init_args``, as a constructor call; other values as text."""
    if not isinstance(value, dict) or "class_path" not in value:
        return str(value)
    arguments = (value.get("init_args") or {}).items()
    return f"{value['class_path']}({', '.join(f'{key}={format_argument(argument)}' for key, argument in arguments)})"


def format_argument(value: Any) -> str:  # noqa: ANN401
    """Return an argument of a constructor call."""
    return format_object(value) if isinstance(value, dict) else repr(value)
