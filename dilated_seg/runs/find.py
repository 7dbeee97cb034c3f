"""Finds runs and checkpoints in directories of runs."""

from collections.abc import Sequence
from pathlib import Path

from dilated_seg.errors import UserError
from dilated_seg.runs.checkpoint import Checkpoint
from dilated_seg.runs.run import Run


def find_evaluated_runs(directory: str | Path) -> list[Run]:
    """Return the runs with evaluations at or below a directory, sorted by path.

    Raises:
        UserError: There is no such run.
    """
    runs = [Run(path.parent) for path in sorted(Path(directory).glob(f"**/{Run(directory).evaluation_dir.name}"))]
    if not runs:
        raise UserError(f"{directory} has no evaluated run: evaluate one with `dilated-seg validate` or `test`")
    return runs


def find_common_evaluation(runs: Sequence[Run]) -> str:
    """Return the name of the only evaluation that all runs have.

    Those after training have precedence over those during training; partial evaluations are left out.

    Raises:
        UserError: There is no such evaluation, or several.
    """
    common = set.intersection(*(set(run.evaluation_names()) for run in runs))
    partial = {name for name in common if any(run.evaluation(name).protocol.partial for run in runs)}
    whole = common - partial
    after = {name for name in whole if "-" in name} or whole
    if partial and not whole:
        raise UserError(
            f"the runs have only partial evaluations in common ({', '.join(sorted(partial))}): evaluate the whole split, or "
            "choose with --evaluation"
        )
    if len(after) != 1:
        raise UserError(f"the runs have {', '.join(sorted(after)) or 'no evaluation'} in common: choose with --evaluation")
    return after.pop()


def newest_checkpoint(directory: str | Path) -> Checkpoint:
    """Return the last checkpoint of the newest finished run in a directory: see `Run.newest`.

    Raises:
        UserError: No run is finished, or its checkpoint is missing or damaged.
    """
    checkpoint = Run.newest(directory).last_checkpoint
    if not checkpoint.is_intact():
        raise UserError(f"{checkpoint.path} is missing or damaged: train its run again, or name another file")
    return checkpoint
