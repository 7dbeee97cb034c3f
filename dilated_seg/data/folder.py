"""A folder of the user's own images and masks."""

import colorsys
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import yaml

from dilated_seg import storage
from dilated_seg.data.datamodule import SegmentationDataModule
from dilated_seg.data.directories import (
    MASK_SUFFIX,
    SUFFIXES,
    check_no_problems,
    index_files,
    is_image,
    list_pairs,
    list_visible,
    read_list,
    require_usable,
    show_names,
)
from dilated_seg.data.masks import ReadLabel, make_table, read_mask
from dilated_seg.data.pairs import Pair, Pairs
from dilated_seg.errors import UserError, format_error

CLASSES = "classes.yaml"


class Folder(SegmentationDataModule):
    """Your own data: ``images/NAME.jpg`` (or .png) with ``masks/NAME.png``, and ``classes.yaml``.

    A mask's value is the class id, in the order of the classes; 255, or what ``ignore`` says, is ignored. The file reads::

        classes: [background, road, car]
        palette: [[0, 0, 0], [128, 64, 128], [0, 0, 142]]   # optional
        ignore: [255]                                       # optional: values of the masks that count nowhere

    The splits are the lists ``train.txt``, ``val.txt`` and ``test.txt``, a name a line; or folders of these names, each with
    images/ and masks/. A split whose images have no masks at all can be predicted, not scored. Photographs are turned upright
    by their EXIF; ``mask_orientation`` says how their masks lie.

    Args:
        root: The folder.
        mask_orientation: How masks are stored whose images EXIF turns: "upright", as the image is seen, or "as_stored", as its
            file, and are then turned with it; "auto" finds it out for the whole dataset, or takes "upright" and prints that.
        options: See SegmentationDataModule.

    Raises:
        UserError: There is no classes.yaml, or it is not as above.
    """

    def __init__(
        self,
        root: str,
        mask_orientation: Literal["auto", "upright", "as_stored"] = "auto",
        **options: Any,  # noqa: ANN401 - jsonargparse reads the base's types
    ) -> None:
        super().__init__(**options)
        self.root, self.mask_orientation = root, mask_orientation
        facts = read_facts(root)
        self.classes = tuple(facts["classes"])
        self.stated = tuple(tuple(colour) for colour in facts.get("palette") or ())  # colors made up here say nothing of masks
        self.palette = self.stated or tuple(tuple(color) for color in make_colors(len(self.classes)))
        values = {k: k for k in range(len(self.classes))} | dict.fromkeys(facts.get("ignore", [255]), 255)
        self.values = make_table(values)

    def split(self, name: str) -> Pairs:
        """The images of "train", "val" or "test".

        Raises:
            UserError: The split, an image or a mask is missing.
        """
        root = Path(self.require_root())
        if Path(name).name != name:
            raise UserError(f"'{name}' is no name of a split: {CLASSES} lies beside the lists and folders that are")
        if not (root / name).is_dir():
            expected = f"each image of {name}.txt should have {root / 'masks'}/NAME.png"
            return Pairs(self.list_named_pairs(root, name), self.read_label, expected)
        images, masks = root / name / "images", root / name / "masks"
        require_images(images)
        if masks.is_dir() and list_visible(masks):
            return Pairs(list_pairs(images, masks), self.read_label)
        files = index_files(images)
        require_usable(images, files, SUFFIXES)
        holds = show_names(list_visible(root / name), 6)
        expected = f"each image should have {masks}/NAME.png, but {root / name} holds {holds}"
        return Pairs([(stem, path, None) for stem, path in files.items()], self.read_label, expected)

    def list_named_pairs(self, root: Path, name: str) -> list[Pair]:
        """Return the images that a split's list names, with their masks.

        Raises:
            UserError: The list or a file that it names is missing, or some images have masks and others have none.
        """
        path = root / f"{name}.txt"
        if not path.is_file():
            require_split(root, name)
        require_images(root / "images")
        images = index_files(root / "images")
        masks = index_files(root / "masks", suffixes=(MASK_SUFFIX,)) if (root / "masks").is_dir() else {}
        listed = [strip_suffix(line, images) for line in read_list(path)]
        check_no_problems(
            [f"the list {path} names {stem} twice: remove one of the lines" for stem, n in Counter(listed).items() if n > 1]
        )
        unknown = [stem for stem in listed if stem not in images]
        hint = hint_at_image(unknown, root / "images")
        check_no_problems([f"{path} names {stem}, which is not in {root / 'images'}{hint}" for stem in unknown])
        without = [stem for stem in listed if stem not in masks]
        hint = hint_at_mask(without, root / "masks", images)
        if hint or len(without) < len(listed):
            end = hint or ", and others of the split have"
            check_no_problems([f"{images[stem]} has no mask {root / 'masks' / stem}.png{end}" for stem in without])
        return [(stem, images[stem], masks.get(stem)) for stem in listed]

    @property
    def names_source(self) -> str:
        """The file of the class names."""
        return storage.join(self.require_root(), CLASSES)

    @property
    def read_label(self) -> ReadLabel:
        """Values of the masks as class ids."""
        return partial(read_mask, classes=self.values, palette=self.stated)

    @property
    def texts(self) -> tuple[str, ...]:
        """The facts belong to the shards as well."""
        return (CLASSES,)

    def list_splits(self) -> list[str]:
        """Return the splits that the directory has."""
        root = Path(self.require_root())
        return [name for name in ("train", "val", "test") if (root / name).is_dir() or (root / f"{name}.txt").is_file()]


