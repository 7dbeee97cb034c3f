"""The optimizer of a task: parameter groups with the learning rates of the papers' Caffe solvers, and its schedule."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from dilated_seg.errors import UserError
from dilated_seg.training.schedules import schedule


def configure(task: Any) -> dict[str, Any]:  # noqa: ANN401 - a SegmentationTask, a layer above
    """Return Lightning's configuration of a task's optimizer and scheduler, of the parameters of its model and loss.

    Raises:
        UserError: See `build_optimizer` and `schedule`.
    """
    parameters = [*task.model.named_parameters(), *task.loss.named_parameters("loss")]
    optimizer = build_optimizer(task.optimizer, parameters, task.lr_factors, task.fixed, *task.bias_factors)
    if task.lr_scheduler is None:
        return {"optimizer": optimizer}
    return {"optimizer": optimizer, "lr_scheduler": schedule(task.lr_scheduler(optimizer), task.metric_names("val"))}


def build_optimizer(
    build: Callable[[list[dict[str, Any]]], Optimizer],
    parameters: Sequence[tuple[str, Tensor]],
    factors: Mapping[str, float],
    fixed: Collection[str],
    bias_lr: float = 2.0,
    bias_decay: float = 0.0,
) -> Optimizer:
    """Build an optimizer of parameters; biases have another learning rate and weight decay.

    Args:
        build: Builds the optimizer from parameter groups.
        parameters: Parameters by name, including those that a callback has frozen.
        factors: Factor of the learning rate of parameters whose names start with the key.
        fixed: Names of parameters that are never trained, which are left out.
        bias_lr: Factor of the learning rate of biases.
        bias_decay: Factor of the weight decay of biases.

    Raises:
        UserError: No parameter's name starts with a key of ``factors``.
    """
    names = [name for name, _ in parameters]
    if unused := [prefix for prefix in factors if not any(name.startswith(prefix) for name in names)]:
        raise UserError(f"model.lr_factors: {unused[0]} is not the beginning of any parameter's name, such as {names[0]}")
    by_factor: dict[float, tuple[list[Tensor], list[Tensor]]] = {}
    for name, parameter in parameters:
        if name not in fixed:
            factor = next((value for prefix, value in factors.items() if name.startswith(prefix)), 1.0)
            by_factor.setdefault(factor, ([], []))[name.endswith("bias")].append(parameter)
    groups: list[dict[str, Any]] = []
    rates: list[tuple[float, float]] = []
    for factor, (weights, biases) in by_factor.items():
        groups += [{"params": weights}, {"params": biases}]
        rates += [(factor, 1.0), (factor * bias_lr, bias_decay)]
    optimizer = build(groups)
    for group, (rate, decay) in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] *= rate
        if "weight_decay" in group:
            group["weight_decay"] *= decay
    return optimizer
