"""Published weights: every file format, every conversion, and every way a file can be wrong."""

import copy
import io
import os
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from dilated_seg import weights
from dilated_seg.__main__ import main
from dilated_seg.commands.objects import parse_network
from dilated_seg.errors import UserError
from dilated_seg.models import FCN, DeepLabV1, DilatedNet, FCNAlexNet, SegNet
from dilated_seg.models.release import ILSVRC_MEAN
from dilated_seg.storage import digest
from dilated_seg.weights import download, normalization
from tests.support.caffe_writer import caffemodel, chunk
from tests.support.released_layers import PUBLISHED, rows
from tests.support.tolerance import assert_equal_but_for_rounding

NARROW = {name: (call[0][:-1] + ", width=1/64)" if "Context" not in call[0] else call[0]) for name, call in PUBLISHED.items()}
CAFFE = [name for name in NARROW if not name.startswith(("fc_densenet", "unet_paper"))]


def published_blobs(name, net):
    """Random blobs by the authors' layer names, for a narrow network of ours, and what they should become."""
    rng, state, blobs, expected = np.random.default_rng(0), net.state_dict(), {}, {}
    keys = [key for key in state if not key.endswith(("num_batches_tracked", "running_mean", "running_var"))]
    for row in [row for row in rows(name) if row["params"]]:
        own = [key for key in keys[: 2 if row["bias"] or row["type"] == "bn" else 1]]
        keys = keys[len(own) :]
        blobs[row["name"]] = [rng.standard_normal(tuple(state[key].shape)).astype(np.float32) for key in own]
        for key, values in zip(own, blobs[row["name"]], strict=True):
            expected[key] = torch.from_numpy(values.copy())
        if row["type"] == "bn":  # (1, C, 1, 1) in the files
            blobs[row["name"]] = [values.reshape(1, -1, 1, 1) for values in blobs[row["name"]]]
    assert not keys
    return blobs, expected


def port(file, net, out, *options):
    return main(["port", str(file), "--net", net, "--out", str(out), *options])


@pytest.mark.parametrize(
    ("name", "form", "packed"),
    [(name, form, True) for name in CAFFE for form in ("v1", "v2")]
    + [("context_basic_c11", "v2", False), ("segnet_basic_camvid", "v1", False)],
)
def test_a_caffemodel_goes_through_port_bit_for_bit(name, form, packed, tmp_path, capsys):
    net = parse_network(NARROW[name], "cpu")
    blobs, expected = published_blobs(name, net)
    (tmp_path / "net.caffemodel").write_bytes(caffemodel(blobs, form, packed))
    known = ("--mean", "0", "0", "0") if "unet" in name else ()
    assert port(tmp_path / "net.caffemodel", NARROW[name], tmp_path / "net.safetensors", *known) == 0, capsys.readouterr().err
    ported = load_file(tmp_path / "net.safetensors")
    for key, values in expected.items():
        image = key.split(".")[-2] in ("conv1_1", "conv1", "conv_d0a-b") and key.endswith("weight") and values.shape[1] == 3
        assert torch.equal(ported.pop(key), values.flip(1) if image else values), key
    assert all(key.endswith(("running_mean", "running_var")) for key in ported)
    assert all(torch.equal(v, torch.full_like(v, float(key.endswith("var")))) for key, v in ported.items())
    printed = capsys.readouterr().out
    assert "0 unexpected" in printed and "0 missing" in printed
    assert all(row["name"] in printed for row in rows(name) if row["params"])


def test_the_ported_network_sees_in_rgb_what_the_released_one_saw_in_bgr(tmp_path):
    net = FCN(21, 8, "authors", 1 / 64).double().eval()
    blobs, _ = published_blobs("fcn8s_voc", net)
    (tmp_path / "fcn.caffemodel").write_bytes(caffemodel(blobs, "v1"))
    net.load_state_dict({k: torch.from_numpy(v) for k, v in flat(net, blobs).items()})
    picture = torch.randint(0, 256, (1, 3, 60, 70)).double()  # BGR
    with torch.no_grad():
        expected = net(picture - torch.tensor([104.00699, 116.66877, 122.67892]).double().view(3, 1, 1))
    ours = FCN(21, 8, "authors", 1 / 64).eval()
    result, mean, std = weights.load(ours, tmp_path / "fcn.caffemodel")
    assert not result.missing and std == (1.0, 1.0, 1.0)
    with torch.no_grad():
        got = ours.double()(picture.flip(1) - torch.tensor(mean).double().view(3, 1, 1))
    assert_equal_but_for_rounding(got, expected)


def flat(net, blobs):
    keys = [key for key in net.state_dict()]
    values = [v for layer in blobs.values() for v in layer]
    return dict(zip(keys, values, strict=True))


