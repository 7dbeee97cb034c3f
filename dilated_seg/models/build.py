"""Networks from the name of their class and their arguments."""

import contextlib
import difflib
import inspect
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from dilated_seg import models
from dilated_seg.errors import UserError, format_error
from dilated_seg.models.layers import check_arguments


def construct(path: str, args: Sequence[Any], kwargs: Mapping[str, Any], text: str, device: str = "meta") -> nn.Module:
    """Build a network from its class and arguments.

    Args:
        path: A name in `dilated_seg.models`, or an import path.
        args: Positional arguments of the constructor.
        kwargs: Keyword arguments of the constructor.
        text: Where class and arguments are written, for the message.
        device: Where the parameters go; "meta" gives names and shapes alone, without memory or initialization.

    Raises:
        UserError: The class is unknown, or refuses the arguments.
    """
    constructor = find(path)
    try:
        bound = inspect.signature(constructor).bind(*args, **kwargs)
        check_arguments(constructor, bound.arguments)
        initialization = SkipInitialization() if device == "meta" else contextlib.nullcontext()
        # torch warns of layers without channels; warnings of other categories may come from the garbage collector
        with torch.device(device), initialization, warnings.catch_warnings(action="error", category=UserWarning):
            return constructor(*args, **kwargs)
    except Exception as error:  # a constructor may raise anything; its arguments are the user's
        raise UserError(f"{text}: {format_error(error)}") from error


class SkipInitialization(TorchFunctionMode):
    """While active, torch.nn.init does nothing: on "meta", torch imports for a second to draw values that do not exist."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        return kwargs.get("tensor", *args[:1]) if getattr(func, "__module__", "") == "torch.nn.init" else func(*args, **kwargs)


def find(path: str) -> type[nn.Module]:
    """Return the class of this name in `dilated_seg.models`, or at this import path.

    Raises:
        UserError: There is no such module or network.
    """
    module, _, name = path.rpartition(".")
    try:
        network = getattr(import_module(module) if module else models, name, None)
    except ImportError as error:
        raise UserError(f"there is no module {module} to take {name} from") from error
    except Exception as error:
        raise UserError(f"the module {module} cannot be imported: {format_error(error)}") from error
    if (not module and name not in models.__all__) or not (isinstance(network, type) and issubclass(network, nn.Module)):
        lower = {each.lower(): each for each in models.__all__}
        near = [lower[n] for n in difflib.get_close_matches(name.lower(), lower, 1)]
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(models.__all__)}"
        raise UserError(f"there is no network {path}: {hint}")
    return network


def format_call(name: str, /, *args: Any, **kwargs: Any) -> str:  # noqa: ANN401
    """Return a constructor call as text: ``FCN(21, stride=8)``."""
    return f"{name}({', '.join([*map(repr, args), *(f'{key}={value!r}' for key, value in kwargs.items())])})"
