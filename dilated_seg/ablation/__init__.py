"""Ablations: train the missing runs of one file, continue interrupted ones, and compare them all."""

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Column, Table

from dilated_seg.ablation.check import check_ablation
from dilated_seg.ablation.file import read as read
from dilated_seg.ablation.job_process import shares_cores
from dilated_seg.ablation.launchers import Launcher, Local, check_device_count
from dilated_seg.ablation.plan import Ablation, Chain, explain_failure, has_lost, is_finished, is_trained, join_parts
from dilated_seg.ablation.selection import advance, build_section, describe_selection, read_choices, write_selection
from dilated_seg.ablation.slurm import Slurm, format_scancel, list_slurm_jobs
from dilated_seg.ablation.torchrun import list_torchrun_arguments
from dilated_seg.ablation.worker import carry_out, claim, is_claimed
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
    """Train and evaluate the missing runs, then write and print the comparison.

    After an interruption, the same call continues and ends with the same results.

    Args:
        ablation: The result of `read`.
        launcher: "local" trains several runs at once on this machine, "slurm" submits jobs to SLURM. None means "local" on a
            machine without a GPU that has threads for several runs, else one run after another in this process.
        jobs: The number of concurrent runs of "local"; by default the number of GPUs or, without a GPU, of threads.
        slurm: KEY=VALUE options of submitit, for "slurm".
        retries: The number of times that a failed run is tried again.
        again: The command that continues the ablation, for the message and the report.

    Returns:
        The exit status: 0 if all runs are finished, 1 if any is missing, 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        UserError: A configuration, a dataset or an option is wrong; checked before anything is trained.
    """
    if launcher != "slurm" and (queued := list_slurm_jobs(ablation)):
        raise UserError(
            f"SLURM still has runs of {ablation.directory}: pass --launcher slurm, or first {format_scancel(queued)}"
        )
    if launcher != "slurm" and ablation.nodes_per_run > 1:
        raise UserError(f"nodes_per_run {ablation.nodes_per_run}: several machines need --launcher slurm")
    if launcher == "slurm":
        Slurm(ablation, slurm)  # checks the parameters
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
    """Train and evaluate the unfinished runs of some chains; see `run` for the arguments.

    Raises:
        UserError: Another process is training one of them, or there are too few devices.
    """
    waiting = [chain for chain in chains if not all(map(is_finished, chain))]
    if claimed := [chain[0] for chain in waiting if is_claimed(chain, ablation)]:
        raise UserError(f"another process is training {claimed[0].directory}: wait for it, or end it")
    if launcher is None:
        check_device_count(ablation.devices_per_run)
        for chain in chains:
            with claim(chain, ablation):
                ablation.log(chain).unlink(missing_ok=True)
                carry_out(chain, ablation, retries)
    elif waiting:
        processes: Launcher = Slurm(ablation, slurm) if launcher == "slurm" else Local(ablation, jobs)
        processes.carry_out(waiting, retries)


def read_rows(ablation: Ablation) -> "list[Result]":
    """Read the existing evaluations of the tables: one for each row and seed."""
    from dilated_seg.report.results import Result

    rows = [(Run(planned.directory), evaluation) for planned, evaluation in ablation.rows]
    return [Result(evaluation.row, run, run.evaluation(evaluation.name)) for run, evaluation in rows]


def conclude(ablation: Ablation, command: str | None = None) -> int:
    """Write the comparison of the finished runs and print the missing ones; return 1 if any is missing, else 0.

    Args:
        ablation: The ablation.
        command: The command that ran it, for the report.
    """
    from dilated_seg.analysis.receptive_field.measure import probe
    from dilated_seg.report.compare import compare
    from dilated_seg.report.saved import SavedComparison

    results, choices = read_rows(ablation), read_choices(ablation)
    write_selection(ablation, choices)
    missing = [(run, chain) for chain in ablation.chains if not has_lost(chain) for run in chain if not is_finished(run)]
    undecided = [choice for choice in choices if not choice.selected]
    if results:
        if ablation.probe:
            directories = list(dict.fromkeys(str(result.run) for result in results))
            try:
                probe(directories, f"{ablation.split}-{ablation.checkpoint}", pixels=ablation.probe)
            except UserError as error:  # such as a run that was copied from another machine without its checkpoint
                print(f"receptive fields are not in the report: {error}", file=sys.stderr)
        without = [join_parts(row.row, f"seed {run.seed}", run.stage) for run, _ in missing for row in run.missing() if row.row]
        without += [f"{choice.network}, of which no candidate is selected" for choice in undecided]
        title, selection = f"Comparison: {ablation.name}", build_section(ablation.selection, choices)
        SavedComparison(title, command or "", results, ablation.claims, without).write(ablation.directory)
        compare(results, ablation.directory, without, ablation.claims, command, title, [selection] if selection else [])
    show_selection(ablation)
    for run, chain in missing:
        details = log if (log := ablation.log(chain)).exists() else run.directory
        print(f"{run.label} {explain_failure(run, chain) or 'is not finished'} (see {details})", file=sys.stderr)
    return 1 if missing or undecided else 0


def show_selection(ablation: Ablation) -> None:
    """Print how candidates were selected, and the results of each network's candidates; nothing without a selection."""
    if ablation.selection:
        print(describe_selection(ablation.selection).replace("**", ""))
    for choice in read_choices(ablation):
        print(choice, flush=True)


def show_commands(ablation: Ablation) -> None:
    """Print the commands that train and evaluate each run; with a selection, those that are known to be needed."""
    for run in ablation.runs:
        start = (
            ["torchrun", *list_torchrun_arguments(run), "-m", "dilated_seg"] if run.devices * run.nodes > 1 else ["dilated-seg"]
        )
        later = [run.evaluation_arguments(evaluation) for evaluation in run.evaluations if evaluation != run.at_end]
        for arguments in (run.arguments, *later):
            print(shlex.join([*start, *arguments]))
    if undecided := [choice.network for choice in read_choices(ablation) if not choice.selected]:
        print(f"# then all seeds of the selected candidate, evaluated on {ablation.split}: {'; '.join(undecided)}")


def show_status(ablation: Ablation) -> None:
    """Print the status of each run: not begun, begun, trained, finished (evaluated); queued, running, failed."""
    directory = Column("directory", overflow="fold")
    queued = list_slurm_jobs(ablation)
    table = Table("run", "seed", "stage", "status", directory, box=None, pad_edge=False)
    for chain in ablation.chains:
        now = "running" if is_claimed(chain, ablation) else None
        if chain in queued:
            now = "running" if queued[chain].state in ("RUNNING", "COMPLETING") else "queued"
        for run in chain:
            if is_finished(run):
                status = "finished"
            elif now:
                status, now = now, "queued"  # a later stage comes after this one
            elif (failure := explain_failure(run, chain)) or is_trained(run):
                done = len(run.evaluations) - len(run.missing())
                status = failure or f"trained{f', {done} of {len(run.evaluations)} evaluations' if done else ''}"
            else:
                status = "begun" if Run(run.directory).is_run else "not begun"
            table.add_row(run.name, str(run.seed), run.stage, status, str(run.directory))
    open_console().print(table)
    show_selection(ablation)
