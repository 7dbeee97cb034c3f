"""An experiment of VOC on a copy of the dataset at the Hub: the same numbers as from the release, interrupted or not."""

import json
import signal

import pytest
import torch
import yaml

from tests.support import parquet_datasets
from tests.support.commands import KILL, run_command, run_process
from tests.support.interrupted import same
from tests.support.range_server import COMMIT, REPO, HubHandler, serve

STEPS = 9
EXPERIMENT = [
    "--config", "experiments/voc/deeplab.yaml", "--seed_everything", "3", "--model.weights", "null",
    "--model.net.init_args.width", "0.03", "--data.global_batch_size", "4", "--data.augmentation.crop_size", "[24, 24]",
    "--trainer.max_steps", str(STEPS), "--trainer.val_check_interval", "3", "--trainer.log_every_n_steps", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """20 images as Parquet files, hub/, and as VOC's release, release/."""
    root = tmp_path_factory.mktemp("data")
    parquet_datasets.voc(root / "hub", ids=True)
    parquet_datasets.voc_release(root / "release", range(15), range(15, 20))
    return root


def weights(run):
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def evaluation(run, name):
    content = json.loads((run / f"evaluations/{name}.json").read_text())
    return {key: content[key] for key in ("ids", "matrix", "matrices") if key in content}


@pytest.mark.slow
def test_one_word_streams_an_experiment_from_the_hub_with_the_numbers_of_the_release(data, tmp_path):
    with serve(data / "hub", handler=HubHandler) as (url, _):
        variables = {"HF_ENDPOINT": url, "DILATED_SEG_CACHE": str(tmp_path / "cache")}
        hub = ["--data", "Hub", "--data.repo", REPO, "--data.num_workers", "2", "--run_dir", tmp_path / "hub"]
        (tmp_path / "sbd.yaml").write_text("data: {init_args: {sbd: somewhere}}")
        done = run_process("fit", *EXPERIMENT, "--config", tmp_path / "sbd.yaml", *hub, **variables)
        assert done.returncode == 0, done.stderr
        assert "Hub has no option sbd, given for another dataset: not used" in done.stderr
        assert f"{REPO} at revision {COMMIT[:12]}: trainaug is its split train with 15 images" in done.stderr
        arguments = yaml.safe_load((tmp_path / "hub/config.yaml").read_text())["data"]["init_args"]
        assert (
            arguments["revision"] == COMMIT and arguments["global_batch_size"] == 4 and arguments["train_split"] == "trainaug"
        )
    protocol = json.loads((tmp_path / "hub/evaluations/val.json").read_text())["protocol"]
    assert protocol["dataset"] == f"Hub {REPO} at {COMMIT[:12]}"
    local = ["--data", "Hub", "--data.repo", data / "hub", "--data.num_workers", "0", "--run_dir", tmp_path / "local"]
    assert run_command("fit", *EXPERIMENT, *local).returncode == 0
    assert same(weights(tmp_path / "hub"), weights(tmp_path / "local"))
    saved = ["--config", tmp_path / "local/config.yaml", "--ckpt_path", tmp_path / "local/checkpoints/best.ckpt"]
    release = ["--data", "VOC", "--data.root", data / "release", "--data.streaming", "false", "--run_dir", tmp_path / "release"]
    for options in (["--run_dir", tmp_path / "local"], release):
        result = run_command("validate", *saved, *options)
        assert result.returncode == 0, result.stderr
    first, second = evaluation(tmp_path / "local", "val-best"), evaluation(tmp_path / "release", "val-best")
    assert first == second and sum(map(sum, first["matrix"])) > 1000


@pytest.mark.slow
@pytest.mark.timeout(1500)  # five runs of two processes
def test_a_run_streamed_from_a_url_by_two_processes_survives_three_kills(data, tmp_path):
    with serve(data / "hub") as (url, _):
        variables = {"DILATED_SEG_CACHE": str(tmp_path / "cache")}
        streamed = [*EXPERIMENT, "--data", "Hub", "--data.repo", url, "--trainer.accelerator", "cpu"]
        streamed += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
        whole = run_process("fit", *streamed, "--data.num_workers", "0", "--run_dir", tmp_path / "whole", **variables)
        assert whole.returncode == 0, whole.stderr
        again = ["fit", *streamed, "--data.num_workers", "2", "--run_dir", tmp_path / "killed"]
        for step in (4, 5, 8):
            killed = run_process(*again, code=KILL.format(signal=int(signal.SIGKILL), step=step), **variables)
            assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert run_process(*again, **variables).returncode == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


def test_a_run_is_not_continued_on_other_files(data, tmp_path):
    root = parquet_datasets.voc(tmp_path / "hub")
    fit = ["fit", *EXPERIMENT, "--data", "Hub", "--data.repo", root, "--data.num_workers", "0"]
    assert run_command(*fit, "--run_dir", tmp_path / "run", "--trainer.max_steps", "3").returncode == 0
    parquet_datasets.voc(root, counts=((("train", 0), 8), (("val", 0), 3)))
    result = run_command(*fit, "--ckpt_path", tmp_path / "run/checkpoints/last.ckpt", "--run_dir", tmp_path / "continued")
    assert result.returncode == 2 and "are not those that the run began with" in result.stderr, result.stderr
