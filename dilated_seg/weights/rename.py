"""Names of layers in published files, as the names of our networks' layers."""

import re
from collections.abc import Collection

import torch
from torch import Tensor, nn

from dilated_seg.errors import UserError, format_names
from dilated_seg.models import timm_encoder, vgg
from dilated_seg.weights.readers import WRAPPERS, Weights

# Caffe numbers a layer's blobs; batch norm has scale and shift, then its statistics unless they are folded in.
BLOBS = {"0": "weight", "1": "bias", "2": "running_mean", "3": "running_var"}

# By the number of convolutions (VGG-16, AlexNet): our names in the order of torchvision's, and its indices of fc6 and fc7.
VGG_NAMES = [f"conv{stage}_{i}" for stage, (_, layers) in enumerate(vgg.VGG16, start=1) for i in range(1, layers + 1)]
TORCHVISION = {13: (VGG_NAMES, (0, 3)), 5: ([f"conv{i}" for i in range(1, 6)], (1, 4))}


def strip_wrappers(file: Weights, ours: Collection[str]) -> None:
    """Remove the prefixes in WRAPPERS from the names of the file's layers, unless ours have them too.

    Raises:
        UserError: The file has several such prefixes, or two layers would get one name.
    """
    roots = {path.partition(".")[0] for path in ours}
    while prefixes := [
        f"{name}." for name in WRAPPERS if name not in roots and any(layer.startswith(f"{name}.") for layer in file.layers)
    ]:
        if len(prefixes) > 1:
            raise UserError(f"{file.path} has layers below {' and '.join(prefixes)}: save the state_dict of one network alone")
        names = [name.removeprefix(prefixes[0]) for name in file.layers]
        if repeated := [name for name in names if names.count(name) > 1]:
            both = f"{repeated[0]} and {prefixes[0]}{repeated[0]}"
            raise UserError(f"{file.path} has {both}: save the state_dict of one network alone")
        file.layers, file.stripped = dict(zip(names, file.layers.values(), strict=True)), file.stripped + prefixes[0]


def rename_timm(file: Weights, net: nn.Module) -> None:
    """Give the layers of a file of timm's network the paths that they have in an encoder of timm; other files stay.

    An encoder lacks the classifier, and may join the first two parts of a name by an underscore.

    Raises:
        UserError: The file lacks a layer of the encoder, or has further ones of its stages.
    """
    for path, part in net.named_modules():
        if not isinstance(part, timm_encoder.Encoder) or any("encoder.net." in name for name in file.layers):
            continue
        ours = {key.rpartition(".")[0] for key in part.net.state_dict()}
        joined = {name: name.replace(".", "_", 1) for name in file.layers}
        names = {name: joined[name] if joined[name] in ours else name for name in file.layers}
        stages = {name for name, _ in part.net.named_children()}
        unknown = [name for name in names if names[name] not in ours]
        further = [name for name in unknown if {name.partition(".")[0], joined[name].partition(".")[0]} & stages]
        if missing := sorted(ours - set(names.values())) or further:
            problem = "has" if missing is further else "lacks"
            raise UserError(
                f"{file.path} {problem} {format_names(missing)}: it is of another network than encoder={part.name!r}"
            )
        file.layers = {f"{path}.net.{names[name]}": tensors for name, tensors in file.layers.items()}


def rename_torchvision(layers: dict[str, dict[str, Tensor]]) -> dict[str, str]:
    """Return the authors' name of each layer of VGG-16 or AlexNet, which torchvision numbers; other names stay.

    Layers of only NaN keep their number: torchvision's file of VGG's original convolutions has such a classifier.
    """
    numbered = sorted((int(m[1]), name) for name in layers if (m := re.fullmatch(r"features\.(\d+)", name)))
    convolutions = [name for _, name in numbered if layers[name].get("weight", torch.empty(0)).dim() == 4]
    authors, fc = TORCHVISION.get(len(convolutions), ([], ()))
    names = dict(zip(convolutions, authors, strict=False))
    names |= {f"features.{int(name[9:]) + 1}": f"{ours}_bn" for name, ours in names.items()}  # where there is batch norm
    names |= {f"classifier.{number}": ours for number, ours in zip(fc, ("fc6", "fc7"), strict=False)}
    broken = {name for name, part in layers.items() if any(t.is_floating_point() and t.isnan().all() for t in part.values())}
    return {name: name if name in broken else names.get(name, name) for name in layers}


def find_layer(name: str, ours: Collection[str], published_names: Collection[tuple[str, str]]) -> str | None:
    """Return the path of our layer of this name: the name itself, or else the shallowest path that ends with it.

    ``published_names`` are pairs of a regular expression and our name, which networks state (`dilated_seg.models.release`).
    """
    names = [name] + [re.sub(pattern, our_name, name) for pattern, our_name in published_names if re.search(pattern, name)]
    for candidate in names:
        if candidate in ours:
            return candidate
        if paths := sorted((path for path in ours if path.endswith(f".{candidate}")), key=lambda path: path.count(".")):
            return paths[0]
    return None


def name_tensors(file: Weights, layer: str) -> dict[str, tuple[str, Tensor]]:
    """Return a layer's tensors by kind, each with its full name in the file."""
    separator = "." if file.kind in ("torch", "safetensors") else "/"
    return {kind: (f"{layer}{separator}{kind}", tensor) for kind, tensor in file.layers[layer].items()}


def rename_kinds(file: Weights, layer: str, part: nn.Module) -> dict[str, tuple[str, Tensor]]:
    """Return a layer's tensors by their kinds in torch (weight, bias, ...), each with its full name in the file.

    A batch norm whose statistics are folded into scale and shift gets mean 0 and variance 1, with an empty name.

    Raises:
        UserError: Two tensors have one name.
    """
    named = name_tensors(file, layer)
    renamed = {BLOBS.get(kind, kind): tensor for kind, tensor in named.items()}
    if len(renamed) < len(named):
        names = " and ".join(name for name, _ in named.values())
        raise UserError(f"{file.path} has two tensors for one part of a layer, {names}: remove one of them")
    if isinstance(part, nn.BatchNorm2d) and part.track_running_stats and "running_mean" not in renamed:
        channels = renamed["weight"][1].numel() if "weight" in renamed else 0
        renamed |= {"running_mean": ("", torch.zeros(channels)), "running_var": ("", torch.ones(channels))}
    return renamed
