"""Who logs a run: metrics.csv, and W&B, which may fall silent at any time without training noticing."""

import atexit
import netrc
import os
import secrets
import shlex
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import wandb
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from dilated_seg.data.workers import remove_import_hooks
from dilated_seg.errors import format_error
from dilated_seg.runs.run import experiment_name
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


def loggers(run_dir: Path, verb: str, tags: Sequence[str], wandb: bool = True) -> list[Any]:
    """metrics.csv in the run that is trained, and W&B, unless WANDB_MODE is "disabled" or it is not wanted.

    W&B is offline unless it has a key and answers, or WANDB_MODE says otherwise. A run that is trained keeps its id at W&B
    when it continues, and so its curves; an evaluation by itself is a run of its own there.

    Args:
        run_dir: The run's folder.
        verb: What is done: W&B's job type.
        tags: Of the run at W&B.
        wandb: Whether W&B is wanted.
    """
    chosen: list[Any] = [CSVLogger(run_dir, name="", version="")] if verb == "fit" else []
    if wandb and os.environ.get("WANDB_MODE") != "disabled":
        for variable, value in DEFAULTS.items():
            os.environ.setdefault(variable, value)
        known: dict[str, Any] = {"job_type": os.environ.get("WANDB_JOB_TYPE", verb), "tags": [tag[:64] for tag in tags]}
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined] # the process that logs
            known["offline"] = not online()
            if verb == "fit":
                known["id"] = wandb_id(run_dir)
        project = os.environ.get("WANDB_PROJECT", "dilated_seg")
        name = os.environ.get("WANDB_NAME", str(run_dir))
        chosen.append(Wandb(name=name, save_dir=run_dir, project=project, **known))
    return chosen


def tags(config: Any) -> list[str]:  # noqa: ANN401
    """What a run is found by at W&B: dataset, network, experiment."""
    classes = (part.class_path.rpartition(".")[2] for part in (config.data, config.model.net))
    return list(dict.fromkeys([*classes, str(experiment_name(config))]))


class Wandb(WandbLogger):
    """A run at W&B. What goes wrong there is said once and then left out; it neither stops nor changes training."""

    lost = False
    joined = False  # whether the run at W&B is the caller's, begun before this logger
    best: ModelCheckpoint | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:  # noqa: ANN401
        """W&B's run: begun when first asked for; offline if that does not succeed online."""
        if self._experiment is None:
            self._wandb_init.pop("anonymous", None)  # Lightning passes it on, and wandb warns that it is obsolete
            # The pictures of tables wait here for their upload; for an offline run, in the home directory, for ever.
            os.environ["WANDB_DATA_DIR"] = DATA_DIR or str(Path(self._wandb_init["dir"]).absolute() / "wandb")
            mode = os.environ.get("WANDB_MODE")
            self.joined = wandb.run is not None
            if os.environ.get(SERVICE) == INHERITED_SERVICE:
                os.environ.pop(SERVICE, None)
            try:
                self._begin()
            except Exception as error:
                self.lost = True
                print(f"W&B cannot begin, the run goes on without it: {format_error(error)}", file=sys.stderr)
                self._experiment = wandb.init(mode="disabled")
            remove_import_hooks()
            if mode is None:
                os.environ.pop("WANDB_MODE", None)  # Lightning's "dryrun" is for this run, not for the next in this process
            atexit.unregister(finish)
            atexit.register(finish)  # before wandb's own, which is silent and has been registered by now
        return self._experiment

    def _begin(self) -> None:
        """Begin W&B's run online, or offline if that does not succeed."""
        try:
            _ = super().experiment
        except Exception as error:
            if self._offline:
                raise
            say_offline(error)
            wandb.teardown()  # it would hold on to the run's id
            self._offline = True
            _ = super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log numbers, tables, pictures."""
        self._try(lambda: super(Wandb, self).log_metrics(metrics, step))

    @rank_zero_only
    def log_config(self, config: dict[str, Any]) -> None:
        """Log the resolved experiment, by which runs are grouped."""
        self._try(lambda: self.experiment.config.update(config, allow_val_change=True))

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
                self._upload(best)
            except Exception as error:
                print(f"W&B has not got {best.best_model_path}: {format_error(error)}", file=sys.stderr)

    def end(self) -> None:
        """End the run at W&B, unless it is the caller's: otherwise the next run of this process would be logged to it."""
        if self._experiment is not None and not self.joined:
            finish()
            if DATA_DIR is None:  # of this run, which no process that is started later should inherit
                os.environ.pop("WANDB_DATA_DIR", None)

    def _upload(self, best: ModelCheckpoint) -> None:
        run = self.experiment
        if self.lost or run.offline:
            return
        if problem := silence():
            raise ConnectionError(problem)
        score = float(best.best_model_score) if best.best_model_score is not None else None
        artifact = wandb.Artifact(f"best-{run.id}", "model", metadata={str(best.monitor): score})
        artifact.add_file(best.best_model_path, policy="immutable", skip_cache=True)
        run.log_artifact(artifact, aliases=["best"]).wait(UPLOAD)

    def _try(self, action: Any) -> None:  # noqa: ANN401
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
    """What the run is called at W&B: as a sweep says (WANDB_RUN_ID), or drawn when it begins; kept in its folder."""
    path = run_dir / "wandb_id"
    given = os.environ.get("WANDB_RUN_ID")
    if given or not path.is_file():
        write_text(path, given or secrets.token_hex(4))
    return path.read_text()


def online() -> bool:
    """Whether W&B is to be logged to directly: WANDB_MODE says so, or nothing, and there is a key and an answer."""
    mode = os.environ.get("WANDB_MODE")
    if mode or not has_wandb_key():
        return bool(mode) and mode not in ("offline", "dryrun", "disabled")
    if problem := silence():
        say_offline(problem)
    return not problem


def say_offline(problem: object) -> None:
    """One line."""
    print(f"W&B is offline: {format_error(problem)}; `wandb sync` later", file=sys.stderr)


def wandb_server() -> SplitResult:
    """Where W&B is."""
    return urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))


def silence() -> str:
    """Why W&B's server does not answer at all; nothing if it does, whatever it says."""
    try:
        urllib.request.urlopen(wandb_server().geturl(), timeout=PROBE).close()
    except urllib.error.HTTPError:
        return ""
    except (OSError, ValueError, HTTPException) as error:
        return f"{wandb_server().netloc} does not answer ({error})"
    return ""


def has_wandb_key() -> bool:
    """Whether W&B would find a key: in the environment, or in ~/.netrc as ``wandb login`` leaves it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return wandb_server().hostname in netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False
