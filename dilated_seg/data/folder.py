"""A directory of the user's own images and masks."""

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
from dilated_seg.data.masks import MaskReader, make_table, read_mask
from dilated_seg.data.pairs import Pair, Pairs
from dilated_seg.errors import UserError, format_error

CLASSES = "classes.yaml"


class Folder(SegmentationDataModule):
    """Your own data: ``images/NAME.jpg`` (or .png) with ``masks/NAME.png``, and ``classes.yaml``.

    A mask's value is the class id, in the order of the classes. ``classes.yaml`` is::

        classes: [background, road, car]
        palette: [[0, 0, 0], [128, 64, 128], [0, 0, 142]]   # optional
        ignore: [255]                                       # optional: mask values that are ignored; 255 by default

    The splits are the lists ``train.txt``, ``val.txt`` and ``test.txt``, one name a line; or directories of these names, each
    with images/ and masks/. A split whose images have no masks at all can be predicted, not scored.

    Args:
        root: The directory.
        mask_orientation: Orientation of the stored masks of images that EXIF rotates: "upright"; or "as_stored", like the
            image's file, so that they are rotated with it. "auto" infers this for the whole dataset from the sizes of images
            and masks; if both are possible, it assumes "upright" and prints that.
        options: Arguments of SegmentationDataModule.

    Raises:
        UserError: classes.yaml is missing, or not as above.
    """

    def __init__(
        self,
        root: str,
        mask_orientation: Literal["auto", "upright", "as_stored"] = "auto",
        **options: Any,  # noqa: ANN401 - jsonargparse reads the base's types
    ) -> None:
        super().__init__(**options)
        self.root, self.mask_orientation = root, mask_orientation
        content = read_classes(root)
        self.classes = tuple(content["classes"])
        self.stated_palette = tuple(tuple(color) for color in content.get("palette") or ())  # used to read masks
        self.palette = self.stated_palette or tuple(tuple(color) for color in make_colors(len(self.classes)))
        values = {k: k for k in range(len(self.classes))} | dict.fromkeys(content.get("ignore", [255]), 255)
        self.values = make_table(values)

    def split(self, name: str) -> Pairs:
        """Return the images of "train", "val" or "test".

        Raises:
            UserError: The split, an image or a mask is missing.
        """
        root = Path(self.require_root())
        if Path(name).name != name:
            raise UserError(f"'{name}' is not a name of a split: {CLASSES} is in the directory of the lists or splits")
        if not (root / name).is_dir():
            expected = f"each image of {name}.txt should have {root / 'masks'}/NAME.png"
            return Pairs(self.list_named_pairs(root, name), self.mask_reader, expected)
        images, masks = root / name / "images", root / name / "masks"
        require_images(images)
        if masks.is_dir() and list_visible(masks):
            return Pairs(list_pairs(images, masks), self.mask_reader)
        files = index_files(images)
        require_usable(images, files, SUFFIXES)
        content = show_names(list_visible(root / name), 6)
        expected = f"each image should have {masks}/NAME.png, but {root / name} holds {content}"
        return Pairs([(stem, path, None) for stem, path in files.items()], self.mask_reader, expected)

    def list_named_pairs(self, root: Path, name: str) -> list[Pair]:
        """Return the images that a split's list names, with their masks.

        Raises:
            UserError: The list or a file that it names is missing, or only some images have masks.
        """
        path = root / f"{name}.txt"
        if not path.is_file():
            raise explain_missing_split(root, name)
        require_images(root / "images")
        images = index_files(root / "images")
        masks = index_files(root / "masks", suffixes=(MASK_SUFFIX,)) if (root / "masks").is_dir() else {}
        stems = [strip_suffix(line, images) for line in read_list(path)]
        check_no_problems(
            [f"the list {path} names {stem} twice: remove one of the lines" for stem, n in Counter(stems).items() if n > 1]
        )
        unknown = [stem for stem in stems if stem not in images]
        hint = hint_at_image(unknown, root / "images")
        check_no_problems([f"{path} names {stem}, which is not in {root / 'images'}{hint}" for stem in unknown])
        unlabelled = [stem for stem in stems if stem not in masks]
        hint = hint_at_mask(unlabelled, root / "masks", images)
        if hint or len(unlabelled) < len(stems):
            end = hint or ", and others of the split have"
            check_no_problems([f"{images[stem]} has no mask {root / 'masks' / stem}.png{end}" for stem in unlabelled])
        return [(stem, images[stem], masks.get(stem)) for stem in stems]

    @property
    def names_source(self) -> str:
        """The file of the class names."""
        return storage.join(self.require_root(), CLASSES)

    @property
    def mask_reader(self) -> MaskReader:
        """Read mask values as class ids."""
        return partial(read_mask, classes=self.values, palette=self.stated_palette)

    @property
    def texts(self) -> tuple[str, ...]:
        """classes.yaml."""
        return (CLASSES,)

    def list_splits(self) -> list[str]:
        """Return the splits that the directory has."""
        root = Path(self.require_root())
        return [name for name in ("train", "val", "test") if (root / name).is_dir() or (root / f"{name}.txt").is_file()]


