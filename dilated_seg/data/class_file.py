"""classes.yaml of a `Folder`: names of classes, meaning of mask values or colors, and paths of files."""

import colorsys
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import yaml

from dilated_seg import storage
from dilated_seg.data.layouts import LAYOUTS, Layout
from dilated_seg.data.masks import MaskReader, make_table, read_colors, read_mask
from dilated_seg.errors import UserError, format_error

NAME = "classes.yaml"
KEYS = ("classes", "values", "colors", "ignore", "palette", "images", "masks", "channels")
MAX_CLASSES = 255  # class ids are bytes, and 255 is the ignore index
Color = tuple[int, int, int]


@dataclass(frozen=True)
class ClassFile:
    """The content of classes.yaml.

    Args:
        path: The path of the file, for messages.
        classes: The names.
        values: The class id of each mask value, 255 if it is ignored; None if masks have colors.
        colors: The class id of each color, 255 if it is ignored; None if masks have values.
        palette: The stated color of each class; empty if there is none.
        layouts: The possible layouts of images and masks.
        channels: The number of channels of the images.
    """

    path: str
    classes: tuple[str, ...]
    values: Mapping[int, int] | None
    colors: Mapping[Color, int] | None
    palette: tuple[Color, ...]
    layouts: tuple[Layout, ...]
    channels: int = 3

    @property
    def mask_reader(self) -> MaskReader:
        """Read values or colors as class ids."""
        if self.colors is not None:
            return partial(read_colors, classes=self.colors, remedy=f"add it to colors or ignore in {self.path}")
        remedy = f"map it in {self.path}, such as values: {{0: {self.classes[0]}, 255: {self.classes[-1]}}} or ignore: [255]"
        return partial(read_mask, classes=make_table(self.values or {}), palette=self.palette, copies=True, remedy=remedy)

    def describe(self, value: int | Color) -> str:
        """Return the meaning of a mask value or color: the name of a class, "ignored" or "unknown"."""
        mapping: Mapping[Any, int] = self.values if self.colors is None and self.values else self.colors or {}
        id = mapping.get(value)
        return "unknown" if id is None else "ignored" if id == 255 else self.classes[id]


def read_classes(root: str) -> ClassFile:
    """Return the content of classes.yaml; raise UserError if it is missing or not valid."""
    path = storage.join(root, NAME)
    try:
        text = storage.read_text(root, NAME)
        content = yaml.safe_load(text)
    except UserError as error:
        raise UserError(f"{error}; it should have the line classes: [background, ...]") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {format_error(error)}") from error
    listed = content.get("classes") if isinstance(content, dict) else None
    if not isinstance(listed, list) or not 2 <= len(listed) <= MAX_CLASSES:
        raise UserError(f"{path} should have the line classes: [background, ...], with 2 to {MAX_CLASSES} of them")
    if unknown := content.keys() - set(KEYS):
        raise UserError(f"{path} has the unknown key '{min(map(str, unknown))}': use {', '.join(KEYS)}")
    as_text = yaml.load(text, yaml.BaseLoader)  # so that no, 1.0 and null are names
    try:
        names = check_names(as_text["classes"])
        if content.get("values") is not None and content.get("colors") is not None:
            raise UserError("it has values and colors: keep one of them")
        values = colors = None
        if content.get("colors") is not None:
            colors = read_color_map(content, as_text["colors"], names)
        else:
            values = read_value_map(content, as_text.get("values"), names)
        palette = read_palette(content.get("palette"), names, colors)
        return ClassFile(path, names, values, colors, palette, read_layouts(content), read_channels(content))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def check_names(names: Sequence[Any]) -> tuple[str, ...]:
    """Return the names of classes; raise UserError if one is not text or occurs twice."""
    for k, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"class {k} is {name!r}, not a name: write a text, in quotes if it has ': ' or ' #'")
    if len(set(names)) < len(names):
        raise UserError("it names a class twice: rename one")
    return tuple(names)


def read_value_map(content: Mapping[str, Any], stated: Any, names: Sequence[str]) -> dict[int, int]:  # noqa: ANN401
    """Return the class id of each mask value, 255 for those that are ignored.

    ``stated`` is the key ``values``, with its scalars as text: a mapping such as {0: background, 1-20: object}, or a range such
    as 1-150 of the values of all classes in order. By default values are class ids.

    Raises:
        UserError: ``stated`` is neither, or an ignored value is also a class's.
    """
    if isinstance(stated, str):
        numbers = read_numbers(stated, "values")
        if len(numbers) != len(names):
            raise UserError(f"values: {stated} has {len(numbers)} values, but there are {len(names)} classes")
        values = dict(zip(numbers, range(len(names)), strict=True))
    elif isinstance(stated, dict):
        values = assign([(name, v) for text, name in stated.items() for v in read_numbers(text, "values")], names, "values")
    elif stated is None:
        values = {k: k for k in range(len(names))}
    else:
        raise UserError("values should be a mapping such as {0: background, 255: object}, or a range such as 1-150")
    listed = content.get("ignore", [] if 255 in values else [255])
    if not isinstance(listed, list):
        raise UserError("ignore should be a list of mask values, such as [255] or [0, 200-255]")
    ignored = [value for entry in listed for value in read_numbers(entry, "ignore")]
    for value in ignored:
        if value in values:
            other = "map the classes to other values" + (f", such as values: 1-{len(names)}" if value == 0 else "")
            raise UserError(f"ignore has the value {value}, which is class '{names[values[value]]}': remove it, or {other}")
    return values | dict.fromkeys(ignored, 255)


