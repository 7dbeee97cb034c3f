"""A trained network with its normalization, CRF and class metadata: plain RGB in, logits out."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dilated_seg.crf import DenseCRF
from dilated_seg.errors import UserError
from dilated_seg.models.layers import promote
from dilated_seg.models.outputs import check_logits, resize_to_image, resizes, split_outputs
from dilated_seg.tensors import Logits, Maps

MAX_CLASSES = 255  # class ids are bytes, and 255 is ignore_index


def normalize(image: Tensor, mean: Tensor, std: Tensor) -> Maps:
    """Return the input of a network from plain RGB (B, 3, H, W), 0 to 255, of any dtype: (image - mean) / std in float32.

    Raises:
        UserError: The image has another number of channels than the mean.
    """
    if image.shape[1] != len(mean):
        raise UserError(
            f"images have {image.shape[1]} channels, but the network's normalization (model.mean, model.std) has {len(mean)}: "
            "use images as those it was trained on, or give a value for each channel"
        )
    return (image.float() - mean) / std


class Segmenter(nn.Module):
    """A trained network with its normalization, class names and colors: plain RGB in, logits out.

    Args:
        net: Maps normalized images (B, 3, H, W) to logits (B, C, H, W), in one of the forms of `models.outputs`; of networks
            of other packages, logits of another size are resized bilinearly to the image's.
        classes: The names of the C classes.
        mean: The mean of each channel (RGB, 0 to 255), for normalization. Its length is the images' number of channels.
        std: The standard deviation of each channel, for normalization.
        palette: A color (RGB, 0 to 255) for each class; VOC's if None.
        ignore_index: The mask value of unlabelled pixels.
        submitted: A test server's value for each class, if it is not the class id.
        dataset: Name of the dataset that it was trained on.
        built: The network's class and arguments, to build it again; None if unknown.
        crf: The CRF that the network was trained with (CRF-RNN), if any.
        facts: The origin of the weights: ``checkpoint``, the file's name, its ``sha256``, its ``step``, and the ``evaluations``
            of these weights in the run, with protocol, classes and confusion matrix.

    Raises:
        UserError: The lengths of classes, palette and submitted values differ, or a value is out of its range.
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
        self.crf = crf  # after the network: optimizers address parameters by their order
        self.classes = list(classes)
        self.palette = [(r, g, b) for r, g, b in palette or default_palette(len(classes))]
        self.ignore_index, self.dataset = ignore_index, dataset
        self.submitted = list(submitted) if submitted else None
        self.built, self.facts = built, facts or {}
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))
        for name, values in (("colors", self.palette), ("submitted values", self.submitted)):
            if values and len(values) != len(self.classes):
                raise UserError(f"there are {len(self.classes)} classes, but {len(values)} {name}")
        if len(self.classes) > MAX_CLASSES:
            raise UserError(f"{len(self.classes)} classes are too many: masks of bytes hold {MAX_CLASSES} and ignore_index")
        if not all(0 <= value <= 255 for value in (*(c for color in self.palette for c in color), *(self.submitted or ()))):
            raise UserError("colors and submitted values must be integers from 0 to 255")
        if len(self.mean) != len(self.std):
            raise UserError(f"the normalization has {len(self.mean)} means and {len(self.std)} standard deviations")
        if not (self.mean.isfinite().all() and self.std.isfinite().all() and (self.std > 0).all()):
            raise UserError("mean and std of the normalization must be finite, std above 0")

    def forward(self, image: Tensor, auxiliary: bool = False) -> Logits | tuple[Logits, dict[str, Logits]]:
        """Return logits (B, C, H, W) of plain RGB (B, 3, H, W), 0 to 255, of any dtype.

        With ``auxiliary``, return those of the network's auxiliary heads by name too.
        """
        logits, heads = split_outputs(self.net(self.normalize(image)))
        check_logits(logits, len(self.classes), type(self.net).__name__)
        logits = self.apply_crf(self.fit_to_image(logits, image), image)
        return (logits, {name: self.fit_to_image(maps, image) for name, maps in heads.items()}) if auxiliary else logits

    def fit_to_image(self, logits: Maps, image: Tensor) -> Logits:
        """Return logits in float32; those of networks of other packages at the image's size."""
        return resize_to_image(logits, image) if resizes(self.net, logits, image) else promote(logits)

    def normalize(self, image: Tensor) -> Maps:
        """Return the network's input from plain RGB (B, 3, H, W), 0 to 255."""
        return normalize(image, self.mean, self.std).contiguous(memory_format=torch.channels_last)

    def apply_crf(self, logits: Logits, image: Tensor) -> Logits:
        """Return the log-probabilities of the model's CRF; without a CRF, the logits."""
        if self.crf is None:
            return logits
        return self.crf(logits.softmax(1), image).clamp_min(torch.finfo(logits.dtype).tiny).log()


def default_palette(num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """Return VOC's colors: bits 0, 3, 6 of a class id are the highest bits of red, bits 1, 4, 7 of green, 2, 5 of blue."""
    return tuple(
        tuple(sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8)) for channel in range(3))  # type: ignore[misc]
        for index in range(num_classes)
    )
