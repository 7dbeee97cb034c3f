"""A run that continues with another recipe follows it, in what is trained as in what is written, or is refused."""

import csv

import pytest
import torch
import yaml
from lightning import Callback

from dilated_seg.__main__ import main
from dilated_seg.runs.resume import find_differences
from dilated_seg.training.checkpoint_io import LAST, SafeCheckpointIO
from tests.support.interrupted import same, state
from tests.training.test_lost_work import RUN, act_once, crash

RUN = [*RUN, "--trainer.max_steps=6", "--model.lr_scheduler.init_args.total_iters=6"]
RATE, POWER, WEIGHT_DECAY = 0.01, 0.9, 1e-4  # the experiment's


class Rates(Callback):
    """Notes the rate, the decay and the momentum that the optimizer takes each step with."""

    taken: list[tuple[int, float, float, float]] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        group = optimizer.param_groups[0]
        self.taken.append((trainer.global_step, group["lr"], group["weight_decay"], group["betas"][0]))


RATES = "--trainer.callbacks+=tests.training.test_recipe.Rates"


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A finished run of six steps."""
    run = tmp_path_factory.mktemp("runs") / "short"
    assert main([*RUN, RATES, "--run_dir", str(run)]) == 0
    return run


def rows(run, column):
    with (run / "metrics.csv").open() as file:
        return [(int(row["step"]), float(row[column])) for row in csv.DictReader(file) if row.get(column)]


def continue_from(run, folder, *changes):
    Rates.taken.clear()
    return main([*RUN, RATES, "--ckpt_path", str(run / "checkpoints" / LAST), "--run_dir", str(folder), *changes])


def test_a_new_schedule_and_learning_rate_are_stored_logged_and_used_when_a_run_continues(short, tmp_path, capsys):
    changes = ["--trainer.max_steps=9", "--model.lr_scheduler.init_args.total_iters=12", "--model.optimizer.init_args.lr=1e-3"]
    changes += ["--model.optimizer.init_args.weight_decay=0.5", "--model.optimizer.init_args.betas=[0.8,0.999]"]
    assert continue_from(short, tmp_path / "run", *changes) == 0
    expected = [(step, 1e-3 * (1 - step / 12) ** POWER) for step in (6, 7, 8)]
    assert [taken[:2] for taken in Rates.taken] == [(step, pytest.approx(rate)) for step, rate in expected]
    assert {taken[2:] for taken in Rates.taken} == {(0.5, 0.8)}
    assert rows(tmp_path / "run", "lr-AdamW/pg1") == [(step, pytest.approx(rate)) for step, rate in expected]
    assert [step for step, _ in rows(tmp_path / "run", "train/loss")] == [6, 7, 8]
    assert [step for step, _ in rows(tmp_path / "run", "val/loss")] == [8]
    text = (tmp_path / "run/config.yaml").read_text()
    assert yaml.safe_load(text)["model"]["optimizer"]["init_args"]["lr"] == 1e-3
    for line in (
        f"continued from {short}/checkpoints/last.ckpt, after step 6",
        "model.optimizer.init_args.lr: 0.01 before, 0.001 since",
    ):
        assert f"# {line}\n" in text
        assert line in capsys.readouterr().out or line.startswith("model")
    # interrupted, the same command continues this run, and not the other once more
    assert continue_from(short, tmp_path / "run", *changes) == 0
    assert Rates.taken == []
    assert (tmp_path / "run/config.yaml").read_text() == text


@pytest.mark.slow
def test_a_run_continued_with_more_steps_of_the_same_schedule_equals_an_uninterrupted_run(short, tmp_path):
    constant = ["--model.lr_scheduler=null", "--trainer.max_steps"]
    assert main([*RUN, RATES, *constant, "9", "--run_dir", str(tmp_path / "whole")]) == 0
    assert main([*RUN, RATES, *constant, "6", "--run_dir", str(tmp_path / "half")]) == 0
    assert continue_from(tmp_path / "half", tmp_path / "rest", *constant, "9") == 0
    assert same(state(tmp_path / "rest"), state(tmp_path / "whole"))
    assert rows(tmp_path / "rest", "train/loss") == rows(tmp_path / "whole", "train/loss")[6:]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--trainer.max_steps=9"], ["the learning rate is 0 after step 6", "total_iters"]),
        (["--model.optimizer=SGD"], ["model.optimizer.class_path torch.optim.AdamW, and not torch.optim.SGD"]),
        (["--model.optimizer.amsgrad=true"], ["max_exp_avg_sq"]),
        (["--model.lr_factors={net.encoder: 0.1}"], ["model.lr_factors"]),
        (["--model.mean=[1,2,3]"], ["model.mean None, and not"]),
        (["--data.init_args.batch_size=1"], ["batch_size 2, and not 1"]),
        (["--trainer.accumulate_grad_batches=2"], ["accumulate_grad_batches 1, and not 2"]),
        (["--seed_everything=1"], ["seed_everything 0, and not 1"]),
    ],
    ids=lambda value: value[0].split("=")[0] if value[0].startswith("--") else "",
)
def test_options_that_a_checkpoint_cannot_continue_with_are_an_error(short, tmp_path, capsys, changes, words):
    assert continue_from(short, tmp_path / "run", *changes) == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    for word in [*words, *(["model.weights"] if "rate is 0" not in words[0] else [])]:
        assert word in printed.splitlines()[-1]
    assert not (tmp_path / "run").exists()
    assert Rates.taken == []


def test_loss_and_crop_size_of_the_new_recipe_apply(short, tmp_path, capsys):
    changes = ["--trainer.max_steps=8", "--model.lr_scheduler.init_args.total_iters=8", "--model.class_weights=null"]
    changes.append("--data.init_args.augmentation={class_path: ScaleAndCrop, init_args: {crop_size: [32, 32]}}")
    assert continue_from(short, tmp_path / "run", *changes) == 0
    text = (tmp_path / "run/config.yaml").read_text()
    assert "# model.class_weights: [0.5, " in text
    assert "# data.init_args.augmentation.init_args.crop_size: None before, [32, 32] since" in text
    assert [step for step, *_ in Rates.taken] == [6, 7]


def test_continuing_a_checkpoint_without_a_recipe_is_an_error(short, tmp_path, capsys):
    checkpoint = torch.load(short / "checkpoints" / LAST, weights_only=True)
    del checkpoint["recipe"]
    folder = tmp_path / "moved/checkpoints"
    folder.mkdir(parents=True)
    torch.save(checkpoint, folder / LAST)
    assert continue_from(folder.parent, tmp_path / "run") == 2
    assert "has no recipe" in capsys.readouterr().err


def test_another_recipe_in_the_same_run_directory_is_an_error_that_names_the_option(short, capsys):
    assert main([*RUN, RATES, "--trainer.max_steps=9", "--run_dir", str(short)]) == 2
    assert "(trainer.max_steps is 6 there and 9 here)" in capsys.readouterr().err
    assert main([*RUN, RATES, "--trainer.log_every_n_steps=2", "--data.init_args.num_workers=1", "--run_dir", str(short)]) == 0


def test_a_moved_run_directory_keeps_its_best_score(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = [*RUN, "--trainer.val_check_interval=2"]
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="a crash"):
        act_once(patch, "training_step", 4, crash)
        main([*flags, "--run_dir", "before"])
    checkpoint = SafeCheckpointIO().load_checkpoint("before/checkpoints/last.ckpt")
    (state,) = (state for state in checkpoint["callbacks"].values() if state.get("monitor") == "val/mean_iou")
    score = state["best_model_score"] = state["kth_value"] = torch.tensor(2.0)  # which no validation reaches
    state["best_k_models"] = dict.fromkeys(state["best_k_models"], score)
    SafeCheckpointIO().save_checkpoint(checkpoint, "before/checkpoints/last.ckpt")
    (tmp_path / "before").rename(tmp_path / "after")
    written = (tmp_path / "after/checkpoints/best.ckpt").read_bytes()
    assert main([*flags, "--run_dir", str(tmp_path / "after")]) == 0
    assert (tmp_path / "after/checkpoints/best.ckpt").read_bytes() == written


def test_differences_of_recipes_are_named_by_option_without_those_that_change_no_weight():
    before = {"trainer": {"max_steps": 6, "logger": None}, "model": {"net": {"class_path": "A"}}, "run_dir": "a"}
    now = {"trainer": {"max_steps": 9, "logger": {"class_path": "CSVLogger"}}, "model": {"net": {"class_path": "A"}}}
    assert list(find_differences(yaml.safe_dump(before), yaml.safe_dump(now))) == [("trainer.max_steps", 6, 9)]
