"""Check every file of a dataset as published, and write it as shards with a manifest and a data card."""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dilated_seg import __version__, storage
from dilated_seg.data import manifest
from dilated_seg.data.classes import describe_absent
from dilated_seg.data.datamodule import SegmentationDataModule
from dilated_seg.data.pairs import Pair, Pairs, find_masks_as_stored
from dilated_seg.data.prepare.card import make_card
from dilated_seg.data.prepare.sources import divide_parts, download, list_split, open_dataset, remove_unpacked
from dilated_seg.data.prepare.write import write_parts
from dilated_seg.errors import ResourceError, UserError

# Names of files in OUT.partial after an interrupted call.
UNFINISHED = re.compile(
    r"\.lock|.*-\d{5}\.(parquet|arrow)(\.json)?|\..*\.partial(\.\w+)?|README\.md|manifest\.json|classes\.yaml|label_colors\.txt"
)


def prepare(
    name: str,
    root: str | None,
    out: Path,
    store: str = "files",
    splits: Sequence[str] | None = None,
    options: dict[str, Any] | None = None,
    other_counts: bool = False,
    skip_bad: bool = False,
    fetch: bool = False,
) -> None:
    """Check a dataset and write it as shards, unless that was done; continue a call that was interrupted.

    Args:
        name: The dataset's class: "VOC", "Cityscapes", "CamVid", "Folder".
        root: The directory of its release or of its archives, or one archive; by default its environment variable.
        out: The directory to make. It is OUT.partial until everything is written.
        store: "files", the original bytes in Parquet; or "raw", pixels and class ids in Arrow, for datasets whose images take
            longer to decode than to train on.
        splits: The splits to write; by default all that exist.
        options: Arguments of the dataset's class, such as ``labels`` of Cityscapes and ``sbd`` of VOC.
        other_counts: Accept another number of images than published.
        skip_bad: Leave out training images that cannot be read, and list them in the manifest.
        fetch: Download VOC and SBD into ``root`` first.

    Raises:
        UserError: Files are missing or damaged, which are printed one a line; or ``out`` holds something else.
    """
    out, options = Path(os.path.abspath(out)), dict(options or {})
    asked = {"dataset": name, "store": store, "splits": sorted(splits) if splits else None, "options": sorted(options.items())}
    if is_prepared(out, asked):
        print(f"{out} is prepared already. To check the dataset again, remove it; --verify checks its files")
        return
    partial, tree = (out.with_name(f"{out.name}.{end}") for end in ("partial", "unpacked"))
    resumed = partial.exists()  # its files stay, whatever this call raises
    try:
        with lock_directory(partial):
            if fetch:
                root, options["sbd"] = download(name, root, out, options.get("sbd"))
            dataset = open_dataset(name, root, options, tree, check=not other_counts)
            if store == "raw" and dataset.in_channels != 3:
                raise UserError(f"--store raw holds RGB, not {dataset.in_channels} channels: leave it out")
            pairs = list_pairs_of_splits(dataset, splits, other_counts)
            record = write_dataset(dataset, partial, pairs, asked, skip_bad)
            finish(dataset, partial, out, record)
    except ResourceError as error:
        raise ResourceError(f"{error}; then the same command continues") from error
    except UserError:
        if not resumed:
            shutil.rmtree(partial, ignore_errors=True)
            remove_unpacked(tree)
        raise
    except OSError as error:
        where = error.filename or partial
        raise UserError(f"{where}: {error.strerror or error}; fix that, then the same command continues") from error
    remove_unpacked(tree)
    print_summary(dataset, record, out)


def list_pairs_of_splits(dataset: SegmentationDataModule, splits: Sequence[str] | None, other_counts: bool) -> dict[str, Pairs]:
    """Return the pairs of files of each split, in the dataset's order.

    Raises:
        UserError: A split does not exist, or has another number of images than published.
    """
    available = dataset.list_splits()
    if unknown := sorted(set(splits or ()) - set(available)):
        raise UserError(f"--splits {unknown[0]} is not in {dataset.require_root()}, only {', '.join(available)}")
    return {split: list_split(dataset, split, other_counts) for split in available if not splits or split in splits}


def write_dataset(
    dataset: SegmentationDataModule, partial: Path, pairs: dict[str, Pairs], asked: dict[str, Any], skip_bad: bool
) -> dict[str, Any]:
    """Write the shards of all splits; return the manifest."""
    orientation = find_masks_as_stored(dataset, pairs)
    parts, contents = divide_parts(pairs)
    shards = write_parts(dataset, partial, parts, asked["store"], skip_bad, orientation)
    record = build_manifest(dataset, asked, parts, contents, shards)
    if orientation is not None:
        record["mask_orientation"] = "as_stored" if orientation else "upright"
    return record