def require_images(images: Path) -> None:
    """Refuse a split whose images/ is missing or holds no image.

    Raises:
        UserError: It is or does.
    """
    if not images.is_dir():
        near = show_names(list_visible(images.parent), 6) or "nothing"
        raise UserError(f"{images} is no folder: it should hold the images, but {images.parent} holds {near}")
    if not index_files(images):
        others = list_visible(images)
        holds = f"{len(others):,} others ({show_names(others)}): convert or move them" if others else "nothing"
        raise UserError(f"{images} has no images that are read, whose names end in {', '.join(SUFFIXES)}; it holds {holds}")


def require_split(root: Path, name: str) -> None:
    """Refuse a split that has neither a directory nor a list, and name what is there instead.

    Raises:
        UserError: Always.
    """
    near = list_visible(root) if root.is_dir() else []
    meant = [path for path in near if path.name.lower().startswith(name) and (path.is_dir() or path.suffix == ".txt")]
    rename = f": rename {show_names(meant[:1])} to {name}{meant[0].suffix}" if meant else ""
    raise UserError(
        f"{root} has no split '{name}', neither {name}/ with images/ and masks/ nor the list {name}.txt; it holds "
        f"{show_names(near, 8) or 'nothing'}{rename}"
    )


def hint_at_image(stems: Sequence[str], images: Path) -> str:
    """Return a clause on what the first of some names that are no images may mean; empty if nothing is like it."""
    if not stems:
        return ""
    if len(parts := re.split(r"[\s,;]+", stems[0])) > 1 and all(Path(part).suffix for part in parts):
        return ": a list has one name a line, not an image and its mask"
    meant = stems[0].lower()
    close = [path for path in list_visible(images) if is_image(path) and meant in (path.stem.lower(), path.name.lower())]
    return f": {show_names(close)} is there, so convert or rename it" if close else ""


def hint_at_mask(stems: Sequence[str], masks: Path, images: Mapping[str, Path]) -> str:
    """Return a clause on a file that is no image's mask and may be meant as that of one of these; empty if there is none.

    It has the image's name and another suffix, or the name with something before or after it, such as NAME_mask.png.
    """
    wanted = {stem.lower() for stem in stems}
    others = list_visible(masks) if wanted and masks.is_dir() else []
    for path in others:
        if is_image(path) and not (path.suffix.lower() == MASK_SUFFIX and path.stem in images):
            parts = re.split(r"([\W_]+)", path.stem.lower())
            cuts = [("".join(parts[:k]), "".join(parts[k:])) for k in range(len(parts) + 1)]
            meant = [rest for first, last in cuts for name, rest in ((first, last), (last, first)) if name in wanted]
            if not all(any(letter.isdigit() for letter in rest) for rest in meant):  # photo_1 is another image than photo
                return f": {path.name} is there, so rename it, or export it as .png"
    return ""


def strip_suffix(line: str, images: dict[str, Path]) -> str:
    """Return a list's line as an image's name, without its suffix if it has one."""
    path = Path(line)
    return path.stem if line not in images and path.suffix.lower() in SUFFIXES and path.stem in images else line


def read_facts(root: str) -> dict[str, Any]:
    """Return the content of classes.yaml.

    Raises:
        UserError: The file is missing or says something else.
    """
    path = storage.join(root, CLASSES)
    try:
        text = storage.read_text(root, CLASSES)
        facts = yaml.safe_load(text)
    except UserError as error:
        raise UserError(f"{error}; it should say classes: [background, ...]") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no YAML: {format_error(error)}") from error
    if not isinstance(facts, dict) or not isinstance(facts.get("classes"), list) or not 2 <= len(facts["classes"]) <= 250:
        raise UserError(f"{path} should say classes: [background, ...], from 2 to 250 of them")
    if unknown := facts.keys() - {"classes", "palette", "ignore"}:
        raise UserError(f"{path} has the unknown key '{min(map(str, unknown))}': classes, palette and ignore are known")
    facts["classes"] = yaml.load(text, yaml.BaseLoader)["classes"]  # as written: no, 1.0 and null are names as well
    for number, name in enumerate(facts["classes"]):
        if not isinstance(name, str) or not name.strip():
            raise UserError(
                f"{path}: class {number} is {name!r}, which is no name: write a text, in quotes if it has ': ' or ' #'"
            )
    if len(set(facts["classes"])) < len(facts["classes"]):
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


def make_colors(num_classes: int) -> list[list[int]]:
    """Return equally spaced hues, one color for each class; black for the first."""
    return [[0, 0, 0]] + [
        [round(255 * v) for v in colorsys.hsv_to_rgb(k / (num_classes - 1), 0.75, 0.9)] for k in range(num_classes - 1)
    ]
