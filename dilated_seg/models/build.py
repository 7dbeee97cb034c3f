"""Build objects from the name of their class and their arguments, written as a constructor call: ``FCN(21, stride=8)``."""

import ast
import contextlib
import difflib
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, TypeVar, get_type_hints

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from dilated_seg import models
from dilated_seg.errors import UserError, format_error
from dilated_seg.models.layers import check_arguments

T = TypeVar("T")


def construct(path: str, args: Sequence[Any], kwargs: Mapping[str, Any], text: str, device: str = "meta") -> nn.Module:
    """Build a network from its class and arguments.

    Args:
        path: A name in `dilated_seg.models`, or an import path.
        args: Positional arguments of the constructor.
        kwargs: Keyword arguments of the constructor.
        text: The text that names class and arguments, for the message.
        device: The device of the parameters; on "meta" they have names and shapes, but no memory and no values.

    Raises:
        UserError: The class is unknown, or rejects the arguments.
    """
    constructor = find_network(path)
    ours = path.rpartition(".")[2] in models.__all__
    try:
        bound = inspect.signature(constructor).bind(*args, **kwargs)
        check_arguments(constructor, bound.arguments)
        initialization = SkipInitialization() if device == "meta" else contextlib.nullcontext()
        # torch warns of layers without channels; warnings of other categories may come from the garbage collector
        action: Any = "error" if ours else "default"
        with torch.device(device), initialization, warnings.catch_warnings(action=action, category=UserWarning):
            return constructor(*args, **kwargs)
    except Exception as error:  # constructors of other packages may raise any error
        raise UserError(f"{text}: {format_error(error)}") from error


def describe_network(net: nn.Module) -> dict[str, Any] | None:
    """Return the class path and the arguments of a network that was built in Python, as YAML names them; None if unknown.

    Networks of this package keep their arguments, which `check_arguments` records.
    """
    arguments, kind = getattr(net, "arguments", None), type(net)
    if not isinstance(arguments, dict):
        return None
    ours = getattr(models, kind.__name__, None) is kind
    return {"class_path": f"{models.__name__ if ours else kind.__module__}.{kind.__qualname__}", "init_args": arguments}


class SkipInitialization(TorchFunctionMode):
    """Skip torch.nn.init while active: on "meta", drawing values would only cost a second of imports."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        return kwargs.get("tensor", *args[:1]) if getattr(func, "__module__", "") == "torch.nn.init" else func(*args, **kwargs)


def find_network(path: str) -> Callable[..., nn.Module]:
    """Return the network class of this name in `dilated_seg.models`, or the class or function at this import path.

    Raises:
        UserError: See `find_class`; a function states no return type that is a network.
    """
    module, _, name = path.rpartition(".")
    with contextlib.suppress(Exception):  # an import may raise anything: find_class says what
        function = getattr(import_module(module), name)
        if inspect.isfunction(function) and issubclass(get_type_hints(function)["return"], nn.Module):
            return function
    return find_class(path, {name: getattr(models, name) for name in models.__all__}, nn.Module, "network")


def find_class(path: str, choices: Mapping[str, type[T]], base: type[T], noun: str) -> type[T]:
    """Return the class of a short name or at an import path.

    Args:
        path: The name or the import path.
        choices: Classes by short name.
        base: Required base class.
        noun: The kind of object, for the message.

    Raises:
        UserError: The module cannot be imported, or there is no such subclass of ``base``.
    """
    module, _, name = path.rpartition(".")
    try:
        kind = getattr(import_module(module), name, None) if module else choices.get(name)
    except ImportError as error:
        raise UserError(f"there is no module {module}: give the import path of {name}") from error
    except Exception as error:
        raise UserError(f"the module {module} cannot be imported: {format_error(error)}") from error
    if not (isinstance(kind, type) and issubclass(kind, base)):
        lower = {each.lower(): each for each in choices}
        matches = [lower[n] for n in difflib.get_close_matches(name.lower(), lower, 1)]
        hint = f"did you mean {matches[0]}?" if matches else f"choose one of {', '.join(choices)}"
        raise UserError(f"there is no {noun} {path}: {hint}")
    return kind


def parse_call(
    text: str, noun: str, example: str, parse_inner: Callable[[str], Any] | None = None
) -> tuple[str, list[Any], dict[str, Any]]:
    """Return the class name, positional arguments and keyword arguments of a constructor call; nothing is executed.

    Args:
        text: The call, whose arguments are literals; without parentheses, a class alone.
        noun: The kind of object that it should build, for the message.
        example: An example of a call, for the message.
        parse_inner: Converts a call among the arguments; without it there may be none.

    Raises:
        UserError: The text is not a call with literal arguments.
    """
    try:
        call = ast.parse(text.strip(), mode="eval").body
        function, args, keywords = (call.func, call.args, call.keywords) if isinstance(call, ast.Call) else (call, [], [])
        path = ast.unparse(function)
        if not all(part.isidentifier() for part in path.split(".")):
            raise ValueError("not an import path")
        kwargs = {str(keyword.arg): parse_value(keyword.value, parse_inner) for keyword in keywords}
        return path, [parse_value(node, parse_inner) for node in args], kwargs
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError) as error:
        raise UserError(f"cannot parse {noun} '{text}': write its class and its arguments, such as '{example}'") from error


def parse_value(node: ast.expr, parse_inner: Callable[[str], Any] | None = None) -> Any:  # noqa: ANN401
    """Return the value of an argument: a literal, a fraction of two numbers, a string without quotes, or several of them."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return ast.literal_eval(node.left) / ast.literal_eval(node.right)
    if isinstance(node, ast.List | ast.Tuple):
        return tuple(parse_value(element, parse_inner) for element in node.elts)
    if parse_inner and isinstance(node, ast.Call):
        return parse_inner(ast.unparse(node))
    if isinstance(node, ast.Name):
        return {"true": True, "false": False, "null": None}.get(node.id, node.id)
    return ast.literal_eval(node)


def format_call(name: str, /, *args: Any, **kwargs: Any) -> str:  # noqa: ANN401
    """Return a constructor call as text: ``FCN(21, stride=8)``."""
    return f"{name}({', '.join([*map(repr, args), *(f'{key}={value!r}' for key, value in kwargs.items())])})"