def require_images(images: Path) -> None:
    """Raise UserError if a split's images/ is missing or holds no image."""
    if not images.is_dir():
        content = show_names(list_visible(images.parent), 6) or "nothing"
        raise UserError(f"{images} is not a directory: it should hold the images, but {images.parent} holds {content}")
    if not index_files(images):
        others = list_visible(images)
        content = f"{len(others):,} others ({show_names(others)}): convert or move them" if others else "nothing"
        raise UserError(f"{images} has no images whose names end in {', '.join(SUFFIXES)}; it holds {content}")


def explain_missing_split(root: Path, name: str) -> UserError:
    """Return the error for a split that has neither a directory nor a list; it names the files that exist."""
    content = list_visible(root) if root.is_dir() else []
    similar = [path for path in content if path.name.lower().startswith(name) and (path.is_dir() or path.suffix == ".txt")]
    rename = f": rename {show_names(similar[:1])} to {name}{similar[0].suffix}" if similar else ""
    return UserError(
        f"{root} has no split '{name}', neither {name}/ with images/ and masks/ nor the list {name}.txt; it holds "
        f"{show_names(content, 8) or 'nothing'}{rename}"
    )


def hint_at_image(stems: Sequence[str], images: Path) -> str:
    """Return a clause that explains why the first of these names may have no image; empty if no reason is found."""
    if not stems:
        return ""
    if len(parts := re.split(r"[\s,;]+", stems[0])) > 1 and all(Path(part).suffix for part in parts):
        return ": a list has one name a line, not an image and its mask"
    stem = stems[0].lower()
    similar = [path for path in list_visible(images) if is_image(path) and stem in (path.stem.lower(), path.name.lower())]
    return f": {show_names(similar)} is there, so convert or rename it" if similar else ""


def hint_at_mask(stems: Sequence[str], masks: Path, images: Mapping[str, Path]) -> str:
    """Return a clause on a file that is probably the mask of one of these images under another name; empty if there is none.

    It has the image's name and another suffix, or the name with something before or after it, such as NAME_mask.png.
    """
    names = {stem.lower() for stem in stems}
    for path in list_visible(masks) if names and masks.is_dir() else []:
        if is_image(path) and not (path.suffix.lower() == MASK_SUFFIX and path.stem in images):
            parts = re.split(r"([\W_]+)", path.stem.lower())
            cuts = [("".join(parts[:k]), "".join(parts[k:])) for k in range(len(parts) + 1)]
            affixes = [affix for first, last in cuts for name, affix in ((first, last), (last, first)) if name in names]
            if not all(any(letter.isdigit() for letter in affix) for affix in affixes):  # photo_1 is not the mask of photo
                return f": {path.name} is there, so rename it, or export it as .png"
    return ""


def strip_suffix(line: str, images: dict[str, Path]) -> str:
    """Return the name of an image in a list's line, which may have the suffix of its file."""
    path = Path(line)
    return path.stem if line not in images and path.suffix.lower() in SUFFIXES and path.stem in images else line


def read_classes(root: str) -> dict[str, Any]:
    """Return the content of classes.yaml; raise UserError if it is missing or not valid."""
    path = storage.join(root, CLASSES)
    try:
        text = storage.read_text(root, CLASSES)
        content = yaml.safe_load(text)
    except UserError as error:
        raise UserError(f"{error}; it should have the line classes: [background, ...]") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {format_error(error)}") from error
    if not isinstance(content, dict) or not isinstance(content.get("classes"), list) or not 2 <= len(content["classes"]) <= 250:
        raise UserError(f"{path} should have the line classes: [background, ...], with 2 to 250 of them")
    if unknown := content.keys() - {"classes", "palette", "ignore"}:
        raise UserError(f"{path} has the unknown key '{min(map(str, unknown))}': use classes, palette and ignore")
    content["classes"] = names = yaml.load(text, yaml.BaseLoader)["classes"]  # as text: no, 1.0 and null are names too
    for k, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{path}: class {k} is {name!r}, not a name: write a text, in quotes if it has ': ' or ' #'")
    if len(set(names)) < len(names):
        raise UserError(f"{path} names a class twice: rename one")
    palette, ignore = content.get("palette"), content.get("ignore", [255])
    if palette and not (isinstance(palette, list) and len(palette) == len(names) and all(map(is_color, palette))):
        raise UserError(f"{path}: palette should give [red, green, blue] (0 to 255) for each of {len(names)} classes")
    if not isinstance(ignore, list) or not all(type(v) is int and len(names) <= v <= 255 for v in ignore):
        raise UserError(f"{path}: ignore should list mask values from {len(names)} to 255, such as [255]")
    return content


def is_color(value: Any) -> bool:  # noqa: ANN401 - from YAML
    """Return whether a value is a list of red, green and blue from 0 to 255."""
    return isinstance(value, list) and len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value)


def make_colors(num_classes: int) -> list[list[int]]:
    """Return black for the first class and equally spaced hues for the others."""
    return [[0, 0, 0]] + [
        [round(255 * v) for v in colorsys.hsv_to_rgb(k / (num_classes - 1), 0.75, 0.9)] for k in range(num_classes - 1)
    ]
