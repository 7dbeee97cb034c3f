"""Chains as jobs, each in a process of its own: several at once on this machine; and what submitit calls."""

import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from dilated_seg.ablation.job_process import JobProcess, prepare_fork, runs_at_once
from dilated_seg.ablation.plan import FAILED, Ablation, Chain, failure, finished
from dilated_seg.ablation.worker import carry_out, claimed, is_claimed, note_failure, variables
from dilated_seg.errors import UserError

if TYPE_CHECKING:  # submitit is an optional extra
    from submitit import Job as Submitted
    from submitit.core.utils import DelayedSubmission

    AnyJob = Submitted[None] | JobProcess


class Job:
    """A chain as a job, to be called in a process of its own.

    SIGTERM ends it as it ends ``fit``, after the step and with a checkpoint. So does SIGUSR2, by which SLURM announces to
    submitit a time limit or a preemption; then submitit queues the job again, which continues.

    Args:
        ablation: Of the chain.
        chain: What to train.
        claim: Whether to keep other processes of the machine away.
    """

    def __init__(self, ablation: Ablation, chain: Chain, claim: bool) -> None:
        self.ablation, self.chain, self.claim = ablation, chain, claim

    def __call__(self) -> None:
        """Carry the chain out."""
        queue_again, announced = signal.getsignal(signal.SIGUSR2), []

        def announce(number: int, frame: Any) -> None:  # noqa: ANN401
            announced.append(number)
            signal.raise_signal(signal.SIGTERM)

        signal.signal(signal.SIGTERM, stop)  # outside of training; submitit would ignore it
        signal.signal(signal.SIGUSR2, announce)
        try:
            if self.claim:
                with claimed(self.chain, self.ablation):
                    carry_out(self.chain, self.ablation)
            else:
                carry_out(self.chain, self.ablation)
        except SystemExit:
            if announced and callable(queue_again):
                with suppress(subprocess.CalledProcessError):  # SLURM may have queued it again by itself
                    queue_again(signal.SIGUSR2, None)
            raise

    def checkpoint(self) -> "DelayedSubmission":
        """Return what submitit queues again."""
        from submitit.core.utils import DelayedSubmission

        return DelayedSubmission(self)


def stop(number: int, frame: Any) -> None:  # noqa: ANN401
    """End this process as StopOnSignal does."""
    raise SystemExit(128 + signal.SIGTERM)


@contextmanager
def undisturbed() -> Iterator[None]:
    """No signal parts the start of processes from knowing them; they inherit that Ctrl-C is not for them."""
    noted: list[int] = []
    ours = signal.signal(signal.SIGINT, signal.SIG_IGN)
    before = signal.signal(signal.SIGTERM, lambda number, frame: noted.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, ours)
        signal.signal(signal.SIGTERM, before)
    if noted:
        stop(noted[0], None)


class Launcher(ABC):
    """Runs chains as jobs, ``room`` of them at a time, until each has ended."""

    pause: float  # seconds between two looks at the jobs

    def __init__(self, ablation: Ablation, room: int) -> None:
        self.ablation, self.room = ablation, room
        self.begun: set[str] = set()  # jobs whose start was said
        self.running: dict[int, tuple[Chain, AnyJob]] = {}  # by a number from 0 to room - 1

    @abstractmethod
    def submit(self, batch: Mapping[int, Chain]) -> "Sequence[AnyJob]":
        """Start chains, or queue them."""

    @abstractmethod
    def leave(self) -> None:
        """Handle an interruption while jobs are running."""

    def carry_out(self, waiting: list[Chain], retries: int) -> None:
        """Train and evaluate what is missing of the chains; a line for each that starts or ends."""
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
                        print(f"{title(chain)} starts as job {job.job_id}, log {self.ablation.log(chain)}", flush=True)
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
        for one in (one for chain in batch.values() for one in chain):
            (one.folder / FAILED).unlink(missing_ok=True)
        with undisturbed():
            for (number, chain), job in zip(batch.items(), self.submit(batch), strict=True):
                self.running[number] = (chain, job)
                log = self.ablation.log(chain)
                log.parent.mkdir(parents=True, exist_ok=True)
                log.unlink(missing_ok=True)
                log.symlink_to(os.path.relpath(job.paths.stdout, log.parent.resolve()))

    def _end(self, chain: Chain, job: "AnyJob") -> bool:
        """Say how a job ended; whether its chain is finished."""
        left = [one for one in chain if not finished(one)]
        if left and not any(failure(one, chain) for one in left) and not is_claimed(chain, self.ablation):
            note_failure(left[0], f"its process was killed (for want of memory?) or stopped by a signal (job {job.job_id})")
        said = f"{left[0].label} {failure(left[0], chain) or 'is not finished'}" if left else f"{title(chain)} is finished"
        print(said, flush=True)
        return not left


