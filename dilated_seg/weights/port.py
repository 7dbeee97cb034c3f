"""Load the weights of a file into a network, or write them as a safetensors file for it."""

import math
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from dilated_seg.errors import UserError, format_error
from dilated_seg.models.release import RGB
from dilated_seg.storage import atomic_path, digest, require_writable
from dilated_seg.weights.match import LoadResult, map_tensors
from dilated_seg.weights.normalization import ONE, fetch_imagenet, find_normalization
from dilated_seg.weights.readers import read


def load(net: nn.Module, source: str | Path, without: Sequence[str] = ()) -> tuple[LoadResult, RGB | None, RGB | None]:
    """Load weights into a network.

    Args:
        net: The network; tensors that are not in the file keep their values.
        source: A file, its URL, or "imagenet" for torchvision's weights, or timm's of an encoder of timm.
        without: Layers or parts of the network that are not loaded, by name or path.

    Returns:
        What was loaded, and the mean and standard deviation of the normalization (RGB, 0 to 255), None where unknown.

    Raises:
        UserError: The file cannot be read, or does not fit the network; see `map_tensors`.
    """
    imagenet = str(source) == "imagenet"
    file = read(fetch_imagenet(net) if imagenet else source)
    file.published = imagenet
    state, result = map_tensors(file, net, without=without)
    net.load_state_dict(state, strict=False)
    result.classes = file.classes
    return result, *find_normalization(file, net)


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
        source: The file, or its URL.
        net: The network, which may be on the meta device.
        name: The network's name in the metadata of the written file.
        out: The safetensors file.
        channels: Channel order of the file's first convolution, "bgr" or "rgb"; None to infer it from the names.
        mean: Mean of the normalization (RGB, 0 to 255); None to infer it from the file's layers.
        std: Standard deviation of the normalization (RGB, 0 to 255); None to infer it.
        overwrite: Whether to replace an existing file.
        without: Layers or parts of the network that are not loaded.

    Raises:
        UserError: As `load`; or ``out`` exists or cannot be written, or the mean is unknown.
    """
    path = Path(out)
    require_writable(path, ".safetensors", overwrite)
    for option, values, minimum in (("mean", mean or (), -math.inf), ("std", std or (), 0.0)):
        if not all(math.isfinite(value) and value > minimum for value in values):
            raise UserError(f"--{option} {' '.join(map(str, values))}: give three finite numbers, those of --std above 0")
    file = read(source)
    state, result = map_tensors(file, net, channels, without)
    known_mean, known_std = find_normalization(file, net)
    use_mean, use_std = tuple(mean) if mean else known_mean, tuple(std) if std else known_std or (ONE if mean else None)
    known = bool(use_mean and use_std)
    if result.reads_image and not known:
        raise UserError(f"{source}: the normalization of these weights is unknown: give the mean, --mean R G B (0 to 255)")
    metadata = {"net": name, "source": f"{file.path.name} sha256:{digest(file.path)}"}
    metadata["missing"] = " ".join(name for name, _ in result.missing)
    if use_mean and use_std:
        metadata |= {"mean": " ".join(map(repr, use_mean)), "std": " ".join(map(repr, use_std)), "channels": "RGB, 0 to 255"}
    try:
        with atomic_path(path) as partial:
            save_file({key: tensor.clone() for key, tensor in state.items()}, partial, metadata)  # some may share memory
    except Exception as error:  # safetensors has errors of its own
        raise UserError(f"--out {path}: cannot write it: {format_error(error)}") from error
    result.print()
    print(result)
    if known:
        print(f"input: RGB from 0 to 255, minus {use_mean}, over {use_std}")
    print(f"written: {path} ({path.stat().st_size / 1e6:,.1f} MB)")
    return result
