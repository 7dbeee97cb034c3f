"""A run's folder: where it lies, who logs into it, and files that appear whole or not at all."""

import netrc
import os
import secrets
import shutil
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from lightning.fabric.utilities.rank_zero import rank_zero_only
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
    """metrics.csv in the run, and W&B, which stays offline unless it has a key and answers, or WANDB_MODE says otherwise.

    A run that continues keeps its id at W&B, and so its curves.
    """
    chosen: list[Any] = [CSVLogger(run_dir, name="", version="")]
    if os.environ.get("WANDB_MODE") != "disabled":
        offline = not os.environ.get("WANDB_MODE") and not (has_wandb_key() and wandb_answers())
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_DISABLE_JOB_CREATION", "true")  # costs a second a run and serves W&B Launch only
        project = os.environ.get("WANDB_PROJECT", "dilated_seg")
        known: dict[str, Any] = {"resume": "allow", "job_type": os.environ.get("WANDB_JOB_TYPE", "fit")}
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined] # the process that logs
            known["id"] = wandb_id(run_dir)
        wandb_logger = WandbLogger(name=str(run_dir), save_dir=run_dir, project=project, offline=offline, **known)
        wandb_logger._wandb_init.pop("anonymous", None)  # Lightning passes it on, and wandb warns that it is obsolete
        chosen.append(wandb_logger)
    return chosen


def wandb_id(run_dir: Path) -> str:
    """What the run is called at W&B: drawn when it begins, and kept in its folder."""
    path = run_dir / "wandb_id"
    if not path.is_file():
        write_text(path, secrets.token_hex(4))
    return path.read_text()


def wandb_server() -> SplitResult:
    """Where W&B is."""
    return urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))


def wandb_answers() -> bool:
    """Whether W&B's server takes a connection within 5 seconds; it would itself try for minutes, and then end the run."""
    server = wandb_server()
    try:
        socket.create_connection((server.hostname or "", server.port or (80 if server.scheme == "http" else 443)), 5).close()
    except OSError as error:
        print(f"W&B is offline: {server.netloc} does not answer ({error}); `wandb sync` later", file=sys.stderr)
        return False
    return True


def has_wandb_key() -> bool:
    """Whether W&B would find a key: in the environment, or in ~/.netrc as ``wandb login`` leaves it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return wandb_server().hostname in netrc.netrc().hosts
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
