"""A run's folder: where it lies, who logs into it, and files that appear whole or not at all."""

import netrc
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.loggers import CSVLogger, WandbLogger

import dilated_seg
from dilated_seg import UserError

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


class SafeCheckpointIO(TorchCheckpointIO):
    """Checkpoints appear whole or not at all: written beside their place, flushed to the disk, then renamed."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:  # noqa: ANN401
        """Write a checkpoint to a local path."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.partial")
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401
        """Read a checkpoint.

        Raises:
            UserError: The file is missing, damaged, or none of ours.
        """
        try:
            checkpoint: dict[str, Any] = super().load_checkpoint(path, *args, **kwargs)
        except FileNotFoundError:
            raise UserError(f"there is no checkpoint {path}: name a file of a run's folder checkpoints/") from None
        except Exception as error:
            raise UserError(f"{path} cannot be loaded ({type(error).__name__}): it is damaged or no checkpoint") from error
        if not {"state_dict", "global_step"} <= checkpoint.keys():
            raise UserError(f"{path} is no checkpoint of a run: name a file of a run's folder checkpoints/")
        return checkpoint


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
