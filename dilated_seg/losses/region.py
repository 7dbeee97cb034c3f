"""Losses of the overlap between prediction and mask of each class, over all pixels of an image or of a batch."""

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from dilated_seg.losses.base import Loss
from dilated_seg.tensors import Logits, Mask

Over = Literal["image", "batch"]


class RegionLoss(Loss):
    """A loss of each class, averaged over the classes in the mask.

    Args:
        over: "image": computed for each image and averaged with the number of valid pixels as weight, which does not depend on
            how a step is divided into batches and processes. "batch": computed over the pixels of all images of all processes
            together, for each accumulated batch separately; evaluation then uses "image".
        ignore_index: The mask value that is left out.
    """

    def __init__(self, over: Over = "image", ignore_index: int = 255) -> None:
        super().__init__(ignore_index)
        if over not in ("image", "batch"):
            raise ValueError(f"over={over!r} is not one of 'image', 'batch'")
        self.over = over

    def find_overlap(self, logits: Logits, mask: Mask) -> tuple[Tensor, Tensor, Tensor]:
        """Return probabilities, whether a pixel has the class, and whether it is valid: (G, C, N), (G, C, N) and (G, N).

        G images have N pixels each; with ``over="batch"`` in training, G is 1 and N counts the pixels of all images.
        """
        classes = torch.arange(logits.shape[1], device=mask.device)[:, None]
        probabilities, ids = logits.softmax(1).flatten(2), mask.flatten(1)
        if self.over == "batch" and self.training:
            probabilities, ids = probabilities.transpose(0, 1).flatten(1)[None], ids.reshape(1, -1)
        valid = ids != self.ignore_index
        return probabilities, (ids[:, None] == classes) & valid[:, None], valid


def average_classes(losses: Tensor, present: Tensor) -> Tensor:
    """Return the mean (G,) of losses (G, C) over the classes that are present (G, C), 0 without any."""
    return torch.where(present, losses, 0.0).sum(1) / present.sum(1).clamp(min=1)


class Tversky(RegionLoss):
    """1 - TP / (TP + alpha FP + beta FN) of each class, with probabilities in place of counts.

    Salehi, Erdogmus and Gholipour, "Tversky Loss Function for Image Segmentation using 3D Fully Convolutional Deep Networks",
    MLMI 2017.

    Args:
        alpha: Factor of false positives, at least 0.
        beta: Factor of false negatives, above 0.
        over: "image" or "batch": see RegionLoss.
        ignore_index: The mask value that is left out.
    """

    def __init__(self, alpha: float = 0.3, beta: float = 0.7, over: Over = "image", ignore_index: int = 255) -> None:
        super().__init__(over, ignore_index)
        if not (alpha >= 0 and beta > 0):
            raise ValueError(f"alpha={alpha:g}, beta={beta:g}: alpha of at least 0 and beta above 0 are required")
        self.alpha, self.beta = alpha, beta

    def total(self, logits: Logits, mask: Mask) -> Tensor:
        probabilities, has_class, valid = self.find_overlap(logits, mask)
        true = (probabilities * has_class).sum(2)
        predicted = (probabilities * valid[:, None]).sum(2)
        labelled, pixels = has_class.sum(2).to(true.dtype), valid.sum(1).to(true.dtype)
        if not (self.over == "batch" and self.training and dist.is_available() and dist.is_initialized()):
            return (self.compute(true, predicted, labelled) * pixels).sum()
        # Each process has the sums over all processes, but gradients of its own sums only. For N valid pixels in all
        # processes, the totals of all must add up to N times the loss, and their gradients to N times its gradient.
        local = torch.stack([true, predicted, labelled, pixels[:, None].expand_as(true)])
        total = local.detach().clone()
        dist.all_reduce(total)
        true, predicted, labelled, all_pixels = local + (total - local.detach())
        loss, count = self.compute(true, predicted, labelled), all_pixels[:, 0]
        return (pixels * loss.detach() + count * (loss - loss.detach())).sum()

    def compute(self, true: Tensor, predicted: Tensor, labelled: Tensor) -> Tensor:
        """Return the losses (G,) of true positives, predicted and labelled pixels of each class (G, C)."""
        false = self.alpha * (predicted - true) + self.beta * (labelled - true)
        return average_classes(1 - true / (true + false).where(labelled > 0, 1.0), labelled > 0)


class Dice(Tversky):
    """1 - 2 TP / (2 TP + FP + FN) of each class, with probabilities in place of counts.

    Milletari, Navab and Ahmadi, "V-Net", 3DV 2016, without the squares in their denominator.

    Args:
        over: "image" or "batch": see RegionLoss.
        ignore_index: The mask value that is left out.
    """

    def __init__(self, over: Over = "image", ignore_index: int = 255) -> None:
        super().__init__(0.5, 0.5, over, ignore_index)


class Jaccard(Tversky):
    """1 - TP / (TP + FP + FN) of each class, with probabilities in place of counts.

    Rahman and Wang, "Optimizing Intersection-Over-Union in Deep Neural Networks for Image Segmentation", ISVC 2016.

    Args:
        over: "image" or "batch": see RegionLoss.
        ignore_index: The mask value that is left out.
    """

    def __init__(self, over: Over = "image", ignore_index: int = 255) -> None:
        super().__init__(1.0, 1.0, over, ignore_index)


class Lovasz(RegionLoss):
    """Lovasz-softmax: the convex extension of 1 - IoU of each class.

    Berman, Rannen Triki and Blaschko, "The Lovasz-Softmax Loss", CVPR 2018, algorithm 1. It sorts pixels, so
    with ``over="batch"`` it is computed over the images of each process separately.
    """

    def total(self, logits: Logits, mask: Mask) -> Tensor:
        probabilities, has_class, valid = self.find_overlap(logits, mask)
        errors = (has_class.to(probabilities.dtype) - probabilities).abs()
        errors, order = errors.masked_fill(~valid[:, None], -1.0).sort(2, descending=True)  # ignored pixels come last
        labelled = has_class.sum(2, keepdim=True)
        hits = has_class.gather(2, order).cumsum(2)
        misses = torch.arange(1, order.shape[2] + 1, device=order.device) - hits
        # 1 - IoU if the k pixels with the highest errors are wrong, for each k, and its increase from k - 1 to k
        jaccard = 1 - (labelled - hits).to(errors.dtype) / (labelled + misses)
        steps = jaccard.diff(dim=2, prepend=torch.zeros_like(jaccard[..., :1]))
        losses = torch.where(errors < 0, 0.0, errors * steps).sum(2)
        return (average_classes(losses, labelled[..., 0] > 0) * valid.sum(1)).sum()
