"""The interface of a dataset's splits."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import TypedDict

import numpy as np
from torch import Tensor


class Sample(TypedDict):
    """One image: uint8 RGB (3, H, W), its mask of class ids (H, W), and its name."""

    image: Tensor
    mask: Tensor
    id: str


class Split(ABC):
    """The images of one split in a fixed order; indexing decodes one image and its mask.

    Attributes:
        labelled: Whether every image has a mask. Otherwise the split can be predicted, not scored.
        expected: If images have no masks, a clause for messages that names the expected files.
        members: Identifiers of the images, to find images that two splits share.
        pixels: The number of pixels of each of the 256 class ids, if already counted.
        image_pixels: The number of all pixels of the images in which each class id occurs, likewise.
        countable: Whether masks may be read in the training process before the first step; unnecessary with ``pixels``.
    """

    labelled: bool = True
    expected: str = ""
    members: Collection[str] = frozenset()
    pixels: Sequence[int] | None = None
    image_pixels: Sequence[int] | None = None
    countable: bool = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int, /) -> Sample: ...

    def read_mask(self, index: int) -> Tensor:
        """Return the mask of an image (H, W)."""
        return self[index]["mask"]

    def count_masks(self) -> int:
        """Return the number of images that have a mask."""
        return len(self) if self.labelled else 0

    def order_images(self, seed: int, epoch: int, batch_size: int, world: int) -> np.ndarray:
        """Return the order of an epoch's images: a permutation that depends on seed and epoch.

        Args:
            seed: The seed of the run.
            epoch: Counts from 0.
            batch_size: Images of one process in one step.
            world: Number of processes.
        """
        return np.random.default_rng([seed, epoch]).permutation(len(self))
