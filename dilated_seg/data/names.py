"""Names of images and masks in directories, and how they are paired: NAME.jpg with NAME.png, or with NAME_mask.png."""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from dilated_seg.data.directories import (
    IMAGE_SUFFIXES,
    MASK_SUFFIXES,
    SYSTEM_FILES,
    check_no_problems,
    index_names,
    is_image,
    list_visible,
    raise_unreadable,
    read_list,
    select,
    show_names,
)
from dilated_seg.data.workers import print_once
from dilated_seg.errors import UserError

# Known affixes of mask names, before or after the image's name, such as NAME_mask; other ones must be equal for all masks.
AFFIXES = (
    "mask", "masks", "gt", "label", "labels", "labelids", "seg", "segmentation", "groundtruth", "ground_truth", "annotation",
)  # fmt: skip

JPEG = "JPEG changes the values of masks: export them again as .png"


def list_files(directory: Path, skip: Path | None = None) -> Iterator[Path]:
    """Yield the files in and below a directory in alphabetical order, without hidden ones and those of operating systems.

    Raises:
        UserError: A directory cannot be listed.
    """
    entered = set()
    for parent, directories, files in os.walk(directory, onerror=raise_unreadable, followlinks=True):
        if (real := os.path.realpath(parent)) in entered:  # a link to a directory above
            directories.clear()
            continue
        entered.add(real)
        for names in (directories, files):
            names[:] = sorted(name for name in names if name[0] != "." and name.lower() not in SYSTEM_FILES)
        directories[:] = [name for name in directories if Path(parent, name) != skip]
        yield from (Path(parent, name) for name in files)


def pair_names(images: Mapping[str, Path], masks: Mapping[str, Path], any_affix: bool = True) -> dict[str, Path]:
    """Return the masks by image: masks that have the image's name, or its name and an affix, such as NAME_mask.

    Affixes are those of `AFFIXES`; with ``any_affix`` also the most frequent, if masks have neither these nor an image's name.

    Raises:
        UserError: An image has two masks.
    """
    paired = {name: path for name, path in masks.items() if name in images} if any_affix else {}
    rest = [(name, *match) for name in masks if name not in paired for match in list_affixes(name, images)]
    words = {affix for *_, affix in rest if re.sub(r"^[\W_]+|[\W_]+$", "", affix).lower() in AFFIXES}
    if any_affix and not paired and not words:
        words = {affix for affix, _ in Counter(affix for *_, affix in rest).most_common(1)}
    for mask, image, affix in rest:
        if affix in words and paired.setdefault(image, masks[mask]) != masks[mask]:
            raise UserError(f"{images[image]} has two masks, {paired[image].name} and {masks[mask].name}: remove one")
    return paired


def list_affixes(mask: str, images: Mapping[str, Path]) -> list[tuple[str, str]]:
    """Return the images with whose names a mask's name begins or ends, and the affix that remains of it.

    An affix has letters but no digits, and is separate from the name: photo_1 is not the mask of photo.
    """
    parent, slash, stem = mask.rpartition("/")
    matches = []
    for k in range(1, len(stem)):
        for name, affix, inner in ((stem[:k], stem[k:], stem[k]), (stem[k:], stem[:k], stem[k - 1])):
            separate = not inner.isalnum() or name[0 if name == stem[k:] else -1].isdigit()
            if (
                separate
                and f"{parent}{slash}{name}" in images
                and re.search(r"[^\W\d_]", affix)
                and not re.search(r"\d", affix)
            ):
                matches.append((f"{parent}{slash}{name}", affix))
    return matches


