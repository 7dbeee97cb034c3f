"""What describe says of a network: published receptive fields, sums by other counters, the page of the family."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dilated_seg import models
from dilated_seg.__main__ import main
from dilated_seg.analysis.summary import Summary, find_citation, list_family, summarize
from dilated_seg.commands.describe import format_citation
from dilated_seg.commands.objects import parse_network
from tests.conftest import ROOT


def describe(call: str, size: tuple[int, int] = (500, 500)) -> Summary:
    """Return the summary of the network that a call builds."""
    return summarize(parse_network(call), call, size)


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
    assert describe(call).receptive_field == published


def test_the_receptive_field_of_the_context_module_grows_as_table_1_says():
    convolutions = [layer for layer in describe("ContextModule(2)").layers if layer.type == "conv"]
    assert [layer.receptive_field for layer in convolutions] == [3, 5, 9, 17, 33, 65, 67, 67]


def test_strides_are_image_pixels_a_cell():
    layers = {layer.name.rpartition(".")[2]: layer.output_stride for layer in describe("SegNet(3, width=0.02)").layers}
    assert [layers[f"pool{n}"] for n in (1, 2, 3, 4, 5)] == [2, 4, 8, 16, 32]
    assert [layers[f"upsample{n}"] for n in (5, 4, 3, 2, 1)] == [16, 8, 4, 2, 1]
    reflected = describe("DilatedNet(3, padding='reflect', width=0.02)").layers
    assert reflected[0].output_stride == 1
    assert [layer.output_stride for layer in reflected if layer.name.endswith("ctx_final")] == [8]


@pytest.mark.parametrize("call", ["FCN(21, stride=8)", "SegNet(21)", "DeepLabV1(21)", "FCDenseNet(11, depth=56)"])
def test_multiply_adds_are_half_of_torchs_count_of_operations(call):
    with torch.device("meta"), torch.no_grad():
        net, image = parse_network(call).eval(), torch.empty(1, 3, 97, 130)
        with FlopCounterMode(display=False) as counter:
            net(image)
    assert 2 * describe(call, (97, 130)).multiply_adds == counter.get_total_flops()


def test_multiply_adds_of_a_deconvolution_are_its_inputs_times_its_taps():
    layer = next(row for row in describe("UNet(2)", (64, 64)).layers if row.type == "deconv")
    assert (layer.multiply_adds, layer.size) == (4 * 4 * 1024 * 512 * 4, (8, 8))


def test_memory_counts_every_map_once():
    maps = describe("ContextModule(3)", (10, 20))
    assert maps.bytes == 8 * 3 * 10 * 20 * 4  # eight convolutions; ReLU works in place
    pooled = next(row for row in describe("SegNetBasic(2, width=1/64)", (10, 20)).layers if row.type == "maxpool")
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


@pytest.mark.slow
def test_the_page_of_the_family_is_what_describe_writes(capsys):
    assert main(["describe", "--markdown"]) == 0
    assert capsys.readouterr().out == (ROOT / "docs/networks.md").read_text()


def test_every_exported_network_is_one_of_the_family():
    calls = list_family()
    assert {call.partition("(")[0] for call in calls} == set(models.__all__) - {"FrontEnd", "ContextModule"}
    ours = {"FCNAlexNet", "FCN", "DeconvNet", "SegNet", "SegNetBasic", "UNet", "FCDenseNet", "DeepLabV1", "DilatedNet"}
    by_date = [call for call in calls if call.partition("(")[0] in ours]
    assert calls[:2] == ["FCNAlexNet(21)", "FCN(21, stride=32)"] and by_date[-1] == "FCDenseNet(21, depth=103)"


def test_every_network_of_the_family_cites_its_paper():
    assert all(format_citation(find_citation(parse_network(call))) for call in list_family())


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ("FCNN", "there is no network FCNN: did you mean FCN?"),
        ("FCN(21, 7)", "stride=7 is not one of 32, 16, 8"),
        ("FCN(21, stide=8)", "unexpected keyword argument 'stide'"),
        ("FCN(21", "write its class and its arguments"),
        ("FCN(open('x'))", "write its class and its arguments"),
        ("__import__('os').system('true')", "cannot parse network"),
        ("FCN(0)", "num_classes=0 is not an integer"),
        ("FCN(-1)", "num_classes=-1 is not an integer"),
        ("FCN(a)", "num_classes='a' is not an integer"),
        ("FCN(2, width=0)", "width=0 is not a number above 0"),
        ("FCN(2, width=nan)", "width='nan' is not a number above 0"),
        ("FCN(2, width=1e300)", "is not a number above 0"),
        ("fcn(21)", "did you mean FCN?"),
        ("torch.nn.Linear(3, 4)", "Linear has no convolution"),
        ("dilated_seg.models.vgg.Encoder()", "Encoder does not return logits"),
        ("dilated_seg.task.SegmentationTask(3, 4)", "SegmentationTask"),
        ("", "cannot parse network"),
        ("nowhere.Net(3)", "there is no module nowhere"),
        ("torch.nn.functional.relu(3)", "there is no network"),
        ("DilatedNet(21, context='huge')", "context='huge' is not one of 'basic', 'large'"),
        ("FCN(form=authors)", "num_classes"),
    ],
)
def test_an_unknown_or_invalid_network_is_a_user_error(call, sentence, capsys):
    assert main(["describe", call]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert sentence in error


def test_an_image_that_a_form_does_not_take_is_one_sentence(capsys):
    assert main(["describe", "DeconvNet(21, form=authors)", "--size", "100", "300"]) == 2
    assert "at least 193 x 193 pixels, not 100 x 300" in capsys.readouterr().err
