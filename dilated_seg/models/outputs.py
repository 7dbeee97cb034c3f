"""Logits in the forms that networks of other packages return them: torchvision's dictionaries, transformers' objects."""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from dilated_seg.errors import UserError
from dilated_seg.models.layers import promote
from dilated_seg.tensors import Logits, Maps


def split_outputs(outputs: Any) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: ANN401 - of any network
    """Return the logits that a network returned, which `check_logits` checks, and those of its auxiliary heads by name.

    Args:
        outputs: The logits; an object with ``logits``, as of transformers; or a mapping with ``out``, as of torchvision, whose
            other tensors are those of auxiliary heads.

    Raises:
        UserError: The outputs have none of these forms.
    """
    if isinstance(outputs, Tensor):
        return outputs, {}
    if isinstance(logits := getattr(outputs, "logits", None), Tensor):
        return logits, {}
    if isinstance(outputs, Mapping) and isinstance(outputs.get("out"), Tensor):
        return outputs["out"], {name: maps for name, maps in outputs.items() if name != "out" and isinstance(maps, Tensor)}
    raise UserError(
        f"model.net returned {type(outputs).__name__}, and not logits (B, C, H, W), an object with .logits or a dictionary "
        "with 'out': wrap it in a module that returns its logits"
    )


def check_logits(logits: Tensor, num_classes: int, network: str) -> None:
    """Require logits (B, C, h, w) of C classes.

    Raises:
        UserError: A network returned logits of another number of classes or axes.
    """
    if logits.ndim != 4 or logits.shape[1] != num_classes:
        got = f"{logits.shape[1]} classes" if logits.ndim == 4 else f"a tensor of {logits.ndim} axes"
        raise UserError(
            f"model.net: {network} returns {got}, and the data have {num_classes}: give it the argument for the number of "
            "classes (the data set it where it is called num_classes, classes or num_labels)"
        )


def resizes(net: nn.Module, logits: Maps, image: Tensor) -> bool:
    """Return whether a network's logits are to be resized to the image: those of other packages, if they have another size.

    Networks of this package return the image's size, or leave out its border on purpose (U-Net without padding).
    """
    return not type(net).__module__.startswith("dilated_seg.models.") and logits.shape[-2:] != image.shape[-2:]


def resize_to_image(logits: Maps, image: Tensor) -> Logits:
    """Return logits in float32, resized bilinearly to the image's height and width."""
    return F.interpolate(promote(logits), image.shape[-2:], mode="bilinear", align_corners=False)
