"""A dataset as its publisher gives it, checked file by file and written as shards with a manifest and a data card."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial as bind
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from dilated_seg import UserError, __version__, archives, manifest

if TYPE_CHECKING:
    import pyarrow as pa

    from dilated_seg.data import SegmentationDataModule
    from dilated_seg.data.files import Pairs

SHARD_BYTES = 128 << 20
GROUP_BYTES = 2 << 20  # what a stream reads at once
Triple = tuple[str, Path, Path | None]  # an image's name, its file and its label's


def prepare(
    name: str,
    root: str | None,
    out: Path,
    store: str = "files",
    splits: Sequence[str] | None = None,
    options: dict[str, str] | None = None,
    other_counts: bool = False,
    skip_bad: bool = False,
    download: bool = False,
) -> None:
    """Check a dataset and write it as shards; does nothing if that was done, and goes on where it was interrupted.

    Args:
        name: "VOC", "Cityscapes", "CamVid" or "Folder".
        root: The folder of its release, or of its archives, or one archive; None takes the dataset's environment variable.
        out: The folder to make. It appears when all is done; until then there is OUT.partial.
        store: "files", the original bytes in Parquet; or "raw", pixels and class ids as bytes in Arrow, for datasets whose
            decoding takes longer than training on them.
        splits: Those to write; all that are there if None.
        options: Of the dataset's class, such as ``labels`` of Cityscapes and ``sbd`` of VOC.
        other_counts: Accept another number of images than was published.
        skip_bad: Leave out training images that cannot be read, and list them in the manifest.
        download: Fetch VOC and SBD into ``root`` first.

    Raises:
        UserError: Files are missing or damaged, which are then named, a line each; or ``out`` holds something else.
    """
    out, options = Path(os.path.abspath(out)), dict(options or {})  # "." has no name to put ".partial" behind
    asked = {"dataset": name, "store": store, "splits": sorted(splits) if splits else None, "options": sorted(options.items())}
    if done(out, asked):
        print(f"{out} is prepared already: nothing to do. To look at the data anew, remove it; --verify checks its own files")
        return
    partial, tree = (out.with_name(f"{out.name}.{end}") for end in ("partial", "unpacked"))
    try:
        with alone(partial):
            if download:
                root, options["sbd"] = fetch(name, root, out, options.get("sbd"))
            dataset = opened(name, root, options, tree, check=not other_counts)
            here = dataset.available()
            if unknown := sorted(set(splits or ()) - set(here)):
                raise UserError(f"--splits {unknown[0]} is not in {dataset.place()}, only {', '.join(here)}")
            wanted = [split for split in here if not splits or split in splits]  # the dataset's order: trainval after its parts
            parts, contents = divide({split: listed(dataset, split, other_counts) for split in wanted})
            facts = describe(dataset, asked, parts, contents, write_parts(dataset, partial, parts, store, skip_bad))
            finish(dataset, partial, out, facts)
    except BusyError:
        raise
    except UserError:
        for made in (partial, tree):
            shutil.rmtree(made, ignore_errors=True)
        raise
    except OSError as error:
        where = error.filename or partial
        raise UserError(f"{where}: {error.strerror or error}; the same command goes on when that is mended") from error
    shutil.rmtree(tree, ignore_errors=True)
    for split, fact in facts["splits"].items():
        print(f"{split}: {fact['images']:,} images{'' if fact['labelled'] else ', no labels'}")
    stored = [shard for part in facts["shards"].values() for shard in part]
    size = sum(shard["bytes"] for shard in stored) / 1e6
    print(f"{out}: {len(stored)} shards, {size:,.1f} MB; use it as --data.init_args.root {out}")


class BusyError(UserError):
    """Another call is at work: what there is belongs to it."""


@contextmanager
def alone(partial: Path) -> Iterator[None]:
    """Make the folder of unfinished work, in which only one call may be at a time.

    Raises:
        UserError: Another one is, or there is a file in its place.
    """
    if partial.exists() and not partial.is_dir():
        raise UserError(f"{partial} is a file, where unfinished work is kept: move it away")
    partial.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(partial / ".lock", timeout=0):
            yield
    except Timeout:
        raise BusyError(f"another call is writing {partial}: wait for it, or name another --out") from None


def describe(
    dataset: "SegmentationDataModule",
    asked: dict[str, Any],
    parts: dict[str, list[Triple]],
    contents: dict[str, list[str]],
    shards: dict[str, list[dict[str, Any]]],
) -> dict[str, Any]:
    """What the manifest says, but for the checksums of texts.

    Raises:
        UserError: A split has no images left.
    """
    splits = {}
    for split, named in contents.items():
        images = sum(shard["rows"] for part in named for shard in shards[part])
        if not images:
            raise UserError(f"{split} has no image that can be used, as named above: replace the files")
        labelled = all(label for part in named for *_, label in parts[part])
        splits[split] = {"images": images, "labelled": labelled, "parts": named}
    return {
        "format": manifest.FORMAT,
        "written by": f"dilated-seg {__version__}",
        "asked": asked,
        "dataset": asked["dataset"],
        "store": asked["store"],
        "options": dataset.choices,
        "splits": splits,
        "shards": shards,
    }


def done(out: Path, asked: dict[str, Any]) -> bool:
    """Whether the folder holds what is asked for.

    Raises:
        UserError: It holds something else.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a folder to make as --out")
    facts = manifest.read(str(out)) if out.is_dir() else None
    if facts is None:
        if out.is_dir() and any(out.iterdir()):
            raise UserError(f"{out} holds something that prepare did not write: name another --out")
        return False
    if facts["asked"] != json.loads(json.dumps(asked)):
        raise UserError(f"{out} holds {facts['dataset']} prepared with other options: name another --out or remove it")
    return True


