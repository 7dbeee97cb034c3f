"""Networks of other packages and of the user's own: trained, evaluated, reported, segmented with and exported."""

import importlib
import sys

import pytest
import torch
import yaml
from torch import nn

from dilated_seg.errors import UserError
from dilated_seg.inference import load
from dilated_seg.models import UNet
from dilated_seg.models.outputs import split_outputs
from dilated_seg.models.segmenter import Segmenter
from dilated_seg.runs import Run
from dilated_seg.weights.check import rebuild
from tests.support.commands import fails_in_one_sentence, run_command

EXPERIMENT = {
    "data": {"class_path": "Shapes", "init_args": {"images": [4, 2, 2], "size": [64, 64], "batch_size": 2}},
    "model": {"optimizer": {"class_path": "SGD", "init_args": {"lr": 0.001}}},
    "trainer": {"max_steps": 2, "val_check_interval": 2, "log_every_n_steps": 1, "enable_progress_bar": False},
}

# A class in the user's directory; one that returns an object with logits at a quarter of the size, as transformers' do; and a
# function that builds a network.
OWN = """
from dataclasses import dataclass
import torch
from torch import nn


class Own(nn.Module):
    def __init__(self, classes: int, width: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, classes, 1))

    def forward(self, image):
        return self.layers(image)


@dataclass
class Output:
    logits: torch.Tensor


class Former(nn.Module):
    def __init__(self, width: int = 4, num_labels: int = 2) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, width, 7, stride=4, padding=3), nn.Conv2d(width, num_labels, 1)

    def forward(self, pixel_values):
        return Output(self.head(self.patches(pixel_values).relu()))


def build(num_classes: int, width: int = 4) -> nn.Module:
    return Own(num_classes, width)


def untyped(num_classes: int):
    return Own(num_classes)


class Fixed(nn.Module):
    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, channels, 1)

    def forward(self, image):
        return self.layer(image)
"""

NETWORKS = {
    "torchvision": ("torchvision.models.segmentation.fcn_resnet50", {"weights_backbone": None, "aux_loss": True}),
    "transformers": ("own_networks.Former", {"width": 8}),
    "smp": ("segmentation_models_pytorch.Unet", {"encoder_name": "resnet18", "encoder_weights": None}),
    "own": ("own_networks.Own", {}),
    "function": ("own_networks.build", {"width": 8}),
}


@pytest.fixture(autouse=True)
def own_networks(tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_networks", None)


@pytest.fixture
def experiment(tmp_path):
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    return ["--config", tmp_path / "experiment.yaml"]


def succeed(*args):
    result = run_command(*args)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize("name", [name if name == "own" else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS])
def test_a_network_of_any_package_goes_all_the_way(name, experiment, tmp_path):
    path, arguments = NETWORKS[name]
    module = path.rpartition(".")[0]
    pytest.importorskip(module.partition(".")[0])
    net = yaml.safe_dump({"class_path": path, "init_args": arguments}, default_flow_style=True)
    run = tmp_path / "run"
    said = succeed("fit", *experiment, f"--model.net={net}", "--run_dir", run)
    assert f"--import {module}" in said
    if module == "own_networks":
        sys.modules.pop(module)
        segment = ("segment", run / "gallery/val", "--checkpoint", run, "--out", tmp_path / "out")
        assert fails_in_one_sentence(run_command(*segment), f"if you trust it, add --import {module}")
    own = ("--import", module)
    succeed("segment", run / "gallery/val", "--checkpoint", run, "--out", tmp_path / "out", *own)
    succeed("validate", run)
    succeed("report", run, "--out", tmp_path / "report")
    succeed("export", run, "--format", "onnx", "--out", tmp_path / "net.onnx", "--size", 64, 96, *own)
    succeed("export", run, "--format", "hub", "--out", tmp_path / "hub", *own)
    assert len(Run(run).dataset().classes) == 8
    image = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    segmenter = load(tmp_path / "hub")
    with torch.no_grad():
        assert segmenter(image).shape == (2, 8, 64, 96)
        assert segmenter(image).equal(load(run)(image))


def test_a_network_of_the_users_own_is_exported_for_any_size(experiment, tmp_path):
    succeed("fit", *experiment, "--model.net=own_networks.Former", "--run_dir", tmp_path / "run")
    said = succeed("export", tmp_path / "run", "--format", "pt2", "--out", tmp_path / "a.pt2", "--import", "own_networks")
    assert "the labels are torch's" in said
    succeed("probe", tmp_path / "run", "--images", 1, "--pixels", 8, "--import", "own_networks")
    succeed("tune", tmp_path / "run", "--images", 1, "--import", "own_networks")


def test_a_wrong_number_of_classes_is_one_sentence_and_leaves_no_run(experiment, tmp_path):
    result = run_command("fit", *experiment, "--model.net=own_networks.Fixed", "--run_dir", tmp_path / "run")
    assert fails_in_one_sentence(result, "Fixed returns 3 classes, and the data have 8")
    assert not (tmp_path / "run").exists()


def test_a_function_without_a_return_type_is_refused_in_one_sentence(experiment):
    result = run_command("fit", *experiment, "--model.net=own_networks.untyped")
    assert fails_in_one_sentence(result, "own_networks.untyped", "a function needs a return type, such as -> nn.Module")


def test_a_module_that_cannot_be_imported_is_named(finished_run):
    command = ("segment", "image.png", "--checkpoint", finished_run, "--import", "no_such_module")
    assert fails_in_one_sentence(run_command(*command), "--import no_such_module: the module cannot be imported")


def test_initial_weights_of_another_package_are_not_fetched_to_load_a_checkpoint(monkeypatch):
    own = importlib.import_module("own_networks")

    def build(classes: int, encoder_weights: str | None = "imagenet") -> nn.Module:
        assert encoder_weights is None
        return own.Own(classes)

    monkeypatch.setattr(own, "build", build)
    state = own.Own(3).state_dict()
    net = rebuild("own_networks.build", {"classes": 3, "encoder_weights": "imagenet"}, state, "a.ckpt", "cpu")
    assert all(net.state_dict()[key].equal(value) for key, value in state.items())


def test_outputs_of_no_known_form_are_refused():
    for outputs in ((torch.zeros(1, 2, 4, 4),), {"logit": torch.zeros(1, 2, 4, 4)}, None):
        with pytest.raises(UserError, match=f"model.net returned {type(outputs).__name__}, and not logits"):
            split_outputs(outputs)


def test_smaller_logits_are_resized_bilinearly():
    logits, image = torch.randn(1, 2, 3, 4), torch.zeros(1, 3, 6, 8)
    expected = nn.functional.interpolate(logits, (6, 8), mode="bilinear", align_corners=False)
    segmenter = Segmenter(nn.Identity(), ["a", "b"], (0,) * 3, (1,) * 3)
    assert segmenter.fit_to_image(logits, image).equal(expected)
    assert segmenter.fit_to_image(expected, image) is expected


def test_logits_of_the_unpadded_u_net_are_not_stretched():
    segmenter = Segmenter(UNet(2, "authors", width=1 / 64), ["a", "b"], (0,) * 3, (1,) * 3)
    with torch.no_grad():
        assert segmenter(torch.zeros(1, 3, 188, 204)).shape == (1, 2, 4, 20)


def test_logits_without_rows_and_columns_are_refused():
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(UserError, match="Sequential returns a tensor of 2 axes, and the data have 3"):
        Segmenter(net, ["a", "b", "c"], (0,) * 3, (1,) * 3)(torch.zeros(1, 3, 4, 4))
