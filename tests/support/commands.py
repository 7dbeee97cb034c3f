"""Call the command as a user does: in this process, which costs no start-up, or in a process of its own.

``run_command`` is for everything that a user reads or finds on the disk. ``run_process`` is for what only a process has:
signals, exit by ``os._exit``, several devices, imports, output to a pipe.
"""

import io
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from dilated_seg.__main__ import main

ROOT = Path(__file__).parents[2]
THREADS = os.environ.get("DILATED_SEG_TEST_THREADS", "1")  # of the tests' process and of those that it starts
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

# One network, few and small images, two validations.
TINY = [
    "--config", "experiments/shapes/frontend.yaml",
    "--data.init_args.images=[16,3,2]", "--data.init_args.size=[32,64]", "--data.init_args.batch_size=2",
    "--model.net.init_args.width=0.02", "--model.net.init_args.dropout=0.5",
    "--trainer.max_steps=12", "--trainer.val_check_interval=4", "--trainer.log_every_n_steps=1",
]  # fmt: skip

# Runs the command, and sends {signal} to the process when {step} steps have been taken.
KILL = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from dilated_seg.__main__ import main
from dilated_seg.task import SegmentationTask
def die(self, *args):
    if self.global_step == {step}:
        os.kill(os.getpid(), {signal})
SegmentationTask.on_train_batch_start = die
sys.exit(main(sys.argv[1:]))
"""


def process_environment(**variables: str | None) -> dict[str, str]:
    """Return the environment of a process of its own; a variable that is None is taken out of it."""
    wanted = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": THREADS, **variables}
    return {name: value for name, value in wanted.items() if value is not None}


def run_process(
    *args: object, code: str | None = None, cwd: Path = ROOT, **variables: str | None
) -> subprocess.CompletedProcess[str]:
    """Run the command, or ``code`` in its place, in a process of its own, and wait for its end."""
    command = [sys.executable, *(["-c", code] if code else ["-m", "dilated_seg"]), *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=process_environment(**variables), capture_output=True, text=True)


def run_command(*args: object, **variables: str | None) -> subprocess.CompletedProcess[str]:
    """Run the command in this process, from the repository's root, and return what a process of its own would give."""
    out, error = io.StringIO(), io.StringIO()
    with keep_process_state(), redirect_stdout(out), redirect_stderr(error):
        os.chdir(ROOT)
        for name, value in process_environment(**variables).items():
            os.environ[name] = value
        for name in (name for name, value in variables.items() if value is None):
            os.environ.pop(name, None)
        try:
            status = main([*map(str, args)])
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except Exception:
            traceback.print_exc()
            status = 1
    return subprocess.CompletedProcess([*map(str, args)], status, out.getvalue(), error.getvalue())


@contextmanager
def keep_process_state() -> Iterator[None]:
    """Undo what a command leaves in its process: variables, signal handlers, directories, and W&B's run."""
    variables, directory, places = dict(os.environ), Path.cwd(), sys.path.copy()
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        if "dilated_seg.training.loggers" in sys.modules:
            sys.modules["dilated_seg.training.loggers"].finish()
        os.chdir(directory)
        sys.path[:] = places
        os.environ.clear()
        os.environ.update(variables)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def fails_in_one_sentence(result: subprocess.CompletedProcess[str], *words: str) -> bool:
    """Check that a command ended by one line on stderr that holds these words."""
    assert result.returncode != 0
    assert "Traceback" not in result.stdout + result.stderr
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("dilated-seg: ")
    for word in words:
        assert word in message
    return True
