"""Keras' files (.h5, .weights.h5), read in a process of their own, and half-precision files of NVIDIA's Caffe."""

import os
import struct
import sys

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from dilated_seg import weights
from dilated_seg.__main__ import main
from dilated_seg.commands.objects import parse_network
from dilated_seg.errors import UserError
from dilated_seg.models.release import VGG_MEAN
from dilated_seg.weights import readers
from tests.support.caffe_writer import chunk, integer, varint

FC = "FCN(2, width=1/64)"
CONVOLUTIONS = [f"block{stage}_conv{i}" for stage, n in enumerate((2, 2, 3, 3, 3), start=1) for i in range(1, n + 1)]


def vgg(classifier=False):
    """Layers of Keras' VGG-16 at 1/64 of its width: kernels (H, W, in, out) or (in, out), biases."""
    rng = np.random.default_rng(0)
    channels = dict(zip(CONVOLUTIONS, (1, 1, 2, 2, 4, 4, 4, 8, 8, 8, 8, 8, 8), strict=True))
    shapes, before = {}, 3
    for name, out in channels.items():
        shapes[name], before = (3, 3, before, out), out
    if classifier:
        shapes |= {"fc1": (49 * 8, 64), "fc2": (64, 64), "predictions": (64, 1000)}
    return {name: [rng.normal(size=s).astype("f4"), rng.normal(size=s[-1]).astype("f4")] for name, s in shapes.items()}


def write_keras3(path, layers, named=True):
    """A .weights.h5: classes number the groups, which are sorted as text; the layer's name is an attribute of its weights."""
    with h5py.File(path, "w") as file:
        for number, (name, arrays) in enumerate(layers.items()):
            group = file.create_group(f"layers/conv2d_{number}/vars" if named else f"layers/{name}/vars")
            if named:
                group.attrs["name"] = name
            for i, values in enumerate(arrays):
                group[str(i)] = values
        file.create_group("optimizer/vars")["0"] = np.ones(3)


def write_keras2(path, layers, inner="model_weights"):
    """A file of Keras 1 and 2: attributes with the names of the layers and of their weights."""
    with h5py.File(path, "w") as file:
        root = file.create_group(inner) if inner else file
        root.attrs["layer_names"] = [b"input_1", *(name.encode() for name in layers)]
        root.create_group("input_1").attrs["weight_names"] = np.zeros(0, "S1")
        for name, arrays in layers.items():
            suffixes = ("{0}/kernel:0", "{0}/bias:0") if inner else ("{0}_W_1:0", "{0}_b_1:0")
            names = [suffix.format(name) for suffix in suffixes]
            group = root.create_group(name)
            group.attrs["weight_names"] = [n.encode() for n in names]
            for n, values in zip(names, arrays, strict=True):
                group[n] = values


WRITERS = {
    "weights.h5": write_keras3,
    "whole model": write_keras2,
    "Keras 1": lambda path, layers: write_keras2(path, layers, inner=""),
}


@pytest.mark.parametrize("form", list(WRITERS))
def test_keras_vgg_goes_through_port_without_options(form, tmp_path, capsys):
    layers = vgg()
    WRITERS[form](tmp_path / "vgg.h5", layers)
    assert main(["port", str(tmp_path / "vgg.h5"), "--net", FC, "--out", str(tmp_path / "o.safetensors")]) == 0
    printed = capsys.readouterr().out
    assert "26 tensors loaded, 0 unexpected" in printed and f"minus {VGG_MEAN}" in printed
    ported = load_file(tmp_path / "o.safetensors")
    for name, (kernel, bias) in layers.items():
        stage, number = int(name[5]), name[-1]
        ours = f"encoder.stages.{stage - 1}.conv{stage}_{number}"
        expected = torch.from_numpy(kernel).permute(3, 2, 0, 1)
        assert torch.equal(ported[f"{ours}.weight"], expected.flip(1) if name == "block1_conv1" else expected)  # BGR to RGB
        assert torch.equal(ported[f"{ours}.bias"], torch.from_numpy(bias))