@pytest.mark.parametrize("pattern", ["{}/0 {}/1", "{}.weight {}.bias", "{}_weights {}_biases", "{}:0 {}:1", "{}/w {}/b"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_names_a_layer_and_a_part(pattern, save, tmp_path):
    net = parse_network(NARROW["dilation8_voc_large"], "cpu")
    blobs, expected = published_blobs("dilation8_voc_large", net)
    first, second = pattern.split()
    arrays = {form.format(name): v for name, b in blobs.items() for form, v in zip((first, second), b, strict=True)}
    save(tmp_path / "net.npz", **arrays)
    result, mean, _ = weights.load(net, tmp_path / "net.npz")
    assert (len(result.loaded), result.unexpected, result.missing) == (len(expected), [], [])
    assert mean == (116.52, 111.36, 102.93)
    for key, values in net.state_dict().items():
        assert torch.equal(values, expected[key].flip(1) if key.endswith(".conv1_1.weight") else expected[key])


def test_npz_of_a_dense_network_with_statistics(tmp_path):
    net = parse_network("FCDenseNet(3, 56, width=1/12)", "cpu")
    arrays = {key: np.random.rand(*v.shape).astype(np.float32) for key, v in net.state_dict().items() if "tracked" not in key}
    np.savez(tmp_path / "dense.npz", **arrays)
    result, mean, std = weights.load(net, tmp_path / "dense.npz")
    assert not result.missing and not result.unexpected
    assert (mean, std) == (None, None)
    assert torch.equal(net.first.weight.detach(), torch.from_numpy(arrays["first.weight"]))
    assert torch.equal(net.mid[2].bn.running_var, torch.from_numpy(arrays["mid.2.bn.running_var"]))


MEANS = {
    "voc": (116.52, 111.36, 102.93), "camvid": (105.41212523, 108.77808759, 110.70313206),
    "kitti": (91.34692262, 95.55136972, 96.19429688), "cityscapes": (73.16, 82.91, 72.39),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in NARROW if name.startswith("dilat") and "frontend" not in name])
def test_released_means_are_those_of_the_data_set(name, tmp_path):
    net = parse_network(NARROW[name], "cpu")
    (tmp_path / "d.caffemodel").write_bytes(caffemodel(published_blobs(name, net)[0]))
    assert weights.load(net, tmp_path / "d.caffemodel")[1:] == (MEANS[name.split("_")[1]], (1.0, 1.0, 1.0))


def test_a_front_end_brings_its_own_mean_into_the_next_stage(tmp_path):
    """Stage two of the paper: the context module is new, and the front end is VOC's, not ImageNet's."""
    front_end = parse_network(NARROW["dilated_frontend_voc"], "cpu")
    (tmp_path / "f.caffemodel").write_bytes(caffemodel(published_blobs("dilated_frontend_voc", front_end)[0]))
    result, mean, _ = weights.load(parse_network(NARROW["dilation8_voc_large"], "cpu"), tmp_path / "f.caffemodel")
    assert mean == MEANS["voc"] and len(result.missing) == 16


def test_staged_scores_bring_fcns_mean_into_the_next_stage(tmp_path):
    net = parse_network(NARROW["fcn32s_voc"], "cpu")
    (tmp_path / "f.caffemodel").write_bytes(caffemodel(published_blobs("fcn32s_voc", net)[0]))
    result, mean, _ = weights.load(parse_network(NARROW["fcn16s_voc"], "cpu"), tmp_path / "f.caffemodel")
    assert mean == ILSVRC_MEAN
    assert [name for name, _ in result.missing] == ["decoder.score_pool4.weight", "decoder.score_pool4.bias"]


def test_weights_of_the_staged_and_at_once_forms_are_not_confused(tmp_path):
    for name, other in (("fcn8s_voc", "fcn8s_atonce_voc"), ("fcn8s_atonce_voc", "fcn8s_voc")):
        (tmp_path / "f.caffemodel").write_bytes(caffemodel(published_blobs(name, parse_network(NARROW[name], "cpu"))[0]))
        with pytest.raises(UserError, match=f"set at_once={'atonce' in name}"):
            weights.load(parse_network(NARROW[other], "cpu"), tmp_path / "f.caffemodel")


def test_a_context_module_of_other_layers_is_refused(tmp_path):
    net = parse_network(NARROW["dilation8_camvid_basic"], "cpu")
    (tmp_path / "d.caffemodel").write_bytes(caffemodel(published_blobs("dilation8_camvid_basic", net)[0]))
    with pytest.raises(UserError, match=r"has ctx_conv5_1 besides context\.layers\.ctx_conv1_1"):
        weights.load(parse_network(NARROW["dilation7_kitti_basic"], "cpu"), tmp_path / "d.caffemodel")
    with pytest.raises(UserError, match=r"and no context\.layers\.ctx_conv6_1"):
        weights.load(parse_network("DilatedNet(11, context_layers=10, width=1/64)", "cpu"), tmp_path / "d.caffemodel")
    result, _, _ = weights.load(parse_network("DilatedNet(11, context=None, width=1/64)", "cpu"), tmp_path / "d.caffemodel")
    assert not result.missing and len(result.unexpected) == 16


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "ckpt", "npz"])
@pytest.mark.parametrize("name", list(NARROW))
def test_every_network_reads_its_own_file(name, suffix, tmp_path):
    net, again = parse_network(NARROW[name], "cpu"), parse_network(NARROW[name], "cpu")
    state = {key: value.contiguous() for key, value in net.state_dict().items()}
    if suffix == "npz":
        np.savez(tmp_path / "own.npz", **state)
    elif suffix == "safetensors":
        save_file(state, tmp_path / "own.safetensors")
    else:
        whole = {"state_dict": {f"model.net.{key}": value for key, value in state.items()}} if suffix == "ckpt" else state
        torch.save(whole, tmp_path / f"own.{suffix}")
    result, _, _ = weights.load(again, tmp_path / f"own.{suffix}")
    assert not result.missing and not result.unexpected
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in state.items() if "tracked" not in key)


