"""Read files of weights as named tensors: Caffe models, Keras' HDF5, .npz, torch state dicts, safetensors.

No file is ever executed.
"""

import io
import json
import math
import os
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dilated_seg.errors import CorruptError, UserError, format_error, require_extra
from dilated_seg.models.release import RGB
from dilated_seg.weights.caffemodel import read_layers
from dilated_seg.weights.download import fetch
from dilated_seg.weights.torch_file import check_expansion, check_state_dict, load_torch

# torch's names for the kinds of tensors in .npz files. Caffe's numbers mean different kinds in different layers.
KINDS = {
    "weight": "weight", "weights": "weight", "w": "weight", "kernel": "weight", "0": "0",
    "scale": "weight", "gamma": "weight", "shift": "bias", "beta": "bias",
    "bias": "bias", "biases": "bias", "b": "bias", "1": "1", "2": "2", "3": "3",
    "mean": "running_mean", "running_mean": "running_mean", "moving_mean": "running_mean",
    "var": "running_var", "variance": "running_var", "running_var": "running_var", "moving_variance": "running_var",
    "num_batches_tracked": "num_batches_tracked",
}  # fmt: skip

READ_SECONDS = 300  # after which reading an HDF5 file counts as hanging

# Names of the objects that hold a network in other programs: prefixes of the names of its tensors.
WRAPPERS = ("module", "model", "net")


@dataclass
class Weights:
    """The tensors of a file by layer and kind, and the normalization and classes that it states.

    Args:
        path: The file.
        kind: The format of the file.
        layers: Tensors by layer and kind: "weight", "bias", ..., or Caffe's "0", "1", ...
        mean: Mean of the normalization (RGB, 0 to 255).
        std: Standard deviation of the normalization (RGB, 0 to 255).
        classes: Class names, if the file has them.
        published: Whether the file was downloaded from torchvision.
        stripped: The prefix that was removed from the names of its tensors.
    """

    path: Path
    kind: Literal["caffe", "keras", "npz", "torch", "safetensors"]
    layers: dict[str, dict[str, Tensor]]
    mean: RGB | None = None
    std: RGB | None = None
    classes: list[str] | None = None
    published: bool = False
    stripped: str = ""


def read(path: str | Path) -> Weights:
    """Read a file, or a URL ``https://...#sha256=...``; the first bytes determine the format.

    Raises:
        UserError: There is no such file, it is damaged, of an unknown format, or would have to be executed.
    """
    path = fetch(path)
    try:
        with path.open("rb") as file:
            weights = choose_reader(file)(path, file)
        if odd := [name for name in weights.layers if not name.isprintable()]:
            raise CorruptError(f"has a layer whose name is not printable text: {odd[0]!a}")
        return weights
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except CorruptError as error:
        raise UserError(f"{path} {error}") from error


def choose_reader(file: BinaryIO) -> Callable[[Path, BinaryIO], Weights]:
    """Return the function that reads the file's format, which its first bytes determine."""
    start = file.read(9)
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if start.startswith(b"\x89HDF"):
        return read_keras
    if start.startswith(b"PK\x03\x04"):
        return read_zip
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return read_torch
    if len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] <= size - 8:
        return read_safetensors
    return lambda path, file: Weights(path, "caffe", read_layers(file))


def read_zip(path: Path, file: BinaryIO) -> Weights:
    """Read a zip archive, as both numpy.savez and torch.save write it."""
    layers: dict[str, dict[str, Tensor]] = {}
    try:
        with zipfile.ZipFile(file) as archive:
            check_expansion(archive, file)
            names = archive.namelist()
            if any(name.endswith("data.pkl") for name in names):
                return read_torch(path, file)
            if not all(name.endswith(".npy") for name in names):
                raise CorruptError("is a zip archive, but neither numpy's nor torch's")
            for name in names:
                layer, kind = split_name(name.removesuffix(".npy"))
                layers.setdefault(layer, {})[kind] = torch.from_numpy(read_array(archive.read(name), name))
    except CorruptError:
        raise
    except Exception as error:  # zipfile and its decompressors raise errors of many types
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise CorruptError(f"is damaged: {format_error(error)}") from error
    return Weights(path, "npz", layers)


