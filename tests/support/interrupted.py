"""Trains a tiny network again and again, interrupts it in every way there is, and lets it continue: see test_resume.py.

One process imports everything and forks a child for each run, which then gets real signals.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from dilated_seg.__main__ import main
from dilated_seg.cli import CLI  # noqa: F401 - imported before the forks, not in each of them
from dilated_seg.runs.checkpoint import Checkpoint
from dilated_seg.task import SegmentationTask
from dilated_seg.training import checkpoint_io
from tests.support.commands import THREADS

STEPS = 12
WORKERS = (0, 1, 3)
CALLS = 300  # pieces written of each checkpoint; there are more
KILL, TERM, INTERRUPT, USER = signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1


def at_step(step, act):
    """Act when a step begins."""
    started = SegmentationTask.on_train_batch_start

    def on_train_batch_start(self, *args):
        if self.global_step == step:
            act()
        started(self, *args)

    SegmentationTask.on_train_batch_start = on_train_batch_start


def at_batch(number, act):
    """Act when a batch begins, of which several may make a step."""
    started, seen = SegmentationTask.on_train_batch_start, 0

    def on_train_batch_start(self, *args):
        nonlocal seen
        seen += 1
        if seen == number:
            act()
        started(self, *args)

    SegmentationTask.on_train_batch_start = on_train_batch_start


def while_saving(number, call):
    """Die in the so-manieth checkpoint, at the so-manieth piece written, checksum noted or file renamed."""
    saves = calls = 0
    save = checkpoint_io.SafeCheckpointIO.save_checkpoint

    def saving(*args, **kwargs):
        nonlocal saves, calls
        saves, calls = saves + 1, 0
        save(*args, **kwargs)

    def counted(function):
        def counting(*args):
            nonlocal calls
            calls += 1
            if (saves, calls) == (number, call):
                os.kill(os.getpid(), KILL)
            return function(*args)

        return counting

    checkpoint_io.SafeCheckpointIO.save_checkpoint = saving
    checkpoint_io.Hashing.write = counted(checkpoint_io.Hashing.write)
    checkpoint_io.write_checksums, checkpoint_io.replace_checkpoint, checkpoint_io.keep_as = map(
        counted, (checkpoint_io.write_checksums, checkpoint_io.replace_checkpoint, checkpoint_io.keep_as)
    )


def crash():
    raise RuntimeError("a crash")


def fork(arguments, log, prepare=lambda: None, wait=None):
    """Run the command in a child; gives its exit status, as a shell would."""
    child = os.fork()
    if not child:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        signal.signal(INTERRUPT, signal.default_int_handler)  # a shell's background jobs ignore it
        status = 70
        try:
            prepare()
            status = main(["fit", *arguments])
        except SystemExit as end:
            status = end.code
        except BaseException as error:
            print(repr(error), flush=True)
        finally:
            os._exit(status or 0)
    if wait is not None:
        time.sleep(wait)
        os.kill(child, KILL)
    _, status = os.waitpid(child, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def trials(rng, duration):
    """Ten ways to be interrupted, at random steps."""
    step = lambda: rng.randint(1, STEPS - 1)  # noqa: E731
    send = lambda number: lambda: os.kill(os.getpid(), number)  # noqa: E731
    for number, code in ((KILL, -9), (TERM, 143), (USER, 143), (INTERRUPT, 130), (TERM, 143)):
        yield f"{signal.Signals(number).name} at step {(k := step())}", lambda k=k, n=number: at_step(k, send(n)), None, {code}
    yield f"crash at step {(k := step())}", lambda k=k: at_step(k, crash), None, {70}
    for k in (2, 3, 5):  # the sixth depends on which was best
        yield f"SIGKILL at call {(n := rng.randint(1, CALLS))} of save {k}", lambda k=k, n=n: while_saving(k, n), None, {-9}
    yield f"SIGKILL after {(t := rng.uniform(0.2, 0.8) * duration):.2f} s", lambda: None, t, {-9, 0}


def state(run):
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    # not "epoch": a run that is continued when its last step is done does not count the epoch it is in
    return {k: checkpoint[k] for k in ("global_step", "state_dict", "optimizer_states", "lr_schedulers")}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def everything(folder, seed, whole, arguments):
    """A run that goes through, and all trials, each with 0, 1 or 3 workers; gives what became of each."""
    log, found = folder / "log.txt", []
    start = time.monotonic()
    assert fork([*whole, "--run_dir", f"{folder}/whole"], log) == 0
    expected, duration = state(folder / "whole"), time.monotonic() - start
    for number, (name, prepare, wait, codes) in enumerate(trials(random.Random(seed), duration)):
        run = folder / f"run{number}"
        again = [*arguments, f"--data.init_args.num_workers={WORKERS[number % len(WORKERS)]}", "--run_dir", str(run)]
        ended = fork(again, log, prepare, wait)
        left = sorted(path.name for path in run.glob("checkpoints/*.ckpt"))
        whole_files = all(Checkpoint(path).is_intact() for path in run.glob("checkpoints/*.ckpt"))
        continued = fork(again, log)
        found.append(
            {
                "trial": name,
                "status": ended,
                "ended": ended in codes,
                "left": left,
                "verified": whole_files,
                "same": continued == 0 and same(state(run), expected),
            }
        )
    return found


if __name__ == "__main__":
    torch.set_num_threads(int(THREADS))
    given = json.loads(sys.argv[1])
    print(json.dumps(everything(Path(given["folder"]), given["seed"], given["whole"], given["arguments"])))