def test_keras_classifier_reads_its_maps_as_keras_flattens_them(tmp_path):
    layers = vgg(classifier=True)
    write_keras2(tmp_path / "vgg.h5", layers)
    net = parse_network("FCN(2, form=authors, width=1/64)", "cpu")
    result, _, _ = weights.load(net, tmp_path / "vgg.h5")
    assert len(result.loaded) == 30 and [name for name, _ in result.unexpected] == ["predictions/0", "predictions/1"]
    maps = torch.randn(1, 8, 7, 7)
    by_keras = maps.permute(0, 2, 3, 1).flatten(1) @ torch.from_numpy(layers["fc1"][0]) + torch.from_numpy(layers["fc1"][1])
    fc6 = net.get_submodule("classifier.fc6")
    assert torch.allclose(F.conv2d(maps, fc6.weight, fc6.bias).flatten(1), by_keras, atol=1e-4)
    fc7 = net.get_submodule("classifier.fc7").weight
    assert torch.equal(fc7[:, :, 0, 0], torch.from_numpy(layers["fc2"][0]).T)


def test_vgg19_of_keras_is_refused(tmp_path):
    write_keras3(tmp_path / "vgg.h5", vgg() | {"block3_conv4": [np.ones((3, 3, 4, 4)), np.ones(4)]})
    with pytest.raises(UserError, match="has block3_conv4 besides"):
        weights.load(parse_network(FC, "cpu"), tmp_path / "vgg.h5")


def test_another_network_of_keras_needs_its_channel_order_and_its_mean(tmp_path, capsys):
    names = [name.replace("block", "conv").replace("_conv", "_") for name in CONVOLUTIONS]
    write_keras3(tmp_path / "own.h5", dict(zip(names, vgg().values(), strict=True)), named=False)
    (tmp_path / "out").mkdir()
    call = ["port", str(tmp_path / "own.h5"), "--net", FC, "--out", str(tmp_path / "out/o.safetensors")]
    assert main(call) == 2
    assert "has no layer of this network: its layers are layers/conv1_1," in capsys.readouterr().err
    with h5py.File(tmp_path / "own.h5", "r+") as file:
        for name in names:
            file[f"layers/{name}/vars"].attrs["name"] = name
    assert main(call) == 2
    assert "the channel order of conv1_1 is unknown: give it as --channels bgr or rgb" in capsys.readouterr().err
    assert main([*call, "--channels", "rgb"]) == 0


def test_without_h5py_one_sentence_says_what_to_install(tmp_path, capsys, monkeypatch):
    write_keras3(tmp_path / "vgg.h5", vgg())
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert main(["port", str(tmp_path / "vgg.h5"), "--net", FC, "--out", str(tmp_path / "o.safetensors")]) == 2
    error = capsys.readouterr().err
    assert "vgg.h5 (HDF5) needs h5py: pip install h5py (the extra 'keras')" in error and len(error.splitlines()) == 1


def virtual(file):
    layout = h5py.VirtualLayout((3, 3, 3, 1), "f4")
    layout[...] = h5py.VirtualSource("/etc/hostname", "x", (3, 3, 3, 1))
    return file.create_virtual_dataset("layers/a/vars/0", layout)


ODD = {
    "arrays in another file": (virtual, "holds layers/a in other files"),
    "bytes of another file": (
        lambda file: file.create_dataset("layers/a/vars/0", (9,), "f4", external=[("/etc/hostname", 0, 36)]),
        "holds layers/a in other files",
    ),
    "a bomb": (
        lambda file: file.create_dataset("layers/a/vars/0", (10**6, 10**6), "f4", chunks=(1000, 1000)),
        "would unpack to far more bytes",
    ),
    "no layer": (lambda file: file.create_group("x"), "has no layer with weights"),
    "text": (lambda file: file.create_dataset("layers/a/vars/0", data=["a"]), "holds layers/a/0.npy as Python objects"),
    "no number": (lambda file: file.create_dataset("layers/a/vars/kernel", data=[1.0]), "is damaged"),
}


