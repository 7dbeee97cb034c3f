"""Objects of the command line from constructor calls: ``FCN(21, stride=8)``, ``Tiles(size=(512, 512))``."""

from collections.abc import Mapping
from typing import TypeVar

from torch import nn

from dilated_seg import inference
from dilated_seg.crf import DenseCRF
from dilated_seg.errors import UserError, format_error
from dilated_seg.inference import Inference
from dilated_seg.models import build

T = TypeVar("T")

NUM_CLASSES = 21  # PASCAL VOC's, for a network without arguments
STRATEGIES = {
    kind.__name__: kind for kind in (inference.FullImage, inference.Tiles, inference.MultiScale, inference.ReflectedTiles)
}


def parse_network(text: str, device: str = "meta") -> nn.Module:
    """Build a network: a class of `dilated_seg.models`, or any class by its import path.

    Args:
        text: The call, such as ``FCN(21, stride=8)`` or ``mypackage.MyNet(5)``; ``FCN`` alone means 21 classes.
        device: The device of the parameters; on "meta" they have names and shapes, but no memory and no values.

    Raises:
        UserError: The text is not such a call, the class is unknown, or rejects the arguments.
    """
    path, args, kwargs = build.parse_call(text, "network", "FCN(21, stride=8)")
    return build.construct(path, args if args or kwargs else [NUM_CLASSES], kwargs, text, device)


def parse_strategy(text: str | None) -> Inference | None:
    """Build an inference strategy, such as ``Tiles(size=(512, 512), overlap=64)``; return None for None.

    Raises:
        UserError: The text is not a strategy, or has unknown arguments.
    """
    return None if text is None else parse_object(text, STRATEGIES, Inference, "inference strategy", "Tiles(overlap=64)")  # type: ignore[type-abstract]


def parse_crf(text: str | None) -> DenseCRF | None:
    """Build a dense CRF, such as ``DenseCRF(w1=5)``; return None for None.

    Raises:
        UserError: The text is not a dense CRF, or has unknown arguments.
    """
    return None if text is None else parse_object(text, {"DenseCRF": DenseCRF}, DenseCRF, "CRF", "DenseCRF(w1=5)")


def parse_object(text: str, choices: Mapping[str, type[T]], base: type[T], noun: str, example: str) -> T:
    """Build an object of a class in ``choices``, or at an import path; its arguments are literals or such objects.

    Raises:
        UserError: The text names another class, or the class rejects the arguments.
    """
    name, args, kwargs = build.parse_call(text, noun, example, lambda inner: parse_object(inner, choices, base, noun, example))
    kind = build.find_class(name, choices, base, noun)
    try:
        return kind(*args, **kwargs)
    except UserError:
        raise
    except Exception as error:  # a constructor may raise anything; its arguments are the user's
        raise UserError(f"{text}: {format_error(error)}") from error
