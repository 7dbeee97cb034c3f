"""One run on several devices: torchrun starts its processes, on this machine or on all nodes of a SLURM job."""

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

GRACE = "3600"  # seconds that torchrun gives processes which were told to stop: they save after their step or validation
PORT = 29500  # torchrun's own default
# SLURM announces a time limit to every process by SIGUSR2, which ends those that do not expect it.
IGNORE_SIGUSR2 = ["sh", "-c", 'trap "" USR2; exec "$@"', "sh"]


def torchrun_arguments(one: PlannedRun) -> list[str]:
    """Return what follows ``torchrun`` to start a run's processes; rendezvous is at the machine that calls this."""
    if one.nodes == 1:
        return ["--standalone", "--nproc_per_node", str(one.devices)]
    meeting = ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"{socket.gethostname()}:{PORT}"]
    return ["--nnodes", str(one.nodes), "--nproc_per_node", str(one.devices), *meeting]


def launch_command(one: PlannedRun, arguments: Sequence[str]) -> list[str]:
    """Return the command that trains or evaluates a run on its devices; ``arguments`` are those of ``dilated-seg``."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", *torchrun_arguments(one), "-m", "dilated_seg", *arguments]
    # The job has one task, on its first node; from there a step of SLURM starts one torchrun a node beside it.
    step = ["srun", "--overlap", f"--nodes={one.nodes}", "--ntasks-per-node=1"] if one.nodes > 1 else []
    return [*step, *IGNORE_SIGUSR2, *torchrun]


def run_processes(one: PlannedRun, arguments: Sequence[str]) -> None:
    """Train or evaluate a run in processes of their own; an interruption of this one stops them after their step.

    Raises:
        UserError: A process failed or was killed.
    """
    with tempfile.TemporaryDirectory(dir=shared_directory(one)) as folder:
        reason = Path(folder, "reason")
        status = wait_for(launch_command(one, arguments), {REASON_FILE: str(reason), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": GRACE})
        if status != 0:
            killed = f"one of its {one.devices * one.nodes} processes was killed (for want of memory?) or stopped by a signal"
            raise UserError(reason.read_text(encoding="utf-8").strip() if reason.is_file() else killed)


def shared_directory(one: PlannedRun) -> Path:
    """Return a directory that all nodes of a run see: the parent of its own, created if need be."""
    one.folder.parent.mkdir(parents=True, exist_ok=True)
    return one.folder.parent


def wait_for(command: Sequence[str], environment: dict[str, str]) -> int:
    """Run a command in a session of its own, so that Ctrl-C reaches it once, as SIGTERM; return its exit status."""
    with subprocess.Popen(command, env=os.environ | environment, start_new_session=True) as process:
        try:
            return process.wait()
        except BaseException:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
