"""PASCAL VOC 2012, with the further labels of SBD."""

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dilated_seg import UserError
from dilated_seg.data.base import SegmentationDataModule
from dilated_seg.data.files import Pairs, counted, names, read_mask
from dilated_seg.data.transforms import UNKNOWN

# What a label's value means: the class id; 255 is the border of an object, or a difficult one.
VALUES = torch.tensor([*range(21)] + [UNKNOWN] * 234 + [255], dtype=torch.uint8)

SPLITS = {"train": 1464, "val": 1449, "trainval": 2913, "test": 1456, "trainaug": 10582}


def palette(entries: int) -> tuple[tuple[int, int, int], ...]:
    """VOC's colours: the bits of a class id, three at a time, become the highest bits of red, green and blue."""
    return tuple(
        tuple(sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8)) for channel in range(3))  # type: ignore[misc]
        for index in range(entries)
    )


class VOC(SegmentationDataModule):
    """PASCAL VOC 2012: photographs of 20 kinds of objects before a background, at most 500 pixels a side.

    Everingham et al., "The PASCAL Visual Object Classes Challenge", IJCV 2010; SBD: Hariharan et al., "Semantic Contours from
    Inverse Detectors", ICCV 2011.  Splits of 1464, 1449, 2913 (both) and 1456 images; "trainaug", 10582, is train and all of
    SBD without val. There, an image that VOC labels itself has VOC's label, with its void border; the others have SBD's,
    without one.

    Args:
        root: The folder that holds VOCdevkit/VOC2012, or VOC2012, or its JPEGImages; None takes the environment variable
            DILATED_SEG_VOC.
        sbd: SBD's folder with img/ and cls/, or one with SBD's labels as PNGs (SegmentationClassAug); for "trainaug" only.
        train_split: What is trained on.
        options: See SegmentationDataModule.
    """

    classes = (
        "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
        "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
    )  # fmt: skip
    palette = palette(21)

    def __init__(
        self,
        root: str | None = None,
        sbd: str | None = None,
        train_split: Literal["train", "trainval", "trainaug"] = "train",
        **options: Any,  # noqa: ANN401 - jsonargparse reads the base's types
    ) -> None:
        super().__init__(**options)
        self.root, self.sbd, self.train_split = root, sbd, train_split

    def split(self, name: str) -> Pairs:
        """The images of "train", "val", "trainval", "trainaug" or "test", whose labels are kept back.

        Raises:
            UserError: A folder, a list, an image or a label is missing, or sizes differ.
        """
        voc = self.folder(self.root, "DILATED_SEG_VOC", ("VOCdevkit/VOC2012", "VOC2012", "."), "JPEGImages")
        if name == "trainaug":
            return counted("VOC", name, Pairs(self.augmented(voc), read_label), SPLITS).check()
        if name not in SPLITS:
            raise UserError(f"VOC has no split '{name}': choose one of {', '.join(SPLITS)}")
        listed = names(voc / "ImageSets" / "Segmentation" / f"{name}.txt")
        labels = None if name == "test" else voc / "SegmentationClass"
        pairs = Pairs([pair(stem, voc / "JPEGImages", labels) for stem in listed], read_label)
        return counted("VOC", name, pairs, SPLITS).check()

    def augmented(self, voc: Path) -> list[tuple[str, Path, Path | None]]:
        """Train, and what SBD labels, without val; no image of val is ever among them."""
        sbd = self.folder(
            self.sbd, "DILATED_SEG_SBD", (".", "dataset", "benchmark_RELEASE/dataset", "SegmentationClassAug"), None
        )
        lists = voc / "ImageSets" / "Segmentation"
        train, val = names(lists / "train.txt"), set(names(lists / "val.txt"))
        labels = sbd / "cls" if (sbd / "cls").is_dir() else sbd
        labelled = {p.stem for p in labels.iterdir() if p.suffix in (".mat", ".png") and not p.name.startswith(".")}
        further = sorted(labelled - val - set(train))
        images = voc / "JPEGImages"
        return [pair(stem, images, voc / "SegmentationClass") for stem in train] + [
            pair(stem, images, labels) for stem in further
        ]

    @staticmethod
    def folder(root: str | None, variable: str, places: tuple[str, ...], inside: str | None) -> Path:
        """Where the data are, in one of the places people unpack them to."""
        start = root or os.environ.get(variable)
        if not start:
            raise UserError(
                f"the data's folder is not named: set the environment variable {variable}, or data.root (data.sbd for SBD)"
            )
        for place in places:
            if inside and (Path(start) / place / inside).is_dir():
                return Path(start) / place
            if not inside and ((Path(start) / place / "cls").is_dir() or any((Path(start) / place).glob("*_*.png"))):
                return Path(start) / place
        raise UserError(f"{start} holds no {inside or 'cls/*.mat and no labels as PNGs'}, also not in {', '.join(places[:-1])}")


def pair(stem: str, images: Path, labels: Path | None) -> tuple[str, Path, Path | None]:
    """An image and its label, which must be there."""
    image, label = images / f"{stem}.jpg", None
    if labels:
        label = next((p for p in (labels / f"{stem}.png", labels / f"{stem}.mat") if p.is_file()), None)
        if label is None:
            raise UserError(f"{image} has no label in {labels}: the list names it, so complete the data")
    if not image.is_file():
        raise UserError(f"{image} is missing: the list names it, so complete the data")
    return stem, image, label


def read_label(path: Path) -> Tensor:
    """A label of VOC (a PNG with a palette) or of SBD (a .mat file) as class ids (H, W)."""
    if path.suffix == ".png":
        return read_mask(path, VALUES)
    return read_sbd(path)


def read_sbd(path: Path) -> Tensor:
    """The class ids in one of SBD's MATLAB files.

    Raises:
        UserError: The file is damaged or holds no segmentation.
    """
    from scipy.io import loadmat  # only SBD needs it

    try:
        values = np.asarray(loadmat(path)["GTcls"]["Segmentation"][0][0])
    except Exception as error:  # scipy raises what its parser stumbles over
        raise UserError(f"{path} cannot be read as a label of SBD ({error}): replace the file") from error
    mask = VALUES[torch.from_numpy(values.astype(np.int64))]
    if mask.ndim != 2 or (mask == UNKNOWN).any():
        raise UserError(f"{path} holds no class ids from 0 to 20: replace the file")
    return mask
