"""The runs that an ablation plans, and the state of each."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dilated_seg.report.claims import Claim
from dilated_seg.runs.run import Run

FAILED = "failed"  # file in the directory of a failed run, with the reason
DIVERGED = "is not finite"  # part of the reason if a gradient or parameter was not finite: see `training.checks`
DDP = json.dumps({"trainer": {"strategy": "ddp"}})  # used as the first --config, so that an experiment can set another strategy


@dataclass(frozen=True)
class PlannedEvaluation:
    """One evaluation of a run: a checkpoint, a split and an evaluation protocol.

    Args:
        row: The row of the tables that it belongs to: network and protocol; empty if it only serves to select candidates.
        split: "val" or "test".
        checkpoint: "last" or "best".
        name: The evaluation's name in the run, such as "test-last".
        protocol: The name of the protocol; empty for full images without a CRF.
        options: Options of ``validate`` or ``test`` for the inference strategy and the CRF.
    """

    row: str
    split: str
    checkpoint: str
    name: str
    protocol: str = ""
    options: tuple[str, ...] = ()

    @property
    def ends_training(self) -> bool:
        """Whether ``fit --evaluate`` can perform it: it evaluates the last weights, without options."""
        return self.checkpoint == "last" and not self.options

    @property
    def command(self) -> str:
        """The command that performs it."""
        return "test" if self.split == "test" else "validate"


@dataclass(frozen=True)
class PlannedRun:
    """One run of an ablation, or one stage of a run with several stages.

    Args:
        name: The name in the terminal and at W&B: network and candidate.
        configs: The values of ``--config``, in the order in which they are merged.
        seed: The seed of the training.
        stage: A name such as "stage 1 of 3"; empty without stages.
        before: The directory of the previous stage, whose weights this stage starts from.
        devices: The number of devices of each machine (``nodes``).
        network: The network's name.
        candidate: The candidate's name in a selection; empty without one.
        evaluations: The evaluations after training; empty for all stages but the last.
        trial: The evaluation that compares candidates; None if this seed is not used for that.
    """

    name: str
    configs: tuple[str, ...]
    seed: int
    directory: Path
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
        """The run's name in the terminal, with seed and stage."""
        return join_parts(self.name, f"seed {self.seed}", self.stage)

    @property
    def arguments(self) -> list[str]:
        """The arguments of ``dilated-seg`` that start or continue the training."""
        several = self.devices * self.nodes > 1
        configs = [word for config in ([DDP] * several + list(self.configs)) for word in ("--config", config)]
        start = ["--model.weights", str(self.before)] if self.before else []
        devices = ["--trainer.devices", str(self.devices), "--trainer.num_nodes", str(self.nodes)] if several else []
        end = ["--evaluate", self.at_end.split] if self.at_end else []
        identity = ["--seed_everything", str(self.seed), "--run_dir", str(self.directory)]
        return ["fit", *configs, *start, *devices, *end, *identity]

    @property
    def at_end(self) -> PlannedEvaluation | None:
        """The evaluation that ``fit --evaluate`` performs after training; None if none can be: see `ends_training`."""
        return next((evaluation for evaluation in self.evaluations if evaluation.ends_training), None)

    def evaluation_arguments(self, evaluation: PlannedEvaluation) -> list[str]:
        """Return the arguments of ``dilated-seg`` that perform an evaluation of the trained run."""
        return [evaluation.command, str(self.directory), "--checkpoint", evaluation.checkpoint, *evaluation.options]

    def missing(self) -> list[PlannedEvaluation]:
        """Return the evaluations that do not exist yet."""
        existing = Run(self.directory).evaluation_names()
        return [evaluation for evaluation in self.evaluations if evaluation.name not in existing]


Chain = tuple[PlannedRun, ...]  # the stages of one experiment with one seed, in order


