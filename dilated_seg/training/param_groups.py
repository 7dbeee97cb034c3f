"""Parameter groups of the optimizer, with the learning rates of the papers' Caffe solvers."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from dilated_seg.errors import UserError

# The Caffe solvers of all these papers: a bias learns twice as fast as a weight, and does not decay.
BIAS_RATE = 2.0


def build_optimizer(
    build: Callable[[list[dict[str, Any]]], Optimizer], model: nn.Module, factors: Mapping[str, float], fixed: Collection[str]
) -> Optimizer:
    """Build an optimizer of a model's parameters: biases have twice the learning rate and no weight decay.

    Args:
        build: Builds the optimizer from parameter groups.
        model: Its parameters that a callback has frozen for now are among them.
        factors: Multiplies the learning rate of the parameters whose names start with the key.
        fixed: The names of the parameters that the network itself never learns.

    Raises:
        UserError: No parameter's name starts with a key of ``factors``.
    """
    names = [name for name, _ in model.named_parameters()]
    if unused := [prefix for prefix in factors if not any(name.startswith(prefix) for name in names)]:
        raise UserError(f"model.lr_factors names {unused[0]}, but no parameter of the network starts so")
    by_factor: dict[float, tuple[list[Tensor], list[Tensor]]] = {}
    for name, parameter in model.named_parameters():
        if name not in fixed:
            factor = next((value for prefix, value in factors.items() if name.startswith(prefix)), 1.0)
            by_factor.setdefault(factor, ([], []))[name.endswith("bias")].append(parameter)
    groups: list[dict[str, Any]] = []
    rates: list[float] = []
    for factor, (weights, biases) in by_factor.items():
        groups += [{"params": weights}, {"params": biases, "weight_decay": 0.0}]
        rates += [factor, factor * BIAS_RATE]
    optimizer = build(groups)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] *= rate
    return optimizer
