"""Training and evaluation of a chain in this process: the stages of one experiment with one seed, in order."""

import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from filelock import FileLock, Timeout
from rich.rule import Rule

from dilated_seg.ablation.plan import FAILED, Ablation, Chain, PlannedRun, explain_failure, is_finished, is_trained, join_parts
from dilated_seg.ablation.torchrun import run_processes
from dilated_seg.errors import UserError, open_console


def carry_out(chain: Chain, ablation: Ablation, retries: int = 0) -> None:
    """Train and evaluate the unfinished runs of a chain; write the reason of a failure into the run's directory."""
    failed = False
    for run in chain:
        label = f"{ablation.runs.index(run) + 1} of {len(ablation.runs)}: {run.label}"
        if is_finished(run):
            print(f"{label} is finished", flush=True)
        elif failed:
            print(f"{label} is not tried: a stage before it failed", flush=True)
        else:
            failed = not any(attempt(run, ablation, label) for _ in range(1 + retries))


def attempt(run: PlannedRun, ablation: Ablation, label: str) -> bool:
    """Train and evaluate a run; return whether it succeeded."""
    from dilated_seg.training.processes import find_mistake

    open_console().print(Rule(label, align="left"))
    (run.directory / FAILED).unlink(missing_ok=True)
    try:
        train(run, ablation)
    except Exception as error:
        mistake = find_mistake(error)
        if mistake is None:
            traceback.print_exc()
        note_failure(run, str(mistake) if mistake else f"{type(error).__name__}: {error}")
        print(f"{label} {explain_failure(run, (run,))}", file=sys.stderr, flush=True)
        return False
    return True


def train(run: PlannedRun, ablation: Ablation) -> None:
    """Train a run, or continue it, and perform its missing evaluations.

    Raises:
        UserError: The training or an evaluation failed.
    """
    # W&B groups runs by name: seeds share one, so that a network is one curve.
    group = {"WANDB_RUN_GROUP": ablation.group, "WANDB_NAME": join_parts(run.name, run.stage)}
    if not is_trained(run):
        execute(run, run.arguments, group)
    for evaluation in run.missing():
        # An evaluation with a CRF also logs the metrics without it, as the plain evaluation does: keep it out of the panels.
        job = {"WANDB_JOB_TYPE": "crf"} if any(option.startswith("--crf") for option in evaluation.options) else {}
        name = {"WANDB_NAME": join_parts(run.name, evaluation.protocol)}
        execute(run, run.evaluation_arguments(evaluation), group | name | job)


def execute(run: PlannedRun, arguments: list[str], environment: Mapping[str, str]) -> None:
    """Train or evaluate a run: on one device in this process, on several in processes of their own.

    Args:
        run: The run.
        arguments: The arguments of ``dilated-seg``.
        environment: Environment variables for this call.

    Raises:
        UserError: The command failed.
    """
    with set_variables(environment):
        if run.devices * run.nodes > 1:
            run_processes(run, arguments)
            return
        from dilated_seg.cli import CLI
        from dilated_seg.training.loggers import finish

        try:
            CLI(arguments, summary=False)
        except Exception:
            finish(1)
            raise
        finish()


@contextmanager
def set_variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables; restore them at the end."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def note_failure(run: PlannedRun, reason: str) -> None:
    """Write the reason of a failure as one line into the run's directory."""
    from dilated_seg.storage import write_text

    write_text(run.directory / FAILED, " ".join(reason.split())[:500] + "\n")


@contextmanager
def claim(chain: Chain, ablation: Ablation) -> Iterator[None]:
    """Hold a chain's lock, so that no other process of this machine trains it.

    Raises:
        UserError: Another process holds it.
    """
    file = ablation.jobs / f"{ablation.get_relative_directory(chain)}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=10)  # the workers of a process that was killed may take a moment to end
    except Timeout:
        raise UserError(f"another process is training {chain[0].directory}: wait for it, or end it") from None
    try:
        yield
    finally:
        lock.release()


def is_claimed(chain: Chain, ablation: Ablation) -> bool:
    """Return whether a process of this machine is training a chain."""
    file = ablation.jobs / f"{ablation.get_relative_directory(chain)}.lock"
    if not os.access(file, os.W_OK):  # missing, or owned by another user
        return False
    try:
        FileLock(file).acquire(timeout=0).lock.release()
    except Timeout:
        return True
    return False
