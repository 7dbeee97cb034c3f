"""A trained network with all it takes to use it, from wherever it lies: a run, a checkpoint, a folder to hand on, the Hub."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dilated_seg.crf import DenseCRF
from dilated_seg.errors import UserError
from dilated_seg.models.layers import promote
from dilated_seg.tensors import Image, Logits

CHANNELS = torch.Size((3, 1, 1))
MAX_CLASSES = 255  # of an 8-bit mask beside its ignored value


def normalize(image: Tensor, mean: Tensor, std: Tensor) -> Image:
    """Return what a network takes, from plain RGB (B, 3, H, W), 0 to 255, of any number type."""
    return (image.float() - mean) / std


class Segmenter(nn.Module):
    """A trained network with normalisation, class names and colours: plain RGB in, logits out.

    Args:
        net: Takes normalised RGB (B, 3, H, W), gives logits (B, C, H, W).
        classes: The names of the C classes.
        mean: Of each channel (RGB, 0 to 255), subtracted from the image.
        std: The image is then divided by it.
        palette: A colour (RGB) for each class; VOC's if None.
        ignore_index: The value of a mask where nothing is labelled.
        submitted: A test server's value for each class, if it is not the class id.
        dataset: What it was trained on.
        built: The network's class and arguments, from which it can be built again; None if nobody knows.
        crf: Part of it, if it was trained with one (CRF-RNN).
        facts: Where it comes from: ``checkpoint``, a file's name, its ``sha256``, its ``step``, and the ``evaluations`` that
            its run has of these weights, with protocol, classes and confusion matrix.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        classes: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        *,
        palette: Sequence[Sequence[int]] | None = None,
        ignore_index: int = 255,
        submitted: Sequence[int] | None = None,
        dataset: str | None = None,
        built: tuple[str, dict[str, Any]] | None = None,
        crf: DenseCRF | None = None,
        facts: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.net = net.to(memory_format=torch.channels_last)  # up to 4 times as fast for narrow networks on a CPU
        self.crf = crf  # after the network, as optimizers number the parameters
        self.classes = list(classes)
        self.palette = [(r, g, b) for r, g, b in palette or default_palette(len(classes))]
        self.ignore_index, self.dataset = ignore_index, dataset
        self.submitted = list(submitted) if submitted else None
        self.built, self.facts = built, facts or {}
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(CHANNELS))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(CHANNELS))
        for name, values in (("colours", self.palette), ("submitted values", self.submitted)):
            if values and len(values) != len(self.classes):
                raise UserError(f"there are {len(self.classes)} classes, but {len(values)} {name}")
        if len(self.classes) > MAX_CLASSES:
            raise UserError(f"class ids are written as bytes, of which 255 says void: {len(self.classes)} classes are too many")
        if not all(0 <= number <= 255 for number in (*(c for colour in self.palette for c in colour), *(self.submitted or ()))):
            raise UserError("colours and submitted values are numbers from 0 to 255")
        if not (self.mean.isfinite().all() and self.std.isfinite().all() and (self.std > 0).all()):
            raise UserError("mean and deviation of the image must be finite, the deviation above 0")

    def forward(self, image: Tensor) -> Logits:
        """Return logits (B, C, H, W) of plain RGB (B, 3, H, W), 0 to 255, of any number type."""
        return self.apply_crf(promote(self.net(self.normalize(image))), image)

    def normalize(self, image: Tensor) -> Image:
        """Return what the network takes, from plain RGB (B, 3, H, W), 0 to 255."""
        return normalize(image, self.mean, self.std).contiguous(memory_format=torch.channels_last)

    def apply_crf(self, logits: Logits, image: Tensor) -> Logits:
        """Return the logarithm of the probabilities that the network's own CRF gives; without a CRF, the logits."""
        if self.crf is None:
            return logits
        return self.crf(logits.softmax(1), image).clamp_min(torch.finfo(logits.dtype).tiny).log()


def default_palette(num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """Return VOC's colors: the bits of a class id, three at a time, become the highest bits of red, green and blue."""
    return tuple(
        tuple(sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8)) for channel in range(3))  # type: ignore[misc]
        for index in range(num_classes)
    )
