"""Checkpoints that appear whole or not at all, with a checksum beside each, and the one from which a run continues."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from dilated_seg.errors import UserError, format_error
from dilated_seg.runs.checkpoint import LAST, PREVIOUS, Checkpoint, read_checkpoint, require_known_classes
from dilated_seg.storage import digest


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, flushes it, reads it again, and renames it; a SHA-256 lies beside it.

    The one before last.ckpt is kept as previous.ckpt. At every moment, each of the two is whole and has its checksum.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:  # noqa: ANN401
        """Write a checkpoint to a local path.

        Raises:
            UserError: The disk is full or does not give back what was written; the checkpoints before it are as they were.
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
                raise OSError("what was written reads differently")
            if target.name == LAST and target.exists():
                keep(target, target.with_name(PREVIOUS))
            put(partial, target, checksum)
        except (OSError, RuntimeError) as error:
            for begun in target.parent.glob("*.partial"):
                begun.unlink(missing_ok=True)
            cause = error.__context__ if isinstance(error.__context__, OSError) else error  # torch hides it behind its own
            whole = [path.name for path in (target, target.with_name(PREVIOUS)) if Checkpoint(path).is_intact()]
            kept = f"; {' and '.join(whole)} can be continued from" if whole else ""
            raise UserError(f"the checkpoint {target} cannot be written ({format_error(cause)}){kept}") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:  # noqa: ANN401
        """Read a checkpoint, without executing it, whatever ``weights_only`` and torch's environment variables say.

        Raises:
            UserError: The file is missing, damaged, none of ours, or would have to be executed.
        """
        checkpoint = Checkpoint.at(path)
        checkpoint.verify()
        return checkpoint.read(map_location or "cpu")

    def remove_checkpoint(self, path: Any) -> None:  # noqa: ANN401
        """Delete a checkpoint, and its checksum."""
        super().remove_checkpoint(path)
        Checkpoint(Path(path)).checksum_file.unlink(missing_ok=True)


@contextmanager
def open_checkpoint(source: str | os.PathLike[str] | BinaryIO) -> Iterator[BinaryIO]:
    """Open a checkpoint for Lightning to load: its hyperparameters name nothing but imported classes of the right kind.

    Raises:
        UserError: It is a URL, missing or damaged, would have to be executed, or names another class.
    """
    with ExitStack() as stack:
        is_path = isinstance(source, str | os.PathLike)
        file: Any = stack.enter_context(Checkpoint.at(source).path.open("rb")) if is_path else source  # type: ignore[arg-type]
        name = getattr(file, "name", "the checkpoint")
        require_known_classes(read_checkpoint(file, name), name)
        file.seek(0)
        yield file


def describe_dataset(data: Any) -> dict[str, Any]:  # noqa: ANN401 - any data module
    """Return what a checkpoint says of its dataset, for those who use the network without the data."""
    if not hasattr(data, "palette"):
        return {}
    submitted = list(data.submitted) if data.submitted else None
    colors = {"classes": list(data.classes), "palette": [tuple(color) for color in data.palette]}
    return {"dataset": {"name": type(data).__name__, **colors, "ignore_index": data.ignore_index, "submitted": submitted}}


class Hashing:
    """A file that is hashed as it is written."""

    def __init__(self, file: BufferedIOBase) -> None:
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, content: bytes | memoryview) -> int:
        """Write and hash."""
        self.sha256.update(content)
        return self.file.write(content)

    def flush(self) -> None:
        """Hand everything to the system."""
        self.file.flush()


def put(source: Path, target: Path, checksum: str) -> None:
    """Rename a file to its place, so that at every moment there is one there that its checksum fits."""
    note(target, [*Checkpoint(target).recorded_checksums(), checksum])
    source.replace(target)
    note(target, [checksum])
    if os.name == "posix":  # elsewhere a folder cannot be flushed
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def keep(path: Path, other: Path) -> None:
    """Let a checkpoint be found under another name too, in the place of what was there, if it is whole."""
    if (checksum := digest(path)) not in Checkpoint(path).recorded_checksums():
        return
    if other.exists() and other.samefile(path):  # a save was killed after this step
        note(other, [checksum])
        return
    link = other.with_name(f"{other.name}.partial")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # a filesystem without links
        shutil.copyfile(path, link)
    put(link, other, checksum)


def note(path: Path, found: list[str]) -> None:
    """Write the checksums a checkpoint may have."""
    partial = path.with_name(f"{path.name}.sha256.partial")
    with partial.open("w") as file:
        file.writelines(f"{checksum}  {path.name}\n" for checksum in dict.fromkeys(found))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(Checkpoint(path).checksum_file)
