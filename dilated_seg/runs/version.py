"""The code that runs: its commit, and the experiments of its checkout."""

import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import dilated_seg

EXPERIMENTS = Path(dilated_seg.__file__).parents[1] / "experiments"


def experiment_name(config: Any) -> Path:  # noqa: ANN401
    """Return a run's path below runs/: that of its experiment below experiments/, or the dataset's name."""
    for path in config.get("config") or []:
        file = Path(str(path)).resolve()
        if file.is_file():
            inside = EXPERIMENTS in file.parents
            return file.relative_to(EXPERIMENTS).with_suffix("") if inside else Path(file.stem)
    return Path(config["data"]["class_path"].rpartition(".")[2].lower())


@cache
def commit() -> str:
    """Return the commit of the running code, marked if files differ from it; the version if there is no checkout.

    It is read once: the checkout may change while a run lasts.
    """
    root = EXPERIMENTS.parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        if (root / ".git").exists():
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pass  # no git: the version will do
    return dilated_seg.__version__
