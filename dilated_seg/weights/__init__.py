"""Published weights in our networks: reading files, putting their tensors where they belong, writing safetensors.

What was subtracted from the image goes along with the weights, and the task subtracts it.
"""

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from dilated_seg.errors import UserError, format_error
from dilated_seg.storage import digest
from dilated_seg.weights.download import local
from dilated_seg.weights.mapping import Report, fit
from dilated_seg.weights.published import ONE, RGB, imagenet, normalisation
from dilated_seg.weights.readers import read
from dilated_seg.weights.report import show, summary

__all__ = ["Report", "fit", "imagenet", "load", "local", "port", "read", "summary"]


def load(net: nn.Module, source: str | Path, without: Sequence[str] = ()) -> tuple[Report, RGB | None, RGB | None]:
    """Put the weights of a file or address, or with "imagenet" torchvision's, into a network, as far as they are in it.

    Returns:
        What was taken, and what the image is to be lessened by and divided by (RGB, 0 to 255), None where unknown.

    Raises:
        UserError: The file cannot be had or read, nothing in it fits, or a tensor has another shape than ours of its name.
    """
    published = str(source) == "imagenet"
    file = read(imagenet(net) if published else source)
    file.published = published
    state, report = fit(file, net, without=without)
    net.load_state_dict(state, strict=False)
    report.classes = file.classes
    return report, *normalisation(file)


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
) -> Report:
    """Write the weights of a file as a safetensors file for one of our networks, and print what became of every tensor.

    Args:
        source: The file, or its address.
        net: The network, which may be on the meta device.
        name: What the network is called in the file that is written.
        out: The safetensors file.
        channels: "bgr" or "rgb", which the first convolution of the file's network takes; if None, known by the file's names.
        mean: Subtracted from the image (RGB, 0 to 255); if None, known by what is in the file.
        std: What the image is then divided by.
        overwrite: Whether to replace an existing file.
        without: Layers or parts of the network that are not to be loaded.

    Raises:
        UserError: As `load`; or ``out`` exists, cannot be written, or nobody knows what the weights expect of the image.
    """
    path = Path(out)
    if path.suffix != ".safetensors":
        raise UserError(f"--out {out}: the file is a safetensors file, so let its name end in .safetensors")
    if os.path.lexists(path) and not overwrite:
        raise UserError(f"--out {out} exists: name another file, or replace it with --overwrite")
    if not path.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {path.parent}; make it first")
    for option, numbers, least in (("mean", mean or (), -math.inf), ("std", std or (), 0.0)):
        if not all(math.isfinite(n) and n > least for n in numbers):
            raise UserError(
                f"--{option} {' '.join(map(str, numbers))}: three finite numbers are needed, the deviations above 0"
            )
    file = read(source)
    state, report = fit(file, net, channels, without)
    known_mean, known_std = normalisation(file)
    use_mean, use_std = tuple(mean) if mean else known_mean, tuple(std) if std else known_std or (ONE if mean else None)
    facts = {
        "net": name,
        "source": f"{file.path.name} sha256:{digest(file.path)}",
        "missing": " ".join(name for name, _ in report.missing),
    }
    if use_mean and use_std:
        facts |= {"mean": " ".join(map(repr, use_mean)), "std": " ".join(map(repr, use_std)), "channels": "RGB, 0 to 255"}
    elif report.on_the_image:
        raise UserError(f"{source}: nobody wrote down what these weights subtract from the image: say --mean R G B (0 to 255)")
    write(state, path, facts)
    show(report)
    print(summary(report))
    if use_mean and use_std:
        print(f"input: RGB from 0 to 255, minus {use_mean}, over {use_std}")
    print(f"written: {path} ({path.stat().st_size / 1e6:,.1f} MB)")
    return report


def write(state: dict[str, Tensor], path: Path, facts: dict[str, str]) -> None:
    """A safetensors file that appears whole or not at all; tensors that share memory are written one by one."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        save_file(dict(apart(state)), partial, facts)
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if not isinstance(error, Exception):
            raise
        raise UserError(f"--out {path}: cannot write it: {format_error(error)}") from error


def apart(state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors, each with memory of its own."""
    seen = set()
    for key, tensor in state.items():
        storage = tensor.untyped_storage().data_ptr()
        yield key, tensor.clone() if storage in seen else tensor
        seen.add(storage)
