"""The planned runs of an ablation, and how far each is."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from dilated_seg.report.claims import Claim
from dilated_seg.runs.run import Run

FAILED = "failed"  # a file in the folder of a run that failed, which says why
DDP = json.dumps({"trainer": {"strategy": "ddp"}})  # below the experiment, which may name another strategy


@dataclass(frozen=True)
class PlannedRun:
    """One run of an ablation: a name in its tables, the configurations laid over each other, a seed, a folder.

    A stage of a staged experiment starts from the weights of the stage ``before`` it; the last one is compared. It trains on
    so many ``devices`` of each of its ``nodes`` (machines), and is scored on the split ``evaluate`` at its end.
    """

    name: str
    configs: tuple[str, ...]
    seed: int
    folder: Path
    stage: str = ""
    before: Path | None = None
    compared: bool = True
    devices: int = 1
    nodes: int = 1
    evaluate: str | None = None

    @property
    def label(self) -> str:
        """How the terminal calls it."""
        return ", ".join(part for part in (self.name, f"seed {self.seed}", self.stage) if part)

    @property
    def arguments(self) -> list[str]:
        """What follows ``dilated-seg`` to train it; the same command continues it."""
        several = self.devices * self.nodes > 1
        configs = [word for config in ([DDP] * several + list(self.configs)) for word in ("--config", config)]
        start = ["--model.weights", str(self.before)] if self.before else []
        devices = ["--trainer.devices", str(self.devices), "--trainer.num_nodes", str(self.nodes)] if several else []
        end = ["--evaluate", self.evaluate] if self.evaluate else []
        own = ["--seed_everything", str(self.seed), "--run_dir", str(self.folder)]
        return ["fit", *configs, *start, *devices, *end, *own]


Chain = tuple[PlannedRun, ...]  # the stages of one experiment with one seed, in order: what is trained in one go


@dataclass(frozen=True)
class Ablation:
    """An ablation file, expanded.

    The file is YAML with these keys. A file's name is relative to it; a path inside settings is relative to where you are.

    - ``experiments``: a name for each experiment's file; or for a list of files, which are trained in this order, each from
      the weights of the one before.
    - ``overlays`` (optional): a name for each variant, which is a file or settings laid over an experiment (``{}`` for the
      experiment as it is); every experiment runs under every overlay.
    - ``common`` (optional): settings laid over every run.
    - ``seeds`` (optional): every run is repeated with each; [0] if not given.
    - ``evaluate`` (optional): the split that the last weights are compared on, "val" (if not given) or "test".
    - ``claims`` (optional): what the ablation sets out to show, which its report puts to the test: see ``claims.Claim``.
    - ``probe`` (optional): at so many pixels, the receptive fields of what was trained are measured for the report.
    - ``devices_per_run``, ``nodes_per_run`` (optional): torchrun trains and evaluates each run on this many devices of this
      many machines (several need SLURM). The steps are those of one device, since the data state ``global_batch_size``.
    """

    name: str
    runs: tuple[PlannedRun, ...]
    split: str
    folder: Path
    rehearsal: bool = False
    claims: tuple[Claim, ...] = ()
    probe: int | None = None

    @property
    def chains(self) -> list[Chain]:
        """Its runs, those together that start from each other's weights."""
        starts = [number for number, one in enumerate(self.runs) if one.before is None]
        return [self.runs[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]

    @property
    def devices_per_run(self) -> int:
        """How many devices of a machine each run trains on."""
        return self.runs[0].devices

    @property
    def nodes_per_run(self) -> int:
        """How many machines each run trains on."""
        return self.runs[0].nodes

    @property
    def group(self) -> str:
        """What its runs are called together at W&B."""
        return os.environ.get("WANDB_RUN_GROUP", self.name)

    @property
    def jobs(self) -> Path:
        """The folder of logs and of what is known about processes."""
        return self.folder / "jobs"

    def place(self, chain: Chain) -> str:
        """The folder of a chain's runs, below that of the ablation."""
        folder = chain[0].folder if len(chain) == 1 else chain[0].folder.parent
        return str(folder.relative_to(self.folder))

    def log(self, chain: Chain) -> Path:
        """The output of a chain that was trained in a process of its own."""
        return self.jobs / f"{self.place(chain)}.log"

    @property
    def evaluation(self) -> str:
        """The name of the evaluation that is compared."""
        return f"{self.split}-last"


def finished(one: PlannedRun, ablation: Ablation) -> bool:
    """Whether the evaluation that ends a run is there; a stage before the last ends with its training."""
    if not one.compared:
        return trained(one)
    return ablation.evaluation in Run(one.folder).evaluation_names()


def trained(one: PlannedRun) -> bool:
    """Whether a run has taken its last step."""
    return Run(one.folder).finished


def failure(one: PlannedRun, chain: Chain) -> str | None:
    """Why a run of a chain failed, or that a stage before it did; None if neither."""
    for stage in chain[: chain.index(one) + 1]:
        note = stage.folder / FAILED
        if note.is_file():
            return f"failed: {note.read_text().strip()}" if stage is one else "not tried: a stage before it failed"
    return None
