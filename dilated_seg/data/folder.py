"""A folder of the user's own images and masks."""

import colorsys
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from dilated_seg import UserError, manifest
from dilated_seg.data.base import SegmentationDataModule
from dilated_seg.data.files import LABEL, SUFFIXES, Pairs, by_name, names, refuse
from dilated_seg.images import ReadLabel, read_mask, values_as

CLASSES = "classes.yaml"


class Folder(SegmentationDataModule):
    """Your own data: ``images/NAME.jpg`` (or .png) with ``masks/NAME.png``, and ``classes.yaml``.

    A mask's value is the class id, in the order of the classes; 255, or what ``ignore`` says, is ignored. The file reads::

        classes: [background, road, car]
        palette: [[0, 0, 0], [128, 64, 128], [0, 0, 142]]   # optional
        ignore: [255]                                       # optional: values of the masks that count nowhere

    The splits are the lists ``train.txt``, ``val.txt`` and ``test.txt``, a name a line; or folders of these names, each with
    images/ and masks/. A split whose images have no masks at all can be predicted, not scored. Photographs are turned upright
    by their EXIF; a mask is taken to be upright already, unless it has the size of the file as it lies.

    Args:
        root: The folder.
        options: See SegmentationDataModule.

    Raises:
        UserError: There is no classes.yaml, or it is not as above.
    """

    def __init__(self, root: str, **options: Any) -> None:  # noqa: ANN401 - jsonargparse reads the base's types
        super().__init__(**options)
        self.root = root
        facts = read_facts(root)
        self.classes = tuple(map(str, facts["classes"]))
        self.stated = tuple(tuple(colour) for colour in facts.get("palette") or ())  # colors made up here say nothing of masks
        self.palette = self.stated or tuple(tuple(colour) for colour in colours(len(self.classes)))
        values = {k: k for k in range(len(self.classes))} | dict.fromkeys(facts.get("ignore", [255]), 255)
        self.values = values_as(values)

    def split(self, name: str) -> Pairs:
        """The images of "train", "val" or "test".

        Raises:
            UserError: The split, an image or a mask is missing.
        """
        root = Path(self.place())
        if Path(name).name != name:
            raise UserError(f"'{name}' is no name of a split: {CLASSES} lies beside the lists and folders that are")
        inside = root / name if (root / name).is_dir() else root
        if not (inside / "images").is_dir():
            raise UserError(f"{inside / 'images'} is no folder: it should hold the images")
        images = by_name(inside / "images")
        masks = by_name(inside / "masks", suffixes=(LABEL,)) if (inside / "masks").is_dir() else {}
        listed = list(images) if inside != root else [known(line, images) for line in names(root / f"{name}.txt")]
        unknown = [stem for stem in listed if stem not in images]
        refuse([f"{root / name}.txt names {stem}, which is not in {inside / 'images'}" for stem in unknown])
        without = [stem for stem in listed if stem not in masks]
        if len(without) < len(listed):
            refuse([f"{images[s]} has no mask {inside / 'masks' / s}.png, and others of the split have" for s in without])
        return Pairs([(stem, images[stem], masks.get(stem)) for stem in listed], self.read_label)

    @property
    def read_label(self) -> ReadLabel:
        """Values of the masks as class ids."""
        return partial(read_mask, classes=self.values, palette=self.stated)

    @property
    def texts(self) -> tuple[str, ...]:
        """The facts belong to the shards as well."""
        return (CLASSES,)

    def available(self) -> list[str]:
        """The splits that the folder has."""
        root = Path(self.place())
        return [name for name in ("train", "val", "test") if (root / name).is_dir() or (root / f"{name}.txt").is_file()]


def known(line: str, images: dict[str, Path]) -> str:
    """A list's line as an image's name, with or without its suffix."""
    path = Path(line)
    return path.stem if line not in images and path.suffix.lower() in SUFFIXES else line


def read_facts(root: str) -> dict[str, Any]:
    """What classes.yaml says.

    Raises:
        UserError: The file is missing or says something else.
    """
    path = manifest.join(root, CLASSES)
    try:
        facts = yaml.safe_load(manifest.read_text(root, CLASSES))
    except UserError as error:
        raise UserError(f"{error}; it should say classes: [background, ...]") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(facts, dict) or not isinstance(facts.get("classes"), list) or not 2 <= len(facts["classes"]) <= 250:
        raise UserError(f"{path} should say classes: [background, ...], from 2 to 250 of them")
    if unknown := facts.keys() - {"classes", "palette", "ignore"}:
        raise UserError(f"{path} has the unknown key '{min(map(str, unknown))}': classes, palette and ignore are known")
    if len(set(map(str, facts["classes"]))) < len(facts["classes"]):
        raise UserError(f"{path} names a class twice")
    byte = range(256)
    palette, ignore = facts.get("palette"), facts.get("ignore", [255])
    if palette and not (
        isinstance(palette, list)
        and len(palette) == len(facts["classes"])
        and all(isinstance(c, list) and len(c) == 3 and all(type(v) is int and v in byte for v in c) for c in palette)
    ):
        raise UserError(
            f"{path}: palette should give [red, green, blue] (0 to 255) for each of {len(facts['classes'])} classes"
        )
    if not isinstance(ignore, list) or not all(type(v) is int and v in byte and v >= len(facts["classes"]) for v in ignore):
        raise UserError(f"{path}: ignore should list values of the masks from {len(facts['classes'])} to 255, such as [255]")
    return facts


def colours(classes: int) -> list[list[int]]:
    """Colours as different as a circle has room for; black for the first class."""
    return [[0, 0, 0]] + [
        [round(255 * v) for v in colorsys.hsv_to_rgb(k / (classes - 1), 0.75, 0.9)] for k in range(classes - 1)
    ]