@dataclass(frozen=True)
class Selection:
    """The key ``select`` of an ablation file: selection among candidate settings.

    Args:
        by: The split on which candidates are compared.
        then: The split on which the selected candidates are evaluated.
        candidates: The names of the candidates, in the order of the file.
        seeds: The seeds with which every candidate is tried.
    """

    by: str
    then: str
    candidates: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Ablation:
    """An ablation file, expanded into its runs.

    The file is YAML with the keys below; only ``experiments`` is required. File names are relative to the ablation file, paths
    inside settings to the working directory. An overlay is a file, or settings, merged into an experiment.

    - ``experiments``: for each name a file, or a list of files: stages, each of which starts from the weights of the previous.
    - ``overlays``: for each name an overlay (``{}`` for none); every experiment is combined with every overlay.
    - ``common``: settings merged into every run.
    - ``seeds``: the seeds of every run; default [0].
    - ``evaluate``: the split on which networks are compared, "val" (default) or "test".
    - ``protocols``: for each name an evaluation protocol ``{inference: ..., crf: ..., experiments: [...]}``; every trained
      network has a row NETWORK, PROTOCOL in the tables for each. ``inference`` (such as ``{class_path: MultiScale,
      init_args: {flip: true}}``) and ``crf`` (``{class_path: DenseCRF, init_args: {...}}``) are the options of ``validate``;
      ``experiments`` lists the experiments that a protocol is for. Default ``{"": {}}``: full images, without a CRF.
    - ``checkpoint``: "last" (default) or "best", the checkpoint of each run that is evaluated.
    - ``select``: ``{over: {NAME: OVERLAY, ...}, by: val, seeds: 1, then: test}``. Each candidate of ``over`` is merged into
      each network and tried with the first ``seeds`` (default 1) of the seeds. The candidate with the highest mean IoU on the
      split ``by`` (default "val"), by the network's first protocol, is trained with all seeds and evaluated on the split
      ``then`` (default "test"), which replaces ``evaluate``. Tables show it under the network's name; its trial runs are not
      repeated. A candidate whose training diverges (a gradient or parameter is not finite) is not selected.
      ``selection.json`` in the ablation's directory, the report and the terminal show all candidates and their results.
    - ``claims``: statements that the report tests: see ``claims.Claim``.
    - ``probe``: the number of pixels at which the report measures receptive fields of the trained networks.
    - ``devices_per_run``, ``nodes_per_run``: the number of devices of each machine and of machines on which torchrun trains and
      evaluates each run (several machines need SLURM). The data must set ``global_batch_size``, so that steps do not change.
    """

    name: str
    planned: tuple[PlannedRun, ...]  # the runs of all candidates
    runs: tuple[PlannedRun, ...]  # the runs that are known to be needed: see `selection.advance`
    split: str
    directory: Path
    rehearsal: bool = False
    claims: tuple[Claim, ...] = ()
    probe: int | None = None
    checkpoint: str = "last"
    selection: Selection | None = None

    @property
    def chains(self) -> list[Chain]:
        """The runs, grouped into chains: see `group_chains`."""
        return group_chains(self.runs)

    @property
    def devices_per_run(self) -> int:
        """The number of devices of a machine on which each run trains."""
        return self.planned[0].devices

    @property
    def nodes_per_run(self) -> int:
        """The number of machines on which each run trains."""
        return self.planned[0].nodes

    @property
    def group(self) -> str:
        """The group of its runs at W&B."""
        return os.environ.get("WANDB_RUN_GROUP", self.name)

    @property
    def jobs(self) -> Path:
        """The directory of logs and of the state of processes."""
        return self.directory / "jobs"

    @property
    def rows(self) -> list[tuple[PlannedRun, PlannedEvaluation]]:
        """The existing evaluations for the tables, with their runs: one for each row and seed."""
        return [
            (run, evaluation)
            for run in self.runs
            for missing in [run.missing()]
            for evaluation in run.evaluations
            if evaluation.row and evaluation not in missing
        ]

    def get_relative_directory(self, chain: Chain) -> str:
        """Return the directory of a chain's runs, relative to that of the ablation."""
        directory = chain[0].directory if len(chain) == 1 else chain[0].directory.parent
        return str(directory.relative_to(self.directory))

    def log(self, chain: Chain) -> Path:
        """Return the log file of a chain that is trained in a separate process."""
        return self.jobs / f"{self.get_relative_directory(chain)}.log"


def join_parts(*names: str) -> str:
    """Join the parts of a name that are not empty."""
    return ", ".join(name for name in names if name)


def group_chains(runs: Sequence[PlannedRun]) -> list[Chain]:
    """Group runs into chains: each run with the stages that follow it."""
    starts = [number for number, run in enumerate(runs) if run.before is None]
    return [tuple(runs[start:end]) for start, end in zip(starts, [*starts[1:], None], strict=True)]


def is_finished(run: PlannedRun) -> bool:
    """Return whether all evaluations of a run exist; for a stage without evaluations, whether it is trained."""
    return not run.missing() if run.evaluations else is_trained(run)


def is_trained(run: PlannedRun) -> bool:
    """Return whether the training of a run is finished."""
    return Run(run.directory).finished


def explain_failure(run: PlannedRun, chain: Chain) -> str | None:
    """Return why a run of a chain failed, or that an earlier stage failed; None if neither."""
    for stage in chain[: chain.index(run) + 1]:
        note = stage.directory / FAILED
        if note.is_file():
            return f"failed: {note.read_text().strip()}" if stage is run else "not tried: a stage before it failed"
    return None


def has_lost(chain: Chain) -> bool:
    """Return whether a chain only tries a candidate and its training diverged; it is then not trained again."""
    last = chain[-1]
    if last.trial is None or last.evaluations != (last.trial,):
        return False
    return any(note.is_file() and DIVERGED in note.read_text() for note in (run.directory / FAILED for run in chain))