@pytest.mark.parametrize("case", list(ODD))
def test_a_file_that_is_no_plain_set_of_arrays_is_one_sentence(case, tmp_path, capsys):
    write, sentence = ODD[case]
    with h5py.File(tmp_path / "odd.h5", "w") as file:
        write(file)
    assert main(["port", str(tmp_path / "odd.h5"), "--net", FC, "--out", str(tmp_path / "o.safetensors")]) == 2
    error = capsys.readouterr().err
    assert sentence in error and "odd.h5" in error and len(error.splitlines()) == 1


def test_a_damaged_file_ends_only_the_process_that_reads_it(tmp_path):
    write_keras3(tmp_path / "vgg.h5", vgg())
    good, rng, outcomes = (tmp_path / "vgg.h5").read_bytes(), np.random.default_rng(0), set()
    for trial in range(6):
        content = bytearray(good)
        for _ in range(40 * (trial % 3)):
            content[rng.integers(100, len(content))] = rng.integers(256)
        (tmp_path / "w.h5").write_bytes(content[: len(content) // (1 + trial % 2)])
        try:
            outcomes.add(len(weights.read(tmp_path / "w.h5").layers))
        except UserError as error:
            outcomes.add("damaged" in str(error))
    assert {True, 13} <= outcomes


def test_reading_that_does_not_end_is_damage(tmp_path, monkeypatch):
    write_keras3(tmp_path / "vgg.h5", vgg())
    monkeypatch.setattr(readers, "READ_SECONDS", 0.001)
    with pytest.raises(UserError, match="is damaged: reading it did not end within"):
        weights.read(tmp_path / "vgg.h5")


def nvidia_blob(values, number, dtype):
    """A BlobProto of NVIDIA's Caffe: the type of the bytes in field 10, the bytes in field 12."""
    shape = chunk(7, chunk(1, b"".join(varint(size) for size in values.shape)))
    return chunk(7, shape + integer(10, number) + chunk(12, values.astype(dtype).tobytes()))


def nvidia_model(*blobs):
    return chunk(100, chunk(1, b"conv1") + chunk(2, b"Convolution") + b"".join(blobs))


@pytest.mark.parametrize(("number", "dtype"), [(0, "<f8"), (1, "<f4"), (2, "<f2")])
def test_blobs_of_nvidias_caffe_have_their_own_precision(number, dtype, tmp_path):
    values = np.random.default_rng(0).normal(size=(4, 3, 5, 5))
    file = tmp_path / "half.caffemodel"
    file.write_bytes(nvidia_model(nvidia_blob(values, number, dtype), nvidia_blob(values[0, 0, 0], number, dtype)))
    layer = weights.read(file).layers["conv1"]
    assert torch.equal(layer["0"], torch.from_numpy(values.astype(dtype).astype("f4")))
    assert layer["1"].shape == (5,) and layer["1"].dtype == torch.float32


@pytest.mark.parametrize(
    ("number", "content", "sentence"),
    [
        (3, struct.pack("<3i", 1, 2, 3), "has integers in a blob of layer conv1"),
        (2, bytes(5), "a blob of layer conv1 ends within a value"),
        (2, bytes(8), "has 4 values"),
    ],
)
def test_odd_blobs_of_nvidias_caffe_are_refused(number, content, sentence, tmp_path):
    blob = chunk(7, chunk(7, chunk(1, varint(3))) + chunk(12, content) + integer(10, number))  # in any order
    (tmp_path / "half.caffemodel").write_bytes(nvidia_model(blob))
    with pytest.raises(UserError, match=sentence):
        weights.read(tmp_path / "half.caffemodel")


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_written_weights_have_the_permissions_of_the_umask(mask, tmp_path):
    write_keras3(tmp_path / "vgg.h5", vgg())
    before = os.umask(mask)
    try:
        assert main(["port", str(tmp_path / "vgg.h5"), "--net", FC, "--out", str(tmp_path / "o.safetensors")]) == 0
    finally:
        os.umask(before)
    assert (tmp_path / "o.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask
