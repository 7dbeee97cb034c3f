"""Several processes: the same training as one, and an end when one of them is lost."""

import os
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import pytest
import torch

from dilated_seg.cli import CLI
from dilated_seg.cli.parser import TIMEOUT
from dilated_seg.data.samplers import TrainingOrder
from dilated_seg.errors import UserError
from tests.support import tolerance
from tests.support.commands import ROOT, THREADS

RUN = [
    "fit", "--config", str(ROOT / "experiments/shapes/dilatednet.yaml"), "--model.net.init_args.width=0.03",
    "--data.init_args.images=[50,3,3]", "--data.init_args.size=[32,48]", "--data.init_args.global_batch_size=4",
    "--trainer.log_every_n_steps=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
]  # fmt: skip
DOUBLE = "--trainer.precision=64-true"  # for comparisons of two orders of summation
TWENTY = [*RUN, DOUBLE, "--trainer.max_steps=20", "--trainer.val_check_interval=10"]
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]


def environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": THREADS, **more}


def launch(*arguments, script=ROOT / "dilated_seg/__main__.py"):
    """The command in a process of its own; it starts the other processes by the same script."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *map(str, (script, *arguments))], cwd=ROOT, env=environment(), **pipes)


def weights(run):
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def losses(run):
    lines = (run / "metrics.csv").read_text().splitlines()
    columns = lines[0].split(",")
    rows = [dict(zip(columns, line.split(","), strict=True)) for line in lines[1:]]
    return torch.tensor([float(row["train/loss"]) for row in rows if row["train/loss"]], dtype=torch.float64)


def assert_same_training(run, expected, steps):
    """Compare weights and losses; the experiment's AdamW has rate 0.002 and eps 1e-8."""
    moved = tolerance.training(steps, rate=0.002, divisor=1e-8)  # 8e-8 after twenty steps
    for name, value in weights(expected).items():
        torch.testing.assert_close(weights(run)[name], value, rtol=0, atol=moved)
    torch.testing.assert_close(losses(run), losses(expected), rtol=0, atol=tolerance.SINGLE * losses(expected).max().item())


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Twenty steps of one process, four images at once."""
    run = tmp_path_factory.mktemp("one")
    CLI([*TWENTY, "--run_dir", str(run)])
    return run


def test_twenty_steps_of_two_processes_equal_those_of_one_process_with_the_same_global_batch(one, tmp_path):
    process = launch(*TWENTY, *TWO, "--run_dir", tmp_path)
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert "4 images a step (2 in each of 2 processes); batch_size 6 is not used, learning rate 0.002" in out
    assert "Warning" not in error and "sync_dist" not in error, error
    assert_same_training(tmp_path, one, steps=20)


def test_twenty_steps_with_accumulated_gradients_equal_those_with_the_whole_batch(one, tmp_path, capsys):
    CLI([*TWENTY, "--trainer.accumulate_grad_batches=4", "--run_dir", str(tmp_path)])
    assert "4 images a step (1 at once, 4 times); batch_size 6 is not used, learning rate 0.002" in capsys.readouterr().out
    assert_same_training(tmp_path, one, steps=20)


# Every loss at once; the experiment's class weights are those of the first four.
LOSSES = (
    "CrossEntropy(label_smoothing=0.1), Focal(), OHEM(share=0.3), BoundaryWeighted(), Dice(), Jaccard(), Tversky(), Lovasz(), "
    "torch.nn.CrossEntropyLoss()"
)


@pytest.mark.slow
def test_every_loss_of_two_processes_is_that_of_one_with_the_joined_batch(tmp_path):
    loss = f"--model.loss=WeightedSum(losses=[{LOSSES}, Dice(over='batch'), Jaccard(over='batch')])"
    steps = [*RUN, DOUBLE, loss, "--trainer.max_steps=5", "--trainer.val_check_interval=5"]
    process = launch(*steps, *TWO, "--run_dir", tmp_path / "two")
    CLI([*steps, "--run_dir", str(tmp_path / "one")])
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert_same_training(tmp_path / "two", tmp_path / "one", steps=5)


@pytest.mark.slow
def test_every_loss_of_accumulated_batches_is_that_of_the_joined_batch(tmp_path):
    steps = [*RUN, DOUBLE, f"--model.loss=WeightedSum(losses=[{LOSSES}])", "--trainer.max_steps=5"]
    for name, options in (("one", []), ("four", ["--trainer.accumulate_grad_batches=4"])):
        CLI([*steps, *options, "--run_dir", str(tmp_path / name)])
    assert_same_training(tmp_path / "four", tmp_path / "one", steps=5)


def test_steps_of_an_epoch_are_full_and_contain_the_same_images_on_any_number_of_processes():
    def steps(batch_size, world, passes):
        ranks = [list(TrainingOrder(50, batch_size, 0, rank, world, passes=passes)) for rank in range(world)]
        batches = [list(chain(*(rank[b] for rank in ranks))) for b in range(len(ranks[0]))]
        return [sorted(chain(*batches[b : b + passes])) for b in range(0, len(batches), passes)]

    assert steps(12, 1, 1) == steps(3, 4, 1) == steps(4, 1, 3) == steps(2, 2, 3)
    assert len(steps(12, 1, 1)) == 4


def test_a_global_batch_size_that_the_processes_cannot_divide_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"give a multiple of 3 \(1 processes times 3 accumulated batches\)"):
        CLI([*TWENTY, "--trainer.accumulate_grad_batches=3", "--run_dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_strategy_that_this_machine_cannot_run_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="trainer: The strategy `fsdp` requires a GPU"):
        CLI([*TWENTY, "--trainer.strategy=fsdp", "--run_dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_killed_during_gradient_accumulation_resume_to_the_same_weights(tmp_path):
    """A validation after 5 of an epoch's 6 batches falls into the second step of three, and the kill comes before its end."""
    half = ["--data.init_args.images=[24,3,3]", "--trainer.accumulate_grad_batches=3", "--data.init_args.global_batch_size=12"]
    half += [DOUBLE, "--trainer.max_steps=4", "--trainer.check_val_every_n_epoch=1", "--trainer.val_check_interval=0.84"]
    (tmp_path / "kill.py").write_text(
        LOSE.format(rank=0, signal=int(signal.SIGKILL)).replace("self.global_step == 3", "seen(5)")
    )
    for name, script in (("whole", None), ("killed", tmp_path / "kill.py"), ("killed", None)):
        process = launch(*RUN, *half, *TWO, "--run_dir", tmp_path / name, **({"script": script} if script else {}))
        _, said = process.communicate(timeout=300)
        assert (process.returncode == 0) == (script is None), said
        if script:
            assert torch.load(tmp_path / "killed/checkpoints/last.ckpt", weights_only=True)["accumulated"][1] > 0
    moved = tolerance.training(4, rate=0.002, divisor=1e-8)  # saved gradients are of both processes: another order of sums
    for name, value in weights(tmp_path / "whole").items():
        torch.testing.assert_close(weights(tmp_path / "killed")[name], value, rtol=0, atol=moved)