def divide_directory(
    directory: Path, paths: Sequence[Path], image_name: str, mask_name: str
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Return the images and the masks of one directory that holds both, by the names of the images.

    If the mask's pattern is ``{name}_mask``, masks may have any affix of `AFFIXES`; or NAME.png is the mask of NAME.jpg.

    Raises:
        UserError: Two images have one name, or an image has two masks.
    """
    images, masks = select(paths, IMAGE_SUFFIXES), select(paths, MASK_SUFFIXES)
    if (image_name, mask_name) != ("{name}", "{name}_mask"):
        paired = index_names(directory, masks, mask_name)
        used = set(paired.values())
        return index_names(directory, [path for path in images if path not in used], image_name), paired
    lossless = set(masks)
    lossy = index_names(directory, [path for path in images if path not in lossless])
    paired = {name: path for path in masks for name in index_names(directory, [path]) if name in lossy}
    used = set(paired.values())
    index = index_names(directory, [path for path in images if path not in used])
    paired |= pair_names(index, {name: path for name, path in index.items() if path in lossless}, any_affix=False)
    used |= set(paired.values())
    return {name: path for name, path in index.items() if path not in used}, paired


def require_readable(directory: Path, paths: Sequence[Path], used: set[Path], suffixes: Sequence[str]) -> None:
    """Check that every image of a directory is read, and print once the other files, which are ignored.

    Raises:
        UserError: An image is not read, nor is a file with the same name and another suffix.
    """
    read = {path.with_suffix("") for path in used}
    others = [path for path in paths if path not in used]
    if lost := [path for path in others if is_image(path) and path.with_suffix("") not in read]:
        jpeg = suffixes == MASK_SUFFIXES and any(path.suffix.lower() in (".jpg", ".jpeg") for path in lost)
        reason = f" ({JPEG})" if jpeg else ""
        raise UserError(
            f"{directory} holds {len(used):,} files that are read and {len(lost):,} that are not ({show_names(lost)}): "
            f"{'masks' if suffixes == MASK_SUFFIXES else 'images'} are {', '.join(suffixes)}, so convert, move or remove the "
            f"others{reason}"
        )
    if others:
        print_once(str(directory).encode(), f"{directory}: {len(others):,} files are ignored ({show_names(others)})")


def find_other_format(directory: Path, names: Collection[str]) -> Path | None:
    """Return an image in a directory with one of these names and a format that masks must not have, or None."""
    paths = (path for path in list_files(directory) if is_image(path) and path.suffix.lower() not in MASK_SUFFIXES)
    return next((path for path in paths if path.relative_to(directory).with_suffix("").as_posix() in names), None)


def read_names(path: Path, images: Mapping[str, Path], directory: Path) -> list[str]:
    """Return the images that a list names, one a line, with or without suffix or the directory of the images.

    Args:
        path: The list.
        images: The images by name.
        directory: The directory of the images.

    Raises:
        UserError: The list cannot be read, or names a file that is not an image of the dataset.
    """
    names, unknown = [], []
    for line in read_list(path):
        bare = line.removeprefix(f"{directory.name}/")
        forms = (line, bare, *(str(PurePosixPath(text).with_suffix("")) for text in (line, bare)))
        name = next((form for form in forms if form in images), None)
        names.append(name or line)
        if name is None:
            unknown.append(line)
    repeated = [name for name, count in Counter(names).items() if count > 1]
    check_no_problems([f"the list {path} names {name} twice: remove one of the lines" for name in repeated])
    hint = hint_at_image(unknown, directory)
    check_no_problems([f"{path} names {line}, which is not in {directory}{hint}" for line in unknown])
    return names


def hint_at_image(lines: Sequence[str], images: Path) -> str:
    """Return a clause on the probable mistake in the first of the lines that match no image; empty if it is unknown."""
    if not lines:
        return ""
    if len(parts := re.split(r"[\s,;]+", lines[0])) > 1 and all(Path(part).suffix for part in parts):
        return ": a list has one name a line, not an image and its mask"
    stem = lines[0].lower()
    similar = [path for path in list_visible(images) if is_image(path) and stem in (path.stem.lower(), path.name.lower())]
    return f": {show_names(similar)} is there, so convert or rename it" if similar else ""
