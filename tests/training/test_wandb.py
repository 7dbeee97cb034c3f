"""W&B: what an offline run holds, read back from its files; and that no trouble with its server reaches training."""

import os
import signal
import sys

import numpy as np
import pytest
import torch
import wandb
import yaml
from PIL import Image

from dilated_seg.cli import CLI
from dilated_seg.training import wandb_status
from tests.support.commands import KILL, ROOT, run_command, run_process
from tests.support.wandb_log import sessions
from tests.support.wandb_server import BlackHole, Server

TINY = [
    "--config", "experiments/shapes/frontend.yaml",
    "--data.init_args.images=[8,3,2]", "--data.init_args.size=[24,48]", "--data.init_args.batch_size=2",
    "--model.net.init_args.width=0.02", "--model.net.init_args.dropout=0.5",
    "--trainer.max_steps=6", "--trainer.val_check_interval=2", "--trainer.log_every_n_steps=1",
]  # fmt: skip
CLASSES = ["background", "dot", "wire", "star", "sun", "moon", "day hill", "night hill"]
IMAGES = ["val000000", "val000001", "val000002"]


def nobody(folder):
    """An environment without a key."""
    return {"WANDB_MODE": None, "WANDB_API_KEY": None, "WANDB_DATA_DIR": None, "HOME": str(folder)}


def somebody(folder, url):
    """An environment with a key for a server."""
    key = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": url, "WANDB_FINISH_TIMEOUT": "3"}
    return nobody(folder) | key


