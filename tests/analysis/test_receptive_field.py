"""Receptive fields: what the theory says of every layer is what gradients reach, and what is measured of trained networks."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from dilated_seg.__main__ import main
from dilated_seg.analysis import plots, receptive_field, summary
from dilated_seg.analysis.intervals import Interval
from dilated_seg.analysis.receptive_field import grey
from dilated_seg.analysis.receptive_field import plots as field_plots
from dilated_seg.analysis.receptive_field.trace import NOTHING
from dilated_seg.commands.objects import parse_network
from dilated_seg.errors import UserError
from dilated_seg.models import DilatedNet
from dilated_seg.models.layers import Upsample
from dilated_seg.models.segmenter import Segmenter
from dilated_seg.runs import Run

MOVERS = (nn.Conv2d, nn.ConvTranspose2d, nn.MaxPool2d, nn.AvgPool2d, nn.MaxUnpool2d, Upsample)  # other layers move no column


class AllOfTheWindow(nn.Module):
    """A pooling whose gradient reaches all of its window, where a maximum's would reach one place of it."""

    def __init__(self, pool):
        super().__init__()
        self.pool, self.mean = pool, nn.AvgPool2d(pool.kernel_size, pool.stride, pool.padding, ceil_mode=pool.ceil_mode)

    def forward(self, maps):
        return (self.mean(maps), None) if self.pool.return_indices else self.mean(maps)


class AllOfTheCell(nn.Module):
    """An unpooling that fills its window, where a maximum would go to one place of it."""

    def forward(self, maps, indices, output_size):
        return maps.repeat_interleave(2, -1).repeat_interleave(2, -2)[..., : output_size[0], : output_size[1]]


def positive(net):
    """The network with weights, biases and poolings through which every gradient is above zero, so that none cancels."""
    for name, layer in list(net.named_modules()):
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.weight.requires_grad:
            nn.init.uniform_(layer.weight, 0.5 / layer.weight[0].numel(), 1.5 / layer.weight[0].numel())
            if layer.bias is not None:
                nn.init.constant_(layer.bias, 0.1)
        if isinstance(layer, nn.MaxPool2d | nn.MaxUnpool2d):
            parent, _, leaf = name.rpartition(".")
            replaced = AllOfTheWindow(layer) if isinstance(layer, nn.MaxPool2d) else AllOfTheCell()
            net.get_submodule(parent)._modules[leaf] = replaced
    return net


def maps_of(net, image, names):
    """What the layers of these names give for an image."""
    found = {}
    for name in names:
        net.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: found.update({name: out}))
    found["logits"] = net(image)
    return {name: out[0] if isinstance(out, tuple) else out for name, out in found.items()}


def reached(maps, image, column):
    """The first and last image column that the gradient of a column of some maps reaches."""
    (gradient,) = torch.autograd.grad(maps[..., column].sum(), image, retain_graph=True)
    columns = gradient.abs().sum((0, 1, 2)).nonzero()
    return (int(columns.min()), int(columns.max())) if len(columns) else NOTHING


