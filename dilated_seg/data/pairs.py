"""A split whose images and masks are files."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dilated_seg.data.bands import read_bands
from dilated_seg.data.decode import Source, read_image
from dilated_seg.data.directories import check_no_problems
from dilated_seg.data.headers import Headers, find_size_problem, read_headers
from dilated_seg.data.masks import MaskReader
from dilated_seg.data.orientation import TurnedImages, apply_exif_orientation, find_mask_orientation
from dilated_seg.data.split import Sample, Split
from dilated_seg.data.workers import print_once
from dilated_seg.errors import UserError

if TYPE_CHECKING:
    from dilated_seg.data.datamodule import SegmentationDataModule

Pair = tuple[str, Path, Path | None]  # an image's name, its file, and its mask's file, if it has one


class Pairs(Split):
    """Images with their masks, in the order of the list.

    Args:
        pairs: Name, file and mask's file of each image; None in place of a missing mask, as for test images.
        mask_reader: Reads a mask's file as class ids (H, W).
        expected: If images have no masks, a clause for messages that names the expected files.
        in_channels: Channels of the images: 3 for RGB, or as they are stored; see `bands.read_bands`.

    Raises:
        UserError: Two images have one name.
    """

    countable = True

    def __init__(self, pairs: Sequence[Pair], mask_reader: MaskReader, expected: str = "", in_channels: int = 3) -> None:
        self.pairs, self.mask_reader, self.expected, self.in_channels = list(pairs), mask_reader, expected, in_channels
        self.as_stored: bool | None = None  # whether masks are stored as their images' files; None: infer it from the sizes
        self.labelled = all(mask for *_, mask in self.pairs)
        counts = Counter(name for name, *_ in self.pairs)
        self.members = {os.path.realpath(image) for _, image, _ in self.pairs}
        check_no_problems([f"{name} is the name of two images: rename one" for name, n in counts.items() if n > 1])

    def check(self) -> None:
        """Read every file's header before training: half a second for 1,000 pairs.

        Raises:
            UserError: A file is missing or damaged, an image and its mask differ in size, or a mask has an unsupported mode.
        """
        problems = [
            find_size_problem(image, mask, headers, self.as_stored)
            for (_, image, mask), headers in zip(self.pairs, self.headers, strict=True)
        ]
        check_no_problems([problem for problem in problems if problem])

    def find_turned_images(self) -> TurnedImages:
        """Return the labelled images that EXIF turns, and the orientation that the sizes of their masks imply."""
        turned = TurnedImages()
        for (_, image, mask), headers in zip(self.pairs, self.headers, strict=True):
            if mask and not isinstance(headers, str) and headers[1] != 1:
                turned.add(image, *headers)
        return turned

    @cached_property
    def headers(self) -> list[Headers | str]:
        """The headers of each image and its mask, or the reason why they cannot be read."""
        modes: dict[str, bool] = {}
        return [read_headers(image, mask, self.mask_reader, modes, self.in_channels) for _, image, mask in self.pairs]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        return read_pair(*self.pairs[index], self.mask_reader, self.as_stored, self.in_channels)

    def read_mask(self, index: int) -> Tensor:
        """Return the mask of an image (H, W), without decoding the image."""
        mask = self.pairs[index][2]
        return self.mask_reader(mask) if mask else self[index]["mask"]

    def count_masks(self) -> int:
        """Return the number of images that have a mask."""
        return sum(mask is not None for *_, mask in self.pairs)


def read_pair(
    name: str,
    image: Source,
    mask: Source | None,
    mask_reader: MaskReader,
    as_stored: bool | None = None,
    in_channels: int = 3,
) -> Sample:
    """Return an image and its mask; without a mask's file, a mask that is ignored everywhere.

    Args:
        name: The image's name.
        image: The image's file, to which its EXIF orientation is applied.
        mask: The mask's file, if there is one.
        mask_reader: Reads a mask's file as class ids (H, W).
        as_stored: Whether EXIF applies to the mask too; None: only if that gives it the image's size.
        in_channels: Channels of the image; see `Pairs`.

    Raises:
        UserError: A file is missing or damaged, a mask holds a value that is not a class, or the two differ in size.
    """
    pixels = read_image(image) if in_channels == 3 else read_bands(image, in_channels)
    ids = mask_reader(mask) if mask else torch.full(pixels.shape[1:], 255, dtype=torch.uint8)
    if mask and (as_stored or (as_stored is None and ids.shape != pixels.shape[1:])):
        ids = apply_exif_orientation(ids, image)
    if ids.shape != pixels.shape[1:]:
        (h1, w1), (h2, w2) = pixels.shape[1:], ids.shape
        raise UserError(f"{image} is {h1} x {w1} and its mask {mask} is {h2} x {w2}: they must have one size")
    return Sample(image=pixels, mask=ids, id=name)


def find_masks_as_stored(dataset: "SegmentationDataModule", splits: Mapping[str, Pairs]) -> bool | None:
    """Return whether masks are stored as the files of their images, from the dataset's option or the sizes of masks.

    Args:
        dataset: The dataset.
        splits: Some of its splits by name. If EXIF rotates images of these, the other splits are read as well.

    Returns:
        None if EXIF rotates no labelled image of ``splits``.

    Raises:
        UserError: Some masks are as stored and others are upright.
    """
    if dataset.mask_orientation != "auto":
        return dataset.mask_orientation == "as_stored"
    turned = [split.find_turned_images() for split in splits.values()]
    if not any(turned):
        return None
    unknown = [path for images in turned for path in images.unknown]
    with suppress(UserError, NotImplementedError):
        for name in dataset.list_splits():
            if name not in splits and isinstance(other := dataset.split(name), Pairs):
                turned.append(other.find_turned_images())
    as_stored = find_mask_orientation(turned)
    if as_stored is None:
        name = type(dataset).__name__
        print_once(
            f"{name} {dataset.root} mask_orientation".encode(),
            f"{name}: EXIF turns {len(unknown):,} images, such as {unknown[0]}, and the sizes of their masks fit both ways: "
            "masks are assumed to be upright; if they are stored as the files, set data.mask_orientation to as_stored",
        )
    return bool(as_stored)
