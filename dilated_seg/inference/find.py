"""The pictures that files, folders and patterns name, and what their results are called."""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from dilated_seg.errors import UserError

# What is written below the folder of results, of which nothing is a picture to segment.
KINDS = ("labels", "overlays", "probabilities")
VOC_FOLDER = Path("results", "VOC2012", "Segmentation", "comp6_test_cls")  # comp6: trained on more than VOC's own images

# Formats that Pillow leaves to other programs, or only names.
NOT_READ = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}


@dataclass(frozen=True)
class Found:
    """A picture to segment, and its name below the folder of results, without suffix."""

    file: Path
    name: Path


def find(sources: Sequence[str], out: Path) -> list[Found]:
    """The pictures of files, folders with all below them, and patterns such as 'street/**/*.jpg', each once.

    What `Writer` writes below ``out`` is none of them. Names keep the folders below a source, or below what all sources have
    in common. What does not exist or cannot be looked into is among them: to read it says so.
    """
    written = [out.absolute() / kind for kind in (*KINDS, "submission", VOC_FOLDER.parts[0])]
    looked = [look(source) for source in sources]
    bases = [
        os.path.normpath(base.absolute()) for base, pictures in looked if any(os.path.exists(picture) for picture in pictures)
    ]
    common = Path(os.path.commonpath(bases)) if bases else Path.cwd()
    found: dict[Path, Found] = {}
    for picture in (picture for _, pictures in looked for picture in pictures):
        file = Path(os.path.normpath(picture.absolute()))
        if not any(folder in file.parents for folder in written):
            name = file.relative_to(common) if common in file.parents else Path(file.name)
            name = name.with_suffix("") if name.suffix.lower() in suffixes() else name
            found.setdefault(real(file.parent) / file.name, Found(picture, name))
    return list(found.values())


def look(source: str) -> tuple[Path, list[Path]]:
    """What a source is: the folder that names are taken from, and its pictures, those in the fewest folders first.

    Raises:
        UserError: The source has no name.
    """
    if not source:
        raise UserError("a PICTURE has no name: is it an empty variable?")
    place = Path(source)
    try:
        if place.is_dir():
            return place, sorted(below(place), key=order) or [place]
        if glob.has_magic(source) and not place.exists():
            first = next(number for number, part in enumerate(place.parts) if glob.has_magic(part))
            matching = [Path(match) for match in glob.glob(source, recursive=True)]
            return Path(*place.parts[:first]), sorted((p for p in matching if not p.is_dir()), key=order) or [place]
    except (OSError, RuntimeError):
        pass  # to read it says why
    return place.parent, [place]


def below(place: Path) -> list[Path]:
    """The pictures in a folder and all below it that are not hidden, and the folders that cannot be looked into."""
    found: list[Path] = []

    def note(error: OSError) -> None:
        found.append(Path(error.filename))

    for folder, folders, names in os.walk(place, onerror=note):
        folders[:] = [name for name in folders if not name.startswith(".")]  # only these are walked into
        visible = (Path(folder, name) for name in names if not name.startswith("."))
        found += [path for path in visible if path.suffix.lower() in suffixes()]
    return found


def order(path: Path) -> tuple[int, Path]:
    """Near files first, then by name."""
    return len(path.parts), path


def real(folder: Path) -> Path:
    """A folder without symbolic links, as far as it can be said."""
    try:
        return folder.resolve()
    except (OSError, RuntimeError):
        return folder


@cache
def suffixes() -> frozenset[str]:
    """How the names of picture files end: of what Pillow reads by itself."""
    readable = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN and kind not in NOT_READ}
    return frozenset(readable)
