"""Which files make up a split: images with their labels, and all that can be wrong with that, each in one sentence."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypedDict

import torch
from PIL import Image
from torch import Tensor

from dilated_seg.data.decode import ID_MODES, SIDEWAYS, ReadLabel, Source, header, label_header, read_image, say_once, turned
from dilated_seg.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg")
STRAY = ("thumbs.db", "desktop.ini", "__macosx", "@eadir")  # what operating systems leave in directories
LABEL = ".png"  # a JPEG's values are not those that were saved


Headers = tuple[tuple[int, int], int, tuple[int, int] | None]  # an image's size as stored, its orientation, its label's size


class Sample(TypedDict):
    """One image: uint8 RGB (3, H, W), its mask of class ids (H, W), and the name it goes by."""

    image: Tensor
    mask: Tensor
    id: str


class Pairs:
    """Images with their labels, in the order of the list.

    Args:
        pairs: Each image's name, its file, and its label's file; None where the label is kept back, as of test images.
        read_label: Reads a label's file as class ids (H, W).
        expected: If the images have no labels, a clause for messages that says where these were looked for.

    Raises:
        UserError: Two images have one name.
    """

    def __init__(self, pairs: Sequence[tuple[str, Path, Path | None]], read_label: ReadLabel, expected: str = "") -> None:
        self.pairs, self.read_label, self.expected = list(pairs), read_label, expected
        self.as_stored: bool | None = None  # whether labels lie as their images' files do; None: as their sizes tell
        self.labelled = all(label for *_, label in self.pairs)
        counts = Counter(name for name, *_ in self.pairs)
        self.members = {os.path.realpath(image) for _, image, _ in self.pairs}  # what two splits may have in common
        refuse([f"{name} is the name of two images: rename one" for name, n in counts.items() if n > 1])

    def fingerprint(self) -> str:
        """Changes when a file does, by its name, size or time, or the order of them."""
        files = ((name, path) for name, *both in self.pairs for path in both if path)
        facts = [(name, path.name, path.stat().st_size, path.stat().st_mtime_ns) for name, path in files]
        told = () if self.as_stored is None else (self.as_stored,)
        return hashlib.sha256(repr([*facts, *told]).encode()).hexdigest()

    def check(self) -> None:
        """Look at every file's header, once and before anything is trained: half a second for 1,000 pairs.

        Raises:
            UserError: A file is missing or damaged, an image and its label differ in size, or a label has a mode that cannot be
                read.
        """
        headers = zip(self.pairs, self.headers, strict=True)
        refuse([said for (_, image, label), read in headers if (said := size_problem(image, label, read, self.as_stored))])

    def turned_images(self) -> "Turned":
        """Return which images EXIF turns, and what their labels' sizes tell of how labels lie."""
        turned = Turned()
        for (_, image, label), read in zip(self.pairs, self.headers, strict=True):
            if label and not isinstance(read, str) and read[1] != 1:
                turned.add(image, *read)
        return turned

    @cached_property
    def headers(self) -> list[Headers | str]:
        """Return what the headers of each image and its label hold, or why they cannot be read."""
        modes: dict[str, bool] = {}
        return [read_headers(image, label, self.read_label, modes) for _, image, label in self.pairs]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        return decode(*self.pairs[index], self.read_label, self.as_stored)


@dataclass
class Turned:
    """Images that EXIF turns: the first of those whose label can only be upright, or as stored, and those that do not tell."""

    upright: Path | None = None
    as_stored: Path | None = None
    untold: list[Path] = field(default_factory=list)

    def add(self, image: Path, size: tuple[int, int], way: int, label: tuple[int, int] | None) -> None:
        """Add an image by its size as stored, its orientation, and its label's size."""
        if way not in SIDEWAYS or size[0] == size[1] or label is None:
            self.untold.append(image)
        elif label == size:
            self.as_stored = self.as_stored or image
        elif label == size[::-1]:
            self.upright = self.upright or image

    def __bool__(self) -> bool:
        return bool(self.upright or self.as_stored or self.untold)


