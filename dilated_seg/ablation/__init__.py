"""Many runs from one file: what is missing is trained, what was interrupted continues, then all are compared."""

import shlex
import sys
from collections.abc import Sequence

from rich.table import Column, Table

from dilated_seg.ablation.check import check_ablation
from dilated_seg.ablation.file import read as read
from dilated_seg.ablation.launchers import Launcher, Local, check_device_count
from dilated_seg.ablation.plan import Ablation, failure, finished, trained
from dilated_seg.ablation.processes import torchrun_arguments
from dilated_seg.ablation.slurm import Slurm, scancel, slurm_jobs
from dilated_seg.ablation.worker import carry_out, claimed, is_claimed
from dilated_seg.errors import UserError, open_console
from dilated_seg.runs import Run


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
        launcher: "local" for several runs at once, "slurm" for jobs of SLURM, None for one run after another in this process.
        jobs: At once, of "local"; as many as there are GPUs if None.
        slurm: KEY=VALUE for submitit, of "slurm".
        retries: How often a failed run is tried again before this call gives it up.
        again: The command that continues, for the message and the report.

    Raises:
        UserError: A mistake that is found before anything is trained.
    """
    processes: Launcher | None = Slurm(ablation, slurm) if launcher == "slurm" else None
    if launcher != "slurm" and (queued := slurm_jobs(ablation)):
        raise UserError(f"SLURM still has runs of {ablation.folder}: call it with --launcher slurm, or first {scancel(queued)}")
    check_ablation(ablation)
    waiting = [chain for chain in ablation.chains if not all(finished(one, ablation) for one in chain)]
    if taken := [chain[0] for chain in waiting if is_claimed(chain, ablation)]:
        raise UserError(f"another process is training {taken[0].folder}: wait for it, or end it")
    if launcher == "local":
        processes = Local(ablation, jobs)
    elif launcher is None:
        check_device_count(ablation.devices_per_run)
    if launcher != "slurm" and ablation.nodes_per_run > 1:
        raise UserError(f"nodes_per_run {ablation.nodes_per_run}: several machines need --launcher slurm")
    try:
        if processes is not None:
            processes.carry_out(waiting, retries)
        else:
            for chain in ablation.chains:
                with claimed(chain, ablation):
                    ablation.log(chain).unlink(missing_ok=True)
                    carry_out(chain, ablation, retries)
    except (KeyboardInterrupt, SystemExit) as end:
        if again:
            print(f"interrupted; to continue: {again}", flush=True)
        if isinstance(end, KeyboardInterrupt) or isinstance(end.__context__, KeyboardInterrupt):
            return 130
        code = end.code
        return 143 if code is None else int(code)  # Lightning ends on SIGTERM without one while it evaluates
    return conclude(ablation, again or None)


def conclude(ablation: Ablation, command: str | None = None) -> int:
    """Compare what is finished, and say what is not; 1 if anything is missing.

    Args:
        ablation: Whose runs.
        command: That carried it out, for the report.
    """
    from dilated_seg.analysis.receptive_field.measure import probe
    from dilated_seg.report.compare import compare
    from dilated_seg.report.results import read_results

    compared = [one for one in ablation.runs if one.compared and finished(one, ablation)]
    missing = [(one, chain) for chain in ablation.chains for one in chain if not finished(one, ablation)]
    if compared:
        folders, names = [one.folder for one in compared], [one.name for one in compared]
        if ablation.probe:
            try:
                probe(folders, ablation.evaluation, pixels=ablation.probe)
            except UserError as error:  # such as a run that was trained elsewhere and came without its checkpoint
                print(f"receptive fields are not in the report: {error}", file=sys.stderr)
        without = [one.label for one, _ in missing if one.compared]
        results = read_results([Run(folder) for folder in folders], ablation.evaluation, names)
        compare(results, ablation.folder, without, ablation.claims, command, f"Comparison: {ablation.name}")
    for one, chain in missing:
        place = log if (log := ablation.log(chain)).exists() else one.folder
        print(f"{one.label} {failure(one, chain) or 'is not finished'} (see {place})", file=sys.stderr)
    return 1 if missing else 0


def show_commands(ablation: Ablation) -> None:
    """Print the command that trains and evaluates each run."""
    for one in ablation.runs:
        start = ["torchrun", *torchrun_arguments(one), "-m", "dilated_seg"] if one.devices * one.nodes > 1 else ["dilated-seg"]
        print(shlex.join([*start, *one.arguments]))


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
            if finished(one, ablation):
                status = "finished"
            elif now:
                status, now = now, "queued"  # a later stage comes after this one
            elif (why := failure(one, chain)) or trained(one):
                status = why or "trained"
            else:
                status = "begun" if Run(one.folder).is_run else "not begun"
            table.add_row(one.name, str(one.seed), one.stage, status, str(one.folder))
    open_console().print(table)