@pytest.mark.parametrize(
    ("theirs", "ours", "sentence"),
    [
        ("SegNet(3, width=1/64)", "FCN(3, width=1/64)", "has encoder.stages.0.conv1_1_bn, .* and 10 more beside"),
        ("FCN(3, resnet=34, width=1/64)", "FCN(3, resnet=18, width=1/64)", "has encoder.layer1.2.conv1, .* beside"),
        ("ContextModule(3)", "ContextModule(3, layers=7)", "has layers.ctx_conv5_1 beside"),
        (
            "DilatedNet(3, context_layers=10, width=1/64)",
            "DilatedNet(3, width=1/64)",
            "has context.layers.ctx_conv6_1, .* beside",
        ),
        ("FCN(3, 8, at_once=True, width=1/64)", "FCN(3, 8, width=1/64)", "set at_once=True"),
    ],
)
def test_a_file_of_ours_for_another_network_is_refused(theirs, ours, sentence, tmp_path):
    torch.save(parse_network(theirs, "cpu").state_dict(), tmp_path / "theirs.pth")
    with pytest.raises(UserError, match=sentence):
        weights.load(parse_network(ours, "cpu"), tmp_path / "theirs.pth")


@pytest.mark.parametrize(
    ("call", "without"),
    [
        ("FCN({}, 8, width=1/64)", ["score_fr", "score_pool4", "score_pool3"]),
        ("FCN({}, 8, width=1/64)", ["net.score_fr", "net.decoder"]),
        ("SegNet({}, width=1/64)", ["conv1_1_D"]),
        ("DilatedNet({}, width=1/64)", ["final", "context"]),
    ],
)
def test_other_classes_start_from_a_file_without_its_scores(call, without, tmp_path):
    torch.save(parse_network(call.format(5), "cpu").state_dict(), tmp_path / "five.pth")
    net = parse_network(call.format(3), "cpu")
    with pytest.raises(
        UserError,
        match=r"from its initial values, as for other classes or channels of images, name it in model\.weights_without",
    ):
        weights.load(net, tmp_path / "five.pth")
    result, _, _ = weights.load(net, tmp_path / "five.pth", without)
    parts = [name.removeprefix("net.") for name in without]
    assert result.missing and all(any(part in name for part in parts) for name, _ in result.missing)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("net.score_f", "did you mean score_fr?"),
        ("fc7x", "did you mean fc7?"),
        ("zzz", "its parts are encoder, classifier, "),
    ],
)
def test_a_part_left_out_that_the_network_does_not_have_is_named(name, hint, tmp_path):
    net = parse_network("FCN(5, 8, width=1/64)", "cpu")
    torch.save(net.state_dict(), tmp_path / "five.pth")
    with pytest.raises(UserError, match=re.escape(f"(port --without): the network has no {name}: {hint}")):
        weights.load(net, tmp_path / "five.pth", [name])


def test_the_release_for_cityscapes_goes_into_the_padded_form_without_its_upsampling(tmp_path):
    net = parse_network(NARROW["dilation10_cityscapes_basic"], "cpu")
    (tmp_path / "d.caffemodel").write_bytes(caffemodel(published_blobs("dilation10_cityscapes_basic", net)[0]))
    result, mean, _ = weights.load(
        parse_network("DilatedNet(19, context_layers=10, width=1/64)", "cpu"), tmp_path / "d.caffemodel"
    )
    assert [name for name, _ in result.unexpected] == ["ctx_upsample/0"] and mean == MEANS["cityscapes"]


@pytest.mark.parametrize(("classes", "names"), [(11, {}), (5, {}), (40, {"final": "score_fr"})])
def test_a_release_of_unknown_data_has_no_mean(classes, names, tmp_path):
    net = parse_network(f"FrontEnd({classes}, padding=valid, width=1/64)", "cpu")
    blobs, _ = published_blobs("dilated_frontend_voc", net)
    layers = {names.get("final", "final") if name == "fc-final" else name: b for name, b in blobs.items()}
    (tmp_path / "d.caffemodel").write_bytes(caffemodel(layers))
    target = parse_network(f"FCN({classes}, form=authors, width=1/64)", "cpu") if names else net
    assert weights.load(target, tmp_path / "d.caffemodel")[1:] == (None, None)


@pytest.mark.parametrize("wrap", [lambda s: {"model": s, "epoch": 3}, lambda s: {f"module.{k}": v for k, v in s.items()}])
def test_common_wrappings_of_a_state_dict_are_unwrapped(wrap, tmp_path):
    net = parse_network(TINY, "cpu")
    torch.save(wrap(net.state_dict()), tmp_path / "wrapped.pth")
    result, _, _ = weights.load(parse_network(TINY, "cpu"), tmp_path / "wrapped.pth")
    assert not result.missing and not result.unexpected


@pytest.mark.parametrize(
    ("prefix", "others", "reported"),
    [
        ("_orig_mod.", {}, "_orig_mod."),
        ("model.", {"criterion.weight": torch.ones(2)}, "model."),
        ("module.", {"n_averaged": torch.tensor(3)}, "module."),
        ("_orig_mod.module.", {}, "_orig_mod.module."),
        ("model._orig_mod.", {}, "_orig_mod.model."),
        ("module.model.net.", {}, "module.model.net."),
    ],
)
def test_prefixes_of_tensor_names_are_removed_and_reported(prefix, others, reported, tmp_path):
    net, again = parse_network(TINY, "cpu"), parse_network(TINY, "cpu")
    torch.save({f"{prefix}{k}": v for k, v in net.state_dict().items()} | others, tmp_path / "wrapped.pth")
    result, _, _ = weights.load(again, tmp_path / "wrapped.pth")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in net.state_dict().items())
    assert not result.missing and len(result.unexpected) == len([name for name in others if name != "n_averaged"])
    assert str(result).endswith(f"; names without their prefix {reported}")


