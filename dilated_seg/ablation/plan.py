"""The planned runs of an ablation, and how far each is."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dilated_seg.report.claims import Claim
from dilated_seg.runs.run import Run

FAILED = "failed"  # a file in the directory of a failed run that holds the reason
DIVERGED = "is not finite"  # in the note of a run whose gradient or parameters were not: see `training.checks`
DDP = json.dumps({"trainer": {"strategy": "ddp"}})  # below the experiment, which may name another strategy


@dataclass(frozen=True)
class PlannedEvaluation:
    """One evaluation that a run needs: of a checkpoint, on a split, by a protocol.

    Args:
        row: The name of its network and protocol in tables; empty if it only serves a selection.
        split: "val" or "test".
        checkpoint: "last" or "best".
        name: Of the evaluation in the run.
        protocol: The name of the protocol; empty for the plain one.
        options: Of ``validate`` or ``test``: the inference strategy and the CRF.
    """

    row: str
    split: str
    checkpoint: str
    name: str
    protocol: str = ""
    options: tuple[str, ...] = ()

    @property
    def ends_training(self) -> bool:
        """Whether ``fit --evaluate`` can make it: the plain evaluation of the last weights."""
        return self.checkpoint == "last" and not self.options

    @property
    def command(self) -> str:
        """The command that makes it."""
        return "test" if self.split == "test" else "validate"


@dataclass(frozen=True)
class PlannedRun:
    """One run of an ablation: a name, the configurations laid over each other, a seed, a directory.

    A stage of a staged experiment starts from the weights of the stage ``before`` it; the last one is evaluated. It trains on
    so many ``devices`` of each of its ``nodes`` (machines).

    Args:
        name: In the terminal and at W&B: network and candidate.
        network: Of the candidate.
        candidate: Of a selection; empty without one.
        evaluations: What it is scored by at its end; none of a stage before the last.
        trial: The evaluation by which its candidate is chosen, if this is a seed that tries candidates.
    """

    name: str
    configs: tuple[str, ...]
    seed: int
    folder: Path
    stage: str = ""
    before: Path | None = None
    devices: int = 1
    nodes: int = 1
    network: str = ""
    candidate: str = ""
    evaluations: tuple[PlannedEvaluation, ...] = ()
    trial: PlannedEvaluation | None = None

    @property
    def label(self) -> str:
        """How the terminal calls it."""
        return join_parts(self.name, f"seed {self.seed}", self.stage)

    @property
    def arguments(self) -> list[str]:
        """What follows ``dilated-seg`` to train it; the same command continues it."""
        several = self.devices * self.nodes > 1
        configs = [word for config in ([DDP] * several + list(self.configs)) for word in ("--config", config)]
        start = ["--model.weights", str(self.before)] if self.before else []
        devices = ["--trainer.devices", str(self.devices), "--trainer.num_nodes", str(self.nodes)] if several else []
        end = ["--evaluate", self.at_end.split] if self.at_end else []
        own = ["--seed_everything", str(self.seed), "--run_dir", str(self.folder)]
        return ["fit", *configs, *start, *devices, *end, *own]

    @property
    def at_end(self) -> PlannedEvaluation | None:
        """The evaluation that ``fit`` makes in the processes that trained, if it needs one that it can make."""
        return next((evaluation for evaluation in self.evaluations if evaluation.ends_training), None)

    def evaluation_arguments(self, evaluation: PlannedEvaluation) -> list[str]:
        """Return the arguments of ``dilated-seg`` that make an evaluation of the trained run."""
        return [evaluation.command, str(self.folder), "--checkpoint", evaluation.checkpoint, *evaluation.options]

    def missing(self) -> list[PlannedEvaluation]:
        """Return the evaluations that are not there yet."""
        there = Run(self.folder).evaluation_names()
        return [evaluation for evaluation in self.evaluations if evaluation.name not in there]


Chain = tuple[PlannedRun, ...]  # the stages of one experiment with one seed, in order: what is trained in one go


@dataclass(frozen=True)
class Selection:
    """How candidates are selected: the key ``select`` of an ablation file.

    Args:
        by: The split on which candidates are compared.
        then: The split on which the selected ones are scored.
        candidates: Their names, in the order of the file.
        seeds: Those that try every candidate.
    """

    by: str
    then: str
    candidates: tuple[str, ...]
    seeds: tuple[int, ...]


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
    - ``protocols`` (optional): a name for each way in which every trained network is evaluated, a row of the tables each, named
      NETWORK, PROTOCOL: ``{inference: ..., crf: ..., experiments: [...]}``. ``inference`` (such as ``{class_path: MultiScale,
      init_args: {flip: true}}``) and ``crf`` (``{class_path: DenseCRF, init_args: {...}}``) are those of ``validate``;
      ``experiments`` limits a protocol to some. ``"": {}`` is the plain evaluation, and all there is if the key is not given.
    - ``checkpoint`` (optional): "last" (if not given) or "best" of each run is evaluated.
    - ``select`` (optional): ``{over: {NAME: SETTINGS or FILE, ...}, by: val, seeds: 1, then: test}``. Each candidate of
      ``over`` is laid over each network and tried with the first ``seeds`` (1 if not given) of the seeds. The candidate with
      the highest mean IoU on the split ``by`` ("val" if not given), by the network's first protocol, is trained with all seeds
      and scored on the split ``then`` ("test" if not given), which takes the place of ``evaluate``. Tables have each network by
      its own name; runs of the selected candidate are not trained again. A candidate whose training diverges (a gradient or
      parameter is not finite) is not selected. ``selection.json`` in the ablation's directory, the report and the terminal show
      what was selected from what.
    - ``claims`` (optional): what the ablation sets out to show, which its report puts to the test: see ``claims.Claim``.
    - ``probe`` (optional): the number of pixels at which receptive fields of the trained networks are measured for the report.
    - ``devices_per_run``, ``nodes_per_run`` (optional): torchrun trains and evaluates each run on this many devices of this
      many machines (several need SLURM). The steps are those of one device, since the data state ``global_batch_size``.
    """

    name: str
    planned: tuple[PlannedRun, ...]  # of all candidates
    runs: tuple[PlannedRun, ...]  # those that are needed by what is known: see `selection.advance`
    split: str
    folder: Path
    rehearsal: bool = False
    claims: tuple[Claim, ...] = ()
    probe: int | None = None
    checkpoint: str = "last"
    selection: Selection | None = None

    @property
    def chains(self) -> list[Chain]:
        """Its runs, those together that start from each other's weights."""
        return group_chains(self.runs)

    @property
    def devices_per_run(self) -> int:
        """How many devices of a machine each run trains on."""
        return self.planned[0].devices

    @property
    def nodes_per_run(self) -> int:
        """How many machines each run trains on."""
        return self.planned[0].nodes

    @property
    def group(self) -> str:
        """What its runs are called together at W&B."""
        return os.environ.get("WANDB_RUN_GROUP", self.name)

    @property
    def jobs(self) -> Path:
        """The directory of logs and of the state of processes."""
        return self.folder / "jobs"

    @property
    def rows(self) -> list[tuple[PlannedRun, PlannedEvaluation]]:
        """The evaluations that are compared, each of a row and a seed, as far as they are there."""
        return [
            (one, evaluation)
            for one in self.runs
            for missing in [one.missing()]
            for evaluation in one.evaluations
            if evaluation.row and evaluation not in missing
        ]

    def place(self, chain: Chain) -> str:
        """Return the directory of a chain's runs, relative to that of the ablation."""
        folder = chain[0].folder if len(chain) == 1 else chain[0].folder.parent
        return str(folder.relative_to(self.folder))

    def log(self, chain: Chain) -> Path:
        """Return the log file of a chain that was trained in its own process."""
        return self.jobs / f"{self.place(chain)}.log"


def join_parts(*names: str) -> str:
    """Join the parts of a name, without empty ones."""
    return ", ".join(name for name in names if name)


def group_chains(runs: Sequence[PlannedRun]) -> list[Chain]:
    """Group runs, those together that start from each other's weights."""
    starts = [number for number, one in enumerate(runs) if one.before is None]
    return [tuple(runs[start:end]) for start, end in zip(starts, [*starts[1:], None], strict=True)]


def finished(one: PlannedRun) -> bool:
    """Whether every evaluation that a run needs is there; a stage before the last ends with its training."""
    return not one.missing() if one.evaluations else trained(one)


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


def has_lost(chain: Chain) -> bool:
    """Whether a chain only tries a candidate, and its training diverged: it is not tried again."""
    last = chain[-1]
    if last.trial is None or last.evaluations != (last.trial,):
        return False
    return any(note.is_file() and DIVERGED in note.read_text() for note in (one.folder / FAILED for one in chain))
