"""A run: the directory that ``fit`` makes of an experiment, and everything that is read from it."""

import csv
import os
import sys
import time
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from dilated_seg.errors import UserError, format_command
from dilated_seg.models.segmenter import Segmenter
from dilated_seg.runs.checkpoint import LAST, Checkpoint
from dilated_seg.runs.config import RunConfig, build_dataset
from dilated_seg.runs.differences import find_differences
from dilated_seg.runs.evaluation import Evaluation
from dilated_seg.runs.files import CHECKPOINTS, RunFiles
from dilated_seg.runs.segmenter import build_segmenter

if TYPE_CHECKING:
    from dilated_seg.data.datamodule import SegmentationDataModule


class Run(RunFiles):
    """The directory of a training: configuration, checkpoints, logs and evaluations. Nothing is read before it is asked for.

    Args:
        path: The directory.
    """

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

    @cached_property
    def config(self) -> RunConfig:
        """The resolved experiment."""
        return RunConfig.read(self.config_file)

    @property
    def seed(self) -> int:
        """The seed of the training; 0 in a directory that holds only evaluations of published weights."""
        return self.config.seed if self.is_run else 0

    def checkpoint(self, name: str = "last") -> Checkpoint:
        """Return the checkpoint of a name, such as "best" or "last".

        Raises:
            UserError: There is none.
        """
        checkpoint = Checkpoint(self.checkpoint_dir / f"{name}.ckpt")
        if not checkpoint.path.is_file():
            names = ", ".join(checkpoint.name for checkpoint in self.checkpoints()) or "none"
            raise UserError(f"{self} has no {name}.ckpt in its checkpoints, but {names}")
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
        return load_segmenter(self.checkpoint(checkpoint), net).eval()

    def evaluation_names(self) -> list[str]:
        """Return the names of all evaluations, sorted."""
        return sorted(file.stem for file in self.evaluation_dir.glob("*.json"))

    def evaluations(self) -> dict[str, Evaluation]:
        """Return all evaluations by name."""
        return {name: self.evaluation(name) for name in self.evaluation_names()}

    def evaluation(self, name: str) -> Evaluation:
        """Return the evaluation of a name, such as "test-last".

        Raises:
            UserError: There is none, or it cannot be read.
        """
        file = self.evaluation_dir / f"{name}.json"
        if not file.is_file():
            command, checkpoint = "test" if name.startswith("test") else "validate", name.partition("-")[2] or "last"
            weights = self.checkpoint_dir / f"{checkpoint}.ckpt"
            again = format_command("dilated-seg", command, "--config", self.config_file, "--ckpt_path", weights)
            raise UserError(f"{self} has no evaluation {name}: run {again}")
        return Evaluation.load(file)

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


def load_segmenter(checkpoint: Checkpoint, net: nn.Module | None = None) -> Segmenter:
    """Return the network of a checkpoint, with the evaluations that its run has of these weights; see `build_segmenter`."""
    run, evaluations = Run.containing(checkpoint.path), []
    for name in run.evaluation_names() if run else ():
        with suppress(UserError):  # the weights are what is asked for
            evaluations.append(run.evaluation(name))  # type: ignore[union-attr]
    return build_segmenter(checkpoint, net, evaluations)
