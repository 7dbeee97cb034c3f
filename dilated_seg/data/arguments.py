"""The arguments of a dataset that was built in Python, from which a run builds it again."""

import inspect
from typing import Any


def collect_arguments(built: object) -> dict[str, Any]:
    """Return the arguments of an object by name; to be called in its constructor.

    Includes arguments that its constructor passes on to a base class by ``**options``.
    """
    arguments: dict[str, Any] = {}
    frame = inspect.currentframe()
    while frame is not None:  # from the base class to the class itself
        names, _, options, values = inspect.getargvalues(frame)
        if frame.f_code.co_name == "__init__" and names and values[names[0]] is built:
            arguments = (arguments if options else {}) | {name: values[name] for name in names[1:]}
        frame = frame.f_back
    return arguments
