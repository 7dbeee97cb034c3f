"""A run that is interrupted, in whatever way, ends with the weights of one that was not."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dilated_seg.__main__ import main
from dilated_seg.data.prepare import write
from dilated_seg.errors import UserError
from dilated_seg.runs import Checkpoint
from dilated_seg.runs.run import Run
from dilated_seg.training import checkpoint_io
from dilated_seg.training.checkpoint_io import LAST, PREVIOUS, SafeCheckpointIO
from tests.support import fake_datasets
from tests.support.commands import ROOT, THREADS, run_process
from tests.support.interrupted import same

STATE = {"state_dict": {"a": torch.arange(1000.0)}, "global_step": 1}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A dataset of 15 training images in small row groups."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "SHARD_BYTES", 4000)
        patch.setattr(write, "GROUP_BYTES", 1500)
        root = fake_datasets.folder(folder / "mine", images=16)
        assert main(["prepare", "folder", f"--root={root}", f"--out={folder / 'shards'}"]) == 0
    return folder


EXPERIMENT = """
data:
  class_path: Folder
  init_args:
    root: {root}
    batch_size: 3
    augmentation:
      class_path: ScaleAndCrop
      init_args: {{crop_size: [16, 16], scale: [0.5, 2.0], jitter: 0.3, rotate: 10}}
model:
  net: {{class_path: dilated_seg.models.DilatedNet, init_args: {{context: null, width: 0.02, dropout: 0.5}}}}
  optimizer: {{class_path: AdamW, init_args: {{lr: 2.0e-3}}}}
  lr_scheduler: {{class_path: PolynomialLR, init_args: {{total_iters: 12}}}}
trainer: {{max_steps: 12, val_check_interval: 4, log_every_n_steps: 1, enable_progress_bar: false}}
"""


def arguments(root, folder, streaming=False):
    path = folder / f"{root.name}.yaml"
    path.write_text(EXPERIMENT.format(root=root))
    return ["--config", str(path), f"--data.init_args.streaming={str(streaming).lower()}"]


def environment(folder):
    return {**os.environ, "OMP_NUM_THREADS": THREADS, "HF_DATASETS_CACHE": str(folder / "cache")}


def other_filesystem(path):
    """A folder that lies on another filesystem than this one."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == path.stat().st_dev:
        pytest.skip("there is only one filesystem here")
    folder = shared / f"dilated_seg-{os.getpid()}-{path.name}"
    folder.mkdir()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mapped", "streamed"])
