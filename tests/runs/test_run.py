"""A run answers for itself: configuration, checkpoints, dataset, network and history, from its directory alone."""

import shutil

import numpy as np
import pytest
import torch

from dilated_seg.data import Shapes
from dilated_seg.errors import UserError
from dilated_seg.runs import Checkpoint, EvaluatedImage, Evaluation, EvaluationProtocol, Run
from dilated_seg.runs.resume import find_resumed_checkpoint
from dilated_seg.storage import digest
from tests.support.evaluations import make_evaluation, make_protocol


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of a finished run."""
    return Run(shutil.copytree(finished_run, tmp_path / "run"))


def test_a_run_has_its_experiment_its_dataset_and_its_checkpoints(run):
    assert run.finished and run.is_run
    assert run.config.seed == 0 and run.config.weights is None
    assert run.config.net.class_path == "dilated_seg.models.DilatedNet" and run.config.net.init_args["width"] == 0.02
    dataset = run.dataset()
    assert isinstance(dataset, Shapes) and len(dataset.open_split("val")) == 3
    assert run.checkpoints()[0].name == "last"
    assert {checkpoint.name for checkpoint in run.checkpoints()} >= {"best", "last"}
    last = run.checkpoint("last")
    assert (last.path, last.step, last.sha256) == (run.path / "checkpoints/last.ckpt", 12, digest(last.path))
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
    with pytest.raises(UserError, match=r"last\.ckpt is damaged: its checksum is not that in last\.ckpt\.sha256"):
        checkpoint.verify()


def test_a_directory_that_is_no_run_of_this_version_is_refused_in_one_sentence(run, tmp_path):
    with pytest.raises(UserError, match=r"nothing is not a run directory \(no config.yaml\): pass the directory that"):
        Run(tmp_path / "nothing").dataset()
    for text in ("model: {}\n", "seed_everything: 0\n", "[1]\n", "{"):
        run.config_file.write_text(text)
        with pytest.raises(UserError, match="is not the configuration of a run of this version: train the run again"):
            Run(run.path).dataset()
    torch.save({"state_dict": {"net.weight": torch.zeros(1)}, "epoch": 3}, tmp_path / "old.ckpt")
    with pytest.raises(UserError, match="is not a checkpoint of a run"):
        Checkpoint(tmp_path / "old.ckpt").read()
    with pytest.raises(UserError, match=r"has no checkpoint first: name one of last, "):
        run.checkpoint("first")


def test_the_run_of_a_checkpoint_and_the_newest_run_are_found(run, tmp_path):
    assert Run.containing(run.checkpoint("best").path).path == run.path
    assert Run.containing(tmp_path / "best.ckpt") is None
    assert Run.newest(run.path).path == run.path
    assert Run.newest(tmp_path).path == run.path
    run.finished_file.unlink()
    with pytest.raises(UserError, match="has no finished run"):
        Run.newest(tmp_path)


def test_a_run_continues_with_its_own_configuration_from_its_newest_intact_checkpoint(run, tmp_path):
    config = run.config_file.read_text()
    assert find_resumed_checkpoint(run, config, None) == run.last_checkpoint.path
    assert find_resumed_checkpoint(run, config.replace("run_dir: null", "run_dir: elsewhere"), None) == run.last_checkpoint.path
    assert find_resumed_checkpoint(run, config, str(run.checkpoint("best").path)) is None  # that one is named already
    assert find_resumed_checkpoint(Run(tmp_path / "new"), config, None) is None
    with pytest.raises(UserError, match=r"another configuration \(trainer.max_steps is 12 there and 13 here"):
        find_resumed_checkpoint(run, config.replace("max_steps: 12", "max_steps: 13"), None)


def test_runs_of_one_second_have_directories_of_their_own(tmp_path):
    paths = [Run.create(tmp_path / "runs").path for _ in range(3)]
    assert len(set(paths)) == 3 and all(path.is_dir() for path in paths)


def test_the_evaluations_of_a_run_have_their_images_and_add_up(run):
    assert list(run.evaluations()) == run.evaluation_names() == ["val"]
    evaluation = run.evaluation("val")
    ids, matrices = evaluation.images
    assert ids == ["val000000", "val000001", "val000002"] and np.array_equal(matrices.sum(0), evaluation.matrix)
    assert (evaluation.protocol.dataset, evaluation.protocol.split, evaluation.protocol.step) == ("Shapes", "val", 12)
    assert evaluation.mean_iou == run.history()["val/mean_iou"][-1][1] and evaluation.strata is None
    (record,) = run.model("last").facts["evaluations"]
    assert record["protocol"] == evaluation.protocol.describe()
    with pytest.raises(UserError, match="has no evaluation test-last: run dilated-seg test "):
        run.evaluation("test-last")


def test_an_evaluation_is_read_as_it_was_saved_and_one_of_another_version_is_refused(tmp_path):
    images = [EvaluatedImage("a", np.array([[3, 1], [0, 2]])), EvaluatedImage("b", np.array([[0, 0], [5, 7]]))]
    saved = make_evaluation(["x", "y"], sum(image.matrix for image in images), tmp_path, images=2, available=5)
    saved.save(images)
    loaded = Evaluation.load(saved.file)
    assert (loaded.protocol, loaded.classes, loaded.name) == (saved.protocol, saved.classes, saved.name)
    assert np.array_equal(loaded.matrix, saved.matrix) and loaded.images[0] == ["a", "b"]
    assert saved.with_free_name(images).name == "test-last"  # it replaces itself
    assert saved.with_free_name(images[:1]).name.startswith("test-last-")
    for damage in ("{}", "[", saved.file.read_text().replace('"images": 2', '"images": "2 of 5, partial"')):
        saved.file.write_text(damage)
        with pytest.raises(UserError, match="cannot be read as an evaluation of this version: evaluate the run again"):
            Evaluation.load(saved.file)


def test_a_protocol_is_one_sentence_and_typed_values():
    protocol = make_protocol(images=2, available=101, pixels=9, crf="a dense CRF", precision="16-mixed")
    assert str(protocol) == (
        "dataset: Made; split: test; images: 2 of 101, partial; pixels: 9; resolution: the mask's own; "
        "inference: whole image, 16-mixed, then a dense CRF; "
        "absent classes: a class absent from masks and predictions is left out of the mean; "
        "checkpoint: last, step 9; commit: abc"
    )
    assert protocol.partial == "partial: 2 of 101 images" and not protocol.is_whole_image
    assert EvaluationProtocol.from_json(protocol.to_json()) == protocol
    whole = make_protocol(images=3, model_crf="a CRF")
    assert "; images: 3; " in str(whole) and "inference: whole image, with its own a CRF; " in str(whole)
    assert not whole.partial and whole.is_whole_image
