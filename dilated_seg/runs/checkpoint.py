"""A checkpoint's file: its name in a run, its checksum, and reading it without executing a pickle."""

from pathlib import Path

from dilated_seg.errors import UserError
from dilated_seg.runs.run import FINISHED
from dilated_seg.storage import digest

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


def beside(path: Path) -> Path:
    """Where a checkpoint's checksum lies, in the form of sha256sum."""
    return path.with_name(f"{path.name}.sha256")


def checksums(path: Path) -> list[str]:
    """The checksums a checkpoint may have: one; two while it is being replaced; none if nobody wrote one."""
    try:
        return [line.split()[0] for line in beside(path).read_text().splitlines() if line.strip()]
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError):
        return ["unreadable"]


def verifies(path: Path) -> bool:
    """Whether a checkpoint is as it was written."""
    return path.is_file() and digest(path) in checksums(path)


def verified(path: Path) -> str:
    """A checkpoint's checksum, which is the one beside it if there is one.

    Raises:
        UserError: The file was changed after it was written.
    """
    checksum = digest(path)
    if (known := checksums(path)) and checksum not in known:
        raise UserError(f"{path} is damaged: its checksum is not the one in {beside(path).name}; use another one")
    return checksum


def of_run(folder: Path) -> Path:
    """The last checkpoint of a finished run, or of the run that was finished last in a folder such as runs/voc/fcn32s.

    Raises:
        UserError: There is no such folder, or none that is finished.
    """
    runs = [folder] if (folder / "config.yaml").is_file() else folder.glob("*/")
    finished = [run for run in runs if (run / FINISHED).is_file()]
    finished.sort(key=lambda run: (run / FINISHED).stat().st_mtime_ns, reverse=True)
    if not finished:
        raise UserError(f"{folder} holds no finished run to start from: train it first, with the command in its experiment")
    checkpoint = finished[0] / "checkpoints" / LAST
    if not verifies(checkpoint):
        raise UserError(f"{checkpoint} is missing or damaged: train its run again, or name another file")
    return checkpoint
