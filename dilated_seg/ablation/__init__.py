"""Many runs from one file: what is missing is trained, what was interrupted continues, then all are compared."""

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Column, Table

from dilated_seg.ablation.check import check_ablation
from dilated_seg.ablation.file import read as read
from dilated_seg.ablation.job_process import shares_cores
from dilated_seg.ablation.launchers import Launcher, Local, check_device_count
from dilated_seg.ablation.plan import Ablation, Chain, failure, finished, has_lost, join_parts, trained
from dilated_seg.ablation.processes import torchrun_arguments
from dilated_seg.ablation.selection import advance, build_section, describe_selection, read_choices, write_selection
from dilated_seg.ablation.slurm import Slurm, scancel, slurm_jobs
from dilated_seg.ablation.worker import carry_out, claimed, is_claimed
from dilated_seg.errors import UserError, open_console
from dilated_seg.runs import Run

if TYPE_CHECKING:
    from dilated_seg.report.results import Result  # imports Lightning


def run(
    ablation: Ablation,
    launcher: str | None = None,
    jobs: int | None = None,
    slurm: Sequence[str] = (),
    retries: int = 0,
    again: str = "",
) -> int:
    """Train and evaluate what is missing, then write and print the comparison.

    Interrupted, it exits with 1, or 143 by SIGTERM; called again it continues where it was and ends with the same numbers.

    Args:
        ablation: What ``read`` gives of its file.
        launcher: "local" for several runs at once, "slurm" for jobs of SLURM. None for "local" on a machine without a GPU that
            has threads for several runs, else for one run after another in this process.
        jobs: At once, of "local"; as many as there are GPUs, or without a GPU threads, if None.
        slurm: KEY=VALUE for submitit, of "slurm".
        retries: How often a failed run is tried again before this call gives it up.
        again: The command that continues, for the message and the report.

    Raises:
        UserError: A mistake that is found before anything is trained.
    """
    if launcher != "slurm" and (queued := slurm_jobs(ablation)):
        raise UserError(f"SLURM still has runs of {ablation.folder}: call it with --launcher slurm, or first {scancel(queued)}")
    if launcher != "slurm" and ablation.nodes_per_run > 1:
        raise UserError(f"nodes_per_run {ablation.nodes_per_run}: several machines need --launcher slurm")
    if launcher == "slurm":
        Slurm(ablation, slurm)  # raises what is wrong with its parameters
    elif launcher is None and shares_cores(ablation):
        launcher = "local"
    if launcher == "local":
        Local(ablation, jobs).prepare()
    check_ablation(ablation)
    tried: set[Chain] = set()
    try:
        while chains := [chain for chain in ablation.chains if chain not in tried and not has_lost(chain)]:
            carry_out_chains(chains, ablation, launcher, jobs, slurm, retries)
            tried.update(chains)
            further = advance(ablation)
            if further.runs != ablation.runs:
                show_selection(further)
                check_ablation(further)
            ablation = further
    except (KeyboardInterrupt, SystemExit) as end:
        if again:
            print(f"interrupted; to continue: {again}", flush=True)
        if isinstance(end, KeyboardInterrupt) or isinstance(end.__context__, KeyboardInterrupt):
            return 130
        code = end.code
        return 143 if code is None else int(code)  # Lightning ends on SIGTERM without one while it evaluates
    return conclude(ablation, again or None)


def carry_out_chains(
    chains: Sequence[Chain], ablation: Ablation, launcher: str | None, jobs: int | None, slurm: Sequence[str], retries: int
) -> None:
    """Train and evaluate what is missing of some chains; see `run`.

    Raises:
        UserError: Another process trains one, or there are too few devices.
    """
    waiting = [chain for chain in chains if not all(map(finished, chain))]
    if taken := [chain[0] for chain in waiting if is_claimed(chain, ablation)]:
        raise UserError(f"another process is training {taken[0].folder}: wait for it, or end it")
    if launcher is None:
        check_device_count(ablation.devices_per_run)
        for chain in chains:
            with claimed(chain, ablation):
                ablation.log(chain).unlink(missing_ok=True)
                carry_out(chain, ablation, retries)
    elif waiting:
        processes: Launcher = Slurm(ablation, slurm) if launcher == "slurm" else Local(ablation, jobs)
        processes.carry_out(waiting, retries)