def test_a_compiled_network_inside_a_task_keeps_its_normalization(tmp_path):
    state = {f"model.net._orig_mod.{key}": value for key, value in parse_network(TINY, "cpu").state_dict().items()}
    normalization = {"model.mean": torch.tensor([1.0, 2.0, 3.0]), "model.std": torch.ones(3)}
    torch.save({"state_dict": state | normalization}, tmp_path / "task.ckpt")
    result, mean, std = weights.load(parse_network(TINY, "cpu"), tmp_path / "task.ckpt")
    assert not result.missing and not result.unexpected and (mean, std) == ((1, 2, 3), (1, 1, 1))


def test_a_prefix_that_the_network_itself_has_stays(tmp_path):
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.aux, self.model = nn.Conv2d(3, 2, 1), nn.ModuleDict({"aux": nn.Conv2d(3, 2, 1)})

    theirs, ours = Mine(), Mine()
    torch.save(theirs.state_dict(), tmp_path / "mine.pth")
    result, _, _ = weights.load(ours, tmp_path / "mine.pth")
    assert all(torch.equal(value, ours.state_dict()[key]) for key, value in theirs.state_dict().items())
    assert not result.stripped


@pytest.mark.parametrize(
    ("other", "sentence"),
    [("module.", r"has layers below module\. and model\."), ("", r"has .* and model\."), ("model._orig_mod.", "same name")],
)
def test_two_networks_in_one_file_are_refused(other, sentence, tmp_path):
    state = parse_network(TINY, "cpu").state_dict()
    both = {f"model.{key}": value for key, value in state.items()} | {f"{other}{key}": value for key, value in state.items()}
    torch.save(both, tmp_path / "two.pth")
    with pytest.raises(UserError, match=sentence):
        weights.load(parse_network(TINY, "cpu"), tmp_path / "two.pth")


def test_torchvisions_names_alone_prove_nothing(tmp_path):
    """Files converted from Caffe have them too, and take another image."""
    torch.save(Vgg(1 / 32).state_dict(), tmp_path / "vgg16_from_caffe.pth")
    assert weights.load(FCN(4, width=1 / 32), tmp_path / "vgg16_from_caffe.pth")[1:] == (None, None)


def test_our_own_arrays_are_rgb_and_come_back_as_they_went(tmp_path):
    net = parse_network(TINY, "cpu")
    np.savez(tmp_path / "own.npz", **net.state_dict())
    again = parse_network(TINY, "cpu")
    _, mean, std = weights.load(again, tmp_path / "own.npz")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in net.state_dict().items())
    assert (mean, std) == (None, None)


def test_caffes_names_in_torchs_file_need_the_channel_order(tmp_path):
    net = parse_network(TINY, "cpu")
    state = {".".join(key.split(".")[-2:]): value for key, value in net.state_dict().items()}
    torch.save(state, tmp_path / "converted.pth")
    for order in ("bgr", "rgb"):
        out = tmp_path / f"{order}.safetensors"
        assert port(tmp_path / "converted.pth", TINY, out, "--channels", order, "--mean", "1", "2", "3") == 0
        expected = state["conv1_1.weight"].flip(1) if order == "bgr" else state["conv1_1.weight"]
        assert torch.equal(load_file(out)["encoder.stages.0.conv1_1.weight"], expected)


def test_features_of_unknown_origin_have_no_mean(tmp_path):
    state = {key: value for key, value in Vgg(1 / 32).state_dict().items() if key.startswith("features")}
    torch.save(state, tmp_path / "features.pth")
    _, mean, std = weights.load(SegNet(3, width=1 / 32), tmp_path / "features.pth")
    assert (mean, std) == (None, None)


def test_tied_tensors_and_names_with_brackets_are_written(tmp_path, capsys):
    net = parse_network("ContextModule(2)", "cpu")
    state = net.state_dict()
    state["layers.ctx_conv1_2.weight"] = state["layers.ctx_conv1_1.weight"]
    torch.save(state | {"[/red].weight": torch.ones(3)}, tmp_path / "tied.pth")
    assert port(tmp_path / "tied.pth", "ContextModule(2)", tmp_path / "o.safetensors") == 0
    assert "[/red].weight" in capsys.readouterr().out
    assert load_file(tmp_path / "o.safetensors").keys() == net.state_dict().keys()


@pytest.mark.parametrize("option", [["--mean", "nan", "0", "0"], ["--std", "1", "0", "1"], ["--std", "inf", "1", "1"]])
def test_an_invalid_mean_or_std_is_refused(option, tmp_path, capsys):
    (tmp_path / "w.caffemodel").write_bytes(caffemodel(GOOD))
    assert port(tmp_path / "w.caffemodel", TINY, tmp_path / "o.safetensors", *option) == 2
    assert "three finite numbers" in capsys.readouterr().err


