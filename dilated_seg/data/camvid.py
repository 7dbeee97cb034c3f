"""CamVid, as released with SegNet, and in the original 32 colours."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dilated_seg import UserError
from dilated_seg.data.base import SegmentationDataModule
from dilated_seg.data.files import Pairs, names, partners, read_colours, read_mask
from dilated_seg.data.transforms import UNKNOWN

# What a label's value means in SegNet's release: the class id; 11 is unlabelled.
VALUES = torch.tensor([*range(11), 255] + [UNKNOWN] * 244, dtype=torch.uint8)

# The original 32 classes that make up each of the 11; Void is ignored. Listings agree but for RoadShoulder, which some count
# as road: here it is pavement, as in the two that could be looked up.
GROUPS = {
    "sky": ("Sky",),
    "building": ("Building", "Archway", "Bridge", "Tunnel", "Wall"),
    "pole": ("Column_Pole", "TrafficCone"),
    "road": ("Road", "LaneMkgsDriv", "LaneMkgsNonDriv"),
    "pavement": ("Sidewalk", "ParkingBlock", "RoadShoulder"),
    "tree": ("Tree", "VegetationMisc"),
    "sign": ("SignSymbol", "Misc_Text", "TrafficLight"),
    "fence": ("Fence",),
    "car": ("Car", "SUVPickupTruck", "Truck_Bus", "Train", "OtherMoving"),
    "pedestrian": ("Pedestrian", "Child", "CartLuggagePram", "Animal"),
    "bicyclist": ("Bicyclist", "MotorcycleScooter"),
}
STILLS, LABELS = "701_StillsRaw_full", "LabeledApproved_full"


class CamVid(SegmentationDataModule):
    """CamVid: frames of driving video, 360 x 480, in SegNet's 11 classes and splits of 367, 101 and 233 frames.

    Brostow, Fauqueur and Cipolla, "Semantic object classes in video", Pattern Recognition Letters 2009.  The folder holds
    ``train/NAME.png`` (or .jpg) with ``trainannot/NAME.png`` and likewise ``val``, ``test``; a label's value is the class,
    11 is unlabelled and ignored.  Or it holds the original release, 720 x 960: ``701_StillsRaw_full/NAME.png`` with
    ``LabeledApproved_full/NAME_L.png``, ``label_colors.txt``, and lists ``train.txt``, ``val.txt``, ``test.txt``; its 32
    colours are grouped into the 11 classes.  The validation frames come from one stretch of one video that training also
    shows: its scores are optimistic and noisy.

    Args:
        root: The folder; None takes the environment variable DILATED_SEG_CAMVID.
        options: See SegmentationDataModule.
    """

    classes = tuple(GROUPS)
    # SegNet's colours; the 32-class release has others.
    palette = (
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
        (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
    )  # fmt: skip

    def __init__(self, root: str | None = None, **options: Any) -> None:  # noqa: ANN401 - jsonargparse reads the base's types
        super().__init__(**options)
        self.root = root

    def split(self, name: str) -> Pairs:
        """The frames of "train", "val" or "test".

        Raises:
            UserError: A folder or a list is missing, a frame has no label, a label no frame, or their sizes differ.
        """
        given = self.root or os.environ.get("DILATED_SEG_CAMVID")
        if not given:
            raise UserError("CamVid's folder is not named: set the environment variable DILATED_SEG_CAMVID or data.root")
        root = Path(given)
        if not (root / LABELS).is_dir():
            return Pairs(partners(root / name, root / f"{name}annot"), partial(read_mask, classes=VALUES)).check()
        listed = {line.removesuffix(".png") for line in names(root / f"{name}.txt")}
        pairs = [pair for pair in partners(root / STILLS, root / LABELS, ("", "_L")) if pair[0] in listed]
        if missing := listed - {frame for frame, *_ in pairs}:
            raise UserError(f"{root / name}.txt names {min(missing)}, which is not in {root / STILLS}")
        return Pairs(pairs, partial(read_colours, classes=grouped(root / "label_colors.txt"))).check()


def grouped(path: Path) -> dict[tuple[int, int, int], int]:
    """The class id of every colour that label_colors.txt lists ("R G B NAME" a line); 255 for Void.

    Raises:
        UserError: The file is missing, or lists a class that belongs to none of the 11.
    """
    classes = {name: k for k, group in enumerate(GROUPS.values()) for name in group} | {"Void": 255}
    found = {}
    for line in lines(path):
        *colour, name = line.split()
        if name not in classes or len(colour) != 3 or not all(c.isdigit() for c in colour):
            raise UserError(f"{path} has the line '{line}', which is not R G B and one of CamVid's 32 classes")
        red, green, blue = map(int, colour)
        found[red, green, blue] = classes[name]
    return found


def lines(path: Path) -> list[str]:
    """A text file's lines that say something."""
    try:
        return [line for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; it comes with the original labels") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text: save it as such") from error
