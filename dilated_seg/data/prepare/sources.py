"""Open a dataset from its directories or archives, and list the files of its splits."""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dilated_seg import data
from dilated_seg.data.datamodule import SegmentationDataModule
from dilated_seg.data.directories import DataError
from dilated_seg.data.pairs import Pair, Pairs
from dilated_seg.data.prepare import archives
from dilated_seg.errors import UserError

NOTE = ".unpacked.json"  # in a directory of unpacked archives: the list of these


def download(name: str, root: str | None, out: Path, sbd: str | None) -> tuple[str, str]:
    """Download VOC and, unless its directory is given, SBD; return the directories of both."""
    if name != "VOC":
        raise UserError(f"{name} cannot be downloaded: get it from its publisher and give its directory as --root")
    directory = Path(root or out.with_name(f"{out.name}.downloads"))
    archives.fetch(*archives.VOC, directory)
    if sbd is None:
        archives.fetch(*archives.SBD, directory)
    return str(directory), sbd or str(directory)


def open_dataset(name: str, root: str | None, options: dict[str, Any], tree: Path, check: bool) -> SegmentationDataModule:
    """Return the dataset from its directories, or from its archives, unpacked into ``tree``.

    Raises:
        UserError: There are neither directories nor archives of the dataset; or an archive is damaged or, with ``check``, is
            not the published one.
    """
    build: Any = getattr(data, name)  # each class has its own options
    source = root or os.environ.get(build.variable)
    sbd = archives.list_archives(Path(options["sbd"])) if "sbd" in options else []
    packed = [] if not source or is_tree(build, source, options) else archives.list_archives(Path(source))
    unpack(list(dict.fromkeys(packed + sbd)), tree, check)
    options = options | ({"sbd": str(tree)} if sbd else {})
    if packed:  # their files may be in a directory
        inside = [tree, *sorted(path for path in tree.iterdir() if path.is_dir())]
        source = str(next((path for path in inside if is_tree(build, str(path), options)), tree))
    dataset: SegmentationDataModule = build(root=source, **options)
    if not dataset.list_splits():
        raise UserError(
            f"{root or dataset.require_root()} has no split of {name}: give the directory as its publisher unpacks it"
        )
    return dataset


def is_tree(build: Any, root: str, options: dict[str, Any]) -> bool:  # noqa: ANN401 - a dataset's class
    """Return whether a directory holds the dataset, unpacked."""
    try:
        return bool(build(root=root, **options).list_splits())
    except UserError:
        return False


def unpack(packed: Sequence[Path], tree: Path, check: bool) -> None:
    """Unpack archives into one directory: those that an interrupted call has not unpacked, or all if one has changed.

    Raises:
        UserError: An archive is rejected, or the directory was not made by `prepare`.
    """
    note = tree / NOTE
    if not packed:
        return
    if tree.exists() and not note.is_file():
        raise UserError(f"{tree} is needed for unpacking, but was not made by prepare: move it away")
    state = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in packed]
    try:
        done = json.loads(note.read_text())
    except (OSError, ValueError):
        done = []
    if done != state[: len(done)]:
        done = []
    if not done:
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir(parents=True)
        note.write_text("[]")
    for i, archive in enumerate(packed[len(done) :], start=len(done)):
        if check:
            archives.check_published(archive)
        archives.unpack(archive, tree)
        note.write_text(json.dumps(state[: i + 1]))


def remove_unpacked(tree: Path) -> None:
    """Delete the directory of unpacked archives, if `unpack` made it."""
    if (tree / NOTE).is_file():
        shutil.rmtree(tree, ignore_errors=True)


def list_split(dataset: SegmentationDataModule, split: str, other_counts: bool) -> Pairs:
    """Return a split's pairs of files.

    Raises:
        UserError: A file is missing, or their number is not the published one and ``other_counts`` is False.
    """
    try:
        pairs = dataset.split(split)
    except DataError as error:
        for problem in error.problems[1:]:
            print(problem, file=sys.stderr)
        raise
    if not isinstance(pairs, Pairs):
        raise UserError(f"{type(dataset).__name__}: the split {split} does not consist of files, so it cannot be prepared")
    expected = dataset.published.get(split, len(pairs))
    if len(pairs) != expected and not other_counts:
        raise UserError(
            f"{split} has {len(pairs):,} images, as published {expected:,}: complete the data, or add --other_counts if "
            "that is intended"
        )
    if not len(pairs):
        raise UserError(f"{split} has no images: leave it out with --splits")
    return pairs


def divide_parts(splits: dict[str, Pairs]) -> tuple[dict[str, list[Pair]], dict[str, list[str]]]:
    """Return disjoint parts of images to write, and the parts of each split, so that trainaug does not store train again.

    Raises:
        UserError: A split other than trainval has images of val or test.
    """
    parts: dict[str, list[Pair]] = {}
    contents: dict[str, list[str]] = {}
    for name, pairs in splits.items():
        for other in ("val", "test"):
            if name not in ("trainval", other) and other in splits and (shared := {*pairs.members} & {*splits[other].members}):
                raise UserError(
                    f"{len(shared)} images are in {name} and in {other}, such as {min(shared)}: remove them from one of the two"
                )
        rest = list(pairs.pairs)
        contents[name] = []
        for part, stored in parts.items():
            if (known := set(stored)) <= set(rest):
                contents[name].append(part)
                rest = [pair for pair in rest if pair not in known]
        if rest:
            part = name if not contents[name] else f"{name}-more"
            parts[part] = rest
            contents[name].append(part)
    return parts, contents
