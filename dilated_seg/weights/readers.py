"""Files of weights as named tensors: Caffe models, .npz, torch state dicts, safetensors. Nothing in a file is ever executed.

All that torch wrote goes through `load_torch`, checkpoints too.
"""

import contextlib
import io
import json
import math
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dilated_seg.errors import CorruptError, UserError, format_error
from dilated_seg.weights.caffemodel import read_layers
from dilated_seg.weights.download import local

# What the parts of a layer are called in .npz files; Caffe's own have numbers, told apart by the kind of layer.
KINDS = {
    "weight": "weight", "weights": "weight", "w": "weight", "kernel": "weight", "0": "0",
    "scale": "weight", "gamma": "weight", "shift": "bias", "beta": "bias",
    "bias": "bias", "biases": "bias", "b": "bias", "1": "1", "2": "2", "3": "3",
    "mean": "running_mean", "running_mean": "running_mean", "moving_mean": "running_mean",
    "var": "running_var", "variance": "running_var", "running_var": "running_var", "moving_variance": "running_var",
    "num_batches_tracked": "num_batches_tracked",
}  # fmt: skip

# What holds a network in the files of others: its name then stands before those of the network's tensors.
WRAPPERS = ("module", "model", "net")

EXPANSION = 200  # how much larger than its file an .npz may be, a compressed array of one number included


@dataclass
class Weights:
    """Tensors by layer and part ("weight", "bias", ... or Caffe's "0", "1", ...), and what is known of the image they take."""

    path: Path
    kind: Literal["caffe", "npz", "torch", "safetensors"]
    layers: dict[str, dict[str, Tensor]]
    mean: tuple[float, float, float] | None = None  # RGB, 0 to 255
    std: tuple[float, float, float] | None = None
    classes: list[str] | None = None  # their names, if the file says so
    published: bool = False  # whether it came from torchvision itself
    stripped: str = ""  # prefix that was removed from its names


def read(path: str | Path) -> Weights:
    """The tensors of a file, whatever its name ends with, or of what lies at an address ``https://...#sha256=...``.

    Raises:
        UserError: There is no such file, it is damaged, of no kind known here, or would have to be executed.
    """
    path = local(path)
    if path.exists() and not path.is_file():
        raise UserError(f"cannot read {path}: it is no file")
    try:
        with path.open("rb") as file:
            found: Weights = reader(file)(path, file)
        if odd := [name for name in found.layers if not name.isprintable()]:
            raise CorruptError(f"has a layer whose name is no text: {odd[0]!a}")
        return found
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except CorruptError as error:
        raise UserError(f"{path} {error}") from error


def reader(file: BinaryIO) -> Any:  # noqa: ANN401
    """The function that reads this kind of file, by its first bytes."""
    start = file.read(9)
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if start.startswith(b"\x89HDF"):
        raise CorruptError("is HDF5, which is not read here: save its arrays with numpy.savez, named LAYER/0 and LAYER/1")
    if start.startswith(b"PK\x03\x04"):
        return read_zip
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return read_torch
    if len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] <= size - 8:
        return read_safetensors
    return read_caffe


def read_caffe(path: Path, file: BinaryIO) -> Weights:
    """A .caffemodel."""
    return Weights(path, "caffe", read_layers(file))


def read_zip(path: Path, file: BinaryIO) -> Weights:
    """numpy.savez and torch.save both write zip archives."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            refuse_bomb(archive)
            if any(name.endswith("data.pkl") for name in names):
                return read_torch(path, file)
            if not all(name.endswith(".npy") for name in names):
                raise CorruptError("is a zip archive, but neither numpy's nor torch's")
            arrays = {name.removesuffix(".npy"): array(archive.read(name), name) for name in names}
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise CorruptError(f"is damaged: {error}") from error
    except Exception as error:
        if type(error).__module__ in ("zlib", "_lzma", "lzma", "_bz2"):
            raise CorruptError(f"is damaged: {error}") from error
        raise
    layers: dict[str, dict[str, Tensor]] = {}
    for name, values in arrays.items():
        layer, kind = split(name)
        layers.setdefault(layer, {})[kind] = torch.from_numpy(values)
    return Weights(path, "npz", layers)


def array(content: bytes, name: str) -> np.ndarray:
    """An .npy file; its header is believed only as far as the bytes reach."""
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(stream)
    except (ValueError, EOFError, SyntaxError, TypeError) as error:
        raise CorruptError(f"is damaged: the header of {name} is none") from error
    if dtype.kind not in "fiu":
        raise CorruptError(f"holds {name} of type {dtype}, no numbers: nothing is executed to read it")
    if math.prod(shape) * dtype.itemsize != len(content) - stream.tell():
        raise CorruptError(f"is damaged: {name} says it is {shape}, but holds {len(content) - stream.tell():,} bytes")
    values = np.frombuffer(content, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran else "C")
    return np.array(values, np.float32 if dtype.kind == "f" else np.int64, order="C")


def split(name: str) -> tuple[str, str]:
    """Layer and part of a tensor's name: "conv1_1/0", "conv1_1.weight", "conv1_1_biases"."""
    for mark in ("/", ".", ":", "_"):
        layer, found, part = name.rpartition(mark)
        if found and part.lower() in KINDS and not (mark == "_" and part.isdigit()):
            return layer, KINDS[part.lower()]
    return name, ""