def decode(name: str, image: Source, label: Source | None, read_label: ReadLabel, as_stored: bool | None = None) -> Sample:
    """An image and its label, or a mask that is ignored everywhere.

    Args:
        name: The image's name.
        image: Its file; EXIF turns it upright.
        label: Its label's file, if it has one.
        read_label: Reads it as class ids (H, W).
        as_stored: Whether the label lies as the image's file does, and is turned with it; if None, it is where only that
            gives it the image's size.

    Raises:
        UserError: A file is missing or damaged, a label holds what is no class, or the two differ in size.
    """
    picture = read_image(image)
    mask = read_label(label) if label else torch.full(picture.shape[1:], 255, dtype=torch.uint8)
    if label and (as_stored or (as_stored is None and mask.shape != picture.shape[1:])):
        mask = turned(mask, image)
    if mask.shape != picture.shape[1:]:
        (h1, w1), (h2, w2) = picture.shape[1:], mask.shape
        raise UserError(f"{image} is {h1} x {w1} and its label {label} is {h2} x {w2}: they must have one size")
    return Sample(image=picture, mask=mask, id=name)


def find_mask_orientation(splits: Iterable[Pairs]) -> bool | None:
    """Return whether the masks of a dataset lie as the files of their images do, or None if nothing tells.

    An image that EXIF turns on its side and that is no square tells it by its mask's size.

    Raises:
        UserError: Some do and others are upright.
    """
    upright = as_stored = None
    for split in splits:
        turned = split.turned_images()
        upright, as_stored = upright or turned.upright, as_stored or turned.as_stored
        if upright and as_stored:
            raise UserError(
                f"EXIF turns {upright}, whose mask is upright, and {as_stored}, whose mask lies as the file does: turn one "
                "of the two masks, since all masks of a dataset must lie in one way"
            )
    return bool(as_stored) if upright or as_stored else None


class DataError(UserError):
    """Several files are not as they should be: the first of them in a sentence, all of them in ``problems``."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        more = f"; {len(problems) - 1} more such problems" if len(problems) > 1 else ""
        super().__init__(problems[0] + more)


def refuse(problems: Sequence[str]) -> None:
    """Raise what is wrong, if anything is."""
    if problems:
        raise DataError(problems)


def partners(images: Path, labels: Path, endings: tuple[str, str] = ("", "")) -> list[tuple[str, Path, Path | None]]:
    """The images of a folder with the labels of another that have the same name, but for an ending of each.

    Raises:
        UserError: A folder is missing, holds files that cannot be used, an image has no label or a label no image.
    """
    found = []
    for folder, ending in zip((images, labels), endings, strict=True):
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder: it should hold the {'images' if folder == images else 'labels'}")
        suffixes = SUFFIXES if folder == images else (LABEL,)
        found.append(by_name(folder, ending, suffixes))
        require_usable(folder, found[-1], suffixes)
    pictures, masks = found
    return paired(pictures, masks, images, labels)


def paired(
    images: Mapping[str, Path], labels: Mapping[str, Path], image_folder: Path, label_folder: Path
) -> list[tuple[str, Path, Path | None]]:
    """Images and labels of the same names.

    Raises:
        UserError: An image has no label or a label no image.
    """
    if images and labels and not images.keys() & labels.keys():
        raise UserError(
            f"no image of {image_folder} ({len(images):,}: {show_names(list(images.values()))}) has a label of its name in "
            f"{label_folder} ({len(labels):,}: {show_names(list(labels.values()))}): rename the labels"
        )
    refuse(
        [
            f"{files[name]} has no {what} in {folder}: add it or remove its partner"
            for files, others, what, folder in (
                (images, labels, "label", label_folder),
                (labels, images, "image", image_folder),
            )
            for name in sorted(files.keys() - others.keys())
        ]
    )
    return [(name, path, labels[name]) for name, path in images.items()]


def by_name(folder: Path, ending: str = "", suffixes: Sequence[str] = SUFFIXES) -> dict[str, Path]:
    """A folder's files of these kinds by name, without the ending of each; hidden files are none.

    Raises:
        UserError: Two files have one name.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and path.stem.endswith(ending) and not path.name.startswith("."):
            name = path.stem.removesuffix(ending)
            if name in found:
                raise UserError(f"{found[name]} and {path.name} have one name: remove one of them")
            found[name] = path
    return found