def verify(out: Path) -> None:
    """Compare every file of a prepared folder with its checksum.

    Raises:
        UserError: One is missing or altered; all that are so are named, a line each.
    """
    facts = manifest.read(str(out))
    if facts is None:
        raise UserError(f"{out} holds no prepared dataset: there is no {manifest.NAME} in it")
    problems = list(manifest.altered(out, facts))
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        raise UserError(f"{len(problems)} files of {out} are missing or altered: copy them again, or prepare it again")
    print(f"{out}: all files are as they were written")


def fetch(name: str, root: str | None, out: Path, sbd: str | None) -> tuple[str, str]:
    """Download VOC and, unless it is there, SBD; gives the folder of both."""
    if name != "VOC":
        raise UserError(f"{name} cannot be downloaded by --download: get it from its publisher and name its folder with --root")
    folder = Path(root or out.with_name(f"{out.name}.downloads"))
    archives.fetch(*archives.VOC, folder)
    if sbd is None:
        archives.fetch(*archives.SBD, folder)
    return str(folder), sbd or str(folder)


def opened(name: str, root: str | None, options: dict[str, str], tree: Path, check: bool) -> "SegmentationDataModule":
    """The dataset from its folders, or from its archives, which are unpacked into ``tree`` first.

    Raises:
        UserError: There are neither, or an archive is damaged or, if ``check``, not the published one.
    """
    from dilated_seg import data

    build = getattr(data, name)
    place = root or os.environ.get(build.variable)
    sbd = archives.archives(Path(options["sbd"])) if "sbd" in options else []
    packed = [] if not place or is_tree(build, place, options) else archives.archives(Path(place))
    unpack(list(dict.fromkeys(packed + sbd)), tree, check)
    options = options | ({"sbd": str(tree)} if sbd else {})
    if packed:  # whose files may lie in a folder of their own
        inside = [tree, *sorted(path for path in tree.iterdir() if path.is_dir())]
        place = str(next((path for path in inside if is_tree(build, str(path), options)), tree))
    dataset: SegmentationDataModule = build(root=place, **options)
    if not dataset.available():
        raise UserError(f"{root or dataset.place()} holds no split of {name}: name the folder as its publisher unpacks it")
    return dataset


