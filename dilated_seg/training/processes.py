"""Process utilities: allocator settings, warning filters, error unwrapping, termination of DDP workers."""

import ctypes
import logging
import subprocess
import sys
import warnings
from datetime import timedelta
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException

from dilated_seg.errors import UserError
from dilated_seg.models.torch_internals import set_process_timeout


def find_mistake(error: BaseException | None) -> BaseException | None:
    """Return the user's mistake behind an exception, which jsonargparse and Lightning wrap; None if there is none."""
    while error is not None and not isinstance(error, UserError | MisconfigurationException):
        error = error.__cause__ or error.__context__
    return error


def explain_lost_process(error: Exception, trainer: Trainer, timeout: float) -> UserError | None:
    """Return the message for an error that shows that another process died or timed out (gloo raises RuntimeErrors)."""
    if trainer.world_size == 1 or not isinstance(error, RuntimeError) or find_mistake(error):
        return None
    if "Connection closed by peer" in str(error) or "Connection reset by peer" in str(error):
        return UserError("another process of this run has ended: see its output for the reason")
    if "imed out" in str(error):
        return UserError(
            f"another process of this run has not answered for {timeout:g} seconds: look at its machine, or raise "
            "--process_timeout if it was only slow"
        )
    return None


def end_other_processes(trainer: Trainer, patience: float) -> None:
    """Kill the processes that Lightning started if they have not ended after ``patience`` seconds."""
    processes: list[Any] = getattr(trainer.strategy.launcher, "procs", [])
    for process in processes:
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
    processes.clear()  # or Lightning would kill this process too


def keep_memory() -> None:
    """Let glibc keep freed memory instead of returning it to the system after every step.

    On a CPU, 60 steps of experiments/shapes/segnet.yaml take 8 % less processor time: 12.0 s (of three runs, 11.95 to 12.04)
    and not 13.1 s (12.8 to 13.4), with 1,000 page faults and not 200,000.
    """
    if sys.platform == "linux":
        try:
            mallopt = ctypes.CDLL("libc.so.6").mallopt
        except (OSError, AttributeError):
            return
        for option, value in ((-4, 0), (-1, -1), (-2, 64 << 20)):  # no mmap, never trim, grow by 64 MiB
            mallopt(option, value)


def silence_warnings() -> None:
    """Silence warnings and log messages that users cannot act on."""
    for name in ("lightning.pytorch", "lightning.fabric"):  # hardware, seeds, advertisements
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*dataloader is not resumable.*",  # ours resumes: data/datamodule.py
        ".*custom batch sampler.*",  # EvaluationOrder has every image
        ".*Experiment logs directory.*",  # metrics.csv is kept: keep_history
        ".*exists and is not empty.*",  # a run that continues
        ".*dirpath has changed.*",  # a run directory may be moved
        ".*smaller than the logging interval.*",  # it counts steps over all epochs
        ".*max_epochs. was not set.*",  # the length is max_steps
        ".*supported for historical reasons.*",  # 16 and bf16
        ".*LeafSpec.*",
        ".*callbacks used to create the checkpoint need.*RunRecord.*",  # a training in Python that a command evaluates
        ".*sync_dist=True.*",  # metrics are those of all processes
    ):
        warnings.filterwarnings("ignore", message)


class ProcessTimeout(Callback):
    """Ends a run of several processes if one of them hangs: the others fail after waiting for it.

    The timeout applies after all processes have started.

    Args:
        seconds: The time to wait.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.world_size > 1:
            set_process_timeout(timedelta(seconds=self.seconds))