class Vgg(nn.Module):
    """torchvision's VGG-16 at a narrow width: its layers and names."""

    def __init__(self, width, batch_norm=False):
        super().__init__()
        cfg = [c if c == "M" else round(c * width) for c in torchvision.models.vgg.cfgs["D"]]
        self.features = torchvision.models.vgg.make_layers(cfg, batch_norm)
        fc = round(4096 * width)
        layers = [
            nn.Linear(cfg[-2] * 49, fc),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(fc, fc),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(fc, 1000),
        ]
        self.classifier = nn.Sequential(*layers)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Puts a file into torch's cache of downloads, as if torchvision had published it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)

    def put(state, name):
        torch.save(state, tmp_path / "hub/checkpoints" / name)
        monkeypatch.setitem(normalization.CHECKSUMS, name, digest(tmp_path / "hub/checkpoints" / name))

    return put


def test_torchvisions_vgg_classifies_as_the_middle_of_our_convolutions(cache):
    theirs = Vgg(1 / 32).eval()
    cache(theirs.state_dict(), "vgg16-397923af.pth")
    net = FCN(4, width=1 / 32).eval()
    result, mean, std = weights.load(net, "imagenet")
    assert len(result.loaded) == 30
    assert [name for name, _ in result.unexpected] == ["classifier.6.weight", "classifier.6.bias"]
    assert [name for name, _ in result.missing] == ["score_fr.weight", "score_fr.bias"]
    assert (mean, std) == normalization.TORCHVISION
    image = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    theirs, net = theirs.double(), net.double()
    with torch.no_grad():
        expected = theirs.classifier[:5](theirs.features(image).flatten(1))
        got = net.classifier(net.encoder(image)[4])[:, :, 3, 3]
    assert_equal_but_for_rounding(got, expected)


def test_large_field_of_view_is_vggs_fc6_with_two_taps_of_three_left_out(tmp_path):
    theirs = Vgg(1 / 32)
    torch.save(theirs.state_dict(), tmp_path / "vgg16.pth")
    net = DeepLabV1(4, width=1 / 32)
    result, _, _ = weights.load(net, tmp_path / "vgg16.pth")
    assert [name for name, _ in result.missing] == ["fc8.weight", "fc8.bias"]
    full = theirs.classifier[0].weight.detach().view(128, 16, 7, 7)[::4].double()
    taps = torch.zeros(7)
    taps[::3] = 1
    maps = torch.randn(1, 16, 30, 30, dtype=torch.float64)
    bias = theirs.classifier[0].bias.detach()[::4].double()
    expected = F.conv2d(maps, full * taps[:, None] * taps, bias, padding=12, dilation=4)
    with torch.no_grad():
        assert_equal_but_for_rounding(copy.deepcopy(net.classifier.fc6).double()(maps), expected)
    assert torch.equal(net.classifier.fc7.weight.detach()[..., 0, 0], theirs.classifier[3].weight.detach()[::4, ::4])


def test_vgg_with_batch_norm_starts_segnet_and_deconvnet(tmp_path):
    theirs = Vgg(1 / 32, batch_norm=True)
    for layer in theirs.features:
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
    torch.save(theirs.state_dict(), tmp_path / "vgg16_bn.pth")
    for net, second in ((SegNet(3, width=1 / 32), "conv1_2_bn"), (parse_network("DeconvNet(3, width=1/32)", "cpu"), "bn1_2")):
        weights.load(net, tmp_path / "vgg16_bn.pth")
        stage = net.encoder.stages[0]
        assert torch.equal(stage.conv1_2.weight, theirs.features[3].weight)
        assert torch.equal(getattr(stage, second).running_mean, theirs.features[4].running_mean)


def test_features_without_a_classifier_are_the_authors_own(cache):
    state = Vgg(1 / 32).state_dict()
    state = {key: torch.full_like(v, torch.nan) if key.startswith("classifier") else v for key, v in state.items()}
    cache(state, "vgg16-397923af.pth")
    net = FCN(4, width=1 / 32)
    result, mean, std = weights.load(net, "imagenet")
    assert (mean, std) == ((123.68, 116.779, 103.939), (1.0, 1.0, 1.0))
    assert "classifier.fc6.weight" in [name for name, _ in result.missing]
    assert "classifier.0.weight" in [name for name, _ in result.unexpected]
    assert torch.isfinite(net.classifier.fc6.weight).all()


@pytest.mark.parametrize("build", [lambda: FCN(3, 8, resnet=18), lambda: DilatedNet(3, resnet=18)])
def test_torchvisions_resnet_starts_ours(build, cache):
    theirs = torchvision.models.resnet18()
    cache(theirs.state_dict(), "resnet18-f37072fd.pth")
    net = build()
    result, mean, std = weights.load(net, "imagenet")
    encoder = net.encoder if isinstance(net, FCN) else net.front_end.encoder
    state = theirs.state_dict()
    assert all(torch.equal(v, state[key]) for key, v in encoder.state_dict().items() if "tracked" not in key)
    assert [name for name, _ in result.unexpected] == ["fc.weight", "fc.bias"]
    assert (mean, std) == normalization.TORCHVISION


class Alex(nn.Module):
    """torchvision's AlexNet at a narrow width: its parameters' names."""

    def __init__(self):
        super().__init__()
        c = [round(n / 32) for n in (64, 192, 384, 256, 256)]
        sizes = {0: (3, c[0], 11), 3: (c[0], c[1], 5), 6: (c[1], c[2], 3), 8: (c[2], c[3], 3), 10: (c[3], c[4], 3)}
        self.features = nn.ModuleDict({str(i): nn.Conv2d(*size) for i, size in sizes.items()})
        self.classifier = nn.ModuleDict({"1": nn.Linear(c[4] * 36, 128), "4": nn.Linear(128, 128), "6": nn.Linear(128, 1000)})