def is_tree(build: Any, place: str, options: dict[str, str]) -> bool:  # noqa: ANN401 - a dataset's class
    """Whether a folder holds a dataset, unpacked."""
    try:
        return bool(build(root=place, **options).available())
    except UserError:
        return False


def unpack(packed: Sequence[Path], tree: Path, check: bool) -> None:
    """Unpack archives into one folder, those only that an interrupted call has not; all again if any has changed."""
    note = tree / ".unpacked.json"
    state = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in packed]
    try:
        done = json.loads(note.read_text())
    except (OSError, ValueError):
        done = []
    if done != state[: len(done)]:
        done = []
    if not done:
        shutil.rmtree(tree, ignore_errors=True)
    for number, archive in enumerate(packed):
        if number >= len(done):
            if check:
                archives.check(archive)
            archives.unpack(archive, tree)
            note.write_text(json.dumps(state[: number + 1]))


def listed(dataset: "SegmentationDataModule", split: str, other_counts: bool) -> "Pairs":
    """A split's pairs of files, as many as were published.

    Raises:
        UserError: One is missing, or there are more or fewer.
    """
    try:
        pairs: Any = dataset.split(split)
    except UserError as error:
        for problem in getattr(error, "problems", ())[1:]:
            print(problem, file=sys.stderr)
        raise
    expected = dataset.published.get(split, len(pairs))
    if len(pairs) != expected and not other_counts:
        raise UserError(
            f"{split} has {len(pairs):,} images, as published {expected:,}: complete the data, or say --other_counts if "
            "that is meant"
        )
    if not len(pairs):
        raise UserError(f"{split} has no images: leave it out with --splits")
    return pairs


def divide(splits: "dict[str, Pairs]") -> tuple[dict[str, list[Triple]], dict[str, list[str]]]:
    """What to write: parts of images, and the parts that make up each split, so that trainaug need not store train again.

    Raises:
        UserError: Images of val or test are also trained on, in a split that is not known to be both.
    """
    parts: dict[str, list[Triple]] = {}
    contents: dict[str, list[str]] = {}
    for name, pairs in splits.items():
        for other in ("val", "test"):
            if name not in ("trainval", other) and other in splits and (shared := pairs.members & splits[other].members):
                raise UserError(
                    f"{len(shared)} images are in {name} and in {other}, such as {min(shared)}: take each out of one of the two"
                )
        rest = list(pairs.pairs)
        contents[name] = []
        for part, stored in parts.items():
            if (held := set(stored)) <= set(rest):
                contents[name].append(part)
                rest = [pair for pair in rest if pair not in held]
        if rest:
            part = name if not contents[name] else f"{name}-more"
            parts[part] = rest
            contents[name].append(part)
    return parts, contents