def read_keras(path: Path, file: BinaryIO) -> Weights:
    """Read an HDF5 file of Keras, in another process: on a damaged one, its library can crash or hang."""
    require_extra(f"{path} (HDF5)", "keras", "h5py")
    program = Path(__file__).with_name("keras_process.py")
    command = [sys.executable, "-P", str(program), str(path)]
    with tempfile.TemporaryFile() as arrays:
        try:
            done = subprocess.run(command, stdout=arrays, stderr=subprocess.PIPE, timeout=READ_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise CorruptError(f"is damaged: reading it did not end within {READ_SECONDS} s") from error
        if done.returncode:
            message = done.stderr.decode(errors="replace").strip().splitlines()
            ours = len(message) == 1  # sys.exit of our program; a Python error has a traceback, a crash nothing
            raise CorruptError(message[0] if ours else f"is damaged: {message[-1] if message else 'HDF5 crashed'}")
        weights = read_zip(path, arrays)
    if not weights.layers:
        raise CorruptError("has no layer with weights: save it with Keras' save_weights")
    weights.kind = "keras"
    return weights


def read_array(content: bytes, name: str) -> np.ndarray:
    """Read an .npy file of integers or floating-point numbers."""
    stream = io.BytesIO(content)
    try:
        values = np.load(stream, allow_pickle=False)
    except (ValueError, EOFError, SyntaxError, TypeError, MemoryError) as error:
        if "pickle" in str(error):
            raise CorruptError(f"holds {name} as Python objects: nothing is executed to read it") from error
        raise CorruptError(f"is damaged: {name} does not match its header ({format_error(error)})") from error
    if values.dtype.kind not in "fiu":
        raise CorruptError(f"holds {name} of type {values.dtype}, no numbers")
    if stream.tell() != len(content):
        raise CorruptError(f"is damaged: {name} has more bytes than its shape {values.shape}")
    return np.array(values, np.float32 if values.dtype.kind == "f" else np.int64, order="C")


def split_name(name: str) -> tuple[str, str]:
    """Return layer and kind of an array's name: "conv1_1/0", "conv1_1.weight", "conv1_1_biases"."""
    for mark in ("/", ".", ":", "_"):
        layer, separator, kind = name.rpartition(mark)
        if separator and kind.lower() in KINDS and not (mark == "_" and kind.isdigit()):
            return layer, KINDS[kind.lower()]
    return name, ""


def read_torch(path: Path, file: BinaryIO) -> Weights:
    """Read a state dict that torch.save wrote, or a checkpoint that holds one."""
    state = content = load_torch(file)
    for wrapper in ("state_dict", "model_state_dict", *WRAPPERS):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    weights = split_state_dict(path, "torch", check_state_dict(state))
    weights.classes = find_class_names(content) if isinstance(content, dict) else None
    return weights


def read_safetensors(path: Path, file: BinaryIO) -> Weights:
    """Read a safetensors file; those that `port` wrote have mean and std in their metadata."""
    try:
        with safe_open(path, framework="pt") as content:
            state = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118 - not a dictionary
            metadata = content.metadata() or {}
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise CorruptError(f"is damaged: {error}") from error
    weights = split_state_dict(path, "safetensors", state)
    weights.classes = find_exported_class_names(path)
    if "mean" in metadata and "std" in metadata:
        weights.mean, weights.std = read_normalization(*(metadata[key].split() for key in ("mean", "std")))
    return weights


def split_state_dict(path: Path, kind: Literal["torch", "safetensors"], state: dict[str, Tensor]) -> Weights:
    """Return the tensors of a state dict by layer; a run's has the network below "model.net.", its mean and its std."""
    # torch.compile adds _orig_mod to names, at the front or further inside; AveragedModel counts in n_averaged
    plain = {".".join(part for part in key.split(".") if part != "_orig_mod"): tensor for key, tensor in state.items()}
    if len(plain) < len(state):
        raise CorruptError("has tensors of the same name with and without torch.compile's _orig_mod: save one network's alone")
    plain.pop("n_averaged", None)
    mean, std = plain.get("model.mean"), plain.get("model.std")
    weights = Weights(path, kind, {}, stripped="_orig_mod." if any("_orig_mod" in key for key in state) else "")
    if mean is not None and std is not None:
        weights.mean, weights.std = read_normalization(mean.flatten().tolist(), std.flatten().tolist())
        plain = {key.removeprefix("model.net."): value for key, value in plain.items() if key.startswith("model.net.")}
    for key, tensor in plain.items():
        layer, _, part = key.rpartition(".")
        weights.layers.setdefault(layer, {})[part] = tensor
    return weights


def read_normalization(mean: list[Any], std: list[Any]) -> tuple[RGB, RGB]:
    """Return mean and std of the three channels; raise CorruptError unless they are finite and std is above 0."""
    try:
        (red, green, blue), (red_std, green_std, blue_std) = (list(map(float, values)) for values in (mean, std))
    except ValueError as error:
        raise CorruptError(f"is damaged: {error}") from error
    if not all(map(math.isfinite, (red, green, blue, red_std, green_std, blue_std))) or min(red_std, green_std, blue_std) <= 0:
        raise CorruptError("is damaged: its mean or std is not finite, or its std not above 0")
    return (red, green, blue), (red_std, green_std, blue_std)


def find_exported_class_names(path: Path) -> list[str] | None:
    """Return the class names in the configuration of an exported directory that holds the file, if it is in one."""
    try:
        return find_class_names({"dataset": json.loads((path.parent / "config.json").read_text("utf-8"))})
    except (OSError, ValueError):
        return None


def find_class_names(checkpoint: dict[str, Any]) -> list[str] | None:
    """Return the class names that a checkpoint holds, or None if it holds none."""
    for part in ("dataset", "hyper_parameters"):
        values = checkpoint.get(part)
        names = values.get("classes") if isinstance(values, dict) else None
        if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
            return list(names)
    return None
