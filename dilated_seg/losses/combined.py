"""Losses that contain others: a weighted sum, and a loss of another library."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from dilated_seg.errors import UserError
from dilated_seg.losses.base import Loss
from dilated_seg.losses.pixel import CrossEntropy, PixelLoss
from dilated_seg.tensors import Logits, Mask

AUXILIARY = 0.4  # weight of an auxiliary head: Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017, section 4


class LibraryLoss(Loss):
    """A loss of another library: the mean over the images of one process, weighted by the number of their valid pixels.

    With torch's ``nn.CrossEntropyLoss`` that is exactly the mean over the valid pixels of all processes.

    Args:
        loss: Maps logits (B, C, H, W) and class ids (B, H, W), int64, to one value. It leaves out pixels whose class id is its
            attribute ``ignore_index``.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def total(self, logits: Logits, mask: Mask) -> Tensor:
        """Return the value times the number of valid pixels.

        Raises:
            UserError: The loss cannot leave out pixels that the mask ignores, or has more than one value.
        """
        count, name = int(self.find_valid(mask).sum()), type(self.loss).__name__
        if count < mask.numel() and not any(hasattr(part, "ignore_index") for part in self.loss.modules()):
            raise UserError(
                f"model.loss: masks have unlabelled pixels ({self.ignore_index}), which {name} cannot leave out: choose a loss "
                "with an attribute ignore_index"
            )
        if not count:
            return logits.sum() * 0.0
        value: Tensor = self.loss(logits, mask.long())
        if value.ndim:
            raise UserError(
                f"model.loss: {name} returned a tensor of {tuple(value.shape)}, and not one value: set its reduction to mean"
            )
        return value * count


class WeightedSum(Loss):
    """A sum of losses with weights, such as cross-entropy + 0.5 Dice.

    Args:
        losses: Losses of this package or of other libraries.
        weights: A factor for each loss; 1 if None.
        ignore_index: The mask value that is left out.
    """

    def __init__(self, losses: list[nn.Module], weights: list[float] | None = None, ignore_index: int = 255) -> None:
        super().__init__(ignore_index)
        self.losses = nn.ModuleList(loss if isinstance(loss, Loss) else LibraryLoss(loss) for loss in losses)
        self.weights = weights if weights is not None else [1.0] * len(losses)
        if not losses or len(losses) != len(self.weights):
            raise ValueError(f"{len(losses)} losses have {len(self.weights)} weights: give each loss a weight")
        if not all(math.isfinite(weight) for weight in self.weights):
            raise ValueError(f"weights={self.weights} are not finite numbers")

    def total(self, logits: Logits, mask: Mask) -> Tensor:
        total = logits.new_zeros(())
        for weight, loss in zip(self.weights, self.losses, strict=True):
            total = total + weight * loss.total(logits, mask)  # type: ignore[operator] # a ModuleList of Loss
        return total


def prepare_loss(
    loss: nn.Module | None, ignore_index: int, num_classes: int, class_weights: Sequence[float] | None = None
) -> Loss:
    """Return the loss of a task, cross-entropy if None, with the ignore index of its data.

    Args:
        loss: A loss of this package or of another library; every ``ignore_index`` in it is set to that of the data.
        ignore_index: The mask value that is left out.
        num_classes: C.
        class_weights: Factors of the classes, set in every loss per pixel that has no class weights.

    Raises:
        UserError: No loss per pixel is without class weights, or a loss has them for another number of classes.
    """
    prepared = loss if isinstance(loss, Loss) else LibraryLoss(loss) if loss else CrossEntropy()
    for part in prepared.modules():
        if hasattr(part, "ignore_index"):
            setattr(part, "ignore_index", ignore_index)  # noqa: B010 - mypy takes attributes of modules for tensors
    parts = [part for part in prepared.modules() if isinstance(part, PixelLoss)]
    for part in parts:
        if part.class_weights is not None and len(part.class_weights) != num_classes:
            raise UserError(
                f"model.loss: class_weights has {len(part.class_weights)} values, but there are {num_classes} classes"
            )
    if class_weights is None:
        return prepared
    without = [part for part in parts if part.class_weights is None]
    if not without:
        raise UserError(
            f"model.class_weights: no part of {type(loss).__name__} takes them: they are for losses per pixel, such as "
            "CrossEntropy, that have no class_weights of their own"
        )
    for part in without:
        part.set_class_weights(class_weights)
    return prepared


def weigh_heads(heads: Mapping[str, Logits], weights: Mapping[str, float] | None) -> list[tuple[float, Logits]]:
    """Return the logits of auxiliary heads with the weights of their losses.

    Raises:
        UserError: ``weights`` has other names than the network's heads.
    """
    if weights is not None and set(weights) != set(heads):
        names = ", ".join(heads) or "none"
        raise UserError(
            f"model.auxiliary_weights has {', '.join(weights) or 'no name'}: the network's auxiliary heads are {names}"
        )
    return [(AUXILIARY if weights is None else weights[name], logits) for name, logits in heads.items()]
