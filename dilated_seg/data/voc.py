"""PASCAL VOC 2012, with the further labels of SBD."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from dilated_seg.data import manifest
from dilated_seg.data.datamodule import SegmentationDataModule
from dilated_seg.data.decode import Source
from dilated_seg.data.directories import check_no_problems, read_list, show_names
from dilated_seg.data.masks import ReadLabel, make_table, read_mask
from dilated_seg.data.pairs import Pair, Pairs
from dilated_seg.data.split import Split
from dilated_seg.data.voc_objects import Objects, read_sbd
from dilated_seg.errors import UserError
from dilated_seg.models.segmenter import default_palette

# What a label's value means: the class id; 255 is the border of an object, or a difficult one.
VALUES = make_table({k: k for k in range(21)} | {255: 255})

OBJECTS = "_objects"  # ends the name of a split that has an example for each object instead of each image

# Where people unpack the two to, below the folder they name.
VOC_PLACES = ("VOCdevkit/VOC2012", "VOC2012", ".")
SBD_PLACES = (".", "dataset", "benchmark_RELEASE/dataset", "SegmentationClassAug")

# The lists of each split; trainaug has SBD's images besides.
PARTS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val"), "trainaug": ("train",)}


class VOC(SegmentationDataModule):
    """PASCAL VOC 2012: photographs of 20 kinds of objects before a background, at most 500 pixels a side.

    Everingham et al., "The PASCAL Visual Object Classes Challenge", IJCV 2010; SBD: Hariharan et al., "Semantic Contours from
    Inverse Detectors", ICCV 2011.  Splits of 1464, 1449, 2913 (both) and 1456 images; "trainaug", 10582, is train and all of
    SBD without val. There, an image that VOC labels itself has VOC's label, with its void border; the others have SBD's,
    without one.  "train_objects", "trainval_objects" and "trainaug_objects" are the same cut into single objects, as
    DeconvNet's first stage is trained on: see `Objects`. They need the folders as released: SegmentationObject/, SBD's inst/.

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
    palette = default_palette(21)

    variable = "DILATED_SEG_VOC"
    published = {"train": 1464, "val": 1449, "trainval": 2913, "trainaug": 10582, "test": 1456}

    def __init__(
        self,
        root: str | None = None,
        sbd: str | None = None,
        train_split: Literal[
            "train", "trainval", "trainaug", "train_objects", "trainval_objects", "trainaug_objects"
        ] = "train",
        **options: Any,  # noqa: ANN401 - jsonargparse reads the base's types
    ) -> None:
        super().__init__(**options)
        self.root, self.sbd, self.train_split = root, sbd, train_split

    def split(self, name: str) -> Split:
        """Return the images of "train", "val", "trainval", "trainaug" or "test", whose labels are kept back; or their objects.

        Raises:
            UserError: A folder, a list, an image or a label is missing.
        """
        if name.endswith(OBJECTS):
            return Objects(self.images(name.removesuffix(OBJECTS)))
        return self.images(name)

    def images(self, name: str) -> Pairs:
        """Return the images of a split that is not one of objects.

        Raises:
            UserError: As `split`.
        """
        if name not in self.published:
            raise UserError(f"VOC has no split '{name}': choose one of {', '.join(self.published)}")
        voc = self.find_directory()
        lists, images, labels = voc / "ImageSets" / "Segmentation", voc / "JPEGImages", voc / "SegmentationClass"
        if name == "test":
            return Pairs(
                check_files_exist((stem, images / f"{stem}.jpg", None) for stem in list_names(lists / "test.txt")),
                self.read_label,
            )
        listed = [stem for part in PARTS[name] for stem in list_names(lists / f"{part}.txt")]
        pairs = [(stem, images / f"{stem}.jpg", labels / f"{stem}.png") for stem in listed]
        if name == "trainaug":  # and no image of val is ever among them
            without = {*listed, *list_names(lists / "val.txt")}
            pairs += [(p.stem, images / f"{p.stem}.jpg", p) for p in self.list_sbd_labels() if p.stem not in without]
        return Pairs(check_files_exist(pairs), self.read_label)

    def open_split(self, name: str) -> Split:
        """Return a split as every dataset does; objects need the directories as released.

        Raises:
            UserError: The split, one of its files or a label is missing or damaged.
        """
        if name.endswith(OBJECTS) and manifest.read(root := self.require_root()):
            raise UserError(f"{root} holds shards, which do not tell objects apart: name VOC's own folder for {name}")
        return super().open_split(name)

    def list_splits(self) -> list[str]:
        """Return the splits that the directories have; "trainaug" if SBD's is named."""
        lists = self.find_directory() / "ImageSets" / "Segmentation"
        needed = PARTS | {"test": ("test",)}
        names = [name for name in self.published if all((lists / f"{part}.txt").is_file() for part in needed[name])]
        return [name for name in names if name != "trainaug" or self.sbd or os.environ.get("DILATED_SEG_SBD")]

    def find_directory(self) -> Path:
        """Return the directory VOC2012, in one of the places people unpack it to.

        Raises:
            UserError: It is in none of them.
        """
        start = Path(self.require_root())
        for place in VOC_PLACES:
            if (start / place / "JPEGImages").is_dir():
                return start / place
        raise UserError(f"{start} holds no JPEGImages, also not in {' or '.join(VOC_PLACES[:-1])}")

    def list_sbd_labels(self) -> list[Path]:
        """Return SBD's masks: .mat files, or PNGs that were made of them.

        Raises:
            UserError: The folder is not named or holds none.
        """
        start = self.sbd or os.environ.get("DILATED_SEG_SBD")
        if not start:
            raise UserError("SBD's folder is not named: set the environment variable DILATED_SEG_SBD, or data.sbd")
        for place in SBD_PLACES:
            for folder in (Path(start) / place / "cls", Path(start) / place):
                labels = [p for p in sorted(folder.glob("*_*")) if p.suffix in (".mat", ".png") and p.name[0] != "."]
                if labels:
                    return labels
        raise UserError(f"{start} holds no cls/*.mat and no labels as PNGs, also not in {', '.join(SBD_PLACES[1:])}")

    @property
    def read_label(self) -> ReadLabel:
        """VOC's labels or SBD's, by the kind of file."""
        return read_label


