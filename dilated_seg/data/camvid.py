"""CamVid, as released with SegNet, or in the original 32 classes."""

from functools import cached_property, partial
from pathlib import Path
from typing import Any

from dilated_seg import storage
from dilated_seg.data import manifest
from dilated_seg.data.datamodule import SegmentationDataModule
from dilated_seg.data.directories import check_no_problems, list_pairs, read_list
from dilated_seg.data.masks import MaskReader, make_table, read_colors, read_mask
from dilated_seg.data.pairs import Pairs
from dilated_seg.errors import UserError

# Mask values in SegNet's release are class ids; 11 is unlabelled.
VALUES = make_table({k: k for k in range(11)} | {11: 255})

# The original 32 classes in each of the 11; Void is ignored. Published groupings agree except for RoadShoulder, which some have
# as road; here it is pavement, as in the two available ones.
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
IMAGES, MASKS, COLORS = "701_StillsRaw_full", "LabeledApproved_full", "label_colors.txt"


class CamVid(SegmentationDataModule):
    """CamVid: frames of driving video, 360 x 480, in SegNet's 11 classes and splits of 367, 101 and 233 frames.

    Brostow, Fauqueur and Cipolla, "Semantic object classes in video", Pattern Recognition Letters 2009.  The directory has
    ``train/NAME.png`` (or .jpg) with ``trainannot/NAME.png``, and likewise ``val`` and ``test``; mask values are class ids, and
    11 is ignored.  Or it has the original release, 720 x 960: ``701_StillsRaw_full/NAME.png``, ``label_colors.txt``,
    ``LabeledApproved_full/NAME_L.png``, and lists ``train.txt``, ``val.txt``, ``test.txt``; its 32 classes are grouped into
    the 11.  The validation frames are from one part of a video that is also in the training split: metrics on them are
    optimistic and noisy.

    Args:
        root: The directory; by default the environment variable DILATED_SEG_CAMVID.
        options: Arguments of SegmentationDataModule.
    """

    classes = tuple(GROUPS)
    # SegNet's colors; the 32-class release has others.
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
            UserError: A directory or a list is missing, a frame has no mask or a mask no frame.
        """
        root = Path(self.require_root())
        if not (root / MASKS).is_dir():
            return Pairs(list_pairs(root / name, root / f"{name}annot"), self.mask_reader)
        listed = {line.removesuffix(".png") for line in read_list(root / f"{name}.txt")}
        pairs = [pair for pair in list_pairs(root / IMAGES, root / MASKS, ("", "_L")) if pair[0] in listed]
        missing = sorted(listed - {frame for frame, *_ in pairs})
        check_no_problems([f"{root / name}.txt names {frame}, which is not in {root / IMAGES}" for frame in missing])
        return Pairs(pairs, self.mask_reader)

    def list_splits(self) -> list[str]:
        """Return the splits that the directory has."""
        root = Path(self.require_root())
        return [name for name in self.published if (root / name).is_dir() or (root / f"{name}.txt").is_file()]

    @property
    def texts(self) -> tuple[str, ...]:
        """The list of colors, which the masks of the original release need."""
        return (COLORS,) if (Path(self.require_root()) / MASKS).is_dir() else ()

    @cached_property
    def mask_reader(self) -> MaskReader:
        """Read SegNet's class ids, or the colors of the original release."""
        root = self.require_root()
        prepared = manifest.read(root)
        colored = COLORS in prepared["files"] if prepared else (Path(root) / MASKS).is_dir()
        if colored:
            return partial(read_colors, classes=read_groups(root))
        return partial(read_mask, classes=VALUES, palette=self.palette)


def read_groups(root: str) -> dict[tuple[int, int, int], int]:
    """Return the class id of every color that label_colors.txt lists ("R G B NAME" a line); 255 for Void.

    Raises:
        UserError: The file is missing, or has a line of another form or class.
    """
    classes = {name: k for k, group in enumerate(GROUPS.values()) for name in group} | {"Void": 255}
    colors = {}
    for line in filter(str.strip, storage.read_text(root, COLORS).splitlines()):
        *color, name = line.split()
        if name not in classes or len(color) != 3 or not all(c.isdigit() for c in color):
            raise UserError(f"{storage.join(root, COLORS)} has the line '{line}': write R G B and one of CamVid's 32 classes")
        red, green, blue = map(int, color)
        colors[red, green, blue] = classes[name]
    return colors
