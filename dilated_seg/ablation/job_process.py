"""Processes of jobs on this machine: how many run at once, and how each starts."""

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

# Imports of a run, and those of W&B when a run begins: forked jobs save about ten seconds of processor time each.
MODULES = (
    "dilated_seg.cli.parser", "dilated_seg.data", "dilated_seg.inference", "dilated_seg.models", "dilated_seg.training",
    "pandas", "wandb.sdk.launch",
)  # fmt: skip


def count_runs_at_once(ablation: Ablation) -> int:
    """Return how many runs share this machine: GPUs / devices per run or, without a GPU, threads / devices per run.

    All runs together have OMP_NUM_THREADS threads, by default one per core; never more runs than chains. The result does not
    depend on how many runs remain: the results of a run depend on its number of threads, which an interruption must not change.
    With 8 threads, devices_per_run 1 and 3 chains it is 3, and each run has 8 // 3 = 2 threads.
    """
    import torch

    if count := torch.cuda.device_count():
        return max(1, count // ablation.devices_per_run)
    return max(1, min(torch.get_num_threads() // ablation.devices_per_run, len(group_chains(ablation.planned))))


def shares_cores(ablation: Ablation) -> bool:
    """Return whether runs are trained concurrently by default: there is no GPU, and there are threads for several."""
    import torch

    return not torch.cuda.device_count() and count_runs_at_once(ablation) > 1


class Paths(NamedTuple):
    """Files that a job writes, named as in submitit."""

    stdout: Path


class JobProcess:
    """A process that calls a job, with the attributes and methods of submitit's jobs that a launcher uses.

    Args:
        job: The picklable function to call.
        directory: The directory of the logs.
        threads: The number of torch's threads in the process.
        forked: Fork the process instead of starting an interpreter; a forked process cannot always use a GPU.
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
        self.paths = Paths(get_log_path(directory, self.job_id))

    def done(self) -> bool:
        """Return whether the process has ended."""
        return self.process.exitcode is not None


def prepare_fork() -> None:
    """Start the process that jobs are forked from; it imports while this one continues."""
    multiprocessing.set_forkserver_preload(list(MODULES))
    forkserver.ensure_running()


def get_log_path(directory: Path, job_id: str) -> Path:
    """Return the file that a job's output is written to."""
    return directory / f"{job_id}.log"


def run_job(job: Callable[[], None], directory: Path, threads: int, environment: dict[str, str]) -> None:
    """Call a job in this new process: redirect its output to a file, and ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.clear()  # a forked process has the environment of the fork server
    os.environ.update(environment)
    with get_log_path(directory, str(os.getpid())).open("wb") as log:
        for number, stream in ((1, sys.stdout), (2, sys.stderr)):
            os.dup2(log.fileno(), number)
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    import torch

    from dilated_seg.training.loggers import finish

    torch.set_num_threads(threads)
    try:
        job()
    finally:
        finish(1)  # multiprocessing skips atexit handlers; for a run that succeeded this does nothing