# Runs the command; process {rank} gets {signal} when it begins step 3, and leaves the time of that in the file that it is told.
LOSE = """
import os, signal, sys
from pathlib import Path
from dilated_seg.__main__ import main
from dilated_seg.task import SegmentationTask
def seen(batches, count=[]):
    count.append(1)
    return len(count) == batches + 1
def lose(self, *args):
    Path(os.environ["DILATED_SEG_RUN_DIR"], f"pid{{self.global_rank}}").write_text(str(os.getpid()))
    if self.global_rank == {rank} and self.global_step == 3:
        Path(os.environ["DILATED_SEG_RUN_DIR"], "lost").touch()
        os.kill(os.getpid(), {signal})
SegmentationTask.on_train_batch_start = lose
sys.exit(main())
"""


def lose(tmp_path, rank, number, *flags):
    """Run two processes of which one is lost; gives what they said, the status, and the seconds from the loss to the end."""
    arguments = [
        *RUN,
        "--trainer.max_steps=2000",
        "--trainer.val_check_interval=2000",
        *TWO,
        *flags,
        "--run_dir",
        tmp_path / "run",
    ]
    (tmp_path / "lose.py").write_text(LOSE.format(rank=rank, signal=int(number)))
    process = launch(*arguments, script=tmp_path / "lose.py")
    try:
        _, said = process.communicate(timeout=2 * TIMEOUT)
        assert (tmp_path / "run/lost").exists(), said
        return said, process.returncode, time.time() - (tmp_path / "run/lost").stat().st_mtime
    finally:
        for file in tmp_path.glob("run/pid*"):
            if Path("/proc", file.read_text()).exists():
                os.kill(int(file.read_text()), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_ends_soon_after_one_of_its_processes_is_killed(tmp_path, rank):
    said, status, seconds = lose(tmp_path, rank, signal.SIGKILL)
    assert status != 0
    assert seconds < TIMEOUT  # it takes a few seconds, on a busy machine more
    assert "another process of this run has ended" in said


@pytest.mark.slow
def test_a_run_ends_after_the_timeout_when_one_of_its_processes_hangs(tmp_path):
    said, status, seconds = lose(tmp_path, 1, signal.SIGSTOP, "--process_timeout=10")
    assert status == 2, said
    assert 10 <= seconds < TIMEOUT
    assert "another process of this run has not answered for 10 seconds" in said
    hung = Path("/proc", (tmp_path / "run/pid1").read_text(), "status")
    assert not hung.exists() or "zombie" in hung.read_text()