@pytest.mark.parametrize(
    ("call", "height", "width"),
    [
        ("FCNAlexNet(2, width=0.02, one_tower=True)", 33, 531),
        ("FCNAlexNet(2, width=0.02, one_tower=True, form=authors)", 33, 331),
        ("FCN(2, stride=32, width=0.02)", 33, 600),
        ("FCN(2, stride=16, width=0.02)", 33, 599),
        ("FCN(2, stride=8, width=0.02)", 33, 601),
        ("FCN(2, stride=8, width=0.02, form=authors)", 33, 401),
        ("FCN(2, stride=8, width=0.02, resnet=18)", 33, 500),
        ("DeepLabV1(2, width=0.02)", 33, 601),
        ("DeepLabV1(2, width=0.02, form=authors)", 33, 601),
        ("DeepLabV1(2, width=0.02, msc=True)", 33, 601),
        ("DeconvNet(2, width=0.02)", 33, 901),
        ("DeconvNet(2, width=0.02, form=authors)", 224, 224),
        ("UNet(2, width=0.02)", 33, 333),
        ("UNet(2, width=0.02, form=authors)", 188, 252),
        ("SegNetBasic(2, width=0.05)", 33, 333),
        ("SegNetBasic(2, width=0.05, form=authors)", 33, 333),
        ("SegNet(2, width=0.02)", 33, 555),
        ("DilatedNet(2, context=None, width=0.02)", 33, 600),
        ("DilatedNet(2, width=0.02)", 33, 1100),
        ("DilatedNet(2, context='large', width=0.02)", 33, 1100),
        ("DilatedNet(2, context='large', padding='reflect', width=0.01)", 1, 801),
        ("ContextModule(3, layers=10)", 1, 333),
        ("DilatedNet(2, resnet=18, width=0.02)", 33, 1100),
        ("FCDenseNet(2, depth=56, width=0.03)", 33, 800),
        ("FCDenseNet(2, depth=67, width=0.03)", 33, 800),
        ("FCDenseNet(2, depth=103, width=0.03)", 33, 1300),
    ],
)  # fmt: skip
def test_theoretical_fields_equal_the_pixels_that_gradients_reach(call, height, width):
    net = parse_network(call, "cpu").double().eval()
    names = [name for name, layer in net.named_modules() if isinstance(layer, MOVERS)]
    image = torch.empty(1, 3, height, width, device="meta")
    with torch.no_grad(), receptive_field.Trace(image) as trace:
        theory = {
            name: trace.field(maps) for name, maps in maps_of(copy.deepcopy(net).to("meta").float(), image, names).items()
        }
    image = torch.ones(1, 3, height, width, dtype=torch.float64, requires_grad=True)
    gradients = maps_of(positive(net), image, names)
    assert len(names) >= 7
    for name, (first, last) in theory.items():
        n = len(first)
        for column in {0, n // 2, n - 1} if name == "logits" else {n // 2}:
            assert reached(gradients[name], image, column) == (first[column], last[column]), (name, column)


@pytest.mark.parametrize(
    ("call", "layer", "stride", "side", "centre"),
    [
        ("FCN(21)", "encoder.stages.0.conv1_1", 1, 3, 0),
        ("FCN(21)", "encoder.pools.pool1", 2, 6, 0.5),  # even: between two pixels
        ("FCN(21)", "encoder.pools.pool5", 32, 212, 15.5),
        ("FCN(21, form=authors)", "encoder.stages.0.conv1_1", 1, 3, -99),  # a border of 100 pixels
        ("FCN(21, form=authors)", "decoder.upscore", 1, 436, -19),  # which its crop makes up for
        ("DeepLabV1(21)", "encoder.pools.pool3", 8, 51, 0),  # poolings of 3 x 3 with padding 1, ceil mode
        ("FrontEnd(21)", "final", 8, 380, 3.5),
        ("FrontEnd(21, padding='valid')", "final", 8, 380, 189.5),  # the first cell sees the first 380 pixels
        ("ContextModule(21)", "layers.ctx_final", 1, 67, 0),
        ("ContextModule(21, padding='valid')", "layers.ctx_final", 1, 67, 33),
    ],
)
def test_fields_lie_where_kernels_strides_and_borders_put_them(call, layer, stride, side, centre):
    found = {row.name: row for row in summary.summarize(parse_network(call), call).layers}[layer]
    assert (found.output_stride, found.receptive_field, found.centre) == (stride, side, centre)


@pytest.mark.parametrize("call", summary.list_family())
def test_a_pixels_logits_look_at_that_pixel_from_the_middle(call):
    field = receptive_field.of_logits(parse_network(call).eval(), 5004)
    shifted = {
        "padding='reflect'": 3.5,
        "FCDenseNet": -15.5,
    }  # trained on the corner of a cell; transposed convolutions of 3 x 3
    assert receptive_field.stride(field) == 1
    assert receptive_field.centre(field) == pytest.approx(sum(v for k, v in shifted.items() if k in call), abs=0.5)


def test_the_effective_field_is_the_gradient_of_the_predicted_class_at_the_middle():
    net = nn.Conv2d(3, 2, 3, padding=1)
    nn.init.normal_(net.weight)
    net.bias.data = torch.tensor([0.0, 1e4])  # so class 1 is predicted
    field = receptive_field.effective(net, [torch.full((3, 7, 9), 100, dtype=torch.uint8)])
    expected = net.weight[1].abs().sum(0).double().detach()
    assert np.allclose(field[2:5, 3:6], expected / expected.sum())
    assert field.sum() == pytest.approx(1)
    assert (field > 0).sum() == 9


def test_the_effective_field_fills_the_theoretical_field_and_no_more():
    net = positive(DilatedNet(2, context=None, width=0.02)).double().eval()
    field = receptive_field.effective(lambda image: net(image.double()), [torch.zeros(3, 401, 500)])
    rows, columns = np.nonzero(field)
    box = (rows.min(), rows.max(), columns.min(), columns.max())
    assert box == receptive_field.logits_box(net.float(), 401, 500)
    assert receptive_field.logits_side(net) == 388


def test_images_of_unequal_size_have_their_middle_in_common():
    field = receptive_field.effective(nn.Conv2d(3, 2, 1), [torch.zeros(3, 5, 10), torch.zeros(3, 8, 7)])
    assert field.shape == (8, 10)
    assert np.argwhere(field).tolist() == [[4, 5]]


def test_squares_hold_their_share_of_a_field():
    field = np.zeros((9, 11))
    field[4, 5], field[4, 6], field[1, 5], field[4, 0] = 0.5, 0.3, 0.15, 0.05
    assert receptive_field.accumulate_field(field) == pytest.approx([0.5, 0.8, 0.8, 0.95, 0.95, 1.0])
    assert [receptive_field.side_of(field, share) for share in (0.5, 0.6, 0.9, 1)] == [1, 3, 7, 11]
    assert receptive_field.side_of(np.zeros((3, 3)), 0.5) is None


def test_pixels_are_of_all_classes_alike_and_of_all_images_that_have_them():
    masks = [np.full((20, 30), 255, dtype=np.uint8) for _ in range(3)]
    masks[0][:15], masks[1][:, :7], masks[1][3, 9:11], masks[2][5:] = 0, 0, 1, 2
    image, row, column = grey.sample_pixels(masks, 3, 60, 0)
    truth = [masks[i][y, x] for i, y, x in zip(image, row, column, strict=True)]
    assert np.bincount(truth, minlength=3).tolist() == [20, 2, 20]  # there are two of the second
    assert np.bincount(image).tolist() == [10, 12, 20]
    assert len(set(zip(image, row, column, strict=True))) == 42
    assert np.array_equal(grey.sample_pixels(masks, 3, 60, 0), (image, row, column))
    assert not np.array_equal(grey.sample_pixels(masks, 3, 60, 1), (image, row, column))
    assert {grey.sample_pixels(masks[:2], 1, 1, seed)[0].item() for seed in range(9)} == {0, 1}


def far_sighted(distance, upright=False):
    """A network that tells white from black by the pixel that lies so far to the left (or above), and what it needs."""
    net = nn.Conv2d(3, 2, (1, 2 * distance + 1), padding=(0, distance), bias=False)
    nn.init.zeros_(net.weight)
    net.weight.data[0, :, 0, 0] = 1.0
    mask = torch.randint(0, 2, (2, 16, 24), dtype=torch.uint8)
    images = 255 * (1 - mask.roll(-distance, 2))[:, None].expand(-1, 3, -1, -1)
    mask[:, :, :distance] = 255
    if upright:
        images, mask, net.weight.data, net.padding = images.mT, mask.mT, net.weight.data.mT, (distance, 0)
    samples = [{"image": images[i], "mask": mask[i].contiguous(), "id": str(i)} for i in range(2)]
    return Segmenter(net, ["white", "black"], [128] * 3, [64] * 3).eval(), samples


@pytest.mark.parametrize("at_once", [1, 400_000])
@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("distance", [5, 20])
def test_accuracy_rises_at_the_radius_where_the_evidence_becomes_visible(distance, upright, at_once, monkeypatch):
    monkeypatch.setattr(grey, "MAX_PIXELS", at_once)
    model, samples = far_sighted(distance, upright)
    found = receptive_field.context(model, samples, (0, distance - 1, distance, None), 40)
    assert found.accuracy().tolist() == [0.5, 0.5, 1, 1]
    assert found.accuracy([1]).tolist() == [0, 0, 1, 1]  # what is grey is neither, so the first
    assert np.isnan(found.accuracy([7])).all()
    assert found.predicted.shape == (40, 4)


def test_probe_stores_its_measurements_and_does_not_repeat_them(run, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "run")
    asked = ["probe", str(tmp_path), "--evaluation", "val", "--images", "2", "--pixels", "16"]
    assert main(asked) == 0
    assert "field 388 by theory" in capsys.readouterr().out
    measured = receptive_field.read(Run(folder), "val-last")
    assert (measured.protocol.images, measured.protocol.available) == (2, 3) and "; images: 2 of 3; " in str(measured.protocol)
    assert (measured.protocol.checkpoint, measured.protocol.step) == ("last", 12)
    assert measured.theory == {"side": 388, "box": [0, 31, 0, 63]}
    assert measured.effective.shape == (32, 64)
    assert measured.context.ids == ["val000000", "val000002"]
    assert measured.protocol.pixels == len(measured.context.truth) == 12  # no picture has both hills, nor sun and moon
    file = folder / "receptive_fields/val-last.npz"
    assert json.loads(file.with_suffix(".json").read_text())["accuracy"] == measured.context.accuracy().tolist()
    written = file.stat().st_mtime_ns
    assert main(asked) == 0
    assert "was there" in capsys.readouterr().out
    assert file.stat().st_mtime_ns == written
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match="does not belong to it"):
        receptive_field.read(Run(folder), "val-last")
    assert main(asked) == 0
    assert np.array_equal(receptive_field.read(Run(folder), "val-last").effective, measured.effective)


