"""Lightning's own callbacks, as an experiment names them, beside ours: each keeps what the others promise."""

import csv
import itertools
import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch

from dilated_seg.cli import CLI
from dilated_seg.data.collate import TimedLoader
from dilated_seg.errors import UserError
from dilated_seg.training.progress import format_duration
from tests.support.commands import ROOT, run_process

RUN = [
    "fit", "--config", str(ROOT / "experiments/shapes/dilatednet.yaml"), "--model.net.init_args.width=0.03",
    "--data.init_args.images=[12,3,3]", "--data.init_args.size=[32,48]", "--data.init_args.batch_size=2",
    "--trainer.log_every_n_steps=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
    "--trainer.max_steps=12", "--trainer.val_check_interval=4",
]  # fmt: skip
AVERAGE = "--trainer.callbacks+={class_path: EMAWeightAveraging, init_args: {decay: 0.9}}"
EARLY = (
    "--trainer.callbacks+={class_path: EarlyStopping, init_args: {monitor: val/mean_iou, mode: max, patience: 1, min_delta: 1}}"
)


def last(run):
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)


def rows(run, name):
    with (run / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    run = tmp_path_factory.mktemp("plain")
    CLI([*RUN, "--run_dir", str(run)])
    return run


def test_throughput_and_memory_are_logged_at_every_step(plain):
    rates, memory = rows(plain, "train/images_per_second"), rows(plain, "train/memory_gb")
    assert len(rates) == len(memory) == 12
    assert all(0 < rate < 1e5 for rate in rates)
    assert 0.1 < memory[0] <= memory[-1] < 100


def test_the_share_of_time_without_data_is_logged_at_every_step(plain):
    shares = rows(plain, "train/waiting")
    assert len(shares) == 12 and any(shares) and all(0 <= share < 1 for share in shares)


def test_a_loader_adds_up_the_seconds_in_which_its_caller_waits():
    class Slow(list):
        def __getitem__(self, index):
            time.sleep(0.05)
            return index

    loader, start = TimedLoader(Slow(range(4))), time.perf_counter()
    for _ in loader:
        time.sleep(0.05)
    assert 0.2 <= loader.waited <= time.perf_counter() - start - 0.2


@pytest.mark.slow
@pytest.mark.parametrize("passes", [1, 3])
def test_throughput_counts_all_images_between_two_logged_steps_without_validation_time(monkeypatch, tmp_path, passes):
    """On a clock that goes on by a second whenever it is looked at: once when counting begins, once a logged step."""
    clock = itertools.count()
    monkeypatch.setattr("dilated_seg.training.progress.time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    accumulate = [f"--trainer.accumulate_grad_batches={passes}", "--trainer.log_every_n_steps=2", "--trainer.max_steps=8"]
    CLI([*RUN, *accumulate, "--data.init_args.images=[24,3,3]", "--run_dir", str(tmp_path)])
    assert rows(tmp_path, "train/images_per_second") == [2 * passes * 2.0] * 4


def test_remaining_time_is_formatted_as_hours_minutes_and_seconds():
    assert [format_duration(seconds) for seconds in (0.4, 59.6, 3725)] == ["0:00:00", "0:01:00", "1:02:05"]


def test_averaged_weights_are_evaluated_and_saved(plain, tmp_path):
    CLI([*RUN, AVERAGE, "--run_dir", str(tmp_path)])
    ours, theirs = last(tmp_path), last(plain)
    name = "model.net.context.layers.ctx_final.weight"
    assert not torch.equal(ours["state_dict"][name], theirs["state_dict"][name])
    assert rows(tmp_path, "train/loss") == rows(plain, "train/loss")  # training is as without
    assert rows(tmp_path, "val/loss") != rows(plain, "val/loss")


@pytest.mark.slow
def test_a_killed_run_with_averaged_weights_resumes_to_the_same_weights(tmp_path):
    code = (
        "import os, sys; from tests.support.interrupted import at_step, main; "
        f"{{}}at_step(6, lambda: os.kill(os.getpid(), {int(signal.SIGKILL)})); sys.exit(main(sys.argv[1:]))"
    )
    for run, way, status in (("whole", "0 and ", 0), ("killed", "", -signal.SIGKILL), ("killed", "0 and ", 0)):
        done = run_process(*RUN, AVERAGE, "--run_dir", tmp_path / run, code=code.format(way))
        assert done.returncode == status, done.stderr
    whole, killed = last(tmp_path / "whole"), last(tmp_path / "killed")
    for name, value in whole["state_dict"].items():
        assert torch.equal(killed["state_dict"][name], value), name


@pytest.mark.slow
def test_an_offline_run_leaves_later_runs_of_the_process_online(tmp_path):
    """In a process of its own: W&B's variables stay set in it."""
    code = (
        "import os, sys; from dilated_seg.cli import CLI; from dilated_seg.training.loggers import finish; "
        "CLI(sys.argv[1:]); finish(); "
        "sys.exit('WANDB_MODE' in os.environ)"
    )
    once = ["--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--run_dir", tmp_path]
    without = dict.fromkeys(name for name in os.environ if name.startswith("WANDB_"))
    done = run_process(*RUN, *once, code=code, **without, HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("wandb/offline-run-*"))


@pytest.mark.parametrize(
    ("images", "sentence"), [("[0,3,3]", "training split has no images"), ("[12,0,3]", "no images in its split 'val'")]
)
def test_an_empty_split_is_an_error_before_the_first_step(tmp_path, images, sentence):
    with pytest.raises(UserError, match=sentence):
        CLI([*RUN, f"--data.init_args.images={images}", "--run_dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_run_that_stopped_early_is_finished_and_a_second_fit_does_not_continue_it(tmp_path, capsys):
    slow = "--model.lr_factors={net.front_end: 0.1}"
    CLI([*RUN, EARLY, slow, "--run_dir", str(tmp_path)])
    assert "2 images a step, learning rate 0.002" in capsys.readouterr().out  # as the experiment says it
    first = last(tmp_path)
    assert first["global_step"] == 8
    assert (tmp_path / "finished").read_text() == "after step 8\n"
    again = CLI([*RUN, EARLY, slow, "--run_dir", str(tmp_path)])
    assert "continuing" in capsys.readouterr().out
    assert again.trainer.global_step == 8
    for name, value in last(tmp_path)["state_dict"].items():
        assert torch.equal(value, first["state_dict"][name])
        assert torch.equal(again.model.state_dict()[name], value)