def list_names(path: Path) -> list[str]:
    """Return the names of a list, one a line.

    Raises:
        UserError: A line is no name alone, as in lists of images with their labels.
    """
    listed = read_list(path)
    if wrong := next((line for line in listed if re.search(r"[\s/]|\.(jpg|png)$", line)), None):
        raise UserError(
            f"the list {path} has the line '{wrong}': it should have one name a line, such as 2007_000032, without directory, "
            "suffix or label, as the lists of the release"
        )
    return listed


def check_files_exist(pairs: Iterable[Pair]) -> list[Pair]:
    """Return pairs of files, all of which exist.

    Raises:
        UserError: One is not.
    """
    pairs = list(pairs)
    problems: list[str] = []
    for _, image, label in pairs:
        if not image.is_file():
            problems.append(
                f"{image} is missing{'' if problems else describe_similar_files(image)}: a list names it, so complete the data"
            )
        elif label and not label.is_file():
            there = "" if problems else describe_similar_files(label)
            problems.append(f"{image} has no label {label}{there}: a list names it, so complete the data")
    check_no_problems(problems)
    return pairs


def describe_similar_files(path: Path) -> str:
    """Return a clause on the files of the same name and another suffix."""
    close = sorted(path.parent.glob(f"{path.stem}.*")) if path.parent.is_dir() else []
    return f" ({show_names(close)} is there, but only {path.suffix} is read)" if close else ""


def read_label(path: Source) -> Tensor:
    """Return a mask of VOC (a PNG with a palette) or of SBD (a .mat file) as class ids (H, W)."""
    return read_mask(path, VALUES, VOC.palette) if path.suffix == ".png" else read_sbd(path)
