"""Runs on several devices: torchrun starts the processes, on this machine or on all nodes of a SLURM job."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dilated_seg.ablation.plan import PlannedRun
from dilated_seg.errors import REASON_FILE, UserError

GRACE = "3600"  # seconds between torchrun's SIGTERM and SIGKILL: processes save a checkpoint after their step or validation
PORT = 29500  # torchrun's own default
# SLURM announces a time limit to every process by SIGUSR2, which ends those that do not expect it.
IGNORE_SIGUSR2 = ["sh", "-c", 'trap "" USR2; exec "$@"', "sh"]


def list_torchrun_arguments(run: PlannedRun) -> list[str]:
    """Return the arguments of ``torchrun`` for a run's processes; the rendezvous is on the calling machine."""
    if run.nodes == 1:
        return ["--standalone", "--nproc_per_node", str(run.devices)]
    rendezvous = ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"{socket.gethostname()}:{PORT}"]
    return ["--nnodes", str(run.nodes), "--nproc_per_node", str(run.devices), *rendezvous]


def launch_command(run: PlannedRun, arguments: Sequence[str]) -> list[str]:
    """Return the command that trains or evaluates a run on its devices; ``arguments`` are those of ``dilated-seg``."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", *list_torchrun_arguments(run), "-m", "dilated_seg", *arguments]
    # The job has one task, on its first node; from there a step of SLURM that shares the job starts one torchrun a node.
    step = ["srun", "--overlap", f"--nodes={run.nodes}", "--ntasks-per-node=1"] if run.nodes > 1 else []
    return [*step, *IGNORE_SIGUSR2, *torchrun]


def run_processes(run: PlannedRun, arguments: Sequence[str]) -> None:
    """Train or evaluate a run in several processes; an interruption of this process stops them after their step.

    Raises:
        UserError: A process failed or was killed.
    """
    with tempfile.TemporaryDirectory(dir=make_shared_directory(run)) as directory:
        reason = Path(directory, "reason")
        status = wait_for(launch_command(run, arguments), {REASON_FILE: str(reason), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": GRACE})
        if status != 0:
            killed = f"one of its {run.devices * run.nodes} processes was killed (out of memory?) or stopped by a signal"
            raise UserError(reason.read_text(encoding="utf-8").strip() if reason.is_file() else killed)


def make_shared_directory(run: PlannedRun) -> Path:
    """Create and return a directory that is visible to all nodes of a run: the parent of the run's directory."""
    run.directory.parent.mkdir(parents=True, exist_ok=True)
    return run.directory.parent


def wait_for(command: Sequence[str], environment: dict[str, str]) -> int:
    """Run a command in a session of its own, so that Ctrl-C reaches it once, as SIGTERM; return the exit status."""
    with subprocess.Popen(command, env=os.environ | environment, start_new_session=True) as process:
        try:
            return process.wait()
        except BaseException:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