def refuse_bomb(archive: zipfile.ZipFile) -> None:
    """Refuse a zip archive that says it is far larger unpacked."""
    expanded = sum(info.file_size for info in archive.infolist())
    if expanded > EXPANSION * max(archive.fp.seek(0, os.SEEK_END) if archive.fp else 0, 1 << 20):
        raise CorruptError(f"would unpack to {expanded:,} bytes, far more than weights do")


def load_torch(file: BinaryIO, map_location: Any = "cpu") -> Any:  # noqa: ANN401 - as torch.load's
    """What torch.save wrote into an open file, without executing its pickle, whatever torch's environment variables say.

    Raises:
        CorruptError: The file is damaged, none of torch's, or would have to be executed.
    """
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                refuse_bomb(archive)
        file.seek(0)
        with without("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"), warnings.catch_warnings(action="ignore"):
            return torch.load(file, map_location=map_location, weights_only=True)
    except CorruptError:
        raise
    except pickle.UnpicklingError as error:
        raise CorruptError("is a pickle that would have to be executed, or is damaged: save its state_dict alone") from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise CorruptError("needs more memory than is free") from error
    except ImportError:
        raise
    except Exception as error:  # torch has no error of its own for a damaged file
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise CorruptError(f"is damaged: {format_error(error)}") from error


def read_torch(path: Path, file: BinaryIO) -> Weights:
    """A state dict that torch.save wrote, or a checkpoint that holds one."""
    state = content = load_torch(file)
    for wrapper in ("state_dict", "model_state_dict", *WRAPPERS):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    found = from_state(path, "torch", tensors(state))
    found.classes = names_in(content) if isinstance(content, dict) else None
    return found


def tensors(state: Any) -> dict[str, Tensor]:  # noqa: ANN401
    """A state dict, if it is one: each of its tensors a plain array of numbers."""
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise CorruptError("holds no state dict of named tensors")
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CorruptError(f"holds {name!a} in a form that is no plain array of numbers")
    return state


@contextlib.contextmanager
def without(variable: str) -> Iterator[None]:
    """The environment as it is, but for one variable."""
    kept = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if kept is not None:
            os.environ[variable] = kept


def from_state(path: Path, kind: Literal["torch", "safetensors"], state: dict[str, Tensor]) -> Weights:
    """Return the tensors of a state dict; a task's has its network below "model.net.", and its mean and std."""
    given, state = state, {compiled(key): tensor for key, tensor in state.items()}
    if len(state) < len(given):
        raise CorruptError("has tensors of the same name with and without torch.compile's _orig_mod: save one network's alone")
    stripped = "_orig_mod." if any("_orig_mod" in key for key in given) else ""
    state.pop("n_averaged", None)  # torch's AveragedModel counts here
    if state and all(key.startswith("module.") for key in state):  # as DataParallel leaves it
        stripped = f"{stripped}module."
        state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    task = any(key.startswith("model.net.") for key in state)  # of a run: the network and its normalization
    if task:
        state = {key.removeprefix("model."): tensor for key, tensor in state.items()}
    inside = {
        key.removeprefix("net.") if task else key: tensor
        for key, tensor in state.items()
        if not task or (key not in ("mean", "std") and not key.startswith("crf."))
    }
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in inside.items():
        layer, _, part = key.rpartition(".")
        layers.setdefault(layer, {})[part] = tensor
    found = Weights(path, kind, layers, stripped=stripped)
    if task and "mean" in state and "std" in state:
        try:
            found.mean, found.std = triple(state["mean"].flatten().tolist()), triple(state["std"].flatten().tolist())
        except ValueError as error:
            raise CorruptError(f"is damaged: {error}") from error
        if min(found.std) <= 0:
            raise CorruptError("is damaged: its deviation is not above 0")
    return found


def compiled(name: str) -> str:
    """A tensor's name without what torch.compile adds to it, at the front or further inside."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def read_safetensors(path: Path, file: BinaryIO) -> Weights:
    """A safetensors file; ours say in their metadata what to subtract from the image and to divide it by."""
    try:
        with safe_open(path, framework="pt") as content:
            state = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118 - no dictionary
            facts = content.metadata() or {}
        found = from_state(path, "safetensors", state)
        found.classes = names_of_folder(path)
        if "mean" in facts and "std" in facts:
            found.mean, found.std = (triple([float(n) for n in facts[key].split()]) for key in ("mean", "std"))
            if min(found.std) <= 0:
                raise ValueError("its deviation is not above 0")
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise CorruptError(f"is damaged: {error}") from error
    return found


def names_of_folder(path: Path) -> list[str] | None:
    """Return the class names that the configuration beside exported weights holds, if there is one."""
    try:
        return names_in({"dataset": json.loads((path.parent / "config.json").read_text("utf-8"))})
    except (OSError, ValueError):
        return None


def triple(numbers: list[float]) -> tuple[float, float, float]:
    """One number a channel."""
    red, green, blue = numbers
    if not all(math.isfinite(n) for n in numbers):
        raise ValueError("its mean or deviation is not finite")
    return red, green, blue


def names_in(checkpoint: dict[str, Any]) -> list[str] | None:
    """Return the class names that a checkpoint holds, or None if it holds none."""
    for part in ("dataset", "hyper_parameters"):
        facts = checkpoint.get(part)
        names = facts.get("classes") if isinstance(facts, dict) else None
        if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
            return list(names)
    return None
