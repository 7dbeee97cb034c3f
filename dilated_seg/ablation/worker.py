"""Trains the stages of one experiment with one seed, in order, in this process."""

import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from filelock import FileLock, Timeout
from rich.rule import Rule

from dilated_seg.ablation.plan import FAILED, Ablation, Chain, PlannedRun, failure, finished, join_parts, trained
from dilated_seg.ablation.processes import run_processes
from dilated_seg.errors import UserError, open_console


def carry_out(chain: Chain, ablation: Ablation, retries: int = 0) -> None:
    """Train and evaluate what is missing of a chain; the reason of a failure is written into the run's directory."""
    failed = False
    for one in chain:
        label = f"{ablation.runs.index(one) + 1} of {len(ablation.runs)}: {one.label}"
        if finished(one):
            print(f"{label} is finished", flush=True)
        elif failed:
            print(f"{label} is not tried: a stage before it failed", flush=True)
        else:
            failed = not any(attempt(one, ablation, label) for _ in range(1 + retries))


def attempt(one: PlannedRun, ablation: Ablation, label: str) -> bool:
    """Train and evaluate a run; whether it succeeded."""
    from dilated_seg.training.processes import find_mistake

    open_console().print(Rule(label, align="left"))
    (one.folder / FAILED).unlink(missing_ok=True)
    try:
        train(one, ablation)
    except Exception as error:
        mistake = find_mistake(error)
        if mistake is None:
            traceback.print_exc()
        note_failure(one, str(mistake) if mistake else f"{type(error).__name__}: {error}")
        print(f"{label} {failure(one, (one,))}", file=sys.stderr, flush=True)
        return False
    return True


def train(one: PlannedRun, ablation: Ablation) -> None:
    """Train a run, or continue it, and make the evaluations that it needs; once trained, only those that are missing.

    Raises:
        UserError: The run failed, and why.
    """
    # the seeds of one name are one curve
    named = {"WANDB_RUN_GROUP": ablation.group, "WANDB_NAME": join_parts(one.name, one.stage)}
    if not trained(one):
        execute(one, one.arguments, named)
    for evaluation in one.missing():
        # An evaluation with a CRF logs what the network says without it too, which the plain one has logged.
        job = {"WANDB_JOB_TYPE": "crf"} if any(option.startswith("--crf") for option in evaluation.options) else {}
        name = {"WANDB_NAME": join_parts(one.name, evaluation.protocol)}
        execute(one, one.evaluation_arguments(evaluation), named | name | job)


def execute(one: PlannedRun, arguments: list[str], environment: Mapping[str, str]) -> None:
    """Train or evaluate a run: on one device in this process, on several in processes of their own.

    Raises:
        UserError: It failed, and why.
    """
    with variables(environment):
        if one.devices * one.nodes > 1:
            run_processes(one, arguments)
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
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for a while."""
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


def note_failure(one: PlannedRun, why: str) -> None:
    """Write the reason of a failure as one line into the run's directory."""
    from dilated_seg.storage import write_text

    write_text(one.folder / FAILED, " ".join(why.split())[:500] + "\n")


@contextmanager
def claimed(chain: Chain, ablation: Ablation) -> Iterator[None]:
    """Keep other processes of this machine from training the same runs meanwhile.

    Raises:
        UserError: Another one does.
    """
    file = ablation.jobs / f"{ablation.place(chain)}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=10)  # the workers of a process that was killed may take a moment to end
    except Timeout:
        raise UserError(f"another process is training {chain[0].folder}: wait for it, or end it") from None
    try:
        yield
    finally:
        lock.release()


def is_claimed(chain: Chain, ablation: Ablation) -> bool:
    """Whether a process of this machine is training a chain."""
    file = ablation.jobs / f"{ablation.place(chain)}.lock"
    if not os.access(file, os.W_OK):  # not there, or another user's
        return False
    try:
        FileLock(file).acquire(timeout=0).lock.release()
    except Timeout:
        return True
    return False
