"""A network from its constructor call as text, as the command line takes it: ``FCN(21, stride=8)``."""

import ast
import contextlib
import difflib
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from dilated_seg import models
from dilated_seg.errors import UserError, format_error
from dilated_seg.models.layers import check_arguments

T = TypeVar("T")

CLASSES = 21  # PASCAL VOC's, where the text does not say


def network(text: str, device: str = "meta") -> nn.Module:
    """The network that ``text`` calls: a class of `dilated_seg.models`, or any by its import path, with plain values.

    Without arguments it gets 21 classes. Nothing is executed but the constructor.

    Args:
        text: Such as ``FCN``, ``FCN(21, stride=8)`` or ``mypackage.MyNet(5)``.
        device: Where the parameters go; "meta" gives names and shapes alone, in no time and no memory.

    Raises:
        UserError: The text is no such call, the class is unknown, or it refuses the arguments.
    """
    path, args, kwargs = parse(text)
    return construct(path, args if args or kwargs else [CLASSES], kwargs, text, device)


def construct(path: str, args: Sequence[Any], kwargs: Mapping[str, Any], text: str, device: str = "meta") -> nn.Module:
    """The network of this class, with plain values as its arguments.

    Raises:
        UserError: The class is unknown, or refuses the arguments; ``text`` says where they stand.
    """
    constructor = find(path)
    try:
        bound = inspect.signature(constructor).bind(*args, **kwargs)
        check_arguments(constructor, bound.arguments)
        undrawn = Undrawn() if device == "meta" else contextlib.nullcontext()
        with torch.device(device), undrawn, warnings.catch_warnings(action="error"):  # such as no channels
            return constructor(*args, **kwargs)
    except Exception as error:  # whatever a constructor raises, what it was given is the user's
        raise UserError(f"{text}: {format_error(error)}") from error


class Undrawn(TorchFunctionMode):
    """Draws no first values: parameters without memory have none, and torch would import for a second to say so."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        given = kwargs or {}
        return given.get("tensor", *args[:1]) if getattr(func, "__module__", "") == "torch.nn.init" else func(*args, **given)


def one_of(text: str, what: str, example: str, kinds: Sequence[type[T]]) -> T:
    """What a text calls: one of these classes, with plain values, or again one of them.

    Raises:
        UserError: It is none, or refuses the values.
    """
    path, args, named = parse(text, what, example, lambda inner: one_of(inner, what, example, kinds))
    found = next((kind for kind in kinds if kind.__name__ == path), None)
    if not found:
        raise UserError(f"there is no {what} {path}: write {' or '.join(kind.__name__ for kind in kinds)}, such as '{example}'")
    try:
        return found(*args, **named)
    except UserError:
        raise
    except Exception as error:  # whatever a constructor raises, what it was given is the user's
        raise UserError(f"{text}: {format_error(error)}") from error


def parse(
    text: str, what: str = "network", example: str = "FCN(21, stride=8)", inner: Callable[[str], Any] | None = None
) -> tuple[str, list[Any], dict[str, Any]]:
    """Class, positional and named values of a call; strings may be written without quotes, numbers as fractions.

    Args:
        text: The call.
        what: That it should be, to say it.
        example: Of one.
        inner: What to make of a call among the values; there may be none if None.
    """
    try:
        call = ast.parse(text.strip(), mode="eval").body
        function, args, named = (call.func, call.args, call.keywords) if isinstance(call, ast.Call) else (call, [], [])
        path = ast.unparse(function)
        if not all(part.isidentifier() for part in path.split(".")):
            raise ValueError("no import path")
        return path, [value(node, inner) for node in args], {str(k.arg): value(k.value, inner) for k in named}
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError) as error:
        raise UserError(f"'{text}' is no {what}: write its class and its arguments, such as '{example}'") from error


def value(node: ast.expr, inner: Callable[[str], Any] | None = None) -> Any:  # noqa: ANN401
    """A plain Python value, a bare word as a string or as YAML has it, one number over another, or several of them."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return ast.literal_eval(node.left) / ast.literal_eval(node.right)
    if isinstance(node, ast.List | ast.Tuple):
        return tuple(value(element, inner) for element in node.elts)
    if inner and isinstance(node, ast.Call):
        return inner(ast.unparse(node))
    if isinstance(node, ast.Name):
        return {"true": True, "false": False, "null": None}.get(node.id, node.id)
    return ast.literal_eval(node)


def find(path: str) -> type[nn.Module]:
    """The class of this name in `dilated_seg.models`, or at this import path."""
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module) if module else models, name, None)
    except ImportError as error:
        raise UserError(f"there is no module {module} to take {name} from") from error
    except Exception as error:
        raise UserError(f"the module {module} cannot be imported: {format_error(error)}") from error
    if (not module and name not in models.__all__) or not (isinstance(found, type) and issubclass(found, nn.Module)):
        lower = {network.lower(): network for network in models.__all__}
        near = [lower[n] for n in difflib.get_close_matches(name.lower(), lower, 1)]
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(models.__all__)}"
        raise UserError(f"there is no network {path}: {hint}")
    return found