def list_visible(directory: Path) -> list[Path]:
    """Return what is in a directory, without hidden files and those that operating systems leave everywhere."""
    return [path for path in sorted(directory.iterdir()) if path.name[0] != "." and path.name.lower() not in STRAY]


def require_usable(directory: Path, used: Mapping[str, Path], suffixes: Sequence[str]) -> None:
    """Refuse a directory that is used whole and holds images that are not read; say once what else is passed over.

    An image in another format of the same name as a file that is used is only said.

    Args:
        directory: The directory.
        used: The files of it that are read, by name.
        suffixes: How their names end.

    Raises:
        UserError: There are images in other formats, or in directories below.
    """
    read, stems = set(used.values()), {path.stem for path in used.values()}
    others = [path for path in list_visible(directory) if path not in read]
    lost = [path for path in others if (holds_images(path) if path.is_dir() else is_image(path) and path.stem not in stems)]
    if lost:
        jpeg = " (as JPEG, masks lose their classes: export them again)" if suffixes == (LABEL,) else ""
        raise UserError(
            f"{directory} holds {len(used):,} files that are read and {len(lost):,} that are not ({show_names(lost)}): only "
            f"{', '.join(suffixes)} directly in it are read, so convert, move or remove the others{jpeg}"
        )
    if others:
        line = f"{directory}: {len(others):,} files or directories are passed over ({show_names(others)})"
        say_once(str(directory).encode(), line)


def is_image(path: Path) -> bool:
    """Return whether a file is in a format that Pillow reads, by its suffix."""
    return Image.registered_extensions().get(path.suffix.lower()) in Image.OPEN


def holds_images(directory: Path) -> bool:
    """Return whether there is an image in a directory or below."""
    return any(is_image(path) and path.name[0] != "." for path in directory.rglob("*"))


def show_names(paths: Sequence[Path], most: int = 3) -> str:
    """Return the first names of files and directories, separated by commas."""
    shown = [path.name + ("/" if path.is_dir() else "") for path in paths[:most]]
    return ", ".join([*shown, "..."] if len(paths) > most else shown)


def names(path: Path) -> list[str]:
    """A list file's names, one a line."""
    try:
        found = [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"cannot read the list {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the list {path} is no UTF-8 text: save it as such") from error
    if not found:
        raise UserError(f"the list {path} is empty: it should hold a name a line")
    if twice := [name for name, count in Counter(found).items() if count > 1]:
        raise UserError(f"the list {path} names {twice[0]} twice: remove one of the lines")
    return found


def read_headers(image: Path, label: Path | None, read_label: ReadLabel, modes: dict[str, bool]) -> Headers | str:
    """Return an image's size as stored, its orientation, and its label's size; or why they cannot be read.

    Args:
        image: The image.
        label: Its label.
        read_label: Reads a label; whether it takes labels of a mode is tried with the first of that mode.
        modes: Those tried before, and the result; a new one is added.
    """
    try:
        if label is None or label.suffix.lower() != LABEL:
            return *header(image), None  # SBD's labels have no header to look at: they are compared as they are read
        size, mode = label_header(label)
        if mode not in modes:
            modes[mode] = mode in ID_MODES
            if not modes[mode]:
                read_label(label)
                modes[mode] = True
        if not modes[mode]:
            return f"{label} has mode {mode}, which is not read as a label of this dataset"
        return *header(image), size
    except UserError as error:
        return str(error)


def size_problem(image: Path, label: Path | None, read: Headers | str, as_stored: bool | None = None) -> str | None:
    """Return what the headers of an image and its label say against them, if anything.

    Args:
        image: The image, which its EXIF may turn upright.
        label: Its label.
        read: What `read_headers` gave.
        as_stored: Whether the label should lie as the image's file does, or upright; either is right if None.
    """
    if isinstance(read, str):
        return read
    stored, way, size = read
    upright = stored[::-1] if way in SIDEWAYS else stored
    if size is None or size in {None: (stored, upright), True: (stored,), False: (upright,)}[as_stored]:
        return None
    (w1, h1), (w2, h2) = stored if as_stored else upright, size
    problem = f"{image} is {h1} x {w1} and its label {label} is {h2} x {w2}: they must have one size"
    if size in (stored, upright):
        problem += f", where EXIF turns the image and masks are taken to lie {'as stored' if as_stored else 'upright'}"
    return problem
