"""CSV and W&B loggers. W&B failures are printed once and never interrupt training."""

import atexit
import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from dilated_seg.data.workers import remove_import_hooks
from dilated_seg.errors import format_command, format_error
from dilated_seg.runs.experiments import experiment_name
from dilated_seg.runs.run import Run
from dilated_seg.storage import write_text
from dilated_seg.training.wandb_status import explain_unreachable, is_online, print_offline

UPLOAD = 300  # seconds for the upload of a checkpoint
DATA_DIR = os.environ.get("WANDB_DATA_DIR")
# W&B's service of the process that started this one, which may still hold the id of a run that was killed there.
SERVICE = "WANDB_SERVICE"
INHERITED_SERVICE = os.environ.get(SERVICE)
DEFAULTS = {
    "WANDB_SILENT": "true",
    "WANDB_DISABLE_JOB_CREATION": "true",  # saves a second per run; only for W&B Launch
    "WANDB_INIT_TIMEOUT": "6",  # instead of 90 seconds
    "WANDB_FINISH_TIMEOUT": "60",  # instead of for ever, for a server that no longer answers
    "WANDB_FINISH_TIMEOUT_RAISES": "true",
}


def build_loggers(run: Run, command: str, tags: Sequence[str] | None) -> list[Logger]:
    """Return the logger of metrics.csv for a training, and W&B's unless WANDB_MODE is "disabled".

    W&B is online if it has a key and its server answers; WANDB_MODE takes precedence. A continued training keeps its id
    and curves at W&B; a separate evaluation is a separate W&B run.

    Args:
        run: The run.
        command: W&B's job type, such as "fit".
        tags: The tags of the run at W&B; None to log without W&B.
    """
    loggers: list[Logger] = [CSVLogger(run.path, name="", version="")] if command == "fit" else []
    if tags is not None and os.environ.get("WANDB_MODE") != "disabled":
        for variable, value in DEFAULTS.items():
            os.environ.setdefault(variable, value)
        settings: dict[str, Any] = {
            "project": os.environ.get("WANDB_PROJECT", "dilated_seg"),
            "name": os.environ.get("WANDB_NAME", str(run)),
            "job_type": os.environ.get("WANDB_JOB_TYPE", command),
            "group": os.environ.get("WANDB_RUN_GROUP"),  # wandb reads it only once per process
            "tags": [tag[:64] for tag in tags],
        }
        first = rank_zero_only.rank == 0  # type: ignore[attr-defined] # of several processes
        if first and command == "fit":
            settings["id"] = read_wandb_id(run)
        loggers.append(SafeWandbLogger(run.path, offline=first and not is_online(), **settings))
    return loggers


def list_tags(config: Mapping[str, Any]) -> list[str]:
    """Return a run's tags at W&B: dataset, network, experiment."""
    classes = (part["class_path"].rpartition(".")[2] for part in (config["data"], config["model"]["net"]))
    return list(dict.fromkeys([*classes, str(experiment_name(config))]))


