"""Launchers: chains as jobs in processes of their own, several at once on this machine or through submitit."""

import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from dilated_seg.ablation.job_process import JobProcess, count_runs_at_once, prepare_fork
from dilated_seg.ablation.plan import FAILED, Ablation, Chain, explain_failure, is_finished
from dilated_seg.ablation.worker import carry_out, claim, is_claimed, note_failure, set_variables
from dilated_seg.errors import UserError

if TYPE_CHECKING:  # submitit is an optional extra
    from submitit import Job as Submitted
    from submitit.core.utils import DelayedSubmission

    AnyJob = Submitted[None] | JobProcess


class Job:
    """A chain as a job, to be called in a process of its own.

    SIGTERM ends it as it ends ``fit``: after the current step, with a checkpoint. So does SIGUSR2, by which SLURM announces a
    time limit or a preemption to submitit, which then queues the job again to continue.

    Args:
        ablation: The ablation.
        chain: The chain to train.
        claim: Hold the chain's lock, so that no other process of this machine trains it.
    """

    def __init__(self, ablation: Ablation, chain: Chain, claim: bool) -> None:
        self.ablation, self.chain, self.claim = ablation, chain, claim

    def __call__(self) -> None:
        """Train and evaluate the chain."""
        queue_again, announced = signal.getsignal(signal.SIGUSR2), []

        def announce(number: int, frame: Any) -> None:  # noqa: ANN401
            announced.append(number)
            signal.raise_signal(signal.SIGTERM)

        signal.signal(signal.SIGTERM, stop)  # outside of training; submitit would ignore it
        signal.signal(signal.SIGUSR2, announce)
        try:
            if self.claim:
                with claim(self.chain, self.ablation):
                    carry_out(self.chain, self.ablation)
            else:
                carry_out(self.chain, self.ablation)
        except SystemExit:
            if announced and callable(queue_again):
                with suppress(subprocess.CalledProcessError):  # SLURM may have queued it again by itself
                    queue_again(signal.SIGUSR2, None)
            raise

    def checkpoint(self) -> "DelayedSubmission":
        """Return the job for submitit to queue again."""
        from submitit.core.utils import DelayedSubmission

        return DelayedSubmission(self)


def stop(number: int, frame: Any) -> None:  # noqa: ANN401
    """End this process as StopOnSignal does."""
    raise SystemExit(128 + signal.SIGTERM)


@contextmanager
def hold_signals() -> Iterator[None]:
    """Defer SIGTERM and ignore Ctrl-C while processes start, so that none starts unrecorded; children ignore Ctrl-C too."""
    deferred: list[int] = []
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    terminate = signal.signal(signal.SIGTERM, lambda number, frame: deferred.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, terminate)
    if deferred:
        stop(deferred[0], None)


class Launcher(ABC):
    """Runs chains as jobs, ``room`` of them at a time, until each has ended."""

    pause: float  # seconds between two polls of the jobs

    def __init__(self, ablation: Ablation, room: int) -> None:
        self.ablation, self.room = ablation, room
        self.begun: set[str] = set()  # ids of jobs whose start was printed
        self.running: dict[int, tuple[Chain, AnyJob]] = {}  # by slot, from 0 to room - 1

    @abstractmethod
    def submit(self, batch: Mapping[int, Chain]) -> "Sequence[AnyJob]":
        """Start or queue the job of each chain, by slot."""

    @abstractmethod
    def leave(self) -> None:
        """End, or announce how to end, the running jobs after an interruption."""

    def carry_out(self, waiting: list[Chain], retries: int) -> None:
        """Train and evaluate the unfinished runs of chains; print a line when one starts and when one ends."""
        tried: Counter[Chain] = Counter()
        before = signal.signal(signal.SIGTERM, stop)
        try:
            while waiting or self.running:
                free = (number for number in range(self.room) if number not in self.running)
                batch = dict(zip(free, waiting, strict=False))
                del waiting[: len(batch)]
                self._start(batch)
                time.sleep(self.pause)
                for number, (chain, job) in list(self.running.items()):
                    if job.job_id not in self.begun and job.paths.stdout.exists():
                        self.begun.add(job.job_id)
                        print(f"{format_title(chain)} starts as job {job.job_id}, log {self.ablation.log(chain)}", flush=True)
                    if job.done():
                        del self.running[number]
                        tried[chain] += 1
                        if not self._end(chain, job) and tried[chain] <= retries:
                            waiting.append(chain)
        except (KeyboardInterrupt, SystemExit):
            self.leave()
            raise
        finally:
            signal.signal(signal.SIGTERM, before)

    def _start(self, batch: Mapping[int, Chain]) -> None:
        if not batch:
            return
        for run in (run for chain in batch.values() for run in chain):
            (run.directory / FAILED).unlink(missing_ok=True)
        with hold_signals():
            for (number, chain), job in zip(batch.items(), self.submit(batch), strict=True):
                self.running[number] = (chain, job)
                log = self.ablation.log(chain)
                log.parent.mkdir(parents=True, exist_ok=True)
                log.unlink(missing_ok=True)
                log.symlink_to(os.path.relpath(job.paths.stdout, log.parent.resolve()))

    def _end(self, chain: Chain, job: "AnyJob") -> bool:
        """Print how a job ended; return whether its chain is finished."""
        unfinished = [run for run in chain if not is_finished(run)]
        if unfinished and not any(explain_failure(run, chain) for run in unfinished) and not is_claimed(chain, self.ablation):
            note_failure(unfinished[0], f"its process was killed (out of memory?) or stopped by a signal (job {job.job_id})")
        if unfinished:
            print(f"{unfinished[0].label} {explain_failure(unfinished[0], chain) or 'is not finished'}", flush=True)
        else:
            print(f"{format_title(chain)} is finished", flush=True)
        return not unfinished