class Local(Launcher):
    """Runs jobs on this machine, each with GPUs of its own and its share of the threads.

    Args:
        ablation: Whose runs.
        jobs: At once; see ``runs_at_once`` if None.

    Raises:
        UserError: There are fewer GPUs than the jobs need, each of which trains on several.
    """

    pause = 0.2

    def __init__(self, ablation: Ablation, jobs: int | None) -> None:
        import torch

        given = os.environ.get("CUDA_VISIBLE_DEVICES")
        visible = given.split(",") if given else []
        count = torch.cuda.device_count()
        self.devices = visible if len(visible) == count else [str(number) for number in range(count)]
        self.share = ablation.devices_per_run
        super().__init__(ablation, jobs or runs_at_once(ablation))
        check_device_count(self.share, self.room if self.share > 1 else 1)
        processes = self.room * self.share
        # OpenMP's threads spin while they wait, which slows every other process of the machine down: experiments/benchmarks/
        # sharing_cores.py. With one thread each there is none to wait.
        self.threads = max(1, torch.get_num_threads() // processes)
        self.waiting = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")} if processes > 1 else {}

    def prepare(self) -> None:
        """Let what jobs need be imported while this process goes on, if they are forked."""
        if not self.devices:
            with undisturbed(), variables(self.environment(0)):
                prepare_fork()

    def environment(self, number: int) -> dict[str, str]:
        """Return the environment of job ``number`` of those that run at once: its devices and threads per process."""
        first = number * self.share % max(1, len(self.devices))
        own = self.devices[first : first + self.share]
        threads = {"OMP_NUM_THREADS": str(self.threads)} | self.waiting
        return threads | ({"CUDA_VISIBLE_DEVICES": ",".join(own)} if own else {})

    def submit(self, batch: Mapping[int, Chain]) -> "Sequence[AnyJob]":
        jobs, logs = [], self.ablation.jobs / "logs"
        for number, chain in batch.items():
            with variables(self.environment(number)):
                job = Job(self.ablation, chain, claim=True)
                jobs.append(JobProcess(job, logs, self.threads, forked=not self.devices))
        return jobs

    def leave(self) -> None:
        """End the jobs; a second interruption lets them end alone."""
        print(f"waiting until {len(self.running)} runs have saved", flush=True)
        signalled = 0.0
        while jobs := [job for _, job in self.running.values() if not job.done()]:
            if time.monotonic() > signalled + 10:  # again, should one not have been listening yet
                signalled = time.monotonic()
                for job in jobs:
                    os.kill(int(job.job_id), signal.SIGTERM)
            time.sleep(0.1)


def check_device_count(devices_per_run: int, jobs: int = 1) -> None:
    """Check that this machine has GPUs enough for runs side by side, or none at all: then CPU processes train.

    Raises:
        UserError: It has too few.
    """
    import torch

    count = torch.cuda.device_count()
    if 0 < count < devices_per_run * jobs:
        runs = f" and --jobs {jobs}" if jobs > 1 else ""
        raise UserError(
            f"devices_per_run {devices_per_run}{runs} need {devices_per_run * jobs} GPUs, and {count} are visible here: lower "
            "them, or check CUDA_VISIBLE_DEVICES"
        )


def title(chain: Chain) -> str:
    """How a line in the terminal calls a chain: as its last run, without the stage."""
    return f"{chain[0].name}, seed {chain[0].seed}"
