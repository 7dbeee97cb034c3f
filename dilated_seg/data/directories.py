"""Find images and masks in directories, and read lists of names."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from PIL import Image

from dilated_seg.data.workers import print_once
from dilated_seg.errors import UserError, explain_system_error

SUFFIXES = (".png", ".jpg", ".jpeg")
SYSTEM_FILES = ("thumbs.db", "desktop.ini", "__macosx", "@eadir")  # created by operating systems in any directory
MASK_SUFFIX = ".png"  # JPEG changes values
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")  # of users' own data
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")


class DataError(UserError):
    """Problems of several files: the message has the first one, ``problems`` all of them."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        end = f"; {len(problems) - 1} more such problems" if len(problems) > 1 else ""
        super().__init__(problems[0] + end)


def check_no_problems(problems: Sequence[str]) -> None:
    """Raise DataError if there are problems."""
    if problems:
        raise DataError(problems)


def list_pairs(images: Path, masks: Path, endings: tuple[str, str] = ("", "")) -> list[tuple[str, Path, Path | None]]:
    """Return the images of a directory with the masks of the same names in another, after removing the endings of names.

    Raises:
        UserError: A directory is missing or holds images that cannot be used, an image has no mask or a mask no image.
    """
    indices = []
    for directory, ending in zip((images, masks), endings, strict=True):
        if not directory.is_dir():
            content = "images" if directory == images else "masks"
            raise UserError(f"{directory} is not a directory: it should hold the {content}")
        suffixes = SUFFIXES if directory == images else (MASK_SUFFIX,)
        indices.append(index_names(directory, select(list_visible(directory), suffixes), f"{{name}}{ending}"))
        require_usable(directory, indices[-1], suffixes)
    return match_pairs(indices[0], indices[1], images, masks)


def match_pairs(
    images: Mapping[str, Path], masks: Mapping[str, Path], image_directory: Path, mask_directory: Path
) -> list[tuple[str, Path, Path | None]]:
    """Return the images and masks of equal names; raise UserError if an image has no mask or a mask no image."""
    if images and masks and not images.keys() & masks.keys():
        raise UserError(
            f"no image of {image_directory} ({len(images):,}: {show_names(list(images.values()))}) has a mask of its name in "
            f"{mask_directory} ({len(masks):,}: {show_names(list(masks.values()))}): rename the masks"
        )
    sides = ((images, masks, "mask", mask_directory), (masks, images, "image", image_directory))
    check_no_problems(
        [
            f"{files[name]} has no {kind} in {directory}: add it or remove its partner"
            for files, others, kind, directory in sides
            for name in sorted(files.keys() - others.keys())
        ]
    )
    return [(name, path, masks[name]) for name, path in images.items()]


def select(paths: Sequence[Path], suffixes: Sequence[str]) -> list[Path]:
    """Return the files with one of these suffixes."""
    return [path for path in paths if path.suffix.lower() in suffixes]


def index_names(directory: Path, paths: Sequence[Path], pattern: str = "{name}") -> dict[str, Path]:
    """Return the files whose names match a pattern, by ``{name}`` with the directories above them.

    Raises:
        UserError: Two files have one name.
    """
    before, _, after = pattern.partition("{name}")
    index: dict[str, Path] = {}
    for path in paths:
        if path.stem.startswith(before) and path.stem.endswith(after) and len(path.stem) > len(before) + len(after):
            stem = path.stem.removeprefix(before).removesuffix(after)
            name = path.relative_to(directory).with_name(stem).as_posix()
            if name in index:
                raise UserError(f"{index[name]} and {path.name} have one name: remove one of them")
            index[name] = path
    return index


def list_visible(directory: Path) -> list[Path]:
    """Return the content of a directory, without hidden files and `SYSTEM_FILES`.

    Raises:
        UserError: The directory cannot be listed.
    """
    try:
        paths = sorted(directory.iterdir())
    except OSError as error:
        raise_unreadable(error)
    return [path for path in paths if path.name[0] != "." and path.name.lower() not in SYSTEM_FILES]


def raise_unreadable(error: OSError) -> NoReturn:
    """Raise UserError for a directory that cannot be listed; to leave it out would leave out a part of the dataset."""
    raise explain_system_error(error.filename, error) or error from error


def require_usable(directory: Path, used: Mapping[str, Path], suffixes: Sequence[str]) -> None:
    """Check that every image of a directory is read, and print once the other files, which are ignored.

    An image is also ignored if a file with its name and another suffix is read.

    Args:
        directory: The directory.
        used: The files that are read, by name.
        suffixes: The suffixes of the files that are read.

    Raises:
        UserError: The directory holds images in other formats, or in directories below it.
    """
    read, stems = set(used.values()), {path.stem for path in used.values()}
    others = [path for path in list_visible(directory) if path not in read]
    unread = [path for path in others if (holds_images(path) if path.is_dir() else is_image(path) and path.stem not in stems)]
    if unread:
        jpeg = " (as JPEG, masks lose their classes: export them again)" if suffixes == (MASK_SUFFIX,) else ""
        raise UserError(
            f"{directory} holds {len(used):,} files that are read and {len(unread):,} that are not ({show_names(unread)}): "
            f"only {', '.join(suffixes)} directly in it are read, so convert, move or remove the others{jpeg}"
        )
    if others:
        line = f"{directory}: {len(others):,} files or directories are ignored ({show_names(others)})"
        print_once(str(directory).encode(), line)


def is_image(path: Path) -> bool:
    """Return whether a file's suffix is that of a format that Pillow reads."""
    return Image.registered_extensions().get(path.suffix.lower()) in Image.OPEN


def holds_images(directory: Path) -> bool:
    """Return whether there is an image in a directory or below it."""
    return any(is_image(path) and path.name[0] != "." for path in directory.rglob("*"))


def show_names(paths: Sequence[Path], limit: int = 3) -> str:
    """Return the first names of files and directories, separated by commas."""
    names = [path.name + ("/" if path.is_dir() else "") for path in paths[:limit]]
    return ", ".join([*names, "..."] if len(paths) > limit else names)


def read_list(path: Path) -> list[str]:
    """Return the names of a list file, one per line.

    Raises:
        UserError: The file cannot be read, is empty, or names something twice.
    """
    try:
        names = [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"cannot read the list {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the list {path} is not UTF-8 text: save it as UTF-8") from error
    if not names:
        raise UserError(f"the list {path} is empty: it should have one name a line")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"the list {path} names {repeated[0]} twice: remove one of the lines")
    return names
