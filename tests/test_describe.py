"""What describe says of a network: receptive fields by gradient, sums by other counters, the page of the family."""

import json

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dilated_seg.__main__ import main
from dilated_seg.analysis import describe
from dilated_seg.build import network
from tests.conftest import ROOT


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


def seen(net: nn.Module, side: int, period: int, chosen: tuple[str, ...]) -> dict[str, int]:
    """For each layer, how many image columns the gradient of its middle columns reaches, with weights that cannot cancel.

    ``period`` columns of the image are looked at, for a decoder does not treat them alike.
    """
    outputs, found = {}, {}
    for name, layer in list(net.named_modules()):
        if getattr(layer, "weight", None) is not None and layer.weight.requires_grad and layer.weight.dim() > 1:
            nn.init.constant_(layer.weight, 1 / layer.weight[0].numel())
            if layer.bias is not None:
                nn.init.constant_(layer.bias, 0.1)
        if isinstance(layer, nn.MaxPool2d | nn.MaxUnpool2d):
            parent, _, leaf = name.rpartition(".")
            layer = AllOfTheWindow(layer) if isinstance(layer, nn.MaxPool2d) else AllOfTheCell()
            net.get_submodule(parent)._modules[leaf] = layer
        if name in chosen or (not chosen and isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | AllOfTheWindow | AllOfTheCell)):
            layer.register_forward_hook(lambda _, __, out, name=name: outputs.update({name: out}))
    image = torch.ones(1, next(net.parameters()).shape[1], 33, side, dtype=torch.float64, requires_grad=True)
    net(image)
    for name, out in outputs.items():
        maps = out[0] if isinstance(out, tuple) else out
        middle = maps.shape[-1] // 2
        for at in range(middle, middle + max(1, -(-period * maps.shape[-1] // side))):
            (gradient,) = torch.autograd.grad(maps[..., at].sum(), image, retain_graph=True)
            columns = gradient.abs().sum((0, 1, 2)).nonzero()
            found[name] = max(found.get(name, 0), int(columns.max() - columns.min()) + 1)
    return found


@pytest.mark.parametrize(
    ("call", "side", "period", "chosen"),
    [
        ("FCN(2, stride=8, width=0.02)", 800, 1, ()),
        ("FCNAlexNet(2, width=0.02, one_tower=True)", 700, 1, ()),
        ("SegNetBasic(2, width=0.05)", 420, 16, ()),
        ("UNet(2, width=0.02)", 420, 16, ()),
        ("DeepLabV1(2, width=0.02, msc=True)", 901, 1, ()),
        ("DilatedNet(2, context=None, width=0.02)", 800, 1, ()),
        ("ContextModule(2)", 160, 1, ()),
        ("DilatedNet(2, context=None, resnet=18, width=0.02)", 900, 1, ()),
        ("FCDenseNet(2, depth=56, width=0.03)", 1700, 32, ("td2.0.conv", "mid.3.conv", "tu0", "up0.3.conv", "score")),
    ],
)
def test_receptive_fields_are_those_of_the_gradient(call, side, period, chosen):
    net = network(call, "cpu").double().eval()
    computed = {layer.name: layer.receptive_field for layer in describe.describe(call).layers}
    by_gradient = seen(net, side, period, chosen)
    assert len(by_gradient) >= 4
    assert by_gradient == {name: computed[name] for name in by_gradient}


@pytest.mark.parametrize(
    ("call", "published"),
    [
        ("FrontEnd(21)", 380),
        ("FrontEnd(21, padding='valid')", 380),
        ("ContextModule(21)", 67),
        ("ContextModule(21, 'large')", 67),
        ("ContextModule(11, layers=7)", 35),
        ("ContextModule(19, layers=10)", 259),
        ("FCN(21, stride=32)", 404),
        ("FCN(21, stride=32, form='authors')", 404),
        ("DilatedNet(21)", 380 + 66 * 8),
        ("DilatedNet(21, padding='reflect')", 380 + 66 * 8),
    ],
)
def test_receptive_fields_that_the_papers_state(call, published):
    assert describe.describe(call).receptive_field == published


def test_the_receptive_field_of_the_context_module_grows_as_table_1_says():
    convolutions = [layer for layer in describe.describe("ContextModule(2)").layers if layer.type == "conv"]
    assert [layer.receptive_field for layer in convolutions] == [3, 5, 9, 17, 33, 65, 67, 67]


def test_strides_are_image_pixels_a_cell():
    layers = {layer.name.rpartition(".")[2]: layer.output_stride for layer in describe.describe("SegNet(3, width=0.02)").layers}
    assert [layers[f"pool{n}"] for n in (1, 2, 3, 4, 5)] == [2, 4, 8, 16, 32]
    assert [layers[f"upsample{n}"] for n in (5, 4, 3, 2, 1)] == [16, 8, 4, 2, 1]
    reflected = describe.describe("DilatedNet(3, padding='reflect', width=0.02)").layers
    assert reflected[0].output_stride == 1
    assert [layer.output_stride for layer in reflected if layer.name.endswith("ctx_final")] == [8]


@pytest.mark.parametrize("call", ["FCN(21, stride=8)", "SegNet(21)", "DeepLabV1(21)", "FCDenseNet(11, depth=56)"])
def test_multiply_adds_are_half_of_torchs_count_of_operations(call):
    with torch.device("meta"), torch.no_grad():
        net, image = network(call).eval(), torch.empty(1, 3, 97, 130)
        with FlopCounterMode(display=False) as counter:
            net(image)
    assert 2 * describe.describe(call, (97, 130)).multiply_adds == counter.get_total_flops()


def test_multiply_adds_of_a_deconvolution_are_its_inputs_times_its_taps():
    layer = next(row for row in describe.describe("UNet(2)", (64, 64)).layers if row.type == "deconv")
    assert (layer.multiply_adds, layer.size) == (4 * 4 * 1024 * 512 * 4, (8, 8))


def test_memory_counts_every_map_once():
    maps = describe.describe("ContextModule(3)", (10, 20))
    assert maps.bytes == 8 * 3 * 10 * 20 * 4  # eight convolutions; ReLU works in place
    pooled = next(row for row in describe.describe("SegNetBasic(2, width=1/64)", (10, 20)).layers if row.type == "maxpool")
    assert pooled.bytes == 5 * 10 * (4 + 8)  # a float and the position it came from


def test_describing_prints_layers_and_sums(capsys):
    assert main(["describe", "FrontEnd(21, padding='valid')", "--size", "900", "900"]) == 0
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if " fc6 " in line)
    assert [word for word in ("512→4096", "7x7 d4", "66 x 66", "102,764,544", "380") if word not in row] == []
    assert "134,346,581" in printed and "Yu and Koltun" in printed


def test_json_holds_every_layer(capsys):
    assert main(["describe", "SegNet(11)", "--size", "360", "480", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["parameters"] == 29449355
    assert found["output"] == [360, 480]
    assert {layer["type"] for layer in found["layers"]} == {"conv", "bn", "relu", "maxpool", "max_unpool"}


def test_the_page_of_the_family_is_what_describe_writes(capsys):
    assert main(["describe", "--markdown"]) == 0
    assert capsys.readouterr().out == (ROOT / "docs/networks.md").read_text()


def test_every_network_of_the_family_cites_its_paper():
    assert all(describe.short(describe.paper(network(call))) for call in describe.FAMILY)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ("FCNN", "there is no network FCNN: did you mean FCN?"),
        ("FCN(21, 7)", "stride=7 is not one of 32, 16, 8"),
        ("FCN(21, stide=8)", "unexpected keyword argument 'stide'"),
        ("FCN(21", "write its class and its arguments"),
        ("FCN(open('x'))", "write its class and its arguments"),
        ("__import__('os').system('true')", "is no network"),
        ("FCN(0)", "num_classes=0 is no whole number"),
        ("FCN(-1)", "num_classes=-1 is no whole number"),
        ("FCN(a)", "num_classes='a' is no whole number"),
        ("FCN(2, width=0)", "width=0 is no number above 0"),
        ("FCN(2, width=nan)", "width='nan' is no number above 0"),
        ("FCN(2, width=1e300)", "is no number above 0"),
        ("fcn(21)", "did you mean FCN?"),
        ("torch.nn.Linear(3, 4)", "Linear has no convolution"),
        ("dilated_seg.models.vgg.Encoder()", "Encoder gives no logits"),
        ("dilated_seg.task.SegmentationTask(3, 4)", "SegmentationTask"),
        ("", "is no network"),
        ("nowhere.Net(3)", "there is no module nowhere"),
        ("torch.nn.functional.relu(3)", "there is no network"),
        ("DilatedNet(21, context='huge')", "context='huge' is not one of 'basic', 'large'"),
        ("FCN(form=authors)", "num_classes"),
    ],
)
def test_a_network_that_is_none_is_one_sentence(call, sentence, capsys):
    assert main(["describe", call]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert sentence in error


def test_an_image_that_a_form_does_not_take_is_one_sentence(capsys):
    assert main(["describe", "DeconvNet(21, form=authors)", "--size", "100", "300"]) == 2
    assert "at least 193 x 193 pixels, not 100 x 300" in capsys.readouterr().err
