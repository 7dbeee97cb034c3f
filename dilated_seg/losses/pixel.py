"""Losses that are a sum over valid pixels, so they do not depend on how a step is divided into batches and processes."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dilated_seg.losses.base import Loss
from dilated_seg.tensors import Logits, Mask


class PixelLoss(Loss):
    """A loss with one value per pixel.

    Args:
        class_weights: Factor of each class; ``model.class_weights`` if None. The sum is divided by the number of valid pixels,
            as in SegNet, not by the sum of their weights as in torch.
        ignore_index: The mask value that is left out.
    """

    class_weights: Tensor | None

    def __init__(self, class_weights: Sequence[float] | None = None, ignore_index: int = 255) -> None:
        super().__init__(ignore_index)
        self.register_buffer("class_weights", None, persistent=False)
        if class_weights is not None:
            self.set_class_weights(class_weights)

    def set_class_weights(self, weights: Sequence[float]) -> None:
        """Set the factor of each class."""
        self.class_weights = torch.tensor(weights, dtype=torch.float32)

    def cross_entropy(self, logits: Logits, mask: Mask, reduction: str = "none", label_smoothing: float = 0.0) -> Tensor:
        """Return the weighted cross-entropy of every pixel (B, H, W), or their sum; it is 0 at ignored pixels."""
        return F.cross_entropy(
            logits,
            mask.long(),
            weight=self.class_weights,
            ignore_index=self.ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )


class CrossEntropy(PixelLoss):
    """Cross-entropy, -w_y log p_y for the class y of a pixel.

    Args:
        class_weights: Factor of each class, as in PixelLoss.
        label_smoothing: The share e, from 0 to 1, of the target that is spread evenly over all C classes: the loss is
            -(1 - e) w_y log p_y - e/C sum over classes c of w_c log p_c (Szegedy et al., 2016).
        ignore_index: The mask value that is left out.
    """

    def __init__(
        self, class_weights: Sequence[float] | None = None, label_smoothing: float = 0.0, ignore_index: int = 255
    ) -> None:
        super().__init__(class_weights, ignore_index)
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing={label_smoothing:g} is not a number from 0 to 1")
        self.label_smoothing = label_smoothing

    def total(self, logits: Logits, mask: Mask) -> Tensor:
        return self.cross_entropy(logits, mask, "sum", self.label_smoothing)


class Focal(PixelLoss):
    """Focal loss, -w_y (1 - p_y)^gamma log p_y: pixels that are classified well count less.

    Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, equation 5.

    Args:
        gamma: Exponent, at least 0; 0 gives cross-entropy; the paper uses 2.
        class_weights: Factor of each class, as in PixelLoss; the paper's alpha.
        ignore_index: The mask value that is left out.
    """

    def __init__(self, gamma: float = 2.0, class_weights: Sequence[float] | None = None, ignore_index: int = 255) -> None:
        super().__init__(class_weights, ignore_index)
        if not gamma >= 0:
            raise ValueError(f"gamma={gamma:g} is not a number of at least 0")
        self.gamma = gamma

    def total(self, logits: Logits, mask: Mask) -> Tensor:
        weighted = self.cross_entropy(logits, mask)
        plain = F.cross_entropy(logits, mask.long(), ignore_index=self.ignore_index, reduction="none")
        # 1 - p = -expm1(log p) keeps its digits near p = 1; below 1 its power has no derivative at 0.
        return ((-torch.expm1(-plain)).clamp_min(torch.finfo(plain.dtype).tiny) ** self.gamma * weighted).sum()


class OHEM(PixelLoss):
    """Online hard example mining: the mean of the highest values of the cross-entropy in each image.

    Shrivastava et al., "Training Region-based Object Detectors with Online Hard Example Mining", CVPR 2016; for pixels: Wu,
    Shen and van den Hengel, "Bridging Category-level and Instance-level Semantic Image Segmentation", 2016 (arXiv:1605.06885).
    The pixels are selected in each image, so the loss does not depend on how a step is divided into batches and processes.
    Images are weighted by their number of valid pixels.

    Args:
        share: Fraction of the valid pixels of an image that is selected, above 0 and up to 1; rounded up to whole pixels.
        class_weights: Factor of each class, as in PixelLoss; applied before pixels are selected.
        ignore_index: The mask value that is left out.
    """

    def __init__(self, share: float = 0.25, class_weights: Sequence[float] | None = None, ignore_index: int = 255) -> None:
        super().__init__(class_weights, ignore_index)
        if not 0 < share <= 1:
            raise ValueError(f"share={share:g} is not a number above 0 and up to 1")
        self.share = share

    def total(self, logits: Logits, mask: Mask) -> Tensor:
        losses = self.cross_entropy(logits, mask).flatten(1)
        valid = self.find_valid(mask).flatten(1).sum(1)
        kept = (valid * self.share).ceil()
        highest = losses.sort(1, descending=True).values  # ignored pixels, with 0, come last
        rank = torch.arange(losses.shape[1], device=losses.device)
        return ((highest * (rank < kept[:, None])).sum(1) * valid / kept.clamp(min=1)).sum()


class BoundaryWeighted(PixelLoss):
    """Cross-entropy in which pixels near another class count more; the sum is divided by the number of valid pixels.

    It resembles U-Net's weight map (Ronneberger, Fischer and Brox, 2015, equation 2), but the factor is constant up to a
    distance and not a Gaussian of it.

    Args:
        factor: Factor of pixels near a boundary, at least 0; that of other pixels is 1.
        distance: A pixel is near a boundary if a valid pixel of another class is at most this many rows and columns away.
        class_weights: Factor of each class, as in PixelLoss.
        ignore_index: The mask value that is left out.
    """

    def __init__(
        self,
        factor: float = 5.0,
        distance: int = 3,
        class_weights: Sequence[float] | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(class_weights, ignore_index)
        if not factor >= 0:
            raise ValueError(f"factor={factor:g} is not a number of at least 0")
        if distance < 1:
            raise ValueError(f"distance={distance} is not an integer of at least 1")
        self.factor, self.distance = factor, distance

    def total(self, logits: Logits, mask: Mask) -> Tensor:
        factors = torch.where(self.find_boundary(mask), self.factor, 1.0).to(logits.dtype)
        return (self.cross_entropy(logits, mask) * factors).sum()

    def find_boundary(self, mask: Mask) -> Tensor:
        """Return which valid pixels have another class in the square window around them, as bool (B, H, W)."""
        valid, ids = self.find_valid(mask)[:, None], mask[:, None].float()
        window = nn.MaxPool2d(2 * self.distance + 1, stride=1, padding=self.distance)
        highest = window(ids.masked_fill(~valid, -torch.inf))
        lowest = -window((-ids).masked_fill(~valid, -torch.inf))
        return ((highest != lowest) & valid)[:, 0]
