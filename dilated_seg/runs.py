"""A run's folder: where it lies, files that appear whole or not at all, its last checkpoint and the checksums of all."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import dilated_seg
from dilated_seg import UserError
from dilated_seg.manifest import digest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
FINISHED = "finished"  # a file that a run's folder has when its training is done


def experiment_name(config: Any) -> Path:  # noqa: ANN401
    """The run's place below runs/: that of its experiment below experiments/, or the dataset's name."""
    for path in config.get("config") or []:
        file = Path(str(path)).resolve()
        if file.is_file():
            inside = EXPERIMENTS in file.parents
            return file.relative_to(EXPERIMENTS).with_suffix("") if inside else Path(file.stem)
    return Path(config.data.class_path.rpartition(".")[2].lower())


def keep_history(metrics: Path) -> None:
    """Move an earlier session's metrics.csv aside as metrics-N.csv: Lightning's logger would delete it."""
    if metrics.exists():
        n = len(list(metrics.parent.glob("metrics-*.csv"))) + 1
        shutil.move(metrics, metrics.with_name(f"metrics-{n}.csv"))


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all; of two processes that write it at once, the last one wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


@cache
def commit() -> str:
    """The commit of the running code when first asked, marked if files differ from it; the version outside a checkout."""
    root = EXPERIMENTS.parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        if (root / ".git").exists():
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pass  # no git here: the version will do
    return dilated_seg.__version__


def name_partial(record: dict[str, Any]) -> str:
    """Return "partial: 2 of 101 images" for an evaluation of some of its split's images; nothing for one of all."""
    images = record["protocol"]["images"]
    return f"partial: {images.removesuffix(', partial')} images" if isinstance(images, str) else ""


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
