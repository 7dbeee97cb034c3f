"""The processes of a run: memory, warnings, what an error means, and an end together."""

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
    """The user's mistake behind an exception: jsonargparse and Lightning wrap what a constructor or a worker raised."""
    while error is not None and not isinstance(error, UserError | MisconfigurationException):
        error = error.__cause__ or error.__context__
    return error


def lost_process(error: Exception, trainer: Trainer, timeout: float) -> UserError | None:
    """What to say if an error means that another process of a run is not there any more; gloo has no class for it."""
    if trainer.world_size == 1 or not isinstance(error, RuntimeError) or find_mistake(error):
        return None
    if "Connection closed by peer" in str(error) or "Connection reset by peer" in str(error):
        return UserError("another process of this run has ended: what it printed says why")
    if "imed out" in str(error):
        return UserError(
            f"another process of this run has not answered for {timeout:g} seconds: look at its machine, or raise "
            "--process_timeout if it was only slow"
        )
    return None


def end_other_processes(trainer: Trainer, patience: float) -> None:
    """End the processes that Lightning started, such as one that hangs, if they have not ended after this many seconds."""
    processes: list[Any] = getattr(trainer.strategy.launcher, "procs", [])
    for process in processes:
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
    processes.clear()  # or Lightning, which watches them, would kill this one too


def keep_memory() -> None:
    """Let glibc keep freed memory instead of giving it back after every step.

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


def quiet() -> None:
    """Drop what tells a user of this package nothing to act on."""
    for name in ("lightning.pytorch", "lightning.fabric"):  # hardware, seeds, advertisements
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*dataloader is not resumable.*",  # ours starts where the run stands: data/datamodule.py
        ".*custom batch sampler.*",  # EvaluationOrder gives every image
        ".*Experiment logs directory.*",  # what it would delete is kept: keep_history
        ".*exists and is not empty.*",  # a run that continues
        ".*dirpath has changed.*",  # a run's folder may be moved: its checkpoints go where the run is
        ".*smaller than the logging interval.*",  # it is of steps, over all epochs
        ".*max_epochs. was not set.*",  # the length is max_steps
        ".*supported for historical reasons.*",  # 16 and bf16, as everybody writes them
        ".*LeafSpec.*",
        ".*sync_dist=True.*",  # the scores are of all processes already
    ):
        warnings.filterwarnings("ignore", message)


class ProcessTimeout(Callback):
    """Ends a run of several processes when one of them hangs: the others wait so long for it and then fail.

    It begins when all of them have started, however long that took.

    Args:
        seconds: To wait.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.world_size > 1:
            set_process_timeout(timedelta(seconds=self.seconds))
