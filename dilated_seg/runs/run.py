"""A run: the directory that ``fit`` creates from an experiment, and everything that is read from it."""

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
from dilated_seg.runs.evaluation import Evaluation
from dilated_seg.runs.files import CHECKPOINTS, RunFiles
from dilated_seg.runs.segmenter import build_segmenter

if TYPE_CHECKING:
    from dilated_seg.data.datamodule import SegmentationDataModule


class Run(RunFiles):
    """The directory of a training: configuration, checkpoints, logs and evaluations, each read on first use.

    Args:
        path: The directory.
    """

    @classmethod
    def newest(cls, directory: str | Path) -> "Run":
        """Return the run in a directory, or else the run directly below it that finished last.

        Raises:
            UserError: No run is finished.
        """
        run = cls(directory)
        runs = [run] if run.config_file.is_file() else [cls(path) for path in run.path.glob("*/")]
        finished = [run for run in runs if run.finished]
        if not finished:
            raise UserError(f"{directory} has no finished run: train one first, with the command in its experiment")
        return max(finished, key=lambda run: run.finished_file.stat().st_mtime_ns)

    @classmethod
    def create(cls, parent: Path) -> "Run":
        """Create a run directory below ``parent``, named by the time.

        Raises:
            UserError: There are 999 runs of this second.
        """
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for number in range(1, 1000):
            run = cls(parent / (stamp if number == 1 else f"{stamp}-{number}"))
            try:
                run.path.mkdir(parents=True)
            except FileExistsError:
                continue
            return run
        raise UserError(f"{parent} has 999 runs of this second: name the run directory with --run_dir")

    @classmethod
    def containing(cls, checkpoint: Path) -> "Run | None":
        """Return the run of a checkpoint file; None if it is in no directory of checkpoints."""
        return cls(checkpoint.parents[1]) if checkpoint.absolute().parent.name == CHECKPOINTS else None

    @cached_property
    def config(self) -> RunConfig:
        """The resolved experiment."""
        return RunConfig.read(self.config_file)

    @property
    def seed(self) -> int:
        """The seed of the training; 0 in a directory with only evaluations of published weights."""
        return self.config.seed if self.is_run else 0

    def checkpoint(self, name: str = "last") -> Checkpoint:
        """Return the checkpoint of a name, such as "best" or "last".

        Raises:
            UserError: There is no such checkpoint.
        """
        checkpoint = Checkpoint(self.checkpoint_dir / f"{name}.ckpt")
        if not checkpoint.path.is_file():
            names = ", ".join(checkpoint.name for checkpoint in self.checkpoints()) or "none"
            raise UserError(f"{self} has no checkpoint {name}: name one of {names}")
        return checkpoint

    @property
    def best_checkpoint(self) -> Checkpoint:
        """The checkpoint of the highest validation mean IoU, which may not exist."""
        return Checkpoint(self.checkpoint_dir / "best.ckpt")

    @property
    def last_checkpoint(self) -> Checkpoint:
        """The checkpoint that training writes last and continues from, which may not exist."""
        return Checkpoint(self.checkpoint_dir / LAST)

    def checkpoints(self) -> list[Checkpoint]:
        """Return all checkpoints: the last one first, then the newest first."""
        files = sorted(
            self.checkpoint_dir.glob("*.ckpt"), key=lambda file: (file.name == LAST, file.stat().st_mtime_ns), reverse=True
        )
        return [Checkpoint(file) for file in files]

    def newest_checkpoint(self) -> Path | None:
        """Return the newest intact checkpoint; None if there are no checkpoints. Print those that are skipped.

        Raises:
            UserError: No checkpoint is intact.
        """
        checkpoints = self.checkpoints()
        for checkpoint in checkpoints:
            if checkpoint.is_intact():
                return checkpoint.path
            if os.environ.get("LOCAL_RANK", "0") == "0":
                missing = f"{checkpoint.checksum_file.name} is missing"
                reason = "its checksum differs" if checkpoint.read_checksums() else missing
                print(f"skipped {checkpoint.path}: {reason}", file=sys.stderr)
        if checkpoints:
            raise UserError(
                f"no checkpoint in {self.checkpoint_dir} is intact: remove the run directory to start again, or name a "
                "checkpoint with --ckpt_path if you trust it"
            )
        return None

    def dataset(self) -> "SegmentationDataModule":
        """Return the data module that the run was trained on."""
        return build_dataset({"class_path": self.config.data.class_path, "init_args": self.config.data.init_args})

    def model(self, checkpoint: str = "last", net: nn.Module | None = None) -> Segmenter:
        """Return the trained network with normalization, class names and colors, in evaluation mode, on the CPU.

        Args:
            checkpoint: The checkpoint's name, such as "best".
            net: The network, if it was built in Python, so that the checkpoint cannot rebuild it.
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
            UserError: The evaluation is missing or cannot be read.
        """
        file = self.evaluation_dir / f"{name}.json"
        if not file.is_file():
            command, checkpoint = "test" if name.startswith("test") else "validate", name.partition("-")[2] or "last"
            raise UserError(
                f"{self} has no evaluation {name}: run "
                + format_command("dilated-seg", command, self.path, "--checkpoint", checkpoint)
            )
        return Evaluation.load(file)

    def history(self) -> dict[str, list[tuple[int, float]]]:
        """Return the logged metrics of all sessions by name, as (step, value)."""
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
    """Return the network of a checkpoint, with its run's evaluations of these weights; see `build_segmenter`."""
    run, evaluations = Run.containing(checkpoint.path), []
    for name in run.evaluation_names() if run else ():
        with suppress(UserError):  # damaged evaluations do not matter here
            evaluations.append(run.evaluation(name))  # type: ignore[union-attr]
    return build_segmenter(checkpoint, net, evaluations)
