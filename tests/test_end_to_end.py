"""What a user does with the defaults: prepare a dataset, stream it to workers, train, be killed, continue, validate, report.

W&B is offline throughout, as it is for users without a key.
"""

import json
import os
import signal
import subprocess
import sys
import time

import torch

from dilated_seg.__main__ import main
from dilated_seg.cli import CLI
from dilated_seg.metrics.confusion import compute_metrics
from tests.support.commands import ROOT, THREADS
from tests.support.interrupted import same
from tests.support.wandb_log import sessions

STEPS = 20


def environment(home):
    """The environment of a user who has no key for W&B and has set none of its variables."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    return own | {"HOME": str(home), "HF_DATASETS_CACHE": str(home / "cache"), "OMP_NUM_THREADS": THREADS, "COLUMNS": "200"}


def start(home, *arguments):
    """Start the command."""
    command = [sys.executable, "-m", "dilated_seg", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment(home), **pipes)


def run(home, *arguments):
    """Run the command to its end; gives what it printed."""
    process = start(home, *arguments)
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert "Traceback" not in error
    return out


def kill_after_first_checkpoint(process, checkpoint):
    """Kill the command in the middle of training, as a machine out of memory does."""
    while not checkpoint.is_file() and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


def checkpoint_state(run_dir):
    checkpoint = torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)
    return {key: checkpoint[key] for key in ("global_step", "state_dict", "optimizer_states", "lr_schedulers")}


def evaluation(run_dir, name):
    return json.loads((run_dir / f"evaluations/{name}.json").read_text())


def test_a_dataset_is_prepared_streamed_trained_on_killed_continued_validated_and_reported(camvid, tmp_path):
    home, shards, run_dir = tmp_path / "home", tmp_path / "shards", tmp_path / "run"
    home.mkdir()
    assert main(["prepare", "camvid", "--root", str(camvid), "--out", str(shards), "--other_counts"]) == 0

    fit = ["fit", "--config", "experiments/camvid/dilatednet_narrow.yaml"]
    fit += ["--data.root", str(shards), "--data.streaming", "true"]
    fit += [
        "--data.init_args.augmentation={class_path: ScaleAndCrop, init_args: {crop_size: [32, 48]}}",
        "--model.net.init_args.width=0.03",
        "--trainer.log_every_n_steps=1",
    ]
    fit += [f"--trainer.max_steps={STEPS}", "--trainer.val_check_interval=5"]
    killed = start(home, *fit, "--run_dir", run_dir)
    kill_after_first_checkpoint(killed, run_dir / "checkpoints/last.ckpt")
    assert 5 <= checkpoint_state(run_dir)["global_step"] < STEPS
    assert f"continuing {run_dir}" in run(home, *fit, "--run_dir", run_dir)

    CLI([*fit, "--run_dir", str(tmp_path / "whole"), "--data.init_args.num_workers=0"])
    assert checkpoint_state(run_dir)["global_step"] == STEPS
    assert same(checkpoint_state(run_dir), checkpoint_state(tmp_path / "whole"))

    best = ["--config", str(run_dir / "config.yaml"), "--ckpt_path", str(run_dir / "checkpoints/best.ckpt")]
    table = run(home, "validate", *best)
    streamed = evaluation(run_dir, "val-best")
    assert "IoU %" in table and "mean" in table and all(name in table for name in streamed["classes"])
    assert streamed["protocol"]["images"] == 3 and sum(map(sum, streamed["matrix"])) == streamed["protocol"]["pixels"] > 0
    folder = [f"--data.init_args.root={camvid}", "--data.init_args.streaming=false", "--data.init_args.num_workers=0"]
    CLI(["validate", *best, *folder, "--run_dir", str(tmp_path / "unstreamed")])
    assert evaluation(tmp_path / "unstreamed", "val-best")["matrix"] == streamed["matrix"]

    assert main(["report", str(run_dir), "--out", str(tmp_path / "report"), "--evaluation", "val-best"]) == 0
    report = (tmp_path / "report/report.md").read_text()
    mean = compute_metrics(torch.tensor(streamed["matrix"]))["mean_iou"]
    assert any(line.startswith("| run |") and f"{100 * mean:.1f}" in line for line in report.splitlines())

    killed_session, continued, validated = sessions(run_dir)  # the folders that `wandb sync` takes
    run_id = (run_dir / "wandb_id").read_text()
    assert continued.id == run_id and killed_session.folder.name.endswith(f"-{run_id}")
    assert (killed_session.exit_code, continued.exit_code, validated.exit_code) == (None, 0, 0)
    assert validated.id != run_id and validated.job_type == "validate"
    assert max(step for step, _ in continued.curve("train/loss")) == STEPS - 1
