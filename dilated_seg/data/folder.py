"""A directory of the user's own images and masks."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from dilated_seg import storage
from dilated_seg.data import class_file
from dilated_seg.data.class_file import make_colors, read_classes
from dilated_seg.data.datamodule import SegmentationDataModule
from dilated_seg.data.directories import check_no_problems, list_visible, show_names
from dilated_seg.data.layouts import LAYOUTS, Layout, find_files, find_list, has_split
from dilated_seg.data.masks import MaskReader
from dilated_seg.data.names import JPEG, find_other_format, read_names
from dilated_seg.data.pairs import Pair, Pairs
from dilated_seg.errors import UserError


class Folder(SegmentationDataModule):
    """Your own images and masks: a directory with ``classes.yaml``, in one of `layouts.LAYOUTS`.

    Images are .jpg, .png, .tif, .bmp or .webp, masks .png, .tif or .bmp, gray, with a palette or in colors; ``classes.yaml``
    is::

        classes: [background, road, car]
        values: {0: background, 128: road, 255: car}        # optional: values in masks; class ids by default
        colors: {background: [0, 0, 0], road: [128, 64, 128], car: [0, 0, 142]}   # or, for masks stored as colors
        ignore: [255]                                       # optional: values or colors that are ignored; 255 by default
        palette: [[0, 0, 0], [128, 64, 128], [0, 0, 142]]   # optional: for plots
        images: '{split}/rgb/{name}'                        # optional: paths of the files, if the layout is not a known one
        masks: '{split}/truth/{name}_mask'
        channels: 4                                         # optional: of images as stored; 3 by default, RGB of 8 bits

    A split without masks can be predicted, not evaluated.

    Args:
        root: The directory.
        val_fraction: Fraction of the training images (of all images without a training split) that is drawn as the split
            "val" and not trained on.
        split_seed: Seed of the drawing.
        mask_orientation: Orientation of masks whose images have an EXIF rotation: "upright" (as the image is displayed) or
            "as_stored" (as its file, so the mask is rotated too). "auto" infers one of them for all masks from the sizes of
            images and masks; if both fit, it assumes "upright" and prints that.
        options: Arguments of SegmentationDataModule.

    Raises:
        UserError: classes.yaml is missing, or not as above.
    """

    def __init__(
        self,
        root: str,
        val_fraction: float | None = None,
        split_seed: int = 0,
        mask_orientation: Literal["auto", "upright", "as_stored"] = "auto",
        **options: Any,  # noqa: ANN401 - jsonargparse reads the base's types
    ) -> None:
        super().__init__(**options)
        if val_fraction is not None and not 0 < val_fraction < 1:
            raise UserError(f"data.val_fraction is {val_fraction:g}: give a fraction between 0 and 1, such as 0.2")
        self.root, self.mask_orientation = root, mask_orientation
        self.val_fraction, self.split_seed = val_fraction, split_seed
        self.class_file = read_classes(root)
        self.classes, self.in_channels = self.class_file.classes, self.class_file.channels
        self.palette = self.class_file.palette or make_colors(len(self.classes))

    def split(self, name: str) -> Pairs:
        """Return the images of "train", "val" or "test".

        Raises:
            UserError: The split, an image or a mask is missing.
        """
        root = Path(self.require_root())
        if Path(name).name != name:
            raise UserError(f"'{name}' is not the name of a split: name a directory or a list in {root}")
        if self.val_fraction is None or name not in ("train", "val"):
            pairs, expected = list_split(root, name, self.class_file.layouts)
        else:
            pairs, expected = self.pool
            drawn = draw_names([pair[0] for pair in pairs], self.val_fraction, self.split_seed)
            pairs = [pair for pair in pairs if (pair[0] in drawn) == (name == "val")]
        return Pairs(pairs, self.mask_reader, expected, self.in_channels)

    @cached_property
    def pool(self) -> tuple[list[Pair], str]:
        """The result of `list_split` for the images from which the split "val" is drawn."""
        root, layouts = Path(self.require_root()), self.class_file.layouts
        if has_split(root, "val", layouts):
            raise UserError(f"{root} has a split 'val': remove data.val_fraction, which draws one")
        drawn = not has_split(root, "train", layouts)
        return list_split(root, "train", layouts, drawn)

    def list_splits(self) -> list[str]:
        """Return the splits that the directory has."""
        root = Path(self.require_root())
        drawn = () if self.val_fraction is None else ("train", "val")
        return [name for name in ("train", "val", "test") if name in drawn or has_split(root, name, self.class_file.layouts)]

    @property
    def choices(self) -> dict[str, str]:
        """The fraction of the images that is drawn as "val", and the seed."""
        return {} if self.val_fraction is None else {"val_fraction": str(self.val_fraction), "split_seed": str(self.split_seed)}

    @property
    def mask_reader(self) -> MaskReader:
        """Read mask values or colors as class ids."""
        return self.class_file.mask_reader

    @property
    def names_source(self) -> str:
        """The file of the class names."""
        return storage.join(self.require_root(), class_file.NAME)

    @property
    def texts(self) -> tuple[str, ...]:
        """classes.yaml."""
        return (class_file.NAME,)


def list_split(root: Path, name: str, layouts: Sequence[Layout] = LAYOUTS, drawn: bool = False) -> tuple[list[Pair], str]:
    """Return the images of a split with their masks; and, if none has a mask, a clause that names the expected files.

    Args:
        root: The directory of the dataset.
        name: The name of the split.
        layouts: The possible layouts of images and masks.
        drawn: Whether to read all images, whatever lists there are, since splits are drawn from them.

    Raises:
        UserError: The split, an image or a mask is missing.
    """
    files = find_files(root, name, layouts, drawn)
    path = None if drawn or not files.layout.listed else find_list(root, name)
    names = list(files.images) if path is None else read_names(path, files.images, files.directory)
    pairs = [(stem, files.images[stem], files.masks.get(stem)) for stem in names]
    where = files.masks_directory or root / files.layout.masks.format(split=name, name="NAME")
    unlabelled = {stem for stem, _, mask in pairs if not mask}
    if files.masks_directory and not files.layout.shared and (other := find_other_format(files.masks_directory, unlabelled)):
        raise UserError(f"{other} is not read as a mask: {JPEG}")
    if len(unlabelled) == len(pairs):
        if files.unpaired and path is None:
            raise UserError(
                f"no image of {files.directory} ({len(names):,}: {show_names(list(files.images.values()))}) has a mask with "
                f"its name in {where} ({len(files.unpaired):,}: {show_names(files.unpaired)}): rename the masks"
            )
        content = show_names(list_visible(files.directory if files.layout.shared else files.directory.parent), 6)
        return pairs, f"each image should have a mask, as in {files.layout.describe(name)}, but {root} holds {content}"
    check_no_problems(
        [f"{image} has no mask in {where}, and others of the split have: add it" for _, image, mask in pairs if not mask]
    )
    if path is None and "{split}" in files.layout.masks:
        check_no_problems([f"{mask} has no image in {files.directory}: add it or remove the mask" for mask in files.unpaired])
    return pairs, ""


def draw_names(names: Sequence[str], fraction: float, seed: int) -> set[str]:
    """Draw a fraction of the names, at least one: those with the lowest hashes, so that adding a name moves few others."""
    order = sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    return set(order[: max(1, round(fraction * len(names)))])
