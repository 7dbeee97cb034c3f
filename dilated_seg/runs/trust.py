"""Checkpoints from anywhere: read without executing a pickle, and without importing what they name."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dilated_seg.errors import CorruptError, UserError
from dilated_seg.storage import is_url
from dilated_seg.weights.readers import load_torch

# The arguments of the task that load_from_checkpoint builds from class paths, and what those must be.
BUILT: dict[str, type] = {"net": nn.Module, "crf": nn.Module, "optimizer": Optimizer, "lr_scheduler": LRScheduler}


def local_file(path: str | os.PathLike[str]) -> Path:
    """A checkpoint's path.

    Raises:
        UserError: There is no such file, or it is an address.
    """
    if isinstance(path, str) and is_url(path):
        raise UserError(f"{path} is an address: download the checkpoint and name the file; only model.weights takes addresses")
    if not Path(path).is_file():
        raise UserError(f"there is no checkpoint {path}: name a file of a run's folder checkpoints/")
    return Path(path)


def read_checkpoint(file: BinaryIO, name: Any, map_location: Any = "cpu") -> dict[str, Any]:  # noqa: ANN401
    """A checkpoint, from an open file.

    Raises:
        UserError: It is damaged, no checkpoint of a run, or would have to be executed.
    """
    try:
        checkpoint: Any = load_torch(file, map_location)
    except CorruptError as error:
        raise UserError(f"{name} cannot be loaded: it {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror or error}") from error
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) and "global_step" in checkpoint else None
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise UserError(f"{name} is no checkpoint of a run: name a file of a run's folder checkpoints/")
    return dict(checkpoint)


def refuse_foreign(checkpoint: dict[str, Any], name: Any) -> None:  # noqa: ANN401
    """Refuse a checkpoint whose hyperparameters name anything but classes that are imported already, each of its kind.

    A class path could be whatever can be imported and called.

    Raises:
        UserError: They do.
    """
    arguments = checkpoint.get("hyper_parameters") or {}
    if not isinstance(arguments, dict) or checkpoint.keys() & {"hparams", "module_arguments"}:  # where Lightning looks too
        raise UserError(f"{name} is no checkpoint of a run: name a file of a run's folder checkpoints/")
    for key, value in arguments.items():
        paths = [value] if isinstance(value, str) and key in BUILT else list(class_paths(value))
        for number, path in enumerate(paths):
            kind = object if number else BUILT.get(key, type(None))
            module, _, last = str(path).rpartition(".")
            found = getattr(sys.modules.get(module), last, None)
            if not (isinstance(found, type) and issubclass(found, kind)):
                raise UserError(
                    f"{name} says that model.{key} is {path!r}, which is no {kind.__name__} that is imported: if it is one of "
                    "yours, import its module first"
                )


def class_paths(value: Any) -> Iterator[Any]:  # noqa: ANN401
    """All class paths in a hyperparameter, the outermost first."""
    if isinstance(value, dict):
        if "class_path" in value:
            yield value["class_path"]
        for inner in value.values():
            yield from class_paths(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from class_paths(inner)
