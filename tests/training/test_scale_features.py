"""Features of loaded layers are scaled to the random layers that follow them."""

from collections import OrderedDict

import pytest
import torch
from lightning import Trainer
from safetensors.torch import save_file
from torch import nn

from dilated_seg.data import Shapes
from dilated_seg.models import FCN, DeconvNet, DeepLabV1, DilatedNet, SegNet
from dilated_seg.task import SegmentationTask
from dilated_seg.training.scale_features import find_random_layers, load_images

DATA = {"images": (8, 2, 2), "size": (48, 64), "batch_size": 2}
LOUD = 40.0  # factor of the last convolution, so that features are far above 1
ENCODERS = ("encoder", "front_end.encoder")


def start(net, tmp_path, loud=LOUD):
    """A task before its first step, whose encoder has weights, with biases, from a file."""
    state = {key: value.clone() for key, value in net.state_dict().items() if key.startswith(ENCODERS)}
    biased = {key: 0.1 * torch.rand(value.shape) for key, value in state.items() if key.endswith("bias")}
    state |= biased | {key: loud * value for key, value in state.items() if key.endswith("conv5_3.weight")}
    save_file(state, tmp_path / "trunk.safetensors")
    task = SegmentationTask(net, 8, weights=str(tmp_path / "trunk.safetensors"), mean=(90, 90, 90), std=(60, 60, 60))
    options = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    Trainer(max_steps=0, accelerator="cpu", **options).fit(task, Shapes(**DATA))
    return task, state


def outputs(task, names):
    """Outputs of layers on training images, in evaluation mode."""
    kept, handles = {}, []
    for name in names:
        layer = task.model.net.get_submodule(name)
        handles.append(layer.register_forward_hook(lambda layer, inputs, output, n=name: kept.update({n: output.clone()})))
    with torch.no_grad():
        task.model.net.eval()(task.model.normalize(load_images(Shapes(**DATA))))
    for handle in handles:
        handle.remove()
    return kept


@pytest.mark.parametrize("build", [DeepLabV1, FCN, DilatedNet], ids=lambda build: build.__name__)
def test_the_features_are_the_files_divided_by_one_factor(build, tmp_path, capsys):
    net = build(8, width=1 / 16)
    front = "front_end." if isinstance(net, DilatedNet) else ""
    before = {key: value.clone() for key, value in net.state_dict().items()}
    task, state = start(net, tmp_path)
    factor = task.model.std[0].item() / 60
    fc6, last = f"{front}classifier.fc6", f"{front}encoder.stages.4.conv5_3"
    scaled = outputs(task, [fc6, last])
    assert factor > 5 and scaled[fc6].std().item() == pytest.approx(1, rel=1e-3)
    assert f"divided by {factor:.3g}, by std and biases: on 4 training images the output of {fc6}" in capsys.readouterr().out
    changed = {key for key, value in net.state_dict().items() if not torch.equal(value, (before | state)[key])}
    assert changed == {key for key in state if key.endswith("bias")}
    net.load_state_dict(state, strict=False)
    task.model.std.fill_(60)
    assert torch.allclose(outputs(task, [last])[last] / factor, scaled[last], atol=1e-4)


def test_the_first_loss_is_that_of_guessing(tmp_path):
    task, _ = start(DeepLabV1(8, width=1 / 4), tmp_path)
    image, mask = load_images(Shapes(**DATA)), torch.randint(0, 8, (4, 48, 64))
    with torch.no_grad():
        total, valid = task.loss_sum(task(image), mask)
    assert (total / valid).item() == pytest.approx(torch.tensor(8.0).log().item(), rel=0.1)


class Saturating(nn.Module):
    """An encoder whose features do not scale with the image, and a random layer."""

    def __init__(self, num_classes, width):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh())
        self.head = nn.Sequential(OrderedDict(fc6=nn.Conv2d(8, 8, 1), relu=nn.ReLU(), score=nn.Conv2d(8, num_classes, 1)))

    def forward(self, image):
        return self.head(self.encoder(image))


@pytest.mark.parametrize("build", [DeconvNet, Saturating], ids=["batch norm", "tanh"])
def test_features_that_do_not_scale_with_the_image_stay(build, tmp_path, capsys):
    net = build(8, width=1 / 16)
    task, state = start(net, tmp_path)
    assert task.model.std.flatten().tolist() == [60, 60, 60]
    assert all(torch.equal(net.state_dict()[key], value) for key, value in state.items())
    assert "divided by" not in capsys.readouterr().out


def test_only_a_random_classifier_needs_a_scale():
    for net in (DeconvNet(8, width=1 / 64), SegNet(8, width=1 / 64)):  # batch norm
        assert find_random_layers(net, list(net.state_dict())) == {}
    net = DilatedNet(8, width=1 / 64)
    front = ["front_end.classifier.fc6", "front_end.classifier.fc7"]
    assert list(find_random_layers(net, list(net.state_dict()))) == front
    assert list(find_random_layers(net, ["front_end.classifier.fc7.weight", "front_end.final.weight"])) == front[1:]


def test_features_without_signal_stay(tmp_path):
    net = FCN(8, width=1 / 64)
    task, _ = start(net, tmp_path, loud=0.0)
    assert task.model.std.isfinite().all() and net.get_submodule("classifier.fc6").weight.isfinite().all()
