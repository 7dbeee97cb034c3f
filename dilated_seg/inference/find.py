"""Finds the images of files, directories and patterns, and names their results."""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from dilated_seg.errors import UserError

# Directories of results, whose files are not images to segment.
KINDS = ("labels", "overlays", "probabilities")
SUBMISSION = Path("submission")
VOC_SUBMISSION = Path("results", "VOC2012", "Segmentation", "comp6_test_cls")  # comp6: trained on more than VOC's own images

# Formats that Pillow reads with other programs, or cannot read.
NOT_READ = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}


@dataclass(frozen=True)
class ImageFile:
    """An image to segment, and its name below the directory of results, without suffix."""

    file: Path
    name: Path


def find_images(sources: Sequence[str], out: Path) -> list[ImageFile]:
    """Return the images of files, directories with all below them, and patterns such as 'street/**/*.jpg', each once.

    Names keep the directories below a source, or below a pattern's first wildcard. Results below ``out`` are left out. Missing
    and unreadable files are included: reading them fails.

    Raises:
        UserError: A source is an empty string.
    """
    results = [Path(os.path.abspath(out / kind)) for kind in (*KINDS, SUBMISSION, VOC_SUBMISSION.parts[0])]
    images: dict[Path, ImageFile] = {}
    for source in sources:
        base, files = list_files(source)
        for file in files:
            path, top = Path(os.path.abspath(file)), Path(os.path.abspath(base))
            if not any(directory in path.parents for directory in results):
                name = path.relative_to(top) if top in path.parents else Path(path.name)
                name = name.with_suffix("") if name.suffix.lower() in list_suffixes() else name
                images.setdefault(path, ImageFile(file, name))
    return list(images.values())


def list_files(source: str) -> tuple[Path, list[Path]]:
    """Return the directory to which a source's names are relative, and its files, those in the fewest directories first.

    Raises:
        UserError: The source is an empty string.
    """
    if not source:
        raise UserError("an IMAGE is an empty string: is it an empty variable?")
    path = Path(source)
    if os.path.isdir(path):
        return path, list_directory(path) or [path]
    if not glob.has_magic(source) or os.path.lexists(path):
        return path.parent, [path]
    first = next(number for number, part in enumerate(path.parts) if glob.has_magic(part))
    base, pattern = Path(*path.parts[:first]), str(Path(*path.parts[first:]))
    matches = [match for match in base.glob(pattern) if not match.is_dir() and not is_hidden(match, base)]
    return base, sorted(matches, key=lambda match: (len(match.parts), match)) or [path]


def list_directory(directory: Path) -> list[Path]:
    """Return the images at or below a directory that are not hidden, and unreadable directories."""
    files: list[Path] = []

    def append_unreadable(error: OSError) -> None:
        files.append(Path(error.filename))

    for parent, directories, names in os.walk(directory, onerror=append_unreadable):
        directories[:] = [name for name in directories if not name.startswith(".")]  # os.walk enters only these
        visible = (Path(parent, name) for name in names if not name.startswith("."))
        files += [path for path in visible if path.suffix.lower() in list_suffixes()]
    return sorted(files, key=lambda path: (len(path.parts), path))


def is_hidden(path: Path, base: Path) -> bool:
    """Return whether a file or a directory above it, below ``base``, has a name with a leading dot."""
    return any(part.startswith(".") and part != ".." for part in path.parts[len(base.parts) :])


@cache
def list_suffixes() -> frozenset[str]:
    """Return the suffixes of image files that Pillow reads by itself."""
    readable = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN and kind not in NOT_READ}
    return frozenset(readable)