def print_summary(dataset: SegmentationDataModule, record: dict[str, Any], out: Path) -> None:
    """Print the number of images and shards, and warn of classes that do not occur."""
    for split, entry in record["splits"].items():
        print(f"{split}: {entry['images']:,} images{'' if entry['labelled'] else ', no masks'}")
        if pixels := manifest.sum_pixels(record, split):
            ignored, where = pixels[dataset.ignore_index], f"the {entry['images']:,} masks of {split}"
            if problem := describe_absent(pixels, ignored, dataset.classes, where, dataset.ignore_index):
                print(f"warning: {problem}", file=sys.stderr)
    stored = [shard for part in record["shards"].values() for shard in part]
    size = sum(shard["bytes"] for shard in stored) / 1e6
    print(f"{out}: {len(stored)} shards, {size:,.1f} MB; use it as --data.init_args.root {out}")


@contextmanager
def lock_directory(partial: Path) -> Iterator[None]:
    """Create the directory of unfinished work and hold its lock.

    Raises:
        UserError: Another call holds the lock, or the directory holds other files.
    """
    if partial.exists() and not partial.is_dir():
        raise UserError(f"{partial} is a file, but needed as a directory for unfinished work: move it away")
    partial.mkdir(parents=True, exist_ok=True)
    if foreign := [path for path in partial.iterdir() if path.is_dir() or not UNFINISHED.fullmatch(path.name)]:
        raise UserError(f"{foreign[0]} is in a directory for unfinished work, but not written by prepare: move it away")
    try:
        with FileLock(partial / ".lock", timeout=0):
            yield
    except Timeout:
        raise UserError(f"{partial} is locked by another process: wait for it, or give another --out") from None


def build_manifest(
    dataset: SegmentationDataModule,
    asked: dict[str, Any],
    parts: dict[str, list[Pair]],
    contents: dict[str, list[str]],
    shards: dict[str, list[dict[str, Any]]],
) -> dict[str, Any]:
    """Return the manifest without ``files``; raise UserError if no image of a split can be used."""
    splits = {}
    for split, named in contents.items():
        images = sum(shard["rows"] for part in named for shard in shards[part])
        if not images:
            raise UserError(f"{split} has no image that can be used, as printed above: replace the files")
        labelled = all(mask for part in named for *_, mask in parts[part])
        splits[split] = {"images": images, "labelled": labelled, "parts": named}
    return {
        "format": manifest.FORMAT,
        "written by": f"dilated-seg {__version__}",
        "asked": asked,
        "dataset": asked["dataset"],
        "store": asked["store"],
        "options": dataset.choices,
        "classes": list(dataset.classes),
        "splits": splits,
        "shards": shards,
    }


def is_prepared(out: Path, asked: dict[str, Any]) -> bool:
    """Return whether the directory holds the requested dataset; raise UserError if it holds anything else."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: give a directory as --out")
    record = manifest.read(str(out)) if out.is_dir() else None
    if record is None:
        if out.is_dir() and any(out.iterdir()):
            raise UserError(f"{out} holds files that prepare did not write: give another --out")
        return False
    if record["asked"] != json.loads(json.dumps(asked)):
        raise UserError(f"{out} holds {record['dataset']} prepared with other options: give another --out or remove it")
    return True


def verify(out: Path) -> None:
    """Compare every file of a prepared directory with its checksum; print all that differ and raise UserError if any does."""
    record = manifest.read(str(out))
    if record is None:
        raise UserError(f"{out} is not a prepared dataset: it has no {manifest.NAME}")
    problems = list(manifest.list_altered(out, record))
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        raise UserError(f"{len(problems)} files of {out} are missing or altered: copy them again, or prepare it again")
    print(f"{out}: all files match their checksums")


def finish(dataset: SegmentationDataModule, partial: Path, out: Path, record: dict[str, Any]) -> None:
    """Add texts, card and manifest, remove the notes of shards, and rename the directory."""
    kept = {shard["file"] for part in record["shards"].values() for shard in part}
    for path in partial.iterdir():
        if path.name not in kept and path.name != ".lock":  # held by this call
            path.unlink()
    for name in dataset.texts:
        shutil.copyfile(Path(dataset.require_root()) / name, partial / name)
    (partial / "README.md").write_text(make_card(dataset, record))
    record["files"] = {name: storage.digest(partial / name) for name in (*dataset.texts, "README.md")}
    with (partial / manifest.NAME).open("w") as file:
        file.write(json.dumps(record, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    (partial / ".lock").unlink(missing_ok=True)
    partial.replace(out)
