"""Jobs in processes of their own on this machine: how many at once, and how they start."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from dilated_seg.ablation.plan import Ablation, group_chains

# What a run imports, and what W&B imports when a run begins: about ten seconds of processor time that forked jobs save.
MODULES = (
    "dilated_seg.cli.parser", "dilated_seg.data", "dilated_seg.inference", "dilated_seg.models", "dilated_seg.training",
    "pandas", "wandb.sdk.launch",
)  # fmt: skip


def runs_at_once(ablation: Ablation) -> int:
    """Return how many runs share this machine: as many as there are GPUs for, or without a GPU as many as there are threads.

    The threads of all runs together are OMP_NUM_THREADS, or one for each core. It does not matter how many runs are left to
    train, or selected so far: a run has as many threads, on which its numbers depend, however often it was interrupted.
    """
    import torch

    if count := torch.cuda.device_count():
        return max(1, count // ablation.devices_per_run)
    return max(1, min(torch.get_num_threads() // ablation.devices_per_run, len(group_chains(ablation.planned))))


def shares_cores(ablation: Ablation) -> bool:
    """Return whether several runs are trained at once without being asked to: there is no GPU, and threads for several."""
    import torch

    return not torch.cuda.device_count() and runs_at_once(ablation) > 1


class Paths(NamedTuple):
    """Where a job writes."""

    stdout: Path


class JobProcess:
    """A process that calls a job, with the attributes and methods of submitit's jobs that a launcher uses.

    Args:
        job: To call; picklable.
        directory: Of the logs.
        threads: Of torch, in the process.
        forked: Whether to fork it, or to start an interpreter: a process that was forked cannot always use a GPU.
    """

    def __init__(self, job: Callable[[], None], directory: Path, threads: int, forked: bool) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        arguments = (job, directory, threads, dict(os.environ))
        self.process: BaseProcess = (
            multiprocessing.get_context("forkserver").Process(target=run_job, args=arguments)
            if forked
            else multiprocessing.get_context("spawn").Process(target=run_job, args=arguments)
        )
        self.process.start()
        self.job_id = str(self.process.pid)
        self.paths = Paths(log_path(directory, self.job_id))

    def done(self) -> bool:
        """Return whether the process has ended."""
        return self.process.exitcode is not None


def prepare_fork() -> None:
    """Start the process that jobs are forked from; it imports while this one goes on."""
    multiprocessing.set_forkserver_preload(list(MODULES))
    forkserver.ensure_running()


def log_path(directory: Path, job_id: str) -> Path:
    """Return the file that a job's output is written to."""
    return directory / f"{job_id}.log"


def run_job(job: Callable[[], None], directory: Path, threads: int, environment: dict[str, str]) -> None:
    """Call a job in this new process: its output goes to a file, and Ctrl-C is not for it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.clear()  # a process that is forked has the environment in which the first one was
    os.environ.update(environment)
    with log_path(directory, str(os.getpid())).open("wb") as log:
        for number, stream in ((1, sys.stdout), (2, sys.stderr)):
            os.dup2(log.fileno(), number)
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    import torch

    from dilated_seg.training.loggers import finish

    torch.set_num_threads(threads)
    try:
        job()
    finally:
        finish(1)  # multiprocessing skips what atexit registered; a run that has succeeded is finished already
