"""Write shards atomically, after decoding every image and mask once to check it."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial as bind
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dilated_seg import storage
from dilated_seg.data.checks import count_pixels
from dilated_seg.data.datamodule import SegmentationDataModule
from dilated_seg.data.headers import read_header
from dilated_seg.data.pairs import Pair, read_pair
from dilated_seg.errors import ResourceError, UserError, explain_system_error, open_console

if TYPE_CHECKING:
    import pyarrow as pa

SHARD_BYTES = 128 << 20
GROUP_BYTES = 2 << 20  # of a row group, which streaming reads at once


def write_parts(
    dataset: SegmentationDataModule,
    directory: Path,
    parts: dict[str, list[Pair]],
    store: str,
    skip_bad: bool,
    as_stored: bool | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Write the shards that an interrupted call has not written; return the manifest's entries of all.

    Raises:
        UserError: Images or masks cannot be read; all of them are printed, one a line.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    shards: dict[str, list[dict[str, Any]]] = {part: [] for part in parts}
    fatal = 0
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = open_console(stderr=True, soft_wrap=True)
    with Progress(*columns, console=console) as bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        for part, pairs in parts.items():
            progress = bar.add_task(part, total=len(pairs))
            for i, shard in enumerate(divide_shards(pairs, store)):
                path = directory / f"{part}-{i:05d}.{'arrow' if store == 'raw' else 'parquet'}"
                entry = read_note(path, source := fingerprint(dataset, shard, store, as_stored))
                if entry is None:
                    rows = []
                    for row in pool.map(bind(encode_row, dataset.mask_reader, store, as_stored, dataset.in_channels), shard):
                        rows.append(row)
                        bar.advance(progress)
                    entry = write_rows(path, rows, store, source)
                else:
                    bar.advance(progress, len(shard))
                for problem in entry["skipped"]:
                    console.print(problem)
                if entry["skipped"] and not (skip_bad and part not in ("val", "test")):
                    fatal += len(entry["skipped"])
                if entry["rows"]:
                    shards[part].append(entry)
    if fatal:
        total = sum(map(len, parts.values()))
        raise UserError(
            f"{fatal} of {total:,} images cannot be used, as printed above: replace the files"
            + ("" if skip_bad else ", or leave out those of training with --on_bad_image skip")
        )
    return shards


def write_rows(path: Path, rows: list[dict[str, Any] | str], store: str, source: str) -> dict[str, Any]:
    """Write the rows (dict) as a shard and a note with the problems (str); return its entry in the manifest."""
    good = [row for row in rows if isinstance(row, dict)]
    skipped = [row for row in rows if isinstance(row, str)]
    pixels, image_pixels = Counter[str](), Counter[str]()  # of each class, and of the images in which it occurs
    for row in good:
        pixels.update(row["pixels"])
        image_pixels.update(dict.fromkeys(row["pixels"], sum(row["pixels"].values())))
    counts = {"pixels": dict(pixels), "image_pixels": dict(image_pixels)}
    entry = write_shard(path, good, store) | {"skipped": skipped} | counts
    storage.write_text(path.with_name(f"{path.name}.json"), json.dumps({"source": source, "entry": entry}))
    return entry


def divide_shards(pairs: Sequence[Pair], store: str) -> Iterator[list[Pair]]:
    """Yield the images of each shard, of about SHARD_BYTES."""
    shard: list[Pair] = []
    size = 0
    for name, image, mask in pairs:
        shard.append((name, image, mask))
        try:
            width, height = read_header(image)[0] if store == "raw" else (0, 0)
            size += 4 * width * height or image.stat().st_size + (mask.stat().st_size if mask else 0)
        except (UserError, OSError):
            pass  # reported when the image is decoded
        if size >= SHARD_BYTES:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def encode_row(
    mask_reader: Any, store: str, as_stored: bool | None, in_channels: int, pair: Pair  # noqa: ANN401
) -> dict[str, Any] | str:  # fmt: skip
    """Return an image and its mask as a row of a shard, or the problem with them, after decoding both."""
    name, image, mask = pair
    try:
        sample = read_pair(name, image, mask, mask_reader, as_stored, in_channels)
        counts = enumerate(count_pixels(sample["mask"]).tolist()) if mask else ()
        pixels = {str(value): count for value, count in counts if count}
        if store == "raw":
            image_bytes = sample["image"].permute(1, 2, 0).contiguous().numpy().tobytes()
            ids = sample["mask"].numpy()
            sizes = dict(zip(("height", "width"), ids.shape, strict=True))
            return {"id": name, **sizes, "image": image_bytes, "mask": ids.tobytes(), "pixels": pixels}
        label_cell = {"bytes": mask.read_bytes(), "path": mask.name} if mask else {"bytes": b"", "path": ""}
        image_cell = {"bytes": image.read_bytes(), "path": image.name}
        return {"id": name, "image": image_cell, "label": label_cell, "pixels": pixels}
    except ResourceError:
        raise
    except UserError as error:
        return str(error)
    except OSError as error:
        problem = explain_system_error(image, error)
        if problem is None or isinstance(problem, ResourceError):
            raise problem or error from None
        return str(problem)


def make_schema(store: str) -> "pa.Schema":
    """Return a shard's columns, from which `datasets` knows that ``image`` is an image."""
    from datasets import Features, Image, Value

    file = {"bytes": Value("binary"), "path": Value("string")}
    raw = {"height": Value("int32"), "width": Value("int32"), "image": Value("large_binary"), "mask": Value("large_binary")}
    return Features({"id": Value("string")} | (raw if store == "raw" else {"image": Image(), "label": file})).arrow_schema


def write_shard(path: Path, rows: list[dict[str, Any]], store: str) -> dict[str, Any]:
    """Write a shard atomically; return its rows, row groups, bytes and checksum."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = make_schema(store)
    if not rows:
        return {"file": path.name, "rows": 0}
    groups = [[row] for row in rows] if store == "raw" else list(group_rows(rows))
    with storage.atomic_path(path) as partial, partial.open("wb") as file:
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
    return {
        "file": path.name,
        "rows": len(rows),
        "groups": [len(group) for group in groups],
        "bytes": path.stat().st_size,
        "sha256": storage.digest(path),
    }


def group_rows(rows: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of each row group."""
    group: list[dict[str, Any]] = []
    for row in rows:
        group.append(row)
        if sum(len(r["image"]["bytes"]) + len(r["label"]["bytes"]) for r in group) >= GROUP_BYTES:
            yield group
            group = []
    if group:
        yield group


def fingerprint(dataset: SegmentationDataModule, pairs: Sequence[Pair], store: str, as_stored: bool | None) -> str:
    """Return a checksum of names, sizes, times and options, to recognize a shard that an interrupted call wrote."""
    files = [path for _, *paths in pairs for path in paths if path]
    states = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) if path.exists() else path.name for path in files]
    texts = [storage.read_text(dataset.require_root(), name) for name in dataset.texts]
    return hashlib.sha256(repr((store, dataset.choices, texts, states, as_stored)).encode()).hexdigest()


def read_note(path: Path, source: str) -> dict[str, Any] | None:
    """Return the entry of a shard that was finished from the same files (``source``), or None."""
    note = path.with_name(f"{path.name}.json")
    try:
        content = json.loads(note.read_text())
        entry: dict[str, Any] = content["entry"]
        complete = not entry["rows"] or path.stat().st_size == entry["bytes"]
        return entry if complete and content["source"] == source else None
    except (OSError, ValueError, TypeError, KeyError):
        return None
