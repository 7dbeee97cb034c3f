"""Cityscapes: street scenes of 50 cities, 1024 x 2048."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from dilated_seg.data.datamodule import SegmentationDataModule
from dilated_seg.data.directories import is_image, list_visible, match_pairs, show_names
from dilated_seg.data.masks import MaskReader, make_table, read_mask
from dilated_seg.data.pairs import Pairs
from dilated_seg.errors import UserError

# Label ids, the values in the files, of the 19 evaluated classes, in the order of their class ids (train ids 0 to 18).
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
VALUES = make_table(dict.fromkeys(range(34), 255) | {value: k for k, value in enumerate(LABEL_IDS)})


class Cityscapes(SegmentationDataModule):
    """Cityscapes: 2975 training, 500 validation and 1525 test images with fine labels in 19 classes.

    Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016.  The directory has
    ``leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`` and ``gtFine/SPLIT/CITY/*_gtFine_labelIds.png``; label ids become class ids,
    other values are ignored. The masks of the test split are dummies: it can be predicted, not scored.

    Args:
        root: The directory; by default the environment variable DILATED_SEG_CITYSCAPES.
        labels: Masks of "train", fine or coarse; those of "val" are always fine, those of "train_extra" coarse.
        train_split: "train", or "train_extra", 19998 more images with coarse masks.
        options: Arguments of SegmentationDataModule.
    """

    classes = (
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
        "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
    )  # fmt: skip
    palette = (
        (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
        (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70),
        (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
    )  # fmt: skip

    variable = "DILATED_SEG_CITYSCAPES"
    published = {"train": 2975, "val": 500, "test": 1525, "train_extra": 19998}
    submitted = LABEL_IDS

    def __init__(
        self,
        root: str | None = None,
        labels: Literal["gtFine", "gtCoarse"] = "gtFine",
        train_split: Literal["train", "train_extra"] = "train",
        **options: Any,  # noqa: ANN401 - jsonargparse reads the base's types
    ) -> None:
        super().__init__(**options)
        self.root, self.labels, self.train_split = root, labels, train_split

    def split(self, name: str) -> Pairs:
        """Return the images of "train", "val", "test" or "train_extra", in the order of city and frame.

        Raises:
            UserError: A directory is missing, an image has no mask or a mask no image.
        """
        root = Path(self.require_root())
        if name not in self.published:
            raise UserError(f"Cityscapes has no split '{name}': choose one of {', '.join(self.published)}")
        images = index_frames(root / "leftImg8bit" / name, "_leftImg8bit.png")
        require_frames(root / "leftImg8bit" / name, images)
        if name == "test":
            return Pairs([(frame, path, None) for frame, path in images.items()], self.mask_reader)
        kind = "gtCoarse" if name == "train_extra" else self.labels if name == "train" else "gtFine"
        masks = index_frames(root / kind / name, f"_{kind}_labelIds.png")
        return Pairs(match_pairs(images, masks, root / "leftImg8bit" / name, root / kind / name), self.mask_reader)

    def list_splits(self) -> list[str]:
        """Return the splits that the directory has."""
        return [name for name in self.published if (Path(self.require_root()) / "leftImg8bit" / name).is_dir()]

    @property
    def mask_reader(self) -> MaskReader:
        """Read label ids as class ids."""
        return partial(read_mask, classes=VALUES, palette=self.palette)

    @property
    def choices(self) -> dict[str, str]:
        """The kind of masks of the training images."""
        return {"labels": self.labels}


def require_frames(directory: Path, images: Mapping[str, Path]) -> None:
    """Raise UserError if a split has images with other names or formats than the release."""
    read = set(images.values())
    if lost := sorted(path for path in directory.rglob("[!.]*") if is_image(path) and path not in read):
        raise UserError(
            f"{directory} holds {len(images):,} images that are read and {len(lost):,} that are not ({show_names(lost)}): only "
            "CITY/NAME_leftImg8bit.png are read, so convert, move or remove the others"
        )


def index_frames(directory: Path, ending: str) -> dict[str, Path]:
    """Return the files of all cities by "CITY_SEQUENCE_FRAME", in that order.

    Raises:
        UserError: There is no such directory, or two files are of one frame.
    """
    if not directory.is_dir():
        raise UserError(
            f"{directory} is not a directory: Cityscapes is leftImg8bit/ and gtFine/ (or gtCoarse/) as its archives have it"
        )
    frames: dict[str, Path] = {}
    cities = [path for path in list_visible(directory) if path.is_dir()]  # unlike glob, fails if one cannot be listed
    files = [path for city in cities for path in list_visible(city) if path.name.endswith(ending)]
    for path in sorted(files, key=lambda path: path.name):
        frame = path.name.removesuffix(ending)
        if frame in frames:
            raise UserError(f"{frames[frame]} and {path} are of one frame: remove one of them")
        frames[frame] = path
    return frames
