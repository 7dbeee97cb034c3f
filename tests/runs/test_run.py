"""A run answers for itself: configuration, checkpoints, dataset, network and history, from its directory alone."""

import shutil

import pytest
import torch

from dilated_seg.__main__ import main
from dilated_seg.data import Shapes
from dilated_seg.errors import UserError
from dilated_seg.runs import Checkpoint, Run
from dilated_seg.storage import digest
from tests.conftest import ROOT

TINY = [
    "--config", str(ROOT / "experiments/shapes/frontend.yaml"),
    "--data.init_args.images=[8,3,3]", "--data.init_args.size=[16,24]", "--data.init_args.batch_size=2",
    "--data.init_args.eval_batch_size=1", "--model.net.init_args.width=0.02", "--trainer.accelerator=cpu",
    "--trainer.max_steps=4", "--trainer.val_check_interval=2", "--trainer.log_every_n_steps=1", "--trainer.logger=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "trained"
    assert main(["fit", *TINY, "--run_dir", str(folder)]) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a finished run."""
    return Run(shutil.copytree(trained, tmp_path / "run"))


def test_a_run_has_its_experiment_its_dataset_and_its_checkpoints(run):
    assert run.finished and run.is_run
    assert run.config.seed == 0 and run.config.weights is None
    assert run.config.net.class_path == "dilated_seg.models.DilatedNet" and run.config.net.init_args["width"] == 0.02
    dataset = run.dataset()
    assert isinstance(dataset, Shapes) and len(dataset.opened("val")) == 3
    assert run.checkpoints()[0].name == "last"
    assert {checkpoint.name for checkpoint in run.checkpoints()} >= {"best", "last"}
    last = run.checkpoint("last")
    assert (last.path, last.step, last.sha256) == (run.path / "checkpoints/last.ckpt", 4, digest(last.path))
    assert last.is_intact() and last.verify() == last.sha256


def test_the_model_of_a_run_is_the_network_of_its_checkpoint(run):
    state = torch.load(run.checkpoint("best").path, weights_only=True)["state_dict"]
    model = run.model("best")
    assert not model.training and model.classes == list(Shapes().classes)
    assert all(torch.equal(value, state[f"model.net.{name}"]) for name, value in model.net.state_dict().items())


def test_a_changed_checkpoint_does_not_verify(run):
    checkpoint = run.checkpoint("last")
    content = bytearray(checkpoint.path.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.path.write_bytes(content)
    assert not checkpoint.is_intact()
    with pytest.raises(UserError, match=r"last\.ckpt is damaged: its checksum is not the one in last\.ckpt\.sha256"):
        checkpoint.verify()


def test_a_directory_that_is_no_run_of_this_version_is_refused_in_one_sentence(run, tmp_path):
    with pytest.raises(UserError, match=r"nothing is not a run directory \(no config.yaml\): pass the directory that"):
        Run(tmp_path / "nothing").dataset()
    for text in ("model: {}\n", "seed_everything: 0\n", "[1]\n", "{"):
        run.config_file.write_text(text)
        with pytest.raises(UserError, match="is not the configuration of a run of this version: train the run again"):
            Run(run.path).dataset()
    torch.save({"state_dict": {"net.weight": torch.zeros(1)}, "epoch": 3}, tmp_path / "old.ckpt")
    with pytest.raises(UserError, match="is no checkpoint of a run"):
        Checkpoint(tmp_path / "old.ckpt").read()
    with pytest.raises(UserError, match="has no checkpoint first: there are last, "):
        run.checkpoint("first")


def test_the_run_of_a_checkpoint_and_the_newest_run_are_found(run, tmp_path):
    assert Run.containing(run.checkpoint("best").path).path == run.path
    assert Run.containing(tmp_path / "best.ckpt") is None
    assert Run.newest(run.path).path == run.path
    assert Run.newest(tmp_path).path == run.path
    run.finished_file.unlink()
    with pytest.raises(UserError, match="holds no finished run"):
        Run.newest(tmp_path)


def test_a_run_continues_with_its_own_configuration_from_its_newest_intact_checkpoint(run, tmp_path):
    config = run.config_file.read_text()
    assert run.resume(config, None) == run.last_checkpoint.path
    assert run.resume(config.replace("run_dir: null", "run_dir: elsewhere"), None) == run.last_checkpoint.path
    assert run.resume(config, str(run.checkpoint("best").path)) is None  # that one is named already
    assert Run(tmp_path / "new").resume(config, None) is None
    with pytest.raises(UserError, match=r"another configuration: .* \(trainer.max_steps is 4 there and 5 here"):
        run.resume(config.replace("max_steps: 4", "max_steps: 5"), None)


def test_runs_of_one_second_have_directories_of_their_own(tmp_path):
    paths = [Run.create(tmp_path / "runs").path for _ in range(3)]
    assert len(set(paths)) == 3 and all(path.is_dir() for path in paths)
