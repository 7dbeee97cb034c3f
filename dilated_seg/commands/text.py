"""Objects written as text on the command line, as constructor calls: ``FCN(21, stride=8)``, ``Tiles(size=(512, 512))``.

Nothing in a text is executed but the constructor: its arguments are literals.
"""

import ast
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import nn

from dilated_seg.crf import DenseCRF
from dilated_seg.errors import UserError, format_error
from dilated_seg.inference import FullImage, MultiScale, ReflectedTiles, Tiles
from dilated_seg.inference.strategies import Inference
from dilated_seg.models import build

T = TypeVar("T")

NUM_CLASSES = 21  # PASCAL VOC's, for a network without arguments


def parse_network(text: str, device: str = "meta") -> nn.Module:
    """Build a network: a class of `dilated_seg.models`, or any class by its import path.

    Args:
        text: Such as ``FCN``, which gets 21 classes, ``FCN(21, stride=8)`` or ``mypackage.MyNet(5)``.
        device: Where the parameters go; "meta" gives names and shapes alone, without memory or initialization.

    Raises:
        UserError: The text is not such a call, the class is unknown, or it refuses the arguments.
    """
    path, args, kwargs = parse_call(text, "network", "FCN(21, stride=8)")
    return build.construct(path, args if args or kwargs else [NUM_CLASSES], kwargs, text, device)


def parse_strategy(text: str) -> Inference:
    """Build an inference strategy, such as ``Tiles(size=(512, 512), overlap=64)``.

    Raises:
        UserError: The text is not a strategy, or has other options.
    """
    kinds = (FullImage, Tiles, MultiScale, ReflectedTiles)
    return parse_object(text, "inference strategy", "Tiles(overlap=64)", kinds)


def parse_crf(text: str) -> DenseCRF:
    """Build a dense CRF, such as ``DenseCRF(w1=5)``.

    Raises:
        UserError: The text is not one, or has other options.
    """
    return parse_object(text, "CRF", "DenseCRF(w1=5)", [DenseCRF])


def parse_object(text: str, what: str, example: str, classes: Sequence[type[T]]) -> T:
    """Build an object of one of these classes, whose arguments are literals or again such objects.

    Raises:
        UserError: The text names another class, or the class refuses the arguments.
    """
    name, args, kwargs = parse_call(text, what, example, lambda inner: parse_object(inner, what, example, classes))
    constructor = next((each for each in classes if each.__name__ == name), None)
    if not constructor:
        names = " or ".join(each.__name__ for each in classes)
        raise UserError(f"there is no {what} {name}: write {names}, such as '{example}'")
    try:
        return constructor(*args, **kwargs)
    except UserError:
        raise
    except Exception as error:  # a constructor may raise anything; its arguments are the user's
        raise UserError(f"{text}: {format_error(error)}") from error


def parse_call(
    text: str, what: str, example: str, parse_inner: Callable[[str], Any] | None = None
) -> tuple[str, list[Any], dict[str, Any]]:
    """Return the class name, positional arguments and keyword arguments of a constructor call.

    Args:
        text: The call.
        what: What it should build, for the message.
        example: Such a call, for the message.
        parse_inner: Builds the object of a call among the arguments; without it there may be none.

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
        raise UserError(f"cannot parse {what} '{text}': write its class and its arguments, such as '{example}'") from error


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