def test_torchvisions_alexnet_starts_the_one_tower_form_and_is_refused_by_the_other(tmp_path):
    theirs = Alex()
    torch.save(theirs.state_dict(), tmp_path / "alexnet.pth")
    net = FCNAlexNet(3, width=1 / 32, one_tower=True)
    result, _, _ = weights.load(net, tmp_path / "alexnet.pth")
    assert torch.equal(net.layers.conv4.weight, theirs.features["8"].weight)
    assert torch.equal(net.layers.fc6.weight.flatten(1), theirs.classifier["1"].weight)
    assert [name for name, _ in result.missing] == ["score_fr.weight", "score_fr.bias"]
    with pytest.raises(UserError, match=r"does not fit the network: features.0.weight is 2 x 3 x 11 x 11 there"):
        weights.load(FCNAlexNet(3, width=1 / 32), tmp_path / "alexnet.pth")


def test_what_port_writes_is_read_again_with_its_mean(tmp_path):
    net = parse_network(NARROW["segnet_basic_camvid"], "cpu")
    blobs, _ = published_blobs("segnet_basic_camvid", net)
    (tmp_path / "a.caffemodel").write_bytes(caffemodel(blobs))
    out = tmp_path / "a.safetensors"
    assert (
        port(tmp_path / "a.caffemodel", NARROW["segnet_basic_camvid"], out, "--mean", "1", "2.5", "3", "--std", "4", "5", "6")
        == 0
    )
    result, mean, std = weights.load(net, out)
    assert (mean, std, result.missing) == ((1.0, 2.5, 3.0), (4.0, 5.0, 6.0), [])
    with safe_open(out, "pt") as content:
        facts = content.metadata()
    assert facts["net"] == NARROW["segnet_basic_camvid"]
    assert facts["source"].startswith("a.caffemodel sha256:")


def test_a_classifier_leaves_new_layers_to_start_by_themselves(tmp_path, capsys):
    net = parse_network("FCN(5, 8, authors, width=1/64)", "cpu")
    blobs, _ = published_blobs("fcn8s_voc", net)
    scores = ("score_fr", "score_pool4", "score_pool3", "upscore2", "upscore_pool4", "upscore8")
    start = {name: b for name, b in blobs.items() if name not in scores} | {"fc8": [np.zeros((1000, 64)), np.zeros(1000)]}
    start["fc6"] = [start["fc6"][0].reshape(1, 1, 64, 8 * 49), start["fc6"][1]]  # an InnerProduct's blob
    (tmp_path / "vgg.caffemodel").write_bytes(caffemodel(start, "v1"))
    assert port(tmp_path / "vgg.caffemodel", "FCN(5, 8, authors, width=1/64)", tmp_path / "o.safetensors") == 0
    printed = capsys.readouterr().out
    assert "30 tensors loaded, 2 unexpected (fc8), 6 missing" in printed
    assert "minus (123.68, 116.779, 103.939)" in printed
    assert torch.equal(load_file(tmp_path / "o.safetensors")["classifier.fc6.weight"], torch.from_numpy(blobs["fc6"][0]))