def write_parts(
    dataset: "SegmentationDataModule", folder: Path, parts: dict[str, list[Triple]], store: str, skip_bad: bool
) -> dict[str, list[dict[str, Any]]]:
    """Write all shards that are not there yet; gives what the manifest says of them.

    Raises:
        UserError: Images or labels cannot be read; all of them are named, a line each.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    shards: dict[str, list[dict[str, Any]]] = {part: [] for part in parts}
    fatal = 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    with Progress(*columns, console=console) as bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        for part, pairs in parts.items():
            shown = bar.add_task(part, total=len(pairs))
            for number, chosen in enumerate(chunks(pairs, store)):
                path = folder / f"{part}-{number:05d}.{'arrow' if store == 'raw' else 'parquet'}"
                entry = written(path, source := fingerprint(dataset, chosen, store))
                if entry is None:
                    rows = []
                    for row in pool.map(bind(read, dataset.read_label, store), chosen):
                        rows.append(row)
                        bar.advance(shown)
                    good = [row for row in rows if isinstance(row, dict)]
                    entry = write(path, good, store) | {"skipped": [row for row in rows if isinstance(row, str)]}
                    record(path, {"source": source, "entry": entry})
                else:
                    bar.advance(shown, len(chosen))
                for problem in entry["skipped"]:
                    console.print(problem)
                if entry["skipped"] and not (skip_bad and part not in ("val", "test")):
                    fatal += len(entry["skipped"])
                if entry["rows"]:
                    shards[part].append(entry)
    if fatal:
        total = sum(map(len, parts.values()))
        raise UserError(
            f"{fatal} of {total:,} images cannot be used, as named above: replace the files"
            + ("" if skip_bad else ", or leave out those of training with --on_bad_image skip")
        )
    return shards


def chunks(pairs: Sequence[Triple], store: str) -> Iterator[list[Triple]]:
    """The images of each shard: one after another, until it is full."""
    from dilated_seg.data.files import header

    chosen: list[Triple] = []
    size = 0
    for name, image, label in pairs:
        chosen.append((name, image, label))
        try:
            width, height = header(image)[0] if store == "raw" else (0, 0)
            size += 4 * width * height or image.stat().st_size + (label.stat().st_size if label else 0)
        except (UserError, OSError):
            pass  # to be named when it is read
        if size >= SHARD_BYTES:
            yield chosen
            chosen, size = [], 0
    if chosen:
        yield chosen


def read(read_label: Any, store: str, pair: Triple) -> dict[str, Any] | str:  # noqa: ANN401
    """An image and its label as a row of a shard, both decoded once to see that they can be; or what is wrong with them."""
    from dilated_seg.data.files import decode

    name, image, label = pair
    try:
        sample = decode(name, image, label, read_label)
        if store == "raw":
            pixels = sample["image"].permute(1, 2, 0).contiguous().numpy()
            mask = sample["mask"].numpy()
            sizes = dict(zip(("height", "width"), mask.shape, strict=True))
            return {"id": name, **sizes, "image": pixels.tobytes(), "mask": mask.tobytes()}
        label_cell = {"bytes": label.read_bytes(), "path": label.name} if label else {"bytes": b"", "path": ""}
        return {"id": name, "image": {"bytes": image.read_bytes(), "path": image.name}, "label": label_cell}
    except (UserError, OSError) as error:
        return str(error)


def schema(store: str) -> "pa.Schema":
    """A shard's columns; `datasets` shows the images of a store of files as such."""
    from datasets import Features, Image, Value

    file = {"bytes": Value("binary"), "path": Value("string")}
    raw = {"height": Value("int32"), "width": Value("int32"), "image": Value("large_binary"), "mask": Value("large_binary")}
    return Features({"id": Value("string")} | (raw if store == "raw" else {"image": Image(), "label": file})).arrow_schema


def write(path: Path, rows: list[dict[str, Any]], store: str) -> dict[str, Any]:
    """Write a shard, whole or not at all; gives its rows, row groups, bytes and checksum."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns, partial = schema(store), path.with_name(f"{path.name}.partial")
    if not rows:
        return {"file": path.name, "rows": 0}
    groups = [[row] for row in rows] if store == "raw" else list(grouped(rows))
    with partial.open("wb") as file:
        # images are compressed already
        writer: Any = (
            pa.ipc.new_stream(file, columns)
            if store == "raw"
            else pq.ParquetWriter(file, columns, compression="none", use_dictionary=False)
        )
        with writer:
            for group in groups:
                writer.write_table(pa.Table.from_pylist(group, schema=columns))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return {
        "file": path.name,
        "rows": len(rows),
        "groups": [len(group) for group in groups],
        "bytes": path.stat().st_size,
        "sha256": manifest.digest(path),
    }


def grouped(rows: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The rows of each row group."""
    group: list[dict[str, Any]] = []
    for row in rows:
        group.append(row)
        if sum(len(r["image"]["bytes"]) + len(r["label"]["bytes"]) for r in group) >= GROUP_BYTES:
            yield group
            group = []
    if group:
        yield group


