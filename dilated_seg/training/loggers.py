"""The loggers of a run: metrics.csv, and W&B, which may fail at any time without stopping the training."""

import atexit
import netrc
import os
import secrets
import shlex
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import wandb
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from dilated_seg.data.workers import remove_import_hooks
from dilated_seg.errors import format_error
from dilated_seg.runs.experiments import experiment_name
from dilated_seg.runs.run import Run
from dilated_seg.storage import write_text

PROBE, UPLOAD = 4, 300  # seconds that W&B has to answer at all, and to take a checkpoint
DATA_DIR = os.environ.get("WANDB_DATA_DIR")
# W&B's process of the process that started this one: it may still hold the id of a run that was killed there.
SERVICE = "WANDB_SERVICE"
INHERITED_SERVICE = os.environ.get(SERVICE)
DEFAULTS = {
    "WANDB_SILENT": "true",
    "WANDB_DISABLE_JOB_CREATION": "true",  # costs a second a run and serves W&B Launch only
    "WANDB_INIT_TIMEOUT": "6",  # of 90 seconds, after which the run would end
    "WANDB_FINISH_TIMEOUT": "60",  # of for ever, where a server has gone away while the run went on
    "WANDB_FINISH_TIMEOUT_RAISES": "true",
}


def build_loggers(run: Run, verb: str, tags: Sequence[str] | None) -> list[Logger]:
    """Return metrics.csv of a run that is trained, and W&B unless WANDB_MODE is "disabled".

    W&B is offline unless it has a key and answers, or WANDB_MODE says otherwise. A run that is trained keeps its id at W&B
    when it continues, and so its curves; an evaluation by itself is a run of its own there.

    Args:
        run: The run.
        verb: What is done: W&B's job type.
        tags: Of the run at W&B; None without W&B.
    """
    loggers: list[Logger] = [CSVLogger(run.path, name="", version="")] if verb == "fit" else []
    if tags is not None and os.environ.get("WANDB_MODE") != "disabled":
        for variable, value in DEFAULTS.items():
            os.environ.setdefault(variable, value)
        settings: dict[str, Any] = {
            "project": os.environ.get("WANDB_PROJECT", "dilated_seg"),
            "name": os.environ.get("WANDB_NAME", str(run)),
            "job_type": os.environ.get("WANDB_JOB_TYPE", verb),
            "group": os.environ.get("WANDB_RUN_GROUP"),  # wandb itself reads it when a process first uses it only
            "tags": [tag[:64] for tag in tags],
        }
        logs = rank_zero_only.rank == 0  # type: ignore[attr-defined] # of several processes the first
        if logs and verb == "fit":
            settings["id"] = wandb_id(run.path)
        loggers.append(SafeWandbLogger(run.path, offline=logs and not online(), **settings))
    return loggers


def list_tags(config: Mapping[str, Any]) -> list[str]:
    """Return what a run is found by at W&B: dataset, network, experiment."""
    classes = (part["class_path"].rpartition(".")[2] for part in (config["data"], config["model"]["net"]))
    return list(dict.fromkeys([*classes, str(experiment_name(config))]))


