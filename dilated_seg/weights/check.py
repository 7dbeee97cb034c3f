"""Check that a network gets weights that belong together, and that saved weights fit a network exactly."""

import re
from collections.abc import Collection, Mapping
from typing import Any, Literal

from torch import Tensor, nn

from dilated_seg.errors import UserError, format_names
from dilated_seg.models import build
from dilated_seg.weights.convert import format_shape
from dilated_seg.weights.readers import Weights

# Arguments of other packages that name initial weights of a part.
PRETRAINED = {"encoder_weights", "weights_backbone", "pretrained", "pretrained_backbone"}


def check_parts(
    file: Weights, net: nn.Module, state: Mapping[str, Tensor], unmatched: Collection[str], left_out: Collection[str] = ()
) -> None:
    """Check that layers and indivisible parts of the network are loaded completely or keep all their initial values.

    ``state`` has the loaded tensors, ``unmatched`` the layers of the file that match none of the network's, ``left_out`` the
    convolutions that may keep their initial values, since they read images of other channels than published networks.

    Raises:
        UserError: A layer or a part is loaded only partly, or the file has further layers of the part.
    """
    for path, kinds in group_by_layer(net.state_dict()).items():
        loaded = [kind for kind in kinds if f"{path}.{kind}" in state]
        missing = [kind for kind in kinds if f"{path}.{kind}" not in state and kind != "num_batches_tracked"]
        if loaded and missing:
            raise UserError(
                f"{file.path} has only a part of layer {path}: {format_names(loaded)} but no {format_names(missing)}: "
                "save all tensors of the layer"
            )
    for name, part in net.named_modules():
        if getattr(part, "indivisible", ""):
            check_indivisible(file, name, part, state, unmatched, left_out)
        if hasattr(part, "check_weights"):
            layers = [get_last_name(key.rpartition(".")[0]) for key in state]
            if problem := part.check_weights(list(map(get_last_name, file.layers)), layers):
                raise UserError(f"{file.path} {problem}")


def check_indivisible(
    file: Weights,
    name: str,
    part: nn.Module,
    state: Mapping[str, Tensor],
    unmatched: Collection[str],
    left_out: Collection[str] = (),
) -> None:
    """Raise UserError if only some convolutions of a part are loaded, but for those that score classes.

    ``part.indivisible`` is a regular expression of the names of layers that would belong to it; see `check_parts`.
    """
    convolutions = [
        f"{name}.{path}".strip(".")
        for path, layer in part.named_modules()
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and not re.search("score|classifier", get_last_name(path))
    ]
    loaded = [path for path in convolutions if f"{path}.weight" in state]
    if not loaded:
        return
    if missing := [path for path in convolutions if path not in loaded and path not in left_out]:
        raise UserError(
            f"{file.path} has {loaded[0]} and no {format_names(missing)}: it is of another network, or only part of one"
        )
    pattern = str(part.indivisible)
    if further := [
        layer
        for layer in unmatched
        if any(re.fullmatch(pattern, text) for text in (layer, get_last_name(layer))) or (name and layer.startswith(f"{name}."))
    ]:
        raise UserError(
            f"{file.path} has {format_names(further)} besides {loaded[0]}, but this network has no such layer: the file is of "
            "another network"
        )


def rebuild(
    name: str, arguments: dict[str, Any], weights: Mapping[str, Tensor], source: str, device: Literal["meta", "cpu"] = "meta"
) -> nn.Module:
    """Return a network with these weights; on "meta", memory is reserved only after all shapes are known to fit."""
    if arguments.get("encoder"):  # of timm, some of which have tensors that no file has
        device = "cpu"
    if "." in name:  # of another package: its own initial weights would be downloaded, only to be replaced
        arguments = arguments | {key: None for key in PRETRAINED & set(arguments)}
    net = build.construct(name, (), arguments, f"{source}: {name}", device)
    assign_weights(net, weights, source)
    return net


def assign_weights(net: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Give a network these tensors; raise UserError unless they are exactly the network's."""
    ours = net.state_dict()
    check_shapes(weights, ours, source)
    net.load_state_dict({name: tensor.to(ours[name].dtype) for name, tensor in weights.items()}, assign=True)


def check_shapes(saved: Mapping[str, Tensor], ours: Mapping[str, Tensor], source: str) -> None:
    """Raise UserError unless saved tensors have the names and shapes of ours; it names the first three of each problem."""
    wrong = [name for name in ours if name in saved and saved[name].shape != ours[name].shape]
    problems = {
        "it has no": [name for name in ours if name not in saved],
        "the network has no": [name for name in saved if name not in ours],
        "of another size is": [f"{name} ({format_shape(saved[name])}, here {format_shape(ours[name])})" for name in wrong],
    }
    if clauses := [f"{problem} {format_names(names)}" for problem, names in problems.items() if names]:
        raise UserError(f"{source} does not fit the network: {'; '.join(clauses)}")


def group_by_layer(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of a state dict by the path of the layer and the kind of tensor."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        path, _, kind = key.rpartition(".")
        layers.setdefault(path, {})[kind] = tensor
    return layers


def get_last_name(path: str) -> str:
    """Return a layer's name without the modules that contain it."""
    return path.rpartition(".")[2]
