"""CamVid, as released with SegNet, and in the original 32 colours."""

from functools import cached_property, partial
from pathlib import Path
from typing import Any

from dilated_seg import storage
from dilated_seg.data import manifest
from dilated_seg.data.datamodule import SegmentationDataModule
from dilated_seg.data.directories import check_no_problems, list_pairs, read_list
from dilated_seg.data.masks import ReadLabel, make_table, read_colors, read_mask
from dilated_seg.data.pairs import Pairs
from dilated_seg.errors import UserError

# What a label's value means in SegNet's release: the class id; 11 is unlabelled.
VALUES = make_table({k: k for k in range(11)} | {11: 255})

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
STILLS, LABELS, COLOURS = "701_StillsRaw_full", "LabeledApproved_full", "label_colors.txt"


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

    variable = "DILATED_SEG_CAMVID"
    published = {"train": 367, "val": 101, "test": 233}

    def __init__(self, root: str | None = None, **options: Any) -> None:  # noqa: ANN401 - jsonargparse reads the base's types
        super().__init__(**options)
        self.root = root

    def split(self, name: str) -> Pairs:
        """Return the frames of "train", "val" or "test".

        Raises:
            UserError: A folder or a list is missing, a frame has no label or a label no frame.
        """
        root = Path(self.require_root())
        if not (root / LABELS).is_dir():
            return Pairs(list_pairs(root / name, root / f"{name}annot"), self.read_label)
        listed = {line.removesuffix(".png") for line in read_list(root / f"{name}.txt")}
        pairs = [pair for pair in list_pairs(root / STILLS, root / LABELS, ("", "_L")) if pair[0] in listed]
        missing = sorted(listed - {frame for frame, *_ in pairs})
        check_no_problems([f"{root / name}.txt names {frame}, which is not in {root / STILLS}" for frame in missing])
        return Pairs(pairs, self.read_label)

    def list_splits(self) -> list[str]:
        """Return the splits that the directory has."""
        root = Path(self.require_root())
        return [name for name in self.published if (root / name).is_dir() or (root / f"{name}.txt").is_file()]

    @property
    def texts(self) -> tuple[str, ...]:
        """The original release's labels need the list of their colours."""
        return (COLOURS,) if (Path(self.require_root()) / LABELS).is_dir() else ()

    @cached_property
    def read_label(self) -> ReadLabel:
        """Class ids as SegNet's release has them, or the original's colours."""
        root = self.require_root()
        prepared = manifest.read(root)
        coloured = COLOURS in prepared["files"] if prepared else (Path(root) / LABELS).is_dir()
        if coloured:
            return partial(read_colors, classes=read_groups(root))
        return partial(read_mask, classes=VALUES, palette=self.palette)


def read_groups(root: str) -> dict[tuple[int, int, int], int]:
    """Return the class id of every color that label_colors.txt lists ("R G B NAME" a line); 255 for Void.

    Raises:
        UserError: The file is missing, or lists a class that belongs to none of the 11.
    """
    classes = {name: k for k, group in enumerate(GROUPS.values()) for name in group} | {"Void": 255}
    colors = {}
    for line in filter(str.strip, storage.read_text(root, COLOURS).splitlines()):
        *colour, name = line.split()
        if name not in classes or len(colour) != 3 or not all(c.isdigit() for c in colour):
            raise UserError(
                f"{storage.join(root, COLOURS)} has the line '{line}', which is not R G B and one of CamVid's 32 classes"
            )
        red, green, blue = map(int, colour)
        colors[red, green, blue] = classes[name]
    return colors