class SafeWandbLogger(WandbLogger):
    """A run at W&B. A failure there is printed once and then left out; it neither stops nor changes training.

    Args:
        directory: Where the run's files are written, in ``wandb/``.
        offline: Whether they wait for ``wandb sync``.
        settings: Other arguments of ``wandb.init``.
    """

    def __init__(self, directory: Path, offline: bool = False, **settings: Any) -> None:  # noqa: ANN401 - as wandb's
        super().__init__(save_dir=directory, **settings)
        self.directory, self.starts_offline = Path(directory), offline
        self.settings = {"dir": str(directory), "resume": "allow", **settings}
        self.run: Any = None  # until something is logged
        self.joined = False  # whether the run at W&B is the caller's, begun before this logger
        self.lost = False  # whether W&B has failed
        self.best: ModelCheckpoint | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:  # noqa: ANN401
        """W&B's run: begun when first asked for."""
        if self.run is None:
            self.joined = wandb.run is not None
            # The pictures of tables wait here for their upload; for an offline run, in the home directory, for ever.
            os.environ["WANDB_DATA_DIR"] = DATA_DIR or str(self.directory.absolute() / "wandb")
            if os.environ.get(SERVICE) == INHERITED_SERVICE:
                os.environ.pop(SERVICE, None)
            self.run = wandb.run if self.joined else self.begin()
            remove_import_hooks()
            atexit.unregister(finish)
            atexit.register(finish)  # before wandb's own, which is silent and has been registered by now
        return self.run

    def begin(self) -> Any:  # noqa: ANN401
        """Begin a run: online, or offline if that does not succeed, or without W&B."""
        try:
            try:
                run = self.begin_offline() if self.starts_offline else wandb.init(**self.settings)
            except Exception as error:
                if self.starts_offline:
                    raise
                say_offline(error)
                wandb.teardown()  # it would hold on to the run's id
                run = self.begin_offline()
        except Exception as error:
            self.lost = True
            print(f"W&B cannot begin, the run goes on without it: {format_error(error)}", file=sys.stderr)
            return wandb.init(mode="disabled")
        run.define_metric("trainer/global_step")  # the x axis of every chart, as WandbLogger logs it
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        return run

    def begin_offline(self) -> Any:  # noqa: ANN401
        """Begin an offline run. W&B's own process inherits the mode: else it sends a server metrics about itself."""
        mode = os.environ.get("WANDB_MODE")
        os.environ["WANDB_MODE"] = "offline"
        try:
            return wandb.init(**self.settings)
        finally:
            os.environ.pop("WANDB_MODE")
            if mode is not None:
                os.environ["WANDB_MODE"] = mode

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log metrics, tables and images."""
        self.attempt(lambda: super(SafeWandbLogger, self).log_metrics(metrics, step))

    @rank_zero_only
    def log_config(self, config: dict[str, Any]) -> None:
        """Log the resolved experiment, by which runs are grouped."""
        self.attempt(lambda: self.experiment.config.update(config, allow_val_change=True))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """The task's own arguments are part of the experiment, which has them already."""

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Remember who keeps the best checkpoint."""
        if checkpoint_callback.monitor:
            self.best = checkpoint_callback

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """When training has ended well, upload the best checkpoint if W&B is online, unless WANDB_LOG_MODEL is "false"."""
        best, self.best = self.best, None
        if status != "success":
            self.lost = True  # to what comes now
            finish(exit_code=1)
        elif best and os.environ.get("WANDB_LOG_MODEL", "").lower() != "false":
            try:
                self.upload(best)
            except Exception as error:
                print(f"W&B has not got {best.best_model_path}: {format_error(error)}", file=sys.stderr)

    def end(self) -> None:
        """End the run at W&B, unless it is the caller's: otherwise the next run of this process would be logged to it."""
        if self.run is not None and not self.joined:
            finish()
            if DATA_DIR is None:  # of this run, which no process that is started later should inherit
                os.environ.pop("WANDB_DATA_DIR", None)

    def upload(self, best: ModelCheckpoint) -> None:
        """Upload the best checkpoint as an artifact, if W&B is online."""
        run = self.experiment
        if self.lost or run.offline:
            return
        if problem := silence():
            raise ConnectionError(problem)
        score = float(best.best_model_score) if best.best_model_score is not None else None
        artifact = wandb.Artifact(f"best-{run.id}", "model", metadata={str(best.monitor): score})
        artifact.add_file(best.best_model_path, policy="immutable", skip_cache=True)
        run.log_artifact(artifact, aliases=["best"]).wait(UPLOAD)

    def attempt(self, action: Callable[[], None]) -> None:
        """Do something at W&B, unless it has failed before."""
        if self.lost:
            return
        try:
            action()
        except Exception as error:
            self.lost = True
            print(f"W&B has failed, the run goes on without it: {format_error(error)}", file=sys.stderr)


def finish(exit_code: int = 0) -> None:
    """End the run at W&B. What its server has not taken in time stays in the run's folder, and that is said."""
    if wandb.run is None:
        return
    folder = wandb.run.settings.sync_dir
    try:
        wandb.finish(exit_code)
    except Exception as error:
        print(f"W&B has not got everything ({format_error(error)}): wandb sync {shlex.quote(str(folder))}", file=sys.stderr)


def wandb_id(run_dir: Path) -> str:
    """Return the run's id at W&B: WANDB_RUN_ID, as sweeps set it, or drawn when the run begins and kept in its directory."""
    path = run_dir / "wandb_id"
    given = os.environ.get("WANDB_RUN_ID")
    if given or not path.is_file():
        write_text(path, given or secrets.token_hex(4))
    return path.read_text()


def online() -> bool:
    """Return whether to log to W&B directly: WANDB_MODE says so, or it is not set, and there is a key and an answer."""
    mode = os.environ.get("WANDB_MODE")
    if mode or not has_wandb_key():
        return bool(mode) and mode not in ("offline", "dryrun", "disabled")
    if problem := silence():
        say_offline(problem)
    return not problem


def say_offline(problem: object) -> None:
    """Print why W&B is offline."""
    print(f"W&B is offline: {format_error(problem)}; `wandb sync` later", file=sys.stderr)


def wandb_server() -> SplitResult:
    """Return the address of W&B."""
    return urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))


def silence() -> str:
    """Return why W&B's server does not answer at all; "" if it does, whatever it says."""
    try:
        urllib.request.urlopen(wandb_server().geturl(), timeout=PROBE).close()
    except urllib.error.HTTPError:
        return ""
    except (OSError, ValueError, HTTPException) as error:
        return f"{wandb_server().netloc} does not answer ({error})"
    return ""


def has_wandb_key() -> bool:
    """Return whether W&B would find a key: in the environment, or in ~/.netrc as ``wandb login`` leaves it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return wandb_server().hostname in netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False