def weights(run):
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def equal(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run without W&B."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert run_command("fit", *TINY, "--run_dir", folder, WANDB_MODE="disabled").returncode == 0
    return folder


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """A run that was ended after step 4, and continued."""
    folder = tmp_path_factory.mktemp("offline")
    environment = nobody(folder) | {"WANDB_RUN_GROUP": "a study"}
    ended = run_process(
        "fit", *TINY, "--run_dir", folder / "run", code=KILL.format(step=3, signal=int(signal.SIGTERM)), **environment
    )
    assert ended.returncode == 143, ended.stderr
    again = run_command("fit", *TINY, "--run_dir", folder / "run", **environment)
    assert again.returncode == 0, again.stderr
    return folder / "run"


def test_an_offline_wandb_run_records_name_group_tags_and_config(offline):
    session = sessions(offline)[-1]
    assert (session.group, session.job_type, session.exit_code) == ("a study", "fit", 0)
    assert session.tags == ["Shapes", "DilatedNet", "shapes/frontend"]
    assert session.config["model"]["net"]["class_path"] == "dilated_seg.models.DilatedNet"
    assert session.config["model"]["net"]["init_args"]["width"] == 0.02
    assert session.config["data"]["init_args"]["images"] == [8, 3, 2]
    assert session.config["seed_everything"] == 0
    assert "net" not in session.config  # said once


def test_an_offline_wandb_run_contains_curves_of_loss_learning_rate_and_every_class(offline):
    session = sessions(offline)[-1]
    names = {"train/loss", "train/gradient_norm", "val/loss", "val/mean_iou", "val/pixel_accuracy"}
    assert names | {f"val/iou/{name}" for name in CLASSES} <= session.summary.keys()
    assert any(name.startswith("lr-") for name in session.summary)


def test_a_resumed_run_keeps_its_wandb_id_and_continues_its_curve(offline):
    first, second = sessions(offline)
    assert first.id == second.id == (offline / "wandb_id").read_text()
    assert first.exit_code == 1  # not the end
    assert [step for step, _ in first.curve("train/loss")] == [0, 1, 2, 3]
    assert [step for step, _ in first.curve("val/mean_iou")] == [1, 3]
    assert [step for step, _ in second.curve("train/loss")] == [4, 5]
    assert [step for step, _ in second.curve("val/mean_iou")] == [5]


def test_every_evaluation_logs_its_confusion_matrix_as_a_table(offline):
    for session, evaluations in zip(sessions(offline), (2, 1), strict=True):
        assert len(session.curve("val/confusion_table")) == evaluations
        columns, rows = session.table("val/confusion_table")
        assert columns == ["truth", "prediction", "pixels", "percent of truth"]
        assert [row[:2] for row in rows] == [[truth, prediction] for truth in CLASSES for prediction in CLASSES]
    matrix = yaml.safe_load((offline / "evaluations/val.json").read_text())["matrix"]
    assert [row[2] for row in rows] == [pixels for truth in matrix for pixels in truth]
    for truth, pixels in zip(CLASSES, matrix, strict=True):
        percent = sum(row[3] for row in rows if row[0] == truth)
        assert percent == pytest.approx(100 if sum(pixels) else 0)
    assert [step for step, _ in session.curve("val/confusion_table")] == [5]


def check_images(run):
    """The table shows every chosen image with the masks that the gallery has."""
    session = sessions(run)[-1]
    columns, rows = session.table("val/images")
    assert columns == ["id", "image", "mean_iou", "pixel_accuracy"]
    assert [row[0] for row in rows] == IMAGES
    for name, image, *scores in rows:
        assert all(0 <= score <= 1 for score in scores)
        for what in ("truth", "prediction"):
            logged = np.array(Image.open(session.files[image["masks"][what]["path"]]))
            assert np.array_equal(logged, np.array(Image.open(run / f"gallery/val/{name}.{what}.png")))
        assert np.array_equal(
            np.array(Image.open(session.files[image["path"]])), np.array(Image.open(run / f"gallery/val/{name}.image.png"))
        )
    assert all(path.is_relative_to(run) for path in session.files.values())  # nothing waits elsewhere for `wandb sync`
    return rows


def test_every_evaluation_logs_a_table_of_the_same_images_with_masks_and_predictions(offline):
    check_images(offline)


@pytest.mark.slow
def test_two_processes_are_one_wandb_run_with_the_same_images(offline, tmp_path):
    two = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp", "--data.init_args.batch_size=1"]
    result = run_process("fit", *TINY, *two, "--trainer.max_steps=2", "--run_dir", tmp_path / "run", **nobody(tmp_path))
    assert result.returncode == 0, result.stderr
    assert len(sessions(tmp_path / "run")) == 1
    ours, theirs = check_images(tmp_path / "run"), check_images(offline)
    for one, other in zip(ours, theirs, strict=True):
        assert one[1]["sha256"] == other[1]["sha256"]
        assert one[1]["masks"]["truth"]["sha256"] == other[1]["masks"]["truth"]["sha256"]


@pytest.mark.slow
def test_evaluating_a_checkpoint_is_a_wandb_run_of_its_own(offline):
    args = ["--config", offline / "config.yaml", "--ckpt_path", offline / "checkpoints/best.ckpt"]
    # in a process of its own, at whose end W&B's log is complete
    result = run_process("test", *args, "--run_dir", offline.parent / "test", **nobody(offline.parent))
    assert result.returncode == 0, result.stderr
    (session,) = sessions(offline.parent / "test")
    assert session.job_type == "test"
    assert session.id != (offline / "wandb_id").read_text()
    assert "test/mean_iou" in session.summary
    assert session.summary["test/confusion_picture"]["_type"] == "image-file"
    assert len(session.table("test/images")[1]) == 2
    assert session.config["model"]["net"]["class_path"] == "dilated_seg.models.DilatedNet"


# Runs the command, and at step 3 does something to W&B.
AT_STEP_3 = """
import os, sys, urllib.request
from pathlib import Path
from dilated_seg.__main__ import main
from dilated_seg.task import SegmentationTask
def trouble(self, *args):
    if self.global_step == 3:
        {trouble}
SegmentationTask.on_train_batch_start = trouble
sys.exit(main(sys.argv[1:]))
"""
STOP_SERVER = "urllib.request.urlopen(os.environ['WANDB_BASE_URL'] + '/stop')"
# Our own child: W&B's process beside the training one.
KILL_WANDB = (
    "[os.kill(int(p.parent.name), 9) for p in Path('/proc').glob('[0-9]*/stat') if p.read_text().split()[1] == '(wandb-core)'"
    " and p.read_text().split()[3] == str(os.getpid())]"
)


@pytest.mark.slow
def test_losing_the_wandb_server_during_a_run_changes_nothing_and_its_data_are_on_disk(alone, tmp_path):
    with Server() as server:
        environment = somebody(tmp_path, server.url)
        result = run_process(
            "fit", *TINY, "--run_dir", tmp_path / "run", code=AT_STEP_3.format(trouble=STOP_SERVER), **environment
        )
    assert result.returncode == 0, result.stderr
    assert {"UpsertBucket"} <= {what for what, _ in server.seen}  # it was online
    (said,) = [line for line in result.stderr.splitlines() if line.startswith("W&B has not received everything")]
    (session,) = sessions(tmp_path / "run")
    assert f"wandb sync {session.folder}" in said
    assert [step for step, _ in session.curve("val/mean_iou")] == [1, 3, 5]
    assert "Traceback" not in result.stderr
    assert equal(weights(alone), weights(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the process in /proc")
def test_training_continues_when_the_process_of_wandb_dies(alone, tmp_path):
    result = run_process(
        "fit", *TINY, "--run_dir", tmp_path / "run", code=AT_STEP_3.format(trouble=KILL_WANDB), **nobody(tmp_path)
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("W&B has failed, the run continues without it") == 1
    assert equal(weights(alone), weights(tmp_path / "run"))


@pytest.mark.slow
def test_the_best_checkpoint_is_an_artifact_and_a_rejected_upload_does_no_harm(alone, tmp_path):
    with Server() as server:
        result = run_process("fit", *TINY, "--run_dir", tmp_path / "run", **somebody(tmp_path, server.url))
    assert result.returncode == 0, result.stderr
    asked = [values["input"] for what, values in server.seen if what == "CreateArtifact"]
    name = f"best-{(tmp_path / 'run/wandb_id').read_text()}"
    (best,) = [values for values in asked if values["artifactCollectionName"] == name]
    assert best["artifactTypeName"] == "model"
    assert f"W&B has not received {tmp_path}/run/checkpoints/best.ckpt" in result.stderr
    assert "Traceback" not in result.stderr
    assert equal(weights(alone), weights(tmp_path / "run"))


def test_a_wandb_server_that_accepts_connections_but_never_answers_is_treated_as_offline(tmp_path, monkeypatch):
    monkeypatch.setattr(wandb_status, "TIMEOUT", 0.2)
    with BlackHole() as hole:
        monkeypatch.setenv("WANDB_BASE_URL", hole.url)
        assert "does not answer (timed out)" in wandb_status.explain_unreachable()
    assert "does not answer" in wandb_status.explain_unreachable()


BEGIN = """
import sys
from pathlib import Path
from dilated_seg.runs.run import Run
from dilated_seg.training.loggers import build_loggers, finish
wandb = build_loggers(Run(sys.argv[1]), "fit", [])[1]
wandb.log_metrics({"train/loss": 1.0}, 0)
assert wandb.experiment.offline
finish()
"""


@pytest.mark.slow
def test_a_wandb_server_that_stops_answering_while_the_run_begins_is_treated_as_offline(tmp_path):
    with BlackHole() as hole:
        environment = somebody(tmp_path, hole.url) | {"WANDB_MODE": "online", "WANDB_INIT_TIMEOUT": "1"}
        result = run_process(tmp_path, code=BEGIN, **environment)
    assert result.returncode == 0, result.stderr
    (said,) = [line for line in result.stderr.splitlines() if line.startswith("W&B")]
    assert said.startswith("W&B is offline: ") and said.endswith("; `wandb sync` later")
    (session,) = [one for one in sessions(tmp_path) if one.folder.name.startswith("offline-run")]
    assert session.curve("train/loss") == [(0, 1.0)]


def test_training_continues_when_wandb_cannot_start_an_offline_run(alone, tmp_path, monkeypatch, capsys):
    begin = wandb.init

    def fail(*args, mode=None, **kwargs):
        if mode != "disabled":
            raise OSError("no space left on device")
        return begin(*args, mode=mode, **kwargs)

    monkeypatch.setattr(wandb, "init", fail)
    monkeypatch.chdir(ROOT)
    CLI(["fit", *TINY, "--run_dir", str(tmp_path / "run")])
    assert "W&B cannot start, the run continues without it: no space left on device" in capsys.readouterr().err
    assert equal(weights(tmp_path / "run"), weights(alone))


def test_a_finished_run_does_not_leak_its_wandb_directory_to_later_processes(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    CLI(["fit", *TINY, "--trainer.max_steps=2", "--run_dir", str(tmp_path / "run")])
    assert "WANDB_DATA_DIR" not in os.environ
