"""A run's folder: where it lies, files that appear whole or not at all, its last checkpoint and the checksums of all."""

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import dilated_seg

EXPERIMENTS = Path(dilated_seg.__file__).parents[1] / "experiments"

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
