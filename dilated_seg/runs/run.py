"""A run: the directory that ``fit`` makes of an experiment, and everything that is read from it."""

import csv
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from torch import nn

import dilated_seg
from dilated_seg.errors import UserError
from dilated_seg.models.segmenter import Segmenter
from dilated_seg.runs.checkpoint import LAST, Checkpoint
from dilated_seg.runs.differences import find_differences
from dilated_seg.runs.segmenter import build_segmenter
from dilated_seg.storage import write_text

if TYPE_CHECKING:
    from dilated_seg.data.datamodule import SegmentationDataModule

EXPERIMENTS = Path(dilated_seg.__file__).parents[1] / "experiments"

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Component:
    """A class that an experiment names, and its arguments."""

    class_path: str
    init_args: dict[str, Any]


@dataclass(frozen=True)
class RunConfig:
    """The resolved experiment of a run, as far as other code than Lightning's CLI reads it.

    Args:
        text: The whole configuration, YAML.
        seed: Of the training.
        net: The network.
        data: The dataset.
        weights: What the training started from: ``model.weights``.
    """

    text: str
    seed: int
    net: Component
    data: Component
    weights: str | None

    @classmethod
    def read(cls, file: Path) -> "RunConfig":
        """Read a run's config.yaml.

        Raises:
            UserError: There is no such file, or it is not the configuration of a run.
        """
        if not file.is_file():
            raise UserError(
                f"{file.parent} is not a run directory (no {file.name}): pass the directory that `dilated-seg fit` created"
            )
        try:
            text = file.read_text("utf-8")
            content = yaml.safe_load(text)
            net, data = (
                Component(part["class_path"], dict(part.get("init_args") or {}))
                for part in (content["model"]["net"], content["data"])
            )
            return cls(text, content["seed_everything"], net, data, content["model"]["weights"])
        except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{file} is not the configuration of a run of this version: train the run again with "
                "`dilated-seg fit`, or name another directory"
            ) from error


