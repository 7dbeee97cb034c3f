"""Which files of a directory are images and masks, and which names a list file holds."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from dilated_seg.data.workers import print_once
from dilated_seg.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg")
STRAY = ("thumbs.db", "desktop.ini", "__macosx", "@eadir")  # what operating systems leave in directories
MASK_SUFFIX = ".png"  # a JPEG's values are not those that were saved


class DataError(UserError):
    """Problems of several files: the first of them in a sentence, all of them in ``problems``."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        more = f"; {len(problems) - 1} more such problems" if len(problems) > 1 else ""
        super().__init__(problems[0] + more)


def check_no_problems(problems: Sequence[str]) -> None:
    """Raise an error that names the problems, if there are any.

    Raises:
        DataError: There are.
    """
    if problems:
        raise DataError(problems)


def list_pairs(images: Path, labels: Path, endings: tuple[str, str] = ("", "")) -> list[tuple[str, Path, Path | None]]:
    """Return the images of a directory with the masks of another that have the same name, but for an ending of each.

    Raises:
        UserError: A folder is missing, holds files that cannot be used, an image has no label or a label no image.
    """
    indices = []
    for directory, ending in zip((images, labels), endings, strict=True):
        if not directory.is_dir():
            raise UserError(f"{directory} is no folder: it should hold the {'images' if directory == images else 'labels'}")
        suffixes = SUFFIXES if directory == images else (MASK_SUFFIX,)
        indices.append(index_files(directory, ending, suffixes))
        require_usable(directory, indices[-1], suffixes)
    return match_pairs(indices[0], indices[1], images, labels)


def match_pairs(
    images: Mapping[str, Path], labels: Mapping[str, Path], image_folder: Path, label_folder: Path
) -> list[tuple[str, Path, Path | None]]:
    """Return the images and masks of the same names.

    Raises:
        UserError: An image has no label or a label no image.
    """
    if images and labels and not images.keys() & labels.keys():
        raise UserError(
            f"no image of {image_folder} ({len(images):,}: {show_names(list(images.values()))}) has a label of its name in "
            f"{label_folder} ({len(labels):,}: {show_names(list(labels.values()))}): rename the labels"
        )
    check_no_problems(
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


def index_files(folder: Path, ending: str = "", suffixes: Sequence[str] = SUFFIXES) -> dict[str, Path]:
    """Return the files of a directory by name, without hidden ones.

    Args:
        folder: The directory.
        ending: Of the names that are taken, which the returned names lack.
        suffixes: Of the files that are taken.

    Raises:
        UserError: Two files have one name.
    """
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and path.stem.endswith(ending) and not path.name.startswith("."):
            name = path.stem.removesuffix(ending)
            if name in files:
                raise UserError(f"{files[name]} and {path.name} have one name: remove one of them")
            files[name] = path
    return files


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
        jpeg = " (as JPEG, masks lose their classes: export them again)" if suffixes == (MASK_SUFFIX,) else ""
        raise UserError(
            f"{directory} holds {len(used):,} files that are read and {len(lost):,} that are not ({show_names(lost)}): only "
            f"{', '.join(suffixes)} directly in it are read, so convert, move or remove the others{jpeg}"
        )
    if others:
        line = f"{directory}: {len(others):,} files or directories are passed over ({show_names(others)})"
        print_once(str(directory).encode(), line)


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


def read_list(path: Path) -> list[str]:
    """Return the names of a list file, one a line.

    Raises:
        UserError: It cannot be read, is empty, or names something twice.
    """
    try:
        names = [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"cannot read the list {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the list {path} is no UTF-8 text: save it as such") from error
    if not names:
        raise UserError(f"the list {path} is empty: it should hold a name a line")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"the list {path} names {twice[0]} twice: remove one of the lines")
    return names