def test_all_of_ten_interrupted_runs_end_with_the_weights_of_the_uninterrupted_run(shards, tmp_path, kind):
    """With 0, 1 and 3 workers while W&B is offline; mapped as the folders they were made of, streamed with TMPDIR elsewhere."""
    streaming = kind == "streamed"
    temporary = other_filesystem(tmp_path) if streaming else tmp_path
    through = arguments(shards / "shards", tmp_path, streaming)
    given = {
        "folder": str(tmp_path), "seed": len(kind), "arguments": through,
        "whole": through if streaming else arguments(shards / "mine", tmp_path),
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.support.interrupted", json.dumps(given)]
    variables = environment(tmp_path) | {"TMPDIR": str(temporary)}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    if temporary != tmp_path:
        shutil.rmtree(temporary)
    assert done.returncode == 0, done.stderr
    trials = json.loads(done.stdout)
    print(*trials, sep="\n")
    assert len(trials) == 10
    for trial in trials:
        assert trial["ended"] and trial["same"] and trial["verified"], (trial, (tmp_path / "log.txt").read_text()[-3000:])
    assert sum(bool(trial["left"]) for trial in trials) >= 5  # most had something to continue from


def test_a_checkpoint_with_one_flipped_bit_is_never_loaded(tmp_path):
    io, path, rng = SafeCheckpointIO(), tmp_path / LAST, random.Random(0)
    io.save_checkpoint(STATE, path)
    assert same(io.load_checkpoint(path), STATE)
    content = path.read_bytes()
    for _ in range(60):
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(UserError, match=r"last\.ckpt is damaged"):
            io.load_checkpoint(path)
    path.write_bytes(content)
    io.load_checkpoint(path)
    beside = tmp_path / f"{LAST}.sha256"
    beside.write_bytes(b"\xff" + beside.read_bytes()[1:])
    with pytest.raises(UserError, match="damaged"):
        io.load_checkpoint(path)


def test_the_checksum_is_what_sha256sum_checks(tmp_path):
    SafeCheckpointIO().save_checkpoint(STATE, tmp_path / LAST)
    subprocess.run(["sha256sum", "--check", "--strict", f"{LAST}.sha256"], cwd=tmp_path, check=True, capture_output=True)


def saved(folder, steps):
    for step in steps:
        SafeCheckpointIO().save_checkpoint(STATE | {"global_step": step}, folder / LAST)


def newest(folder):
    """The checkpoint in this folder from which a run continues."""
    return Run(folder.parent).newest_checkpoint()


def step_of(path):
    return SafeCheckpointIO().load_checkpoint(path)["global_step"]


def test_the_last_two_checkpoints_are_kept_and_the_newest_intact_one_is_resumed(tmp_path, capsys):
    tmp_path /= "checkpoints"
    saved(tmp_path, [1, 2, 3])
    SafeCheckpointIO().save_checkpoint(STATE | {"global_step": 1}, tmp_path / "best.ckpt")
    assert (step_of(tmp_path / LAST), step_of(tmp_path / PREVIOUS)) == (3, 2)
    assert newest(tmp_path) == tmp_path / LAST
    os.utime(tmp_path / "best.ckpt", (1, 1))
    for damaged, left in ((LAST, PREVIOUS), (PREVIOUS, "best.ckpt")):
        with (tmp_path / damaged).open("r+b") as file:
            file.truncate(500)
        assert newest(tmp_path) == tmp_path / left
        assert f"skipped {tmp_path / damaged}: its checksum differs" in capsys.readouterr().err
    (tmp_path / "best.ckpt.sha256").unlink()
    with pytest.raises(UserError, match=r"no checkpoint in .* is intact"):
        newest(tmp_path)
    assert newest(tmp_path / "nothing") is None


def test_a_damaged_checkpoint_never_replaces_an_intact_one(tmp_path):
    tmp_path /= "checkpoints"
    saved(tmp_path, [1, 2])
    with (tmp_path / LAST).open("r+b") as file:
        file.truncate(500)
    assert newest(tmp_path) == tmp_path / PREVIOUS
    saved(tmp_path, [3])
    assert (step_of(tmp_path / LAST), step_of(tmp_path / PREVIOUS)) == (3, 1)


@pytest.mark.parametrize("call", range(1, 12))
def test_a_kill_at_any_moment_of_saving_leaves_two_intact_checkpoints(tmp_path, call):
    """Every step of the third save but the writing itself, which the interrupted runs above go through."""
    tmp_path /= "checkpoints"
    saved(tmp_path, [1, 2])
    count = 0

    def audit(event, args):
        nonlocal count
        if event in ("os.rename", "os.link", "os.remove") or (event == "open" and "partial" in str(args[0])):
            count += 1
            if count == call:
                os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        sys.addaudithook(audit)
        saved(tmp_path, [3])
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert Checkpoint(tmp_path / LAST).is_intact() and Checkpoint(tmp_path / PREVIOUS).is_intact()
    assert step_of(newest(tmp_path)) in (2, 3)
    saved(tmp_path, [4])
    assert (step_of(tmp_path / LAST), Checkpoint(tmp_path / PREVIOUS).is_intact()) == (4, True)
    assert {path.name for path in tmp_path.iterdir()} == {name + end for name in (LAST, PREVIOUS) for end in ("", ".sha256")}


@pytest.mark.slow
def test_a_full_disk_leaves_the_older_checkpoint_and_is_an_error(tmp_path):
    """A limit on the size of files stands for the disk: the system refuses the write in the same way."""
    saved(tmp_path, [1])
    code = f"""
import resource, signal, torch
from pathlib import Path
from dilated_seg.errors import UserError
from dilated_seg.runs.run import Run
from dilated_seg.training.checkpoint_io import SafeCheckpointIO
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    SafeCheckpointIO().save_checkpoint({{"state_dict": {{"a": torch.zeros(10**6)}}}}, Path("{tmp_path / LAST}"))
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"the checkpoint {tmp_path / LAST} cannot be written" in done.stdout
    assert "last.ckpt can be continued from" in done.stdout
    assert "File too large" in done.stdout
    assert step_of(tmp_path / LAST) == 1
    assert {path.name for path in tmp_path.iterdir()} == {LAST, f"{LAST}.sha256"}


def test_a_checkpoint_that_reads_back_differently_is_not_kept(tmp_path, monkeypatch):
    saved(tmp_path, [1])
    monkeypatch.setattr(checkpoint_io, "digest", lambda path: "0")
    with pytest.raises(UserError, match="returns other bytes than were written"):
        saved(tmp_path, [2])
    monkeypatch.undo()
    assert step_of(tmp_path / LAST) == 1


@pytest.mark.slow
@pytest.mark.parametrize("scontrol", ["there", "missing"])
def test_under_slurm_sigusr1_queues_the_job_again(shards, tmp_path, scontrol):
    if scontrol == "there":
        (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho $@ > {tmp_path}/asked\n")
        (tmp_path / "scontrol").chmod(0o755)
    code = "import os, sys; from tests.support.interrupted import at_step, main; "
    code += f"at_step(5, lambda: os.kill(os.getpid(), {int(signal.SIGUSR1)})); sys.exit(main(['fit', *sys.argv[1:]]))"
    variables = environment(tmp_path) | {"SLURM_JOB_ID": "77", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [sys.executable, "-c", code, *arguments(shards / "mine", tmp_path), "--run_dir", tmp_path / "run"]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 143, done.stderr
    assert "stopped by a signal after step 6: continue with: dilated-seg fit --config " in done.stderr
    if scontrol == "there":
        assert (tmp_path / "asked").read_text() == "requeue 77\n"
    else:
        assert "the job was not requeued: " in done.stderr and "Traceback" not in done.stderr
    assert step_of(tmp_path / "run/checkpoints/last.ckpt") == 6


@pytest.mark.slow
def test_accumulated_gradients_are_saved_and_restored(shards, tmp_path):
    """A validation after 3 of an epoch's 4 batches falls between the halves of a step of two."""
    kill = f"at_batch(4, lambda: os.kill(os.getpid(), {int(signal.SIGKILL)}))"
    halves = ["--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=0.75", "--trainer.check_val_every_n_epoch=1"]
    flags = [*arguments(shards / "mine", tmp_path), *halves]
    states = []
    for name, way in (("whole", "None"), ("killed", kill), ("killed", "None")):
        code = "import os, sys; from tests.support.interrupted import at_batch, main; "
        code += f"{way}; sys.exit(main(['fit', *sys.argv[1:]]))"
        done = run_process(*flags, "--run_dir", tmp_path / name, code=code, HF_DATASETS_CACHE=str(tmp_path / "cache"))
        assert done.returncode == (0 if way == "None" else -signal.SIGKILL), done.stderr
        states.append(torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True))
    assert states[1]["gradients"]
    assert states[1]["accumulated"][1] > 0
    assert same(states[0]["state_dict"], states[2]["state_dict"])