def fingerprint(dataset: "SegmentationDataModule", chosen: Sequence[Triple], store: str) -> str:
    """Tells whether a shard of an interrupted call was made of the same files."""
    files = [path for _, *paths in chosen for path in paths if path]
    told = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) if path.exists() else path.name for path in files]
    texts = [manifest.read_text(dataset.place(), name) for name in dataset.texts]
    return hashlib.sha256(repr((store, dataset.choices, texts, told)).encode()).hexdigest()


def written(path: Path, source: str) -> dict[str, Any] | None:
    """What was noted of a shard when it was finished, by this call or an interrupted one, from the same files."""
    note = path.with_name(f"{path.name}.json")
    try:
        noted = json.loads(note.read_text())
        entry: dict[str, Any] = noted["entry"]
        whole = not entry["rows"] or path.stat().st_size == entry["bytes"]
        return entry if whole and noted["source"] == source and "skipped" in entry else None
    except (OSError, ValueError, TypeError, KeyError):
        return None  # nobody finished it


def record(path: Path, note: dict[str, Any]) -> None:
    """Note that a shard is finished."""
    partial = path.with_name(f"{path.name}.json.partial")
    partial.write_text(json.dumps(note))
    partial.replace(path.with_name(f"{path.name}.json"))


def finish(dataset: "SegmentationDataModule", partial: Path, out: Path, facts: dict[str, Any]) -> None:
    """Add texts, card and manifest, take away what only an interrupted call needs, and give the folder its name."""
    kept = {shard["file"] for part in facts["shards"].values() for shard in part}
    for path in partial.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in kept and path.name != ".lock":  # which this call holds
            path.unlink()
    for name in dataset.texts:
        shutil.copyfile(Path(dataset.place()) / name, partial / name)
    (partial / "README.md").write_text(card(dataset, facts))
    facts["files"] = {name: manifest.digest(partial / name) for name in (*dataset.texts, "README.md")}
    with (partial / manifest.NAME).open("w") as file:
        file.write(json.dumps(facts, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    (partial / ".lock").unlink(missing_ok=True)
    partial.replace(out)


def card(dataset: "SegmentationDataModule", facts: dict[str, Any]) -> str:
    """A data card: what this is, for people and for `datasets`."""
    about = (type(dataset).__doc__ or "").splitlines()[0]
    lines = ["---", "task_categories: [image-segmentation]"]
    if facts["store"] == "files":
        lines += ["configs:", "- config_name: default", "  data_files:"]
        for split, fact in facts["splits"].items():
            lines += [f"  - split: {split}", f"    path: [{', '.join(f'{part}-0*.parquet' for part in fact['parts'])}]"]
    lines += ["---", "", f"# {facts['dataset']}, prepared for dilated_seg", "", about, ""]
    lines += ["| split | images | labels |", "|---|---|---|"]
    lines += [
        f"| {split} | {fact['images']:,} | {'yes' if fact['labelled'] else 'kept back'} |"
        for split, fact in facts["splits"].items()
    ]  # fmt: skip
    skipped = [problem for part in facts["shards"].values() for shard in part for problem in shard["skipped"]]
    lines += ["", f"Left out, since they could not be read: {len(skipped)}.", *(f"- {problem}" for problem in skipped)]
    stored = {
        "files": "The columns `image` and `label` hold the publisher's files byte for byte, with their names.",
        "raw": "The columns `image` (uint8 RGB, row by row) and `mask` (class ids, 255 ignored) hold pixels.",
    }
    lines += [
        "",
        stored[facts["store"]],
        "`manifest.json` has their checksums. The dataset's own licence holds for all of it.",
        "",
    ]
    return "\n".join(lines)
