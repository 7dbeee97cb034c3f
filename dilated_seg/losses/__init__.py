"""Losses of the task: per pixel, over the pixels of an image or batch, and weighted sums; any library's loss works too."""

from dilated_seg.losses.base import Loss as Loss
from dilated_seg.losses.combined import WeightedSum
from dilated_seg.losses.combined import prepare_loss as prepare_loss
from dilated_seg.losses.combined import weigh_heads as weigh_heads
from dilated_seg.losses.pixel import OHEM, BoundaryWeighted, CrossEntropy, Focal
from dilated_seg.losses.region import Dice, Jaccard, Lovasz, Tversky

__all__ = ["OHEM", "BoundaryWeighted", "CrossEntropy", "Dice", "Focal", "Jaccard", "Lovasz", "Tversky", "WeightedSum"]
