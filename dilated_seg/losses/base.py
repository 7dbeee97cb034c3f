"""The base of all losses: a sum over the valid pixels of a batch, which the task divides by their number in all processes."""

from torch import Tensor, nn

from dilated_seg.tensors import Logits, Mask


class Loss(nn.Module):
    """A loss of logits (B, C, H, W) and class ids (B, H, W).

    Subclasses define `total`, a sum over the valid pixels of the batch, so that the loss of a step does not depend on how its
    images are divided into batches and processes. A loss that is not a sum over pixels, such as Dice, is multiplied by the
    number of valid pixels of the image: the mean over images is weighted by these numbers.

    Args:
        ignore_index: The mask value of ignored pixels; the task sets it.
    """

    def __init__(self, ignore_index: int = 255) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def total(self, logits: Logits, mask: Mask) -> Tensor:
        """Return the sum over the valid pixels, 0 if there are none."""
        raise NotImplementedError(f"{type(self).__name__} must define total()")

    def forward(self, logits: Logits, mask: Mask) -> Tensor:
        """Return the mean over the valid pixels, 0 if there are none."""
        return self.total(logits, mask) / self.find_valid(mask).sum().clamp(min=1)

    def find_valid(self, mask: Mask) -> Tensor:
        """Return which pixels have a class, as bool (B, H, W)."""
        return mask != self.ignore_index
