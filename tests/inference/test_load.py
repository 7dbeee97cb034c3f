"""A trained network from wherever it lies: the same logits as the task's, and one sentence for what is none."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader

from dilated_seg.crf import DenseCRF
from dilated_seg.data import Shapes
from dilated_seg.errors import UserError
from dilated_seg.export import hub
from dilated_seg.export.program import export_network
from dilated_seg.inference import load
from dilated_seg.models import DilatedNet
from dilated_seg.runs import Checkpoint
from dilated_seg.task import SegmentationTask
from tests.conftest import ROOT

IMAGE = torch.randint(0, 256, (1, 3, 33, 47), dtype=torch.uint8)


@pytest.fixture
def checkpoint(finished_run, tmp_path):
    """A finished run's last checkpoint, to be changed."""
    return shutil.copytree(finished_run, tmp_path / "run") / "checkpoints/last.ckpt"


def rewrite(path, change):
    """A checkpoint with something else in it, and no checksum."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    Checkpoint(path).checksum_file.unlink()
    return path


def logits(segmenter, image=IMAGE):
    with torch.no_grad():
        return segmenter(image)


def test_a_segmenter_predicts_the_same_as_its_task(run):
    task = SegmentationTask.load_from_checkpoint(run / "checkpoints/last.ckpt", map_location="cpu").eval()
    for source in (run, str(run.parent), run / "checkpoints/last.ckpt"):
        segmenter = load(source)
        assert not segmenter.training
        assert torch.equal(logits(segmenter), logits(task))
        assert torch.equal(logits(segmenter, IMAGE.float()), logits(task))


def test_a_segmenter_knows_its_data_and_where_it_comes_from(run):
    segmenter, data = load(run), Shapes()
    assert segmenter.classes == list(data.classes)
    assert segmenter.palette == list(data.palette)
    assert (segmenter.ignore_index, segmenter.submitted, segmenter.dataset) == (255, None, "Shapes")
    path = run / "checkpoints/last.ckpt"
    assert segmenter.facts["sha256"] == Checkpoint(path).checksum_file.read_text().split()[0]
    assert (segmenter.facts["checkpoint"], segmenter.facts["step"]) == ("last.ckpt", 12)
    (record,) = segmenter.facts["evaluations"]
    assert record["protocol"]["checkpoint"] == "last, step 12"
    assert segmenter.built[0] == "DilatedNet"


def test_a_checkpoint_of_earlier_commits_has_the_names_of_its_hyperparameters_and_the_colours_of_voc(checkpoint):
    rewrite(checkpoint, lambda content: content.pop("dataset"))
    segmenter = load(checkpoint)
    assert segmenter.classes == list(Shapes().classes)
    assert segmenter.palette[:3] == [(0, 0, 0), (128, 0, 0), (0, 128, 0)]
    assert segmenter.dataset == "Shapes"  # its evaluations say it


def test_loading_imports_no_trainer_and_executes_no_pickle(checkpoint):
    code = (
        "import sys; from dilated_seg.inference import load; load(sys.argv[1]);"
        "print([m for m in ('lightning', 'torchvision', 'datasets', 'wandb', 'torchmetrics') if m in sys.modules])"
    )
    environment = {**os.environ, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}

    def loads(path):
        command = [sys.executable, "-c", code, str(path)]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    assert loads(checkpoint).stdout == "[]\n"
    rewrite(checkpoint, lambda content: content.update(dataset=nn.Identity()))  # to be executed
    assert "would have to be executed" in loads(checkpoint).stderr


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c.pop("hyper_parameters"), "is not a checkpoint of a run"),
        (lambda c: c["hyper_parameters"].pop("net"), r"built in Python.*load\(source, net=...\)"),
        (lambda c: c["hyper_parameters"]["net"].update(class_path="os.system"), "there is no network os.system"),
        (lambda c: c["hyper_parameters"]["net"].update(class_path="antigravity.Net"), "antigravity.Net is not imported"),
        (lambda c: c["hyper_parameters"]["net"]["init_args"].update(depth=3), "DilatedNet.*depth"),
        (lambda c: c["hyper_parameters"]["net"]["init_args"].update(encoder={"class_path": "x.Y"}), "built of other objects"),
        (lambda c: c["hyper_parameters"]["net"]["init_args"].update(width=0.04), "of another size is front_end.enc"),
        (lambda c: c["state_dict"].pop("model.net.front_end.final.bias"), "does not fit.*it has no front_end.final.bias"),
        (lambda c: c["state_dict"].update({"model.net.more": torch.zeros(1)}), "does not fit.*the network has no more"),
        (lambda c: c["state_dict"].pop("model.mean"), "is incomplete .*'mean'"),
        (lambda c: c["state_dict"].update(std=torch.zeros(3, 1, 1)), "std above 0"),
        (lambda c: c["dataset"].update(palette=[[0, 0, 0]]), "8 classes, but 1 colors"),
    ],
)
def test_a_checkpoint_with_invalid_content_is_a_user_error(checkpoint, change, sentence):
    with pytest.raises(UserError, match=sentence):
        load(rewrite(checkpoint, change))


def test_a_damaged_checkpoint_is_refused(checkpoint):
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged: its checksum is not that in last\.ckpt"):
        load(checkpoint)
    Checkpoint(checkpoint).checksum_file.unlink()
    checkpoint.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="is damaged"):
        load(checkpoint)


def train_in_python(net, path):
    """A task that was trained for a step by a plain Trainer, and its checkpoint."""
    batch = {"image": IMAGE, "mask": torch.zeros(1, 33, 47, dtype=torch.long), "id": ["a"]}
    loader = DataLoader([batch], batch_size=None)
    task = SegmentationTask(net, num_classes=3, mean=(1.0, 2.0, 3.0))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(max_steps=1, limit_val_batches=0, accelerator="cpu", **quiet)
    trainer.fit(task, loader, loader)
    trainer.save_checkpoint(path)
    return task


def test_a_network_of_another_class_built_in_python_is_handed_over(tmp_path):
    task = train_in_python(nn.Sequential(DilatedNet(3, width=1 / 64)), tmp_path / "own.ckpt")
    with pytest.raises(UserError, match="built in Python"):
        load(tmp_path / "own.ckpt")
    segmenter = load(tmp_path / "own.ckpt", net=nn.Sequential(DilatedNet(3, width=1 / 64)))
    assert torch.equal(logits(segmenter), logits(task.eval()))
    assert (segmenter.classes, segmenter.dataset, segmenter.built) == (["0", "1", "2"], None, None)


def test_a_network_of_the_package_built_in_python_is_rebuilt(tmp_path):
    task = train_in_python(DilatedNet(3, width=1 / 64), tmp_path / "ours.ckpt")
    segmenter = load(tmp_path / "ours.ckpt")
    assert torch.equal(logits(segmenter), logits(task.eval())) and segmenter.classes == ["0", "1", "2"]


def test_a_missing_source_is_a_user_error(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"there is no .*/nothing: name a run's directory"):
        load(tmp_path / "nothing")
    with pytest.raises(UserError, match="has no finished run"):
        load(tmp_path)
    with pytest.raises(UserError, match="there is no path no/such, and it cannot be downloaded from the Hugging Face Hub"):
        load("no/such")


def test_a_crf_that_was_trained_with_the_network_goes_with_it(checkpoint, tmp_path):
    plain = logits(load(checkpoint))
    parameters = {"w1": torch.rand(8), "w2": torch.rand(8), "compatibility": -torch.eye(8) + 0.1}

    def add(content):
        content["hyper_parameters"]["crf"] = {"class_path": "dilated_seg.crf.DenseCRF", "init_args": {"learnable": True}}
        content["state_dict"] |= {f"model.crf.{name}": tensor for name, tensor in parameters.items()}

    segmenter = load(rewrite(checkpoint, add))
    crf = DenseCRF(num_classes=8, learnable=True)
    crf.load_state_dict(parameters)
    with torch.no_grad():
        expected = crf(plain.softmax(1), IMAGE)
    torch.testing.assert_close(logits(segmenter).softmax(1), expected)
    task = SegmentationTask.load_from_checkpoint(checkpoint, map_location="cpu").eval()
    assert torch.equal(logits(task), logits(segmenter))
    hub.save(segmenter, tmp_path / "saved")
    assert torch.equal(logits(load(tmp_path / "saved")), logits(segmenter))
    with pytest.raises(UserError, match="trained with a CRF"):
        export_network(str(checkpoint), "onnx", str(tmp_path / "net.onnx"))
    rewrite_again = torch.load(checkpoint, weights_only=True)
    del rewrite_again["state_dict"]["model.crf.w1"]
    torch.save(rewrite_again, checkpoint)
    with pytest.raises(UserError, match="its CRF does not fit the network: it has no w1"):
        load(checkpoint)


def test_a_crf_of_a_task_built_in_python_goes_with_its_checkpoint(tmp_path):
    task = SegmentationTask(DilatedNet(8, width=1 / 64), 8, crf=DenseCRF(2, w1=4.0, learnable=True))
    trainer = Trainer(max_steps=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.strategy.connect(task)
    task.trainer = trainer
    trainer.save_checkpoint(tmp_path / "python.ckpt")
    segmenter = load(tmp_path / "python.ckpt", net=DilatedNet(8, width=1 / 64))
    assert torch.equal(logits(segmenter), logits(task.eval()))
    content = torch.load(tmp_path / "python.ckpt", weights_only=True)
    del content["crf"]
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="but not its arguments"):
        load(tmp_path / "other.ckpt", net=DilatedNet(8, width=1 / 64))


class Doubled(DenseCRF):
    """A user's CRF."""


def test_a_subclass_of_the_crf_is_rebuilt_as_such_if_it_is_imported(tmp_path, monkeypatch):
    task = SegmentationTask(DilatedNet(8, width=1 / 64), 8, crf=Doubled(1))
    trainer = Trainer(max_steps=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.strategy.connect(task)
    task.trainer = trainer
    trainer.save_checkpoint(tmp_path / "python.ckpt")
    crf = load(tmp_path / "python.ckpt", net=DilatedNet(8, width=1 / 64)).crf
    assert type(crf) is Doubled and crf.name.startswith("crf-Doubled") and str(crf).startswith("Doubled (")
    monkeypatch.delattr(sys.modules[__name__], "Doubled")
    with pytest.raises(UserError, match=r"its CRF .*Doubled is not imported: if you trust it, add --import"):
        load(tmp_path / "python.ckpt", net=DilatedNet(8, width=1 / 64))