class Local(Launcher):
    """Runs jobs on this machine, each with GPUs of its own and its share of the threads.

    Args:
        ablation: The ablation.
        jobs: The number of concurrent jobs; by default `count_runs_at_once`.

    Raises:
        UserError: Jobs train on several GPUs each, and there are too few of them.
    """

    pause = 0.2

    def __init__(self, ablation: Ablation, jobs: int | None) -> None:
        import torch

        names = os.environ.get("CUDA_VISIBLE_DEVICES")
        visible = names.split(",") if names else []
        count = torch.cuda.device_count()
        self.devices = visible if len(visible) == count else [str(number) for number in range(count)]
        self.share = ablation.devices_per_run
        super().__init__(ablation, jobs or count_runs_at_once(ablation))
        check_device_count(self.share, self.room if self.share > 1 else 1)
        processes = self.room * self.share
        # OpenMP's threads spin while they wait, which slows the other processes of the machine (measured by
        # experiments/benchmarks/sharing_cores.py). A process with one thread never waits.
        self.threads = max(1, torch.get_num_threads() // processes)
        self.waiting = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")} if processes > 1 else {}

    def prepare(self) -> None:
        """Start importing for the jobs in the background, if they are forked."""
        if not self.devices:
            with hold_signals(), set_variables(self.environment(0)):
                prepare_fork()

    def environment(self, number: int) -> dict[str, str]:
        """Return the environment variables of the job in slot ``number``: its devices and its threads per process.

        With 4 GPUs and 2 per run, slots 0, 1 and 2 have CUDA_VISIBLE_DEVICES 0,1 and 2,3 and 0,1.
        """
        first = number * self.share % max(1, len(self.devices))
        devices = self.devices[first : first + self.share]
        threads = {"OMP_NUM_THREADS": str(self.threads)} | self.waiting
        return threads | ({"CUDA_VISIBLE_DEVICES": ",".join(devices)} if devices else {})

    def submit(self, batch: Mapping[int, Chain]) -> "Sequence[AnyJob]":
        jobs, logs = [], self.ablation.jobs / "logs"
        for number, chain in batch.items():
            with set_variables(self.environment(number)):
                job = Job(self.ablation, chain, claim=True)
                jobs.append(JobProcess(job, logs, self.threads, forked=not self.devices))
        return jobs

    def leave(self) -> None:
        """Ask the jobs to end and wait for them; a second interruption ends the wait, not the jobs."""
        print(f"waiting until {len(self.running)} runs have written their checkpoints", flush=True)
        signalled = 0.0
        while jobs := [job for _, job in self.running.values() if not job.done()]:
            if time.monotonic() > signalled + 10:  # again: a job may not have installed its handler yet
                signalled = time.monotonic()
                for job in jobs:
                    os.kill(int(job.job_id), signal.SIGTERM)
            time.sleep(0.1)


def check_device_count(devices_per_run: int, jobs: int = 1) -> None:
    """Check that this machine has enough GPUs for concurrent runs, or none: then processes train on the CPU.

    Raises:
        UserError: There are GPUs, but too few.
    """
    import torch

    count = torch.cuda.device_count()
    if 0 < count < devices_per_run * jobs:
        runs = f" and --jobs {jobs}" if jobs > 1 else ""
        raise UserError(
            f"devices_per_run {devices_per_run}{runs} need {devices_per_run * jobs} GPUs, and {count} are visible here: lower "
            "them, or check CUDA_VISIBLE_DEVICES"
        )


def format_title(chain: Chain) -> str:
    """Return a chain's name in the terminal: that of its runs, without the stage."""
    return f"{chain[0].name}, seed {chain[0].seed}"
