"""Writes and reads checkpoints: atomically, with a checksum, and without executing pickles."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning import Trainer
from lightning.fabric.plugins import TorchCheckpointIO

from dilated_seg.errors import UserError, format_error
from dilated_seg.models.build import describe_network
from dilated_seg.runs.checkpoint import LAST, PREVIOUS, Checkpoint, read_checkpoint, require_known_classes
from dilated_seg.storage import digest


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file, flushes and verifies it, and renames it; a sidecar file has its SHA-256.

    The last.ckpt that it replaces is kept as previous.ckpt. At every moment, both are intact and match their checksums.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:  # noqa: ANN401
        """Write a checkpoint to a local path.

        Raises:
            UserError: The disk is full or returns other bytes than were written; earlier checkpoints are intact.
        """
        target = Path(path)
        partial = target.with_name(f"{target.name}.partial")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                hashing = Hashing(file)
                torch.save(checkpoint, hashing)  # type: ignore[arg-type] # all that it needs of a file
                file.flush()
                os.fsync(file.fileno())
            checksum = hashing.sha256.hexdigest()
            if digest(partial) != checksum:
                raise OSError("the disk returns other bytes than were written")
            if target.name == LAST and target.exists():
                keep_as(target, target.with_name(PREVIOUS))
            replace_checkpoint(partial, target, checksum)
        except (OSError, RuntimeError) as error:
            for unfinished in target.parent.glob("*.partial"):
                unfinished.unlink(missing_ok=True)
            cause = error.__context__ if isinstance(error.__context__, OSError) else error  # torch raises its own instead
            intact = [path.name for path in (target, target.with_name(PREVIOUS)) if Checkpoint(path).is_intact()]
            kept = f"; {' and '.join(intact)} can be continued from" if intact else ""
            raise UserError(f"the checkpoint {target} cannot be written ({format_error(cause)}){kept}") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:  # noqa: ANN401
        """Read a checkpoint without executing it, whatever ``weights_only`` and torch's environment variables are.

        Raises:
            UserError: The file is missing, damaged, not a run's, or would have to be executed.
        """
        checkpoint = Checkpoint.at(path)
        checkpoint.verify()
        return checkpoint.read(map_location or "cpu")

    def remove_checkpoint(self, path: Any) -> None:  # noqa: ANN401
        """Delete a checkpoint and its sidecar file."""
        super().remove_checkpoint(path)
        Checkpoint(Path(path)).checksum_file.unlink(missing_ok=True)


def read_safely(trainer: Trainer) -> None:
    """Replace the checkpoint I/O of a Trainer built in Python: Lightning's executes pickles."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = SafeCheckpointIO()


@contextmanager
def open_checkpoint(
    source: str | os.PathLike[str] | BinaryIO, hparams_file: object = None, **kwargs: object
) -> Iterator[BinaryIO]:
    """Open a checkpoint for Lightning to load: its hyperparameters name only imported classes of the right kind.

    Args:
        source: A path, or an open file.
        hparams_file: An argument of Lightning's that is not supported.
        kwargs: Other arguments of load_from_checkpoint.

    Raises:
        UserError: The file is a URL, missing, damaged, would have to be executed, or names another class.
    """
    if hparams_file is not None:
        raise UserError(f"{hparams_file} is not read: pass load_from_checkpoint its arguments by name")
    with ExitStack() as stack:
        is_path = isinstance(source, str | os.PathLike)
        file: Any = stack.enter_context(Checkpoint.at(source).path.open("rb")) if is_path else source  # type: ignore[arg-type]
        name = getattr(file, "name", "the checkpoint")
        require_known_classes(read_checkpoint(file, name), name)
        file.seek(0)
        yield file


def describe_task(task: Any) -> dict[str, Any]:  # noqa: ANN401 - a SegmentationTask
    """Return the checkpoint's description of network, CRF and dataset, for users of the network without the data."""
    data: Any = getattr(task.trainer, "datamodule", None)
    crf = task.model.crf
    facts: dict[str, Any] = {"crf": crf.description} if crf else {}
    if "net" not in task.hparams and (net := describe_network(task.model.net)):  # YAML's task has it
        facts["net"] = net
    if hasattr(data, "palette"):
        facts["dataset"] = {
            "name": type(data).__name__,
            "classes": list(data.classes),
            "palette": [tuple(color) for color in data.palette],
            "ignore_index": data.ignore_index,
            "submitted": list(data.submitted) if data.submitted else None,
        }
    return facts


class Hashing:
    """A file that is hashed while it is written."""

    def __init__(self, file: BufferedIOBase) -> None:
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, content: bytes | memoryview) -> int:
        """Write and hash bytes."""
        self.sha256.update(content)
        return self.file.write(content)

    def flush(self) -> None:
        """Flush the file's buffer."""
        self.file.flush()


def replace_checkpoint(source: Path, target: Path, checksum: str) -> None:
    """Rename a file; at every moment, ``target`` matches one of its recorded checksums."""
    write_checksums(target, [*Checkpoint(target).read_checksums(), checksum])
    source.replace(target)
    write_checksums(target, [checksum])
    if os.name == "posix":  # elsewhere a directory cannot be flushed
        directory = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def keep_as(path: Path, other: Path) -> None:
    """Keep an intact checkpoint under another name too, which it replaces."""
    if (checksum := digest(path)) not in Checkpoint(path).read_checksums():
        return
    if other.exists() and other.samefile(path):  # a save was killed after this step
        write_checksums(other, [checksum])
        return
    link = other.with_name(f"{other.name}.partial")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # a filesystem without links
        shutil.copyfile(path, link)
    replace_checkpoint(link, other, checksum)


def write_checksums(path: Path, checksums: list[str]) -> None:
    """Write the sidecar file of a checkpoint, atomically and flushed."""
    partial = path.with_name(f"{path.name}.sha256.partial")  # a fixed name: the next save replaces what a kill leaves
    with partial.open("w") as file:
        file.writelines(f"{checksum}  {path.name}\n" for checksum in dict.fromkeys(checksums))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(Checkpoint(path).checksum_file)