def test_plots_show_the_measured_fields():
    model, samples = far_sighted(5)
    pictures_of = [sample["image"] for sample in samples]
    context = receptive_field.context(model, samples, (4, None), 20)
    field = receptive_field.effective(model, pictures_of)
    theory = {"side": 11, "box": [8, 8, 7, 17]}
    protocol = receptive_field.MeasurementProtocol("Made", "val", 2, 2, 20, 0, "last", 1, "abc")
    measured = receptive_field.Measured({}, protocol, ["white", "black"], theory, field, context)
    (field_axes,) = field_plots.draw_field_maps({"far": measured}).axes[:1]
    profile_axes = field_plots.draw_profiles({"far": measured}, {"far": 0}).axes[0]
    right = [Interval(share, np.nan, np.nan) for share in context.accuracy([1])]
    accuracy_axes = plots.draw_steps(["4", "whole"], {"far": right}, {"far": 0}, "seen", "right").axes[0]
    assert field_axes.patches[-1].get_bbox().bounds == (6.5, 7.5, 11, 1)
    assert profile_axes.lines[0].get_ydata() == pytest.approx([0] * 5 + [100] * 8)
    assert accuracy_axes.lines[0].get_ydata().tolist() == [0, 100]
    assert [label.get_text() for label in accuracy_axes.get_xticklabels()] == ["4", "whole"]


def test_runs_that_cannot_be_probed_are_a_user_error(run, tmp_path, capsys):
    for asked, sentence in (
        ([str(tmp_path)], "has no evaluated run"),
        ([str(run), "--evaluation", "val-first"], "has no checkpoint first: name one of"),
        ([str(run), "--evaluation", "night-last"], "--split night: Shapes has no such split"),
        ([str(run), "--evaluation", "val-last", "--pixels", "7"], "has 8 classes, each of which needs one"),
        ([str(run), "--evaluation", "val-last", "--images", "0"], "at least one is needed"),
    ):
        assert main(["probe", *asked]) == 2
        assert sentence in capsys.readouterr().err
    folder = shutil.copytree(run, tmp_path / "run")
    config = folder / "config.yaml"
    text = config.read_text().replace("dilated_seg.data.Shapes", "dilated_seg.data.Folder")
    start = text.index("    size:")
    config.write_text(text[:start] + f"    root: {tmp_path}/gone\n" + text[text.index("    batch_size:") :])
    assert main(["probe", str(folder), "--evaluation", "val-last"]) == 2
    assert "gone" in capsys.readouterr().err
    with pytest.raises(UserError, match="measure them with dilated-seg probe"):
        receptive_field.read(Run(folder), "val-last")