def read_color_map(content: Mapping[str, Any], stated: Any, names: Sequence[str]) -> dict[Color, int]:  # noqa: ANN401
    """Return the class id of each color of masks, 255 for those that are ignored.

    Raises:
        UserError: The key colors is not a mapping of each class to its colors, or an ignored color is also a class's.
    """
    entries = content["colors"]
    if not isinstance(entries, dict):
        raise UserError("colors should be a mapping such as {background: [0, 0, 0], object: [255, 0, 0]}")
    listed = zip(stated, entries.values(), strict=True)  # names as text
    several = ((name, [entry] if is_color(entry) or not isinstance(entry, list) else entry) for name, entry in listed)
    colors = assign([(name, read_color(c, "colors")) for name, entry in several for c in entry], names, "colors")
    ignored = content.get("ignore", [])
    for entry in ignored if isinstance(ignored, list) else [ignored]:
        color = read_color(entry, "ignore")
        if (id := colors.get(color, 255)) != 255:
            raise UserError(f"ignore has the color {list(color)}, which is class '{names[id]}': remove one of the two")
        colors[color] = 255
    return colors


def assign(pairs: Sequence[tuple[Any, Any]], names: Sequence[str], key: str) -> dict[Any, int]:
    """Return the class id of each value or color, from pairs with the name of a class.

    Raises:
        UserError: A name is not a class, a class has no value or color, or two classes have the same one.
    """
    mapping: dict[Any, int] = {}
    for name, value in pairs:
        if name not in names:
            raise UserError(f"{key} names '{name}', which is not one of the classes {', '.join(names[:6])}")
        if mapping.setdefault(value, names.index(name)) != names.index(name):
            raise UserError(f"{key} has {value} for '{names[mapping[value]]}' and for '{name}': remove one of the two")
    if missing := set(range(len(names))) - set(mapping.values()):
        raise UserError(f"{key} has no entry for class '{names[min(missing)]}': add it, or remove the class")
    return mapping


def read_numbers(text: Any, key: str) -> list[int]:  # noqa: ANN401 - from YAML
    """Return the mask values of a number such as 7 or a range such as 1-150; raise UserError if it is neither."""
    match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", str(text))
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
    if not 0 <= first <= last <= 255:
        raise UserError(f"{key} has {text}: give mask values from 0 to 255, such as 7, or a range of them, such as 1-150")
    return list(range(first, last + 1))


def read_color(entry: Any, key: str) -> Color:  # noqa: ANN401
    """Return a color; raise UserError if it is not [red, green, blue]."""
    if not is_color(entry):
        raise UserError(f"{key} has {entry}: give colors as [red, green, blue], each from 0 to 255")
    return (entry[0], entry[1], entry[2])


def read_palette(stated: Any, names: Sequence[str], colors: Mapping[Color, int] | None) -> tuple[Color, ...]:  # noqa: ANN401
    """Return the stated palette, else the first color of each class in masks; raise UserError if it is not valid."""
    if stated and not (isinstance(stated, list) and len(stated) == len(names) and all(map(is_color, stated))):
        raise UserError(f"palette should give [red, green, blue] (0 to 255) for each of {len(names)} classes")
    if stated or colors is None:
        return tuple(read_color(entry, "palette") for entry in stated or ())
    return tuple(next(color for color, id in colors.items() if id == k) for k in range(len(names)))


def read_layouts(content: Mapping[str, Any]) -> tuple[Layout, ...]:
    """Return the stated layout, or the known ones; raise UserError if one of its paths is not valid."""
    paths = [content.get("images"), content.get("masks")]
    if paths == [None, None]:
        return LAYOUTS
    for key, path in zip(("images", "masks"), paths, strict=True):
        if not re.fullmatch(r"(?!/)(?:[^{}]|\{split\})*\{name\}[^{}/]*", str(path)) or ".." in str(path).split("/"):
            raise UserError(
                f"{key} is {path}: give images and masks as paths below the directory without suffix, such as "
                "images: '{split}/rgb/{name}' and masks: '{split}/truth/{name}_mask'"
            )
    return (Layout(str(paths[0]), str(paths[1])),)


def read_channels(content: Mapping[str, Any]) -> int:
    """Return the stated number of channels of images, or 3; raise UserError if it is not a number above 0."""
    channels = content.get("channels", 3)
    if type(channels) is not int or channels < 1:
        raise UserError(f"channels is {channels}: give the number of channels of the images, such as 1 for gray images")
    return channels


def is_color(value: Any) -> bool:  # noqa: ANN401 - from YAML
    """Return whether a value is a list of red, green and blue from 0 to 255."""
    return isinstance(value, list) and len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value)


def make_colors(num_classes: int) -> tuple[Color, ...]:
    """Return black for the first class and equally spaced hues for the others."""
    hues = [colorsys.hsv_to_rgb(k / (num_classes - 1), 0.75, 0.9) for k in range(num_classes - 1)]
    return ((0, 0, 0), *((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in hues))
