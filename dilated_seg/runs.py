"""A run's folder: where it lies, who logs into it, and files that appear whole or not at all."""

import netrc
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lightning.pytorch.loggers import CSVLogger, WandbLogger

import dilated_seg

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def experiment_name(config: Any) -> Path:  # noqa: ANN401
    """The run's place below runs/: that of its experiment below experiments/, or the dataset's name."""
    for path in config.get("config") or []:
        file = Path(str(path)).resolve()
        if file.is_file():
            inside = EXPERIMENTS in file.parents
            return file.relative_to(EXPERIMENTS).with_suffix("") if inside else Path(file.stem)
    return Path(config.data.class_path.rpartition(".")[2].lower())


def loggers(run_dir: Path) -> list[Any]:
    """metrics.csv in the run, and W&B, which stays offline unless it has a key or WANDB_MODE says otherwise."""
    chosen: list[Any] = [CSVLogger(run_dir, name="", version="")]
    if os.environ.get("WANDB_MODE") != "disabled":
        offline = not os.environ.get("WANDB_MODE") and not has_wandb_key()
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_DISABLE_JOB_CREATION", "true")  # costs a second a run and serves W&B Launch only
        project = os.environ.get("WANDB_PROJECT", "dilated_seg")
        wandb_logger = WandbLogger(name=str(run_dir), save_dir=run_dir, project=project, offline=offline)
        wandb_logger._wandb_init.pop("anonymous", None)  # Lightning passes it on, and wandb warns that it is obsolete
        chosen.append(wandb_logger)
    return chosen


def has_wandb_key() -> bool:
    """Whether W&B would find a key: in the environment, or in ~/.netrc as ``wandb login`` leaves it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return host in netrc.netrc().hosts
    except (OSError, netrc.NetrcParseError):
        return False


def keep_history(metrics: Path) -> None:
    """Move an earlier session's metrics.csv aside as metrics-N.csv: Lightning's logger would delete it."""
    if metrics.exists():
        n = len(list(metrics.parent.glob("metrics-*.csv"))) + 1
        shutil.move(metrics, metrics.with_name(f"metrics-{n}.csv"))


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
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
