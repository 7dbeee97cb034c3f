"""Puts saved tensors into a network of which all names and shapes must be equal."""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from dilated_seg.errors import UserError
from dilated_seg.models import build
from dilated_seg.weights.mapping import shape, some


def rebuilt(
    name: str, arguments: dict[str, Any], weights: Mapping[str, Tensor], source: str, device: Literal["meta", "cpu"] = "meta"
) -> nn.Module:
    """A network with these weights; on the device "meta" nothing is reserved before all sizes are known to fit."""
    net = build.construct(name, (), arguments, f"{source}: {name}", device)
    fill(net, weights, source)
    return net


def fill(net: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Give a network its weights."""
    ours = net.state_dict()
    refuse_misfit(weights, ours, source)
    net.load_state_dict({name: tensor.to(ours[name].dtype) for name, tensor in weights.items()}, assign=True)


def refuse_misfit(saved: Mapping[str, Tensor], ours: Mapping[str, Tensor], source: str) -> None:
    """Refuse the weights of another network, by the first that do not fit."""
    wrong = [name for name in ours if name in saved and saved[name].shape != ours[name].shape]
    problems = {
        "it has no": [name for name in ours if name not in saved],
        "the network has no": [name for name in saved if name not in ours],
        "of another size is": [f"{name} ({shape(saved[name])}, here {shape(ours[name])})" for name in wrong],
    }
    if found := [f"{what} {some(names)}" for what, names in problems.items() if names]:
        raise UserError(f"{source} does not fit the network: {'; '.join(found)}")
