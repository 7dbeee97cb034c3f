"""Worker processes that load data: their signals, W&B's import hooks, and messages that only one of them prints."""

import atexit
import multiprocessing
import os
import signal
import sys

from torch.utils.data import get_worker_info

PRINTED: set[bytes] = set()  # topics that `print_once` has printed


def remove_import_hooks() -> None:
    """Remove W&B's import hooks from this process.

    While a run is active, they report the first import of packages such as ``datasets``, ``huggingface_hub`` or
    ``transformers`` to W&B's service. If it cannot be reached, the import fails: in a forked process with ForkedError, in any
    process once the service has died.
    """
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__.partition(".")[0] != "wandb"]


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=remove_import_hooks)


def initialize_worker(worker: int) -> None:
    """Prepare a DataLoader's worker: remove W&B's import hooks, and ignore signals.

    A signal to all processes of a job, or Ctrl-C, must not end a worker before the training process has saved a checkpoint.
    """
    remove_import_hooks()
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def end_workers() -> None:
    """Kill the remaining workers when this process exits, such as after an error.

    multiprocessing would send SIGTERM, which they ignore, and then wait forever.
    """
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def print_once(topic: bytes, line: str) -> None:
    """Print a line to stderr, once per topic, in the first training process or its first worker only."""
    worker = get_worker_info()
    if topic not in PRINTED and (worker is None or worker.id == 0) and os.environ.get("LOCAL_RANK", "0") == "0":
        print(line, file=sys.stderr)
    PRINTED.add(topic)