TINY = "FCN(2, width=1/64)"
GOOD = {
    key.split(".")[-2]: [np.ones(v.shape), np.ones(v.shape[:1])]
    for key, v in parse_network(TINY).state_dict().items()
    if "encoder" in key and key.endswith("weight")
}


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def zipped(name, content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return file.getvalue()


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def torch_saved(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


HEADER = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (100000000000,), }".ljust(117) + b"\n"
WRONG = {
    "missing file": (None, "cannot read"),
    "a directory": ("folder", "cannot read"),
    "empty": (b"", "is empty"),
    "text": (b"conv1_1: 3.0\n" * 50, "is damaged or no"),
    "an image": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9, "is damaged or no"),
    "zeros": (bytes(5000), "is damaged or no"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "is damaged: OSError"),
    "truncated": (caffemodel(GOOD)[:-40], "is damaged or no"),
    "no weights": (caffemodel({}), "no layer with weights"),
    "V0": (b"\x12\x06\x0a\x04\x0a\x02ab", "first format"),
    "an empty blob": (caffemodel(GOOD | {"conv1_1": [np.ones((1, 3, 3, 3)), np.ones(0)]}), "conv1_1/1 is 0 there"),
    "two layers of one name": (caffemodel(GOOD) + caffemodel(GOOD), "two layers named conv1_1"),
    "another shape": (caffemodel(GOOD | {"conv1_1": [np.ones((2, 3, 3, 3)), np.ones(1)]}), "conv1_1/0 is 2 x 3 x 3 x 3 there"),
    "another shape twice": (
        caffemodel({"conv1_1": [np.ones((2, 3, 3, 3)), np.ones(2)]}),
        "here, conv1_1/1 is 2 there and 1 here; to train conv1_1",
    ),
    "half a layer": (caffemodel(GOOD | {"conv1_1": [np.ones((1, 3, 3, 3))]}), "only a part of layer encoder.stages.0.conv1_1"),
    "a part of an encoder": (caffemodel({k: v for k, v in GOOD.items() if k != "conv3_2"}), "no encoder.stages.2.conv3_2"),
    "a misspelt layer": (
        caffemodel({k.replace("conv3_2", "conv3_2 "): v for k, v in GOOD.items()}),
        "no encoder.stages.2.conv3_2",
    ),
    "VGG-19": (caffemodel(GOOD | {"conv3_4": [np.ones((4, 4, 3, 3)), np.ones(4)]}), "has conv3_4 beside"),
    "batch norm that we have not": (caffemodel(GOOD | {"conv1_1_bn": [np.ones(1), np.ones(1)]}), "has conv1_1_bn beside"),
    "one layer by two names": (
        caffemodel(GOOD | {n: [np.ones((2, 64, 1, 1)), np.ones(2)] for n in ("score-fr", "score_fr")}),
        "has two tensors for score_fr.",
    ),
    "one part by two names": (
        npz(**{"conv1_1/0": np.ones((1, 3, 3, 3)), "conv1_1/weight": np.ones((1, 3, 3, 3))}),
        "has two tensors for one part",
    ),
    "not finite": (caffemodel(GOOD | {"conv2_1": [np.full((2, 1, 3, 3), np.nan), np.ones(2)]}), "not finite"),
    "whole numbers": (
        npz(**{f"{k}/{i}": v.astype(int) for k, b in GOOD.items() for i, v in enumerate(b)}),
        "as int64: save weights as floating-point numbers",
    ),
    "Caffe's names in torch's file": (
        torch_saved(
            {f"{k}.{p}": torch.ones(v.shape) for k, b in GOOD.items() for p, v in zip(("weight", "bias"), b, strict=True)}
        ),
        "so the channel order of conv1_1 is unknown",
    ),
    "an expanded tensor": (torch_saved({"conv1_1.weight": torch.ones(1).expand(10**7, 10**7)}), "not a plain array"),
    "a sparse tensor": (torch_saved({"conv1_1.weight": torch.eye(3).to_sparse()}), "not a plain array"),
    "a layer name that is no text": (caffemodel({"a\x1b[31m\nb": [np.ones(3)]}), "a layer whose name is not printable"),
    "a blob of too many sides": (
        chunk(100, chunk(1, b"x") + chunk(7, chunk(7, chunk(1, b"\x01" * 99)) + chunk(5, bytes(4)))),
        "more than 32 dimensions",
    ),
    "a blob of immense sides": (
        chunk(100, chunk(1, b"x") + chunk(7, chunk(7, chunk(1, b"\x00" + b"\xff" * 8 + b"\x7f")))),
        "a blob of layer x of shape",
    ),
    "other names": (caffemodel({"stem": [np.ones(3)]}), "has no layer of this network: its layers are stem, ours conv1_1,"),
    "executable pickle": (pickle.dumps(Harmful(), 2), "would have to be executed"),
    "executable torch file": (torch_saved({"a": Harmful()}), "would have to be executed"),
    "old torch file": (torch_saved({"a": Harmful()}, _use_new_zipfile_serialization=False), "would have to be executed"),
    "a torch list": (torch_saved([torch.ones(3)]), "is not a state dict"),
    "a torch file cut short": (torch_saved({"a": torch.ones(300)})[:-200], "is damaged"),
    "npz with objects": (npz(conv1_1=np.array([Harmful()], dtype=object)), "nothing is executed"),
    "npz of another shape": (zipped("conv1_1.npy", HEADER + bytes(400)), "does not match its header"),
    "npz bomb": (zipped("conv1_1.npy", bytes(300 << 20)), "would unpack to"),
    "npz cut short": (npz(conv1_1=np.ones((40, 40)))[:-900], "is damaged"),
    "another zip": (zipped("word/document.xml", b"<a/>"), "neither numpy's nor torch's"),
    "damaged safetensors": ((50).to_bytes(8, "little") + b'{"a": 3}' + bytes(80), "is damaged"),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_a_wrong_file_is_one_sentence_and_leaves_nothing(case, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.chdir(tmp_path)
    content, sentence = WRONG[case]
    file = tmp_path / "w.caffemodel"
    if content == "folder":
        file.mkdir()
    elif content is not None:
        file.write_bytes(content)
    before = sorted(tmp_path.iterdir())
    assert port("w.caffemodel", TINY, "o.safetensors") == 2
    error = capsys.readouterr().err
    assert sentence in error and "w.caffemodel" in error
    assert len(error.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"


@pytest.mark.parametrize(
    ("net", "out", "sentence"),
    [
        ("FCN(2, width=1/64)", "o.pth", "the file name must end in .safetensors"),
        ("FCN(2, width=1/64)", "there.safetensors", "replace it with --overwrite"),
        ("FCN(2, width=1/64)", "no/folder/o.safetensors", "there is no directory no/folder"),
        ("FCNN(2)", "o.safetensors", "did you mean FCN?"),
        ("UNet(2, width=1/64)", "o.safetensors", "has no layer of this network"),
    ],
)
def test_a_wrong_argument_of_port_is_one_sentence(net, out, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.safetensors").write_bytes(b"precious")
    (tmp_path / "w.caffemodel").write_bytes(caffemodel(GOOD))
    assert port("w.caffemodel", net, out) == 2
    error = capsys.readouterr().err
    assert sentence in error and len(error.splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["there.safetensors", "w.caffemodel"]
    assert (tmp_path / "there.safetensors").read_bytes() == b"precious"


def test_weights_of_unknown_normalization_need_a_mean(tmp_path, capsys):
    net = parse_network("UNet(2, width=1/64)", "cpu")
    np.savez(tmp_path / "u.npz", **net.state_dict())
    assert port(tmp_path / "u.npz", "UNet(2, width=1/64)", tmp_path / "u.safetensors") == 2
    assert "give the mean, --mean R G B" in capsys.readouterr().err
    assert (
        port(
            tmp_path / "u.npz", "UNet(2, width=1/64)", tmp_path / "u.safetensors", "--mean", "9", "8", "7", "--channels", "rgb"
        )
        == 0
    )
    assert torch.equal(
        load_file(tmp_path / "u.safetensors")["down.0.conv_d0a-b.weight"], net.state_dict()["down.0.conv_d0a-b.weight"]
    )


@pytest.mark.slow
def test_damaged_files_of_every_kind_are_refused_or_read_and_never_crash(tmp_path):
    rng, file = np.random.default_rng(0), tmp_path / "w"
    net = parse_network(TINY)
    state = {key: torch.ones(v.shape) for key, v in net.state_dict().items() if "encoder" in key}
    save_file(state, file)
    good = [caffemodel(GOOD, "v1"), caffemodel(GOOD), caffemodel(GOOD, packed=False), file.read_bytes(), torch_saved(state)]
    good.append(torch_saved(state, _use_new_zipfile_serialization=False))
    good.append(npz(**{f"{name}/{i}": values for name, b in GOOD.items() for i, values in enumerate(b)}))
    outcomes = {"read": 0, "refused": 0}
    for trial in range(700):
        content = bytearray(good[trial % len(good)])
        for _ in range(rng.integers(1, 6)):
            content[rng.integers(len(content))] = rng.integers(256)
        file.write_bytes(content[: rng.integers(1, len(content) + 1)] if trial % 3 == 0 else content)
        try:
            weights.map_tensors(weights.read(file), net)
            outcomes["read"] += 1
        except UserError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 25


@pytest.mark.parametrize(
    ("call", "name"),
    [
        ("FCN(3)", "vgg16-397923af.pth"),
        ("DeepLabV1(3)", "vgg16-397923af.pth"),
        ("DilatedNet(3)", "vgg16-397923af.pth"),
        ("DeconvNet(3)", "vgg16-397923af.pth"),
        ("SegNet(3)", "vgg16_features-amdegroot-88682ab5.pth"),
        ("FCN(3, resnet=50)", "resnet50-0676ba61.pth"),
        ("DilatedNet(3, resnet=101)", "resnet101-63fe2227.pth"),
        ("FCNAlexNet(3, one_tower=True)", "alexnet-owt-7be5be79.pth"),
    ],
)
def test_each_network_has_its_file_in_torchs_cache(call, name, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    (tmp_path / "hub/checkpoints" / name).write_bytes(b"not what its name says")
    with pytest.raises(UserError, match=rf"{name} is another file than https://download.pytorch.org/.*: remove it"):
        weights.fetch_imagenet(parse_network(call))
    monkeypatch.setitem(normalization.CHECKSUMS, name, digest(tmp_path / "hub/checkpoints" / name))
    assert weights.fetch_imagenet(parse_network(call)) == tmp_path / "hub/checkpoints" / name


@pytest.mark.parametrize("call", ["UNet(3)", "SegNetBasic(3)", "FCDenseNet(3, 56)", "FCNAlexNet(3)"])
def test_networks_without_published_encoder_are_named(call):
    with pytest.raises(UserError, match=f"no ImageNet weights for {call.partition('(')[0]} in torchvision"):
        weights.fetch_imagenet(parse_network(call))


def test_offline_the_message_tells_how_to_fetch_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(
        UserError, match=r"vgg16-397923af.pth .*put it into .*hub/checkpoints as vgg16-397923af.pth, or name a file"
    ):
        weights.fetch_imagenet(parse_network("FCN(3)"))
    assert not list((tmp_path / "hub/checkpoints").iterdir())


def test_a_download_of_another_content_is_refused_and_leaves_nothing(tmp_path):
    (tmp_path / "served.pth").write_bytes(b"not what its checksum says")
    with pytest.raises(UserError, match="invalid hash value"):
        download.ensure_downloaded((tmp_path / "served.pth").as_uri(), tmp_path / "to/served.pth", "0" * 64)
    assert not list((tmp_path / "to").iterdir())


def test_a_file_that_shares_a_few_names_only_is_of_another_network(tmp_path):
    net = parse_network("FCN(2, resnet=18, width=1/16)", "cpu")
    blocks = {f"res2{block}_branch2{part}": [np.ones((4, 4, 3, 3))] for block in "abcdef" for part in "abc"}
    stem = net.state_dict()["encoder.conv1.weight"].numpy()
    (tmp_path / "resnet.caffemodel").write_bytes(caffemodel({"conv1": [stem]} | blocks))
    with pytest.raises(
        UserError, match=r"has encoder.conv1 and no encoder.layer1.0.conv1, .* and 16 more: it is of another network"
    ):
        weights.load(net, tmp_path / "resnet.caffemodel")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_become_single(dtype, tmp_path, capsys):
    net = parse_network("DilatedNet(2, context=None, width=1/64)", "cpu")
    state = {key: value.to(dtype) for key, value in net.state_dict().items()}
    torch.save(state, tmp_path / "half.pth")
    assert (
        port(
            tmp_path / "half.pth",
            "DilatedNet(2, context=None, width=1/64)",
            tmp_path / "o.safetensors",
            "--mean",
            "0",
            "0",
            "0",
        )
        == 0
    )
    assert f"from {dtype}" in capsys.readouterr().out
    ported = load_file(tmp_path / "o.safetensors")
    assert all(torch.equal(ported[key], value.float()) for key, value in state.items())
