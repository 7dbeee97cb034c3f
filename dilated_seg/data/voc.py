"""PASCAL VOC 2012, with the further labels of SBD."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from dilated_seg.data import manifest
from dilated_seg.data.collate import Split
from dilated_seg.data.datamodule import SegmentationDataModule
from dilated_seg.data.decode import DAMAGE, ReadLabel, Source, explain_unreadable, read_mask, values_as
from dilated_seg.data.pairs import Pairs, Sample, names, refuse, show_names
from dilated_seg.data.shards import Shards
from dilated_seg.errors import UserError
from dilated_seg.models.segmenter import default_palette

# What a label's value means: the class id; 255 is the border of an object, or a difficult one.
VALUES = values_as({k: k for k in range(21)} | {255: 255})

NUMBERS = values_as({k: k for k in range(254)} | {255: 255})  # of objects, in SegmentationObject/
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
        """The images of "train", "val", "trainval", "trainaug" or "test", whose labels are kept back; or their objects.

        Raises:
            UserError: A folder, a list, an image or a label is missing.
        """
        if name.endswith(OBJECTS):
            return Objects(self.images(name.removesuffix(OBJECTS)))
        return self.images(name)

    def images(self, name: str) -> Pairs:
        """The images of a split, as `split` takes its name.

        Raises:
            UserError: As `split`.
        """
        if name not in self.published:
            raise UserError(f"VOC has no split '{name}': choose one of {', '.join(self.published)}")
        voc = self.folder()
        lists, images, labels = voc / "ImageSets" / "Segmentation", voc / "JPEGImages", voc / "SegmentationClass"
        if name == "test":
            return Pairs(
                found((stem, images / f"{stem}.jpg", None) for stem in list_names(lists / "test.txt")), self.read_label
            )
        listed = [stem for part in PARTS[name] for stem in list_names(lists / f"{part}.txt")]
        pairs = [(stem, images / f"{stem}.jpg", labels / f"{stem}.png") for stem in listed]
        if name == "trainaug":  # and no image of val is ever among them
            without = {*listed, *list_names(lists / "val.txt")}
            pairs += [(p.stem, images / f"{p.stem}.jpg", p) for p in self.further() if p.stem not in without]
        return Pairs(found(pairs), self.read_label)

    def _prepared(self, name: str) -> Shards | None:
        if name.endswith(OBJECTS) and manifest.read(self.place()):
            raise UserError(f"{self.place()} holds shards, which do not tell objects apart: name VOC's own folder for {name}")
        return super()._prepared(name)

    def available(self) -> list[str]:
        """The splits that the folders have; "trainaug" if SBD's is named."""
        lists = self.folder() / "ImageSets" / "Segmentation"
        needed = PARTS | {"test": ("test",)}
        here = [name for name in self.published if all((lists / f"{part}.txt").is_file() for part in needed[name])]
        return [name for name in here if name != "trainaug" or self.sbd or os.environ.get("DILATED_SEG_SBD")]

    def folder(self) -> Path:
        """Where VOC2012 is, in one of the places people unpack it to.

        Raises:
            UserError: It is in none of them.
        """
        start = Path(self.place())
        for place in VOC_PLACES:
            if (start / place / "JPEGImages").is_dir():
                return start / place
        raise UserError(f"{start} holds no JPEGImages, also not in {' or '.join(VOC_PLACES[:-1])}")

    def further(self) -> list[Path]:
        """SBD's labels: .mat files, or PNGs that somebody made of them.

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


class Objects:
    """The objects of labelled images, one example each: its box, enlarged, with this object labelled and all else background.

    As in the first stage of Noh et al. (2015): the box around the object is enlarged by 1.2 about its middle, as far as the
    image reaches, and stretched to 250 x 250 pixels. What VOC leaves unlabelled stays ignored: an assumption, as is that the
    box ends with the image, and that objects of any size are taken.

    Args:
        images: Labelled images; VOC tells the objects of a label apart in SegmentationObject/, SBD in inst/.

    Raises:
        UserError: The objects of an image are told apart nowhere, or not as in its label.
    """

    enlarged, side = 1.2, 250

    def __init__(self, images: Pairs) -> None:
        images.check()
        self.images, self.members = images, images.members
        self.files = [instances(label) for *_, label in images.pairs if label]
        missing = [path for path in self.files if not path.is_file()]
        refuse([f"{path} is missing: it should tell the objects of an image apart" for path in missing])
        numbers = [np.unique(read_instances(path)).tolist() for path in self.files]
        self.examples = [(i, number) for i, found in enumerate(numbers) for number in found if number not in (0, 255)]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Sample:
        i, number = self.examples[index]
        sample, there = self.images[i], read_instances(self.files[i]) == number
        if there.shape != sample["mask"].shape:
            raise UserError(f"{self.files[i]} has another size than the label of its image: replace the file")
        label = sample["mask"][there].mode().values
        mask = torch.where(there, label, sample["mask"].where(sample["mask"] == 255, 0))
        rows, columns = (
            around(there.any(axis).nonzero(), length, self.enlarged) for axis, length in ((1, len(mask)), (0, mask.shape[1]))
        )
        size = [self.side, self.side]
        return Sample(
            image=resize(sample["image"][:, rows, columns], size, antialias=True),
            mask=F.interpolate(mask[None, None, rows, columns], size, mode="nearest-exact")[0, 0],
            id=f"{sample['id']}_{number}",
        )


def around(places: Tensor, length: int, factor: float) -> slice:
    """From the first to the last of some places on an axis, enlarged about the middle, within the axis."""
    first, last = int(places.min()), int(places.max()) + 1
    margin = round((factor - 1) * (last - first) / 2)
    return slice(max(0, first - margin), min(length, last + margin))


def instances(label: Path) -> Path:
    """The file that tells the objects of a label apart: in VOC's SegmentationObject/ or SBD's inst/."""
    return label.parent.parent / ("SegmentationObject" if label.suffix == ".png" else "inst") / label.name


def read_instances(path: Path) -> Tensor:
    """The number of the object that each pixel belongs to (H, W); 0 is none, 255 ignored."""
    return read_mask(path, NUMBERS) if path.suffix == ".png" else read_sbd(path, "GTinst", 253)


def list_names(path: Path) -> list[str]:
    """Return the names of a list, one a line.

    Raises:
        UserError: A line is no name alone, as in lists of images with their labels.
    """
    listed = names(path)
    if wrong := next((line for line in listed if re.search(r"[\s/]|\.(jpg|png)$", line)), None):
        raise UserError(
            f"the list {path} has the line '{wrong}': it should have one name a line, such as 2007_000032, without directory, "
            "suffix or label, as the lists of the release"
        )
    return listed


def found(pairs: Iterable[tuple[str, Path, Path | None]]) -> list[tuple[str, Path, Path | None]]:
    """Images and labels, all of which must be there.

    Raises:
        UserError: One is not.
    """
    pairs = list(pairs)
    problems: list[str] = []
    for _, image, label in pairs:
        if not image.is_file():
            problems.append(f"{image} is missing{'' if problems else near(image)}: a list names it, so complete the data")
        elif label and not label.is_file():
            there = "" if problems else near(label)
            problems.append(f"{image} has no label {label}{there}: a list names it, so complete the data")
    refuse(problems)
    return pairs


def near(path: Path) -> str:
    """Return a clause on the files of the same name and another suffix."""
    close = sorted(path.parent.glob(f"{path.stem}.*")) if path.parent.is_dir() else []
    return f" ({show_names(close)} is there, but only {path.suffix} is read)" if close else ""


def read_label(path: Source) -> Tensor:
    """A label of VOC (a PNG with a palette) or of SBD (a .mat file) as class ids (H, W)."""
    return read_mask(path, VALUES, VOC.palette) if path.suffix == ".png" else read_sbd(path)


def read_sbd(path: Source, structure: str = "GTcls", most: int = 20) -> Tensor:
    """The class ids in one of SBD's MATLAB files, or in "GTinst" the numbers of the objects.

    Raises:
        UserError: The file is damaged or holds no segmentation.
    """
    try:
        with path.open("rb") as file:
            values = np.asarray(loadmat(file)[structure]["Segmentation"][0][0])
    except RecursionError:
        raise
    except (*DAMAGE, MatReadError) as error:
        raise explain_unreadable(path, error, "a label of SBD") from error
    if values.ndim != 2 or values.dtype.kind not in "ui" or not values.size or values.min() < 0 or values.max() > most:
        raise UserError(f"{path} holds no class ids from 0 to {most}: replace the file")
    return torch.from_numpy(values.astype(np.uint8))