def read_rows(ablation: Ablation) -> "list[Result]":
    """Read the evaluations that are compared, as far as they are there: one a row and seed."""
    from dilated_seg.report.results import Result

    return [
        Result(evaluation.row, run, run.evaluation(evaluation.name))
        for run, evaluation in ((Run(one.folder), evaluation) for one, evaluation in ablation.rows)
    ]


def conclude(ablation: Ablation, command: str | None = None) -> int:
    """Compare what is finished, and list what is not; 1 if anything is missing.

    Args:
        ablation: Whose runs.
        command: That carried it out, for the report.
    """
    from dilated_seg.analysis.receptive_field.measure import probe
    from dilated_seg.report.compare import compare

    results, choices = read_rows(ablation), read_choices(ablation)
    write_selection(ablation, choices)
    missing = [(one, chain) for chain in ablation.chains if not has_lost(chain) for one in chain if not finished(one)]
    undecided = [choice for choice in choices if not choice.selected]
    if results:
        if ablation.probe:
            folders = list(dict.fromkeys(str(result.run) for result in results))
            try:
                probe(folders, f"{ablation.split}-{ablation.checkpoint}", pixels=ablation.probe)
            except UserError as error:  # such as a run that was trained elsewhere and came without its checkpoint
                print(f"receptive fields are not in the report: {error}", file=sys.stderr)
        without = [join_parts(row.row, f"seed {one.seed}", one.stage) for one, _ in missing for row in one.missing() if row.row]
        without += [f"{choice.network}, of which no candidate is selected" for choice in undecided]
        title, selection = f"Comparison: {ablation.name}", build_section(ablation, choices)
        compare(results, ablation.folder, without, ablation.claims, command, title, [selection] if selection else [])
    show_selection(ablation)
    for one, chain in missing:
        place = log if (log := ablation.log(chain)).exists() else one.folder
        print(f"{one.label} {failure(one, chain) or 'is not finished'} (see {place})", file=sys.stderr)
    return 1 if missing or undecided else 0


def show_selection(ablation: Ablation) -> None:
    """Print how networks were selected, and each network's candidates; nothing without a selection."""
    if ablation.selection:
        print(describe_selection(ablation).replace("**", ""))
    for choice in read_choices(ablation):
        print(choice, flush=True)


def show_commands(ablation: Ablation) -> None:
    """Print the commands that train and evaluate each run, as far as it is known which are needed."""
    for one in ablation.runs:
        start = ["torchrun", *torchrun_arguments(one), "-m", "dilated_seg"] if one.devices * one.nodes > 1 else ["dilated-seg"]
        later = [one.evaluation_arguments(evaluation) for evaluation in one.evaluations if evaluation != one.at_end]
        for arguments in (one.arguments, *later):
            print(shlex.join([*start, *arguments]))
    if undecided := [choice.network for choice in read_choices(ablation) if not choice.selected]:
        print(f"# then all seeds of the candidate that is selected, scored on {ablation.split}: {'; '.join(undecided)}")


def show_status(ablation: Ablation) -> None:
    """Print how far each run is: not begun, begun, trained, finished (evaluated); queued, running, failed."""
    folder = Column("folder", overflow="fold")
    queued = slurm_jobs(ablation)
    table = Table("run", "seed", "stage", "status", folder, box=None, pad_edge=False)
    for chain in ablation.chains:
        now = "running" if is_claimed(chain, ablation) else None
        if chain in queued:
            now = "running" if queued[chain].state in ("RUNNING", "COMPLETING") else "queued"
        for one in chain:
            if finished(one):
                status = "finished"
            elif now:
                status, now = now, "queued"  # a later stage comes after this one
            elif (why := failure(one, chain)) or trained(one):
                done = len(one.evaluations) - len(one.missing())
                status = why or f"trained{f', {done} of {len(one.evaluations)} evaluations' if done else ''}"
            else:
                status = "begun" if Run(one.folder).is_run else "not begun"
            table.add_row(one.name, str(one.seed), one.stage, status, str(one.folder))
    open_console().print(table)
    show_selection(ablation)