class SafeWandbLogger(WandbLogger):
    """Logs a run to W&B. A failure is printed once and logging stops; training is neither stopped nor changed.

    Args:
        directory: The directory in which W&B creates ``wandb/``.
        offline: Whether to only write files for ``wandb sync``.
        settings: Further arguments of ``wandb.init``.
    """

    def __init__(self, directory: Path, offline: bool = False, **settings: Any) -> None:  # noqa: ANN401 - as wandb's
        super().__init__(save_dir=directory, **settings)
        self.directory, self.starts_offline = Path(directory), offline
        self.settings = {"dir": str(directory), "resume": "allow", **settings}
        self.run: Any = None  # until the first use
        self.joined = False  # whether the W&B run is the caller's, which began before this logger
        self.failed = False  # whether W&B has failed
        self.best: ModelCheckpoint | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:  # noqa: ANN401
        """The W&B run, which begins at its first use."""
        if self.run is None:
            self.joined = wandb.run is not None
            # Images of tables are kept here until the upload; W&B would leave those of offline runs in the home directory.
            os.environ["WANDB_DATA_DIR"] = DATA_DIR or str(self.directory.absolute() / "wandb")
            if os.environ.get(SERVICE) == INHERITED_SERVICE:
                os.environ.pop(SERVICE, None)
            self.run = wandb.run if self.joined else self.begin()
            remove_import_hooks()
            atexit.unregister(finish)
            atexit.register(finish)  # before wandb's own handler, which is silent and registered by now
        return self.run

    def begin(self) -> Any:  # noqa: ANN401
        """Begin a W&B run: online, or offline if that fails, or disabled if that fails too."""
        try:
            try:
                run = self.begin_offline() if self.starts_offline else wandb.init(**self.settings)
            except Exception as error:
                if self.starts_offline:
                    raise
                print_offline(error)
                wandb.teardown()  # releases the run's id
                run = self.begin_offline()
        except Exception as error:
            self.failed = True
            print(f"W&B cannot start, the run continues without it: {format_error(error)}", file=sys.stderr)
            return wandb.init(mode="disabled")
        run.define_metric("trainer/global_step")  # the x axis of every chart, as WandbLogger logs it
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        return run

    def begin_offline(self) -> Any:  # noqa: ANN401
        """Begin an offline run. W&B's service inherits the mode from the environment; else it sends metrics about itself."""
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
        """Log the resolved experiment, by which W&B groups runs."""
        self.attempt(lambda: self.experiment.config.update(config, allow_val_change=True))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Do nothing: the resolved experiment has the task's arguments."""

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Remember the callback that keeps the best checkpoint."""
        if checkpoint_callback.monitor:
            self.best = checkpoint_callback

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """After a successful training, upload the best checkpoint if W&B is online, unless WANDB_LOG_MODEL is "false"."""
        best, self.best = self.best, None
        if status != "success":
            self.failed = True  # nothing more is logged
            finish(exit_code=1)
        elif best and os.environ.get("WANDB_LOG_MODEL", "").lower() != "false":
            try:
                self.upload(best)
            except Exception as error:
                print(f"W&B has not received {best.best_model_path}: {format_error(error)}", file=sys.stderr)

    def end(self) -> None:
        """End the W&B run, unless it is the caller's: the next run of this process would be logged to it."""
        if self.run is not None and not self.joined:
            finish()
            if DATA_DIR is None:  # later processes must not inherit this run's
                os.environ.pop("WANDB_DATA_DIR", None)

    def upload(self, best: ModelCheckpoint) -> None:
        """Upload the best checkpoint as an artifact, if W&B is online."""
        run = self.experiment
        if self.failed or run.offline:
            return
        if problem := explain_unreachable():
            raise ConnectionError(problem)
        score = float(best.best_model_score) if best.best_model_score is not None else None
        artifact = wandb.Artifact(f"best-{run.id}", "model", metadata={str(best.monitor): score})
        artifact.add_file(best.best_model_path, policy="immutable", skip_cache=True)
        run.log_artifact(artifact, aliases=["best"]).wait(UPLOAD)

    def attempt(self, action: Callable[[], None]) -> None:
        """Call an action of W&B, unless W&B has failed before."""
        if self.failed:
            return
        try:
            action()
        except Exception as error:
            self.failed = True
            print(f"W&B has failed, the run continues without it: {format_error(error)}", file=sys.stderr)


def finish(exit_code: int = 0) -> None:
    """End the W&B run; print where the files are that the server has not received in time."""
    if wandb.run is None:
        return
    directory = wandb.run.settings.sync_dir
    try:
        wandb.finish(exit_code)
    except Exception as error:
        command = format_command("wandb", "sync", directory)
        print(f"W&B has not received everything ({format_error(error)}): {command}", file=sys.stderr)


def read_wandb_id(run: Run) -> str:
    """Return a run's id at W&B: WANDB_RUN_ID, which sweeps set, or a random one that is kept in the run directory."""
    sweep_id = os.environ.get("WANDB_RUN_ID")
    if sweep_id or not run.wandb_id_file.is_file():
        write_text(run.wandb_id_file, sweep_id or secrets.token_hex(4))
    return run.wandb_id_file.read_text()
