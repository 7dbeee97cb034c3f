"""Weights of a file loaded into a network, or written as a safetensors file for it."""

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from dilated_seg.errors import UserError, format_error
from dilated_seg.models.release import RGB
from dilated_seg.storage import atomic_path, digest
from dilated_seg.weights.match import LoadResult, map_tensors
from dilated_seg.weights.normalization import ONE, fetch_imagenet, find_normalization
from dilated_seg.weights.readers import Weights, read


def load(net: nn.Module, source: str | Path, without: Sequence[str] = ()) -> tuple[LoadResult, RGB | None, RGB | None]:
    """Load weights into a network.

    Args:
        net: The network; it keeps the tensors that the file does not have.
        source: A file, its address, or "imagenet" for torchvision's weights.
        without: Layers or parts of the network that are not loaded, by name.

    Returns:
        What was loaded, and the mean and standard deviation of the images (RGB, 0 to 255), None where unknown.

    Raises:
        UserError: The file cannot be read, nothing in it fits, or a tensor has another shape than ours of its name.
    """
    imagenet = str(source) == "imagenet"
    file = read(fetch_imagenet(net) if imagenet else source)
    file.published = imagenet
    state, result = map_tensors(file, net, without=without)
    net.load_state_dict(state, strict=False)
    result.classes = file.classes
    return result, *find_normalization(file)


def port(
    source: str,
    net: nn.Module,
    name: str,
    out: str,
    channels: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    overwrite: bool = False,
    without: Sequence[str] = (),
) -> LoadResult:
    """Write the weights of a file as a safetensors file for one of our networks, and print what happened to every tensor.

    Args:
        source: The file, or its address.
        net: The network, which may be on the meta device.
        name: What the network is called in the file that is written.
        out: The safetensors file.
        channels: "bgr" or "rgb", which the first convolution of the file's network takes; None if the file's names tell.
        mean: Subtracted from the image (RGB, 0 to 255); None if the file's layers tell.
        std: What the image is then divided by.
        overwrite: Whether to replace an existing file.
        without: Layers or parts of the network that are not loaded.

    Raises:
        UserError: As `load`; or ``out`` exists or cannot be written, or the mean is unknown.
    """
    path = Path(out)
    check_arguments(path, overwrite, mean, std)
    file = read(source)
    state, result = map_tensors(file, net, channels, without)
    known_mean, known_std = find_normalization(file)
    use_mean, use_std = tuple(mean) if mean else known_mean, tuple(std) if std else known_std or (ONE if mean else None)
    if result.reads_image and not (use_mean and use_std):
        raise UserError(f"{source}: nobody wrote down what these weights subtract from the image: say --mean R G B (0 to 255)")
    metadata = describe_source(file, name, result)
    if use_mean and use_std:
        metadata |= {"mean": " ".join(map(repr, use_mean)), "std": " ".join(map(repr, use_std)), "channels": "RGB, 0 to 255"}
    write_safetensors(state, path, metadata)
    result.print()
    print(result)
    if use_mean and use_std:
        print(f"input: RGB from 0 to 255, minus {use_mean}, over {use_std}")
    print(f"written: {path} ({path.stat().st_size / 1e6:,.1f} MB)")
    return result


def check_arguments(path: Path, overwrite: bool, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """Require a safetensors file that can be written and three finite numbers for mean and std."""
    if path.suffix != ".safetensors":
        raise UserError(f"--out {path}: the file is a safetensors file, so let its name end in .safetensors")
    if os.path.lexists(path) and not overwrite:
        raise UserError(f"--out {path} exists: name another file, or replace it with --overwrite")
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: there is no folder {path.parent}; make it first")
    for option, values, minimum in (("mean", mean or (), -math.inf), ("std", std or (), 0.0)):
        if not all(math.isfinite(value) and value > minimum for value in values):
            text = " ".join(map(str, values))
            raise UserError(f"--{option} {text}: three finite numbers are needed, the deviations above 0")


def describe_source(file: Weights, name: str, result: LoadResult) -> dict[str, str]:
    """Return the metadata of a ported file: the network, the file and what the file lacks."""
    return {
        "net": name,
        "source": f"{file.path.name} sha256:{digest(file.path)}",
        "missing": " ".join(name for name, _ in result.missing),
    }


def write_safetensors(state: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically; tensors that share memory are written one by one.

    Raises:
        UserError: It cannot be written.
    """
    try:
        with atomic_path(path) as partial:
            save_file(dict(clone_shared_tensors(state)), partial, metadata)
    except Exception as error:
        raise UserError(f"--out {path}: cannot write it: {format_error(error)}") from error


def clone_shared_tensors(state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors, each with memory of its own."""
    seen = set()
    for key, tensor in state.items():
        storage = tensor.untyped_storage().data_ptr()
        yield key, tensor.clone() if storage in seen else tensor
        seen.add(storage)