class Run:
    """The directory of a training: configuration, checkpoints, logs and evaluations. Nothing is read before it is asked for.

    Args:
        path: The directory.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def __fspath__(self) -> str:
        return str(self.path)

    @classmethod
    def newest(cls, directory: str | Path) -> "Run":
        """Return the run in this directory, or the one of the runs directly below it whose training finished last.

        Raises:
            UserError: None is finished.
        """
        run = cls(directory)
        runs = [run] if run.config_file.is_file() else [cls(path) for path in run.path.glob("*/")]
        finished = [run for run in runs if run.finished]
        if not finished:
            raise UserError(
                f"{directory} holds no finished run to start from: train it first, with the command in its experiment"
            )
        return max(finished, key=lambda run: run.finished_file.stat().st_mtime_ns)

    @classmethod
    def create(cls, parent: Path) -> "Run":
        """Make a new directory for a run below ``parent``, named by the time.

        Raises:
            UserError: There are 999 of this second.
        """
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for number in range(1, 1000):
            run = cls(parent / (stamp if number == 1 else f"{stamp}-{number}"))
            try:
                run.path.mkdir(parents=True)
            except FileExistsError:
                continue
            return run
        raise UserError(f"{parent} holds 999 runs of this second: name the run's folder with --run_dir")

    @classmethod
    def containing(cls, checkpoint: Path) -> "Run | None":
        """Return the run that a checkpoint file belongs to; None if it is in no directory of checkpoints."""
        return cls(checkpoint.parents[1]) if checkpoint.absolute().parent.name == CHECKPOINTS else None

    @property
    def config_file(self) -> Path:
        """The resolved experiment: YAML that ``fit --config`` takes."""
        return self.path / "config.yaml"

    @property
    def checkpoint_dir(self) -> Path:
        """The directory of checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def evaluation_dir(self) -> Path:
        """The directory of evaluations."""
        return self.path / "evaluations"

    @property
    def receptive_field_dir(self) -> Path:
        """The directory of measured receptive fields."""
        return self.path / "receptive_fields"

    @property
    def crf_file(self) -> Path:
        """The CRF parameters that ``tune`` found: an overlay for ``--config``."""
        return self.path / "crf.yaml"

    @property
    def finished_file(self) -> Path:
        """The file that marks a finished training."""
        return self.path / "finished"

    @property
    def metrics_file(self) -> Path:
        """The metrics that the latest session logged."""
        return self.path / "metrics.csv"

    def gallery_dir(self, evaluation: str) -> Path:
        """Return the directory of images that an evaluation keeps."""
        return self.path / "gallery" / evaluation

    @property
    def is_run(self) -> bool:
        """Whether ``fit`` has begun a run here."""
        return self.config_file.is_file()

    @property
    def finished(self) -> bool:
        """Whether the training has taken its last step."""
        return self.finished_file.is_file()

    def mark_finished(self, step: int) -> None:
        """Note that the training has ended after this step."""
        write_text(self.finished_file, f"after step {step}\n")

    @cached_property
    def config(self) -> RunConfig:
        """The resolved experiment."""
        return RunConfig.read(self.config_file)

    def checkpoint(self, name: str = "last") -> Checkpoint:
        """Return the checkpoint of a name, such as "best" or "last".

        Raises:
            UserError: There is none.
        """
        checkpoint = Checkpoint(self.checkpoint_dir / f"{name}.ckpt")
        if not checkpoint.path.is_file():
            names = ", ".join(checkpoint.name for checkpoint in self.checkpoints()) or "none"
            raise UserError(f"{self} has no checkpoint {name}: there are {names}")
        return checkpoint

    @property
    def last_checkpoint(self) -> Checkpoint:
        """The checkpoint that training writes last and continues from, which may not be there yet."""
        return Checkpoint(self.checkpoint_dir / LAST)

    def checkpoints(self) -> list[Checkpoint]:
        """Return all checkpoints: the last one first, then the newest first."""
        files = sorted(
            self.checkpoint_dir.glob("*.ckpt"), key=lambda file: (file.name == LAST, file.stat().st_mtime_ns), reverse=True
        )
        return [Checkpoint(file) for file in files]

    def newest_checkpoint(self) -> Path | None:
        """Return the newest checkpoint that is as it was written; None if there is none. Print which ones are skipped.

        Raises:
            UserError: There are checkpoints, and none of them is as it was written.
        """
        checkpoints = self.checkpoints()
        for checkpoint in checkpoints:
            if checkpoint.is_intact():
                return checkpoint.path
            if os.environ.get("LOCAL_RANK", "0") == "0":
                missing = f"there is no {checkpoint.checksum_file.name} beside it"
                why = "its checksum differs" if checkpoint.recorded_checksums() else missing
                print(f"skipped {checkpoint.path}: {why}", file=sys.stderr)
        if checkpoints:
            raise UserError(
                f"no checkpoint in {self.checkpoint_dir} is as it was written: remove the run's folder to start anew, "
                "or name one with --ckpt_path if you trust it"
            )
        return None

    def resume(self, config: str, checkpoint: str | None) -> Path | None:
        """Return this run's checkpoint from which a training continues; None if it begins, or continues another run's.

        How a run continues, from the command to the same weights as if it had never been interrupted:

        1. ``fit`` in a directory without config.yaml begins a run. With ``checkpoint`` (``--ckpt_path``) it continues another
           run's training here: `training.recipe.Recipe` compares the recipes, takes what may change and refuses the rest.
        2. In a directory with config.yaml it continues the run, if the configurations differ in nothing but options that
           change no weight (`runs.differences.FREE`).
        3. It continues from last.ckpt, or from the newest checkpoint whose checksum fits (`newest_checkpoint`);
           `training.checkpoint_io` writes them so that at every moment there is one, and reads them without executing anything.
        4. The checkpoint holds parameters, the optimizer, the schedule, Lightning's loops, the state of callbacks, the sums of
           an accumulation (`SegmentationTask.accumulated`) and its gradients (`training.resume.KeepGradients`).
        5. Nothing else is random: dropout is seeded by the step (`training.resume.SeedEveryStep`), and order and augmentation
           of the images are a function of seed and position (`data.samplers`), so the data module skips what has been seen.
        6. `training.signals.StopOnSignal` and `training.resume.SaveOnError` write last.ckpt after a whole step when a signal or
           an error ends a session.
        7. An earlier session's metrics.csv becomes metrics-N.csv (`keep_history`); W&B goes on with the id in wandb_id.
        8. A run that is finished (`mark_finished`) loads its weights and trains no more.

        Args:
            config: The resolved configuration of the training, YAML.
            checkpoint: The checkpoint that is to be continued, if one is named.

        Raises:
            UserError: The directory holds a run of another configuration, or no checkpoint is as it was written.
        """
        if not self.is_run:
            return None
        if change := next(find_differences(self.config_file.read_text(), config), None):
            name, before, now = change
            raise UserError(
                f"{self} holds a run of another configuration: name another folder or remove it "
                f"({name} is {before} there and {now} here; --ckpt_path continues it with that in another folder)"
            )
        if checkpoint and Path(checkpoint).resolve().parent == self.checkpoint_dir.resolve():
            return None  # one of its own is named
        return self.newest_checkpoint()  # though it may once have begun from another run's checkpoint

    def dataset(self) -> "SegmentationDataModule":
        """Return the data module that the run was trained on, with the same arguments."""
        return build_dataset({"class_path": self.config.data.class_path, "init_args": self.config.data.init_args})

    def model(self, checkpoint: str = "last", net: nn.Module | None = None) -> Segmenter:
        """Return the trained network with normalization, class names and colors, in evaluation mode, on the CPU.

        Args:
            checkpoint: Its name.
            net: The network, if the run was built in Python and the checkpoint does not say how to build it.
        """
        return build_segmenter(self.checkpoint(checkpoint), net).eval()

    def history(self) -> dict[str, list[tuple[int, float]]]:
        """Return everything that was logged, by name: (step, value), over all sessions."""
        logged: dict[str, dict[int, float]] = {}
        earlier = sorted(self.path.glob("metrics-*.csv"), key=lambda file: int(file.stem.partition("-")[2]))
        for file in [*earlier, self.metrics_file]:
            if file.is_file():
                with file.open() as lines:
                    for row in csv.DictReader(lines):
                        for key, value in row.items():
                            if value and key not in ("step", "epoch"):
                                logged.setdefault(key, {})[int(row["step"])] = float(value)
        return {key: sorted(values.items()) for key, values in logged.items()}

    def keep_history(self) -> None:
        """Rename an earlier session's metrics.csv to metrics-N.csv: Lightning's logger would delete it."""
        if self.metrics_file.exists():
            number = len(list(self.path.glob("metrics-*.csv"))) + 1
            shutil.move(self.metrics_file, self.path / f"metrics-{number}.csv")


def build_dataset(data: dict[str, Any]) -> "SegmentationDataModule":
    """Build the data module that a configuration names by ``class_path`` and ``init_args``."""
    from jsonargparse import ArgumentParser

    from dilated_seg.data.datamodule import SegmentationDataModule  # imports Lightning

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SegmentationDataModule, "data")
    return parser.instantiate_classes(parser.parse_object({"data": data})).data


def newest_checkpoint(directory: str | Path) -> Checkpoint:
    """Return the last checkpoint of the newest finished run in a directory: see `Run.newest`.

    Raises:
        UserError: No run is finished, or its checkpoint is missing or damaged.
    """
    checkpoint = Run.newest(directory).last_checkpoint
    if not checkpoint.is_intact():
        raise UserError(f"{checkpoint.path} is missing or damaged: train its run again, or name another file")
    return checkpoint


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
