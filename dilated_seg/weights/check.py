"""Whether a network got weights that belong together, and saved weights of which every tensor must fit."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

from torch import Tensor, nn

from dilated_seg.errors import UserError, format_names
from dilated_seg.models import build
from dilated_seg.weights.convert import format_shape
from dilated_seg.weights.readers import Weights


def check_parts(file: Weights, net: nn.Module, state: Mapping[str, Tensor], unmatched: Collection[str]) -> None:
    """Require that layers and the network's indivisible parts are loaded as a whole or not at all.

    Args:
        file: The file.
        net: The network.
        state: Its tensors that are loaded.
        unmatched: The layers of the file for which the network has none.

    Raises:
        UserError: A layer or a part is loaded only partly, or the file has further layers of the part.
    """
    check_layers(file, net, state)
    for name, part in net.named_modules():
        if foreign := getattr(part, "indivisible", ""):
            check_indivisible(file, name, part, foreign, state, unmatched)
        if hasattr(part, "check_weights"):
            loaded = [last_name(key.rpartition(".")[0]) for key in state]
            if problem := part.check_weights(list(map(last_name, file.layers)), loaded):
                raise UserError(f"{file.path} {problem}")


def check_layers(file: Weights, net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Require that each layer is loaded as a whole or not at all."""
    for path, kinds in group_by_layer(net.state_dict()).items():
        loaded = [kind for kind in kinds if f"{path}.{kind}" in state]
        missing = [kind for kind in kinds if f"{path}.{kind}" not in state and kind != "num_batches_tracked"]
        if loaded and missing:
            raise UserError(
                f"{file.path} has half of layer {path}: {format_names(loaded)} there, {format_names(missing)} missing"
            )


def check_indivisible(
    file: Weights, name: str, part: nn.Module, foreign: str, state: Mapping[str, Tensor], unmatched: Collection[str]
) -> None:
    """Require that a part's convolutions, but for those that score classes, are loaded as a whole or not at all.

    Args:
        file: The file.
        name: The part's path in the network; empty for the network.
        part: The part.
        foreign: A regular expression of the names of layers that would belong to it.
        state: The network's tensors that are loaded.
        unmatched: The layers of the file for which the network has none.
    """
    convolutions = [
        f"{name}.{path}".strip(".")
        for path, layer in part.named_modules()
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and not re.search("score|classifier", last_name(path))
    ]
    loaded = [path for path in convolutions if f"{path}.weight" in state]
    if not loaded:
        return
    if missing := [path for path in convolutions if path not in loaded]:
        raise UserError(
            f"{file.path} has {loaded[0]} and no {format_names(missing)}: it is of another network, or only part of one"
        )
    if further := [
        layer
        for layer in unmatched
        if re.fullmatch(foreign, layer) or re.fullmatch(foreign, last_name(layer)) or (name and layer.startswith(f"{name}."))
    ]:
        raise UserError(
            f"{file.path} has {format_names(further)} beside {loaded[0]}, for which this network has no place: it is another's"
        )


def rebuild(
    name: str, arguments: dict[str, Any], weights: Mapping[str, Tensor], source: str, device: Literal["meta", "cpu"] = "meta"
) -> nn.Module:
    """Return a network with these weights; on "meta", memory is reserved only after all shapes are known to fit."""
    net = build.construct(name, (), arguments, f"{source}: {name}", device)
    assign_weights(net, weights, source)
    return net


def assign_weights(net: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Give a network these tensors.

    Raises:
        UserError: They are not exactly the network's.
    """
    ours = net.state_dict()
    check_shapes(weights, ours, source)
    net.load_state_dict({name: tensor.to(ours[name].dtype) for name, tensor in weights.items()}, assign=True)


def check_shapes(saved: Mapping[str, Tensor], ours: Mapping[str, Tensor], source: str) -> None:
    """Require that saved tensors have the names and shapes of ours.

    Raises:
        UserError: They do not; the message names the first three of each problem.
    """
    wrong = [name for name in ours if name in saved and saved[name].shape != ours[name].shape]
    problems = {
        "it has no": [name for name in ours if name not in saved],
        "the network has no": [name for name in saved if name not in ours],
        "of another size is": [f"{name} ({format_shape(saved[name])}, here {format_shape(ours[name])})" for name in wrong],
    }
    if clauses := [f"{what} {format_names(names)}" for what, names in problems.items() if names]:
        raise UserError(f"{source} does not fit the network: {'; '.join(clauses)}")


def group_by_layer(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of a state dict by layer and kind."""
    layers: dict[str, dict[str, Tensor]] = {}
    for path, kind, tensor in split_keys(state):
        layers.setdefault(path, {})[kind] = tensor
    return layers


def split_keys(state: Mapping[str, Tensor]) -> Iterator[tuple[str, str, Tensor]]:
    """Yield the path of the layer, the kind and the tensor of each entry of a state dict."""
    for key, tensor in state.items():
        path, _, kind = key.rpartition(".")
        yield path, kind, tensor


def last_name(path: str) -> str:
    """Return a layer's name without the modules that contain it."""
    return path.rpartition(".")[2]
