"""PASCAL VOC 2012, with the additional masks of SBD."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from dilated_seg.data import manifest
from dilated_seg.data.datamodule import SegmentationDataModule
from dilated_seg.data.decode import Source
from dilated_seg.data.directories import check_no_problems, list_visible, read_list, show_names
from dilated_seg.data.masks import MaskReader, make_table, read_mask
from dilated_seg.data.pairs import Pair, Pairs
from dilated_seg.data.split import Split
from dilated_seg.data.voc_objects import Objects, read_sbd
from dilated_seg.errors import UserError
from dilated_seg.models.segmenter import default_palette

# Mask values are class ids; 255 is the border of an object, or a difficult object.
VALUES = make_table({k: k for k in range(21)} | {255: 255})

OBJECTS = "_objects"  # suffix of splits with one example per object instead of per image

# Directories, relative to the given one, where VOC and SBD usually are after unpacking.
VOC_DIRECTORIES = ("VOCdevkit/VOC2012", "VOC2012", ".")
SBD_DIRECTORIES = (".", "dataset", "benchmark_RELEASE/dataset", "SegmentationClassAug")

# The lists of each split; trainaug has SBD's images too.
PARTS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val"), "trainaug": ("train",)}


class VOC(SegmentationDataModule):
    """PASCAL VOC 2012: photos, at most 500 pixels a side, with 20 classes of objects and background.

    Everingham et al., "The PASCAL Visual Object Classes Challenge", IJCV 2010; SBD: Hariharan et al., "Semantic Contours from
    Inverse Detectors", ICCV 2011.  "train", "val", "trainval" and "test" have 1464, 1449, 2913 and 1456 images; "trainaug"
    has 10582: train, and all of SBD except VOC's val. Images that VOC labels have VOC's mask, with its void border; the others
    have SBD's mask, without a border.  "train_objects", "trainval_objects" and "trainaug_objects" have one example per object,
    for the first stage of DeconvNet (see `Objects`); they need the directories as released, SegmentationObject/ and SBD's
    inst/.

    Args:
        root: The directory that has VOCdevkit/VOC2012, VOC2012, or JPEGImages in it; by default the environment variable
            DILATED_SEG_VOC.
        sbd: SBD's directory with img/ and cls/, or one with SBD's masks as PNGs (SegmentationClassAug); for "trainaug" only.
        train_split: The split to train on.
        options: Arguments of SegmentationDataModule.
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
        """Return the images of "train", "val", "trainval", "trainaug" or "test", which has no masks; or their objects.

        Raises:
            UserError: A directory, a list, an image or a mask is missing.
        """
        if name.endswith(OBJECTS):
            return Objects(self.list_images(name.removesuffix(OBJECTS)))
        return self.list_images(name)

    def list_images(self, name: str) -> Pairs:
        """Return the images of a split with their masks; raise UserError as `split`."""
        if name not in self.published:
            raise UserError(f"VOC has no split '{name}': choose one of {', '.join(self.published)}")
        voc = self.find_directory()
        lists, images, masks = voc / "ImageSets" / "Segmentation", voc / "JPEGImages", voc / "SegmentationClass"
        if name == "test":
            unlabelled = ((stem, images / f"{stem}.jpg", None) for stem in list_names(lists / "test.txt"))
            return Pairs(check_files_exist(unlabelled), self.mask_reader)
        listed = [stem for part in PARTS[name] for stem in list_names(lists / f"{part}.txt")]
        pairs = [(stem, images / f"{stem}.jpg", masks / f"{stem}.png") for stem in listed]
        if name == "trainaug":
            excluded = {*listed, *list_names(lists / "val.txt")}
            pairs += [(p.stem, images / f"{p.stem}.jpg", p) for p in self.list_sbd_masks() if p.stem not in excluded]
        return Pairs(check_files_exist(pairs), self.mask_reader)

    def open_split(self, name: str) -> Split:
        """Return a split; raise UserError as other datasets do, and for a split of objects if the root holds shards."""
        if name.endswith(OBJECTS) and manifest.read(root := self.require_root()):
            raise UserError(f"{root} holds shards, which do not have the objects of {name}: give VOC's directory as released")
        return super().open_split(name)

    def list_splits(self) -> list[str]:
        """Return the splits that the directories have; "trainaug" only if SBD's directory is given."""
        lists = self.find_directory() / "ImageSets" / "Segmentation"
        needed = PARTS | {"test": ("test",)}
        names = [name for name in self.published if all((lists / f"{part}.txt").is_file() for part in needed[name])]
        return [name for name in names if name != "trainaug" or self.sbd or os.environ.get("DILATED_SEG_SBD")]

    def find_directory(self) -> Path:
        """Return the directory VOC2012, one of VOC_DIRECTORIES; raise UserError if there is none."""
        start = Path(self.require_root())
        for subdirectory in VOC_DIRECTORIES:
            if (start / subdirectory / "JPEGImages").is_dir():
                return start / subdirectory
        raise UserError(f"{start} has no JPEGImages, also not in {' or '.join(VOC_DIRECTORIES[:-1])}: give VOC's directory")

    def list_sbd_masks(self) -> list[Path]:
        """Return SBD's masks, .mat files or PNGs made from them; raise UserError if there are none."""
        start = self.sbd or os.environ.get("DILATED_SEG_SBD")
        if not start:
            raise UserError("SBD's directory is unknown: set the environment variable DILATED_SEG_SBD, or data.sbd")
        for subdirectory in SBD_DIRECTORIES:
            for directory in (Path(start) / subdirectory / "cls", Path(start) / subdirectory):
                files = list_visible(directory) if directory.is_dir() else []
                masks = [path for path in files if "_" in path.name and path.suffix in (".mat", ".png")]
                if masks:
                    return masks
        raise UserError(f"{start} has no cls/*.mat and no masks as PNGs, also not in {', '.join(SBD_DIRECTORIES[1:])}")

    @property
    def mask_reader(self) -> MaskReader:
        """Read VOC's PNGs and SBD's MATLAB files."""
        return read_voc_mask


def list_names(path: Path) -> list[str]:
    """Return the names of a list; raise UserError if a line has more than a name, such as the files of image and mask."""
    listed = read_list(path)
    if wrong := next((line for line in listed if re.search(r"[\s/]|\.(jpg|png)$", line)), None):
        raise UserError(
            f"the list {path} has the line '{wrong}': it should have one name a line, such as 2007_000032, without directory, "
            "suffix or mask, as the lists of the release"
        )
    return listed


def check_files_exist(pairs: Iterable[Pair]) -> list[Pair]:
    """Return the pairs; raise UserError if one of their files does not exist."""
    pairs = list(pairs)
    problems: list[str] = []
    for _, image, mask in pairs:
        if missing := next((path for path in (image, mask) if path and not path.is_file()), None):
            similar = "" if problems else describe_similar_files(missing)
            problem = f"{image} is missing" if missing == image else f"{image} has no mask {mask}"
            problems.append(f"{problem}{similar}: a list names it, so complete the data")
    check_no_problems(problems)
    return pairs


def describe_similar_files(path: Path) -> str:
    """Return a clause that names the files of the same name and another suffix."""
    close = sorted(path.parent.glob(f"{path.stem}.*")) if path.parent.is_dir() else []
    return f" ({show_names(close)} is there, but only {path.suffix} is read)" if close else ""


def read_voc_mask(path: Source) -> Tensor:
    """Return a mask of VOC (a PNG with a palette) or of SBD (a .mat file) as class ids (H, W)."""
    return read_mask(path, VALUES, VOC.palette) if path.suffix == ".png" else read_sbd(path)
