"""Ablations whose runs train on several devices each: torchrun starts them, and the numbers are those of one device."""

import os

import pyarrow.parquet as pq
import pytest
import torch

from dilated_seg.__main__ import main
from dilated_seg.ablation import Local, read
from dilated_seg.ablation.slurm import request_devices
from dilated_seg.ablation.torchrun import launch_command
from dilated_seg.errors import UserError
from tests.support import tolerance
from tests.support.commands import ROOT, THREADS

# Two networks without batch norm, which on CPUs is of each process's images: the second starts from the first, and both have
# layers that learn later.
STUDY = """
experiments: {staged: [FOLDER/frontend.yaml, ROOT/experiments/shapes/dilatednet.yaml]}
seeds: [0, 1]
common:
  data: {init_args: {images: [8, 2, 3], size: [24, 48], global_batch_size: 4}}
  model: {net: {init_args: {width: 0.02}}, lr_scheduler: {init_args: {total_iters: 4}}, lr_factors: {}}
  trainer:
    max_steps: 4
    val_check_interval: 4
    accelerator: cpu
    precision: 64-true
    log_every_n_steps: 1
    callbacks+:
    - class_path: once.Once
    - {class_path: dilated_seg.training.Freeze, init_args: {layers: [net.front_end.encoder], until: 2}}
evaluate: test
"""

# Kills process 1 at its third step, once, if the file "order" asks for it.
ONCE = """
import os, signal
from pathlib import Path
from lightning import Callback

class Once(Callback):
    def on_train_batch_start(self, trainer, *args):
        order = Path(__file__).with_name("order")
        if trainer.global_step == 2 and trainer.global_rank == 1 and order.exists():
            order.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The study beside what it names."""
    folder = tmp_path_factory.mktemp("devices")
    source = (ROOT / "experiments/shapes/frontend.yaml").read_text().replace("../data", str(ROOT / "experiments/data"))
    (folder / "frontend.yaml").write_text(source)
    (folder / "once.py").write_text(ONCE)
    (folder / "study.yaml").write_text(STUDY.replace("FOLDER", str(folder)).replace("ROOT", str(ROOT)))
    return folder


@pytest.fixture(autouse=True)
def environment(folder, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", THREADS)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT)]))
    monkeypatch.syspath_prepend(str(folder))


def scores(out):
    """What each run scored, image by image."""
    return {str(file.relative_to(out)): pq.read_table(file).to_pydict() for file in sorted(out.rglob("test-last.parquet"))}


@pytest.mark.slow
def test_runs_on_two_processes_equal_those_on_one_and_a_killed_run_is_named_and_retried(folder, tmp_path, capfd):
    study = str(folder / "study.yaml")
    assert main(["ablate", study, "--out", str(tmp_path / "one")]) == 0
    (folder / "order").touch()
    two = ["ablate", study, "--out", str(tmp_path / "two"), "--devices_per_run", "2", "--retries", "1"]
    assert main(two) == 0
    said = capfd.readouterr()
    assert "staged, seed 0, stage 1 of 2 failed: one of its 2 processes was killed" in said.err
    assert "4 images a step (2 in each of 2 processes)" in said.out
    assert len(scores(tmp_path / "one")) == 2
    assert scores(tmp_path / "one") == scores(tmp_path / "two")
    checkpoints = [file.relative_to(tmp_path / "one") for file in (tmp_path / "one").rglob("last.ckpt")]
    assert len(checkpoints) == 4
    moved = 2 * tolerance.training(steps=4, rate=0.002, divisor=1e-8)  # the second stage starts from the first
    for file in checkpoints:
        one, other = (torch.load(tmp_path / out / file, weights_only=True)["state_dict"] for out in ("one", "two"))
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=0, atol=moved)
    main([*two, "--dry_run"])
    line = capfd.readouterr().out.splitlines()[1]
    assert line.startswith("torchrun --standalone --nproc_per_node 2 -m dilated_seg fit --config ")
    assert line.endswith(f"--evaluate test --seed_everything 0 --run_dir {tmp_path}/two/staged/seed0/stage2")


def test_concurrent_runs_get_disjoint_devices(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7")
    monkeypatch.delenv("OMP_NUM_THREADS")
    local = Local(read(folder / "study.yaml", tmp_path, devices=2), None)
    assert local.room == 2
    assert [local.environment(number) for number in range(2)] == [
        {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": "3,5"},
        {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": "6,7"},
    ]
    with pytest.raises(UserError, match="devices_per_run 2 and --jobs 3 need 6 GPUs, and 4 are visible here"):
        Local(read(folder / "study.yaml", tmp_path, devices=2), 3)
    assert main(["ablate", str(folder / "study.yaml"), "--out", str(tmp_path), "--devices_per_run", "8"]) == 2


def test_a_slurm_job_requests_the_nodes_and_gpus_of_its_run(folder, tmp_path):
    (folder / "nodes.yaml").write_text((folder / "study.yaml").read_text() + "devices_per_run: 4\nnodes_per_run: 2\n")
    ablation = read(folder / "nodes.yaml", tmp_path)
    values = {"timeout_min": 240}
    request_devices(values, ablation)
    assert values == {"timeout_min": 240, "nodes": 2, "gpus_per_node": 4, "srun_args": ["--nodes=1", "--ntasks=1"]}
    command = launch_command(ablation.runs[0], ablation.runs[0].arguments)
    assert command[:4] == ["srun", "--overlap", "--nodes=2", "--ntasks-per-node=1"]
    torchrun = command[command.index("torch.distributed.run") + 1 : command.index("dilated_seg")]
    assert torchrun[:6] == ["--nnodes", "2", "--nproc_per_node", "4", "--rdzv_backend", "c10d"]
    assert [*command][command.index("--trainer.devices") :][:4] == ["--trainer.devices", "4", "--trainer.num_nodes", "2"]
    with pytest.raises(UserError, match="gpus_per_node=1: devices_per_run is 4"):
        request_devices({"gpus_per_node": 1}, ablation)
    with pytest.raises(UserError, match="tasks_per_node=4: a job takes its nodes and devices from the ablation's"):
        request_devices({"tasks_per_node": 4}, ablation)


@pytest.mark.parametrize(
    ("change", "words", "sentence"),
    [
        (("global_batch_size: 4", "batch_size: 4"), ["--devices_per_run=2"], "set data.global_batch_size"),
        (("accelerator: cpu", "devices: 2"), [], "leave both out, and set devices_per_run"),
        (("evaluate: test", "devices_per_run: two"), [], "devices_per_run two: give a positive whole number"),
        (("evaluate: test", "nodes_per_run: 2"), [], "several machines need --launcher slurm"),
        (("", ""), ["--devices_per_run=0"], "at least one device"),
    ],
)
def test_wrong_devices_are_a_user_error(folder, tmp_path, capsys, change, words, sentence):
    (tmp_path / "study.yaml").write_text((folder / "study.yaml").read_text().replace(*change))
    assert main(["ablate", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out"), *words]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert sentence in said
    assert not (tmp_path / "out").exists()
