"""A checkpoint of a run: its checksum, and its content, which is read without executing pickles."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dilated_seg.errors import CorruptError, UserError
from dilated_seg.storage import digest, is_url
from dilated_seg.weights.torch_file import check_state_dict, load_torch

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"

NO_CHECKPOINT = "is not a checkpoint of a run: name a file in the directory checkpoints/ of a run"

# The arguments of the task that load_from_checkpoint builds from class paths, and their base classes.
BUILT: dict[str, type] = {"net": nn.Module, "crf": nn.Module, "optimizer": Optimizer, "lr_scheduler": LRScheduler}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file, with its SHA-256 in a sidecar file (sha256sum format).

    Args:
        path: The file.
    """

    path: Path

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> "Checkpoint":
        """Return the checkpoint at a local path.

        Raises:
            UserError: There is no such file, or the path is a URL.
        """
        if isinstance(path, str) and is_url(path):
            raise UserError(f"{path} is a URL: download the checkpoint and name the file; only model.weights takes URLs")
        if not Path(path).is_file():
            raise UserError(f"there is no checkpoint {path}: name a file in the directory checkpoints/ of a run")
        return cls(Path(path))

    @property
    def name(self) -> str:
        """The file's name without suffix, such as "best"."""
        return self.path.stem

    @property
    def checksum_file(self) -> Path:
        """The sidecar file."""
        return self.path.with_name(f"{self.path.name}.sha256")

    @property
    def step(self) -> int:
        """The number of training steps of these weights; reads the file."""
        return int(self.read()["global_step"])

    @property
    def sha256(self) -> str:
        """The SHA-256 of the present file."""
        return digest(self.path)

    def read_checksums(self) -> list[str]:
        """Return the checksums in the sidecar file: one, two during replacement, none without a sidecar file."""
        try:
            return [line.split()[0] for line in self.checksum_file.read_text().splitlines() if line.strip()]
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError):
            return ["unreadable"]

    def is_intact(self) -> bool:
        """Return whether the file has a recorded checksum and matches it."""
        return self.path.is_file() and self.sha256 in self.read_checksums()

    def verify(self) -> str:
        """Return the file's checksum, which must be the recorded one, if any.

        Raises:
            UserError: The checksum differs.
        """
        checksum, recorded = self.sha256, self.read_checksums()
        if recorded and checksum not in recorded:
            raise UserError(
                f"{self.path} is damaged: its checksum is not that in {self.checksum_file.name}; use another checkpoint"
            )
        return checksum

    def read(self, map_location: Any = "cpu") -> dict[str, Any]:  # noqa: ANN401
        """Return the content; see `read_checkpoint`."""
        try:
            with self.path.open("rb") as file:
                return read_checkpoint(file, self.path, map_location)
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror or error}") from error


def read_checkpoint(file: BinaryIO, name: Any, map_location: Any = "cpu") -> dict[str, Any]:  # noqa: ANN401
    """Return the content of an open checkpoint file.

    Raises:
        UserError: The file is damaged, not a checkpoint of a run, or would have to be executed.
    """
    try:
        content: Any = load_torch(file, map_location)
    except CorruptError as error:
        raise UserError(f"{name} cannot be loaded: it {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror or error}") from error
    if not isinstance(content, dict) or "global_step" not in content:
        raise UserError(f"{name} {NO_CHECKPOINT}")
    try:
        return dict(content) | {"state_dict": check_state_dict(content.get("state_dict"))}
    except CorruptError as error:
        raise UserError(f"{name} {NO_CHECKPOINT} ({error})") from error


def require_known_classes(checkpoint: dict[str, Any], name: Any) -> None:  # noqa: ANN401
    """Require that the hyperparameters name only imported classes with the right base classes.

    Lightning would import and call anything that the hyperparameters name.

    Raises:
        UserError: The hyperparameters name another class, or something that is not a class.
    """
    arguments = checkpoint.get("hyper_parameters") or {}
    if not isinstance(arguments, dict) or checkpoint.keys() & {"hparams", "module_arguments"}:  # older names of Lightning's
        raise UserError(f"{name} {NO_CHECKPOINT}")
    for key, value in arguments.items():
        paths = [value] if isinstance(value, str) and key in BUILT else list(list_class_paths(value))
        for number, path in enumerate(paths):
            kind = object if number else BUILT.get(key, type(None))
            module, _, class_name = str(path).rpartition(".")
            imported = getattr(sys.modules.get(module), class_name, None)
            if not (isinstance(imported, type) and issubclass(imported, kind)):
                raise UserError(
                    f"{name}: model.{key} is {path!r}, which is not an imported {kind.__name__}: if the class is yours, import "
                    "its module first"
                )


def list_class_paths(value: Any) -> Iterator[Any]:  # noqa: ANN401
    """Yield all class paths in a hyperparameter, the outermost first."""
    if isinstance(value, dict):
        if "class_path" in value:
            yield value["class_path"]
        for inner in value.values():
            yield from list_class_paths(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from list_class_paths(inner)
