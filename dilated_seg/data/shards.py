"""Splits that ``prepare`` wrote as shards, memory-mapped or streamed from a disk or URL."""

import glob
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from dilated_seg import storage
from dilated_seg.data import manifest
from dilated_seg.data.decode import Stored
from dilated_seg.data.masks import MaskReader
from dilated_seg.data.pairs import read_pair
from dilated_seg.data.row_groups import RowGroups, count_kept_groups
from dilated_seg.data.samplers import order_by_row_groups
from dilated_seg.data.split import Sample, Split
from dilated_seg.errors import UserError, explain_system_error, explain_url_error, format_error


class Shards(Split):
    """A prepared split.

    Args:
        root: The directory or URL that contains the manifest.
        record: The content of the manifest.
        name: The name of the split.
        mask_reader: Converts a mask's file to class ids; not used for a raw store, which contains class ids.
        streaming: Read row groups on demand, from a disk or URL, instead of mapping the shards into memory.
        in_channels: Channels of the images; see `pairs.Pairs`.

    Raises:
        UserError: There is no such split, or a shard is missing or damaged.
    """

    def __init__(
        self, root: str, record: dict[str, Any], name: str, mask_reader: MaskReader, streaming: bool, in_channels: int = 3
    ) -> None:
        if name not in record["splits"]:
            raise UserError(f"{root} has no split '{name}', only {', '.join(record['splits'])}: prepare it as well")
        self.labelled = record["splits"][name]["labelled"]
        self.pixels = manifest.sum_pixels(record, name)
        self.image_pixels = manifest.sum_pixels(record, name, "image_pixels")
        self.members = set(record["splits"][name]["parts"])
        self.as_stored: bool | None = None  # whether masks are stored like the images' files, not upright; None: inferred
        self.mask_reader, self.raw = mask_reader, record["store"] == "raw"
        self.entries = manifest.list_shards(record, name)
        self.paths = [storage.join(root, entry["file"]) for entry in self.entries]
        self.streaming, self.in_channels = streaming, in_channels
        if self.raw and (streaming or storage.is_url(root)):
            remedy = "to stream it, prepare it with --store files"
            raise UserError(f"{root} is a raw store, which can only be mapped into memory: {remedy}")
        if not streaming and storage.is_url(root):
            raise UserError(f"{root} is a URL: set data.streaming, or copy it to a directory")
        for path, entry in zip(self.paths, self.entries, strict=True):
            check_shard(path, entry["bytes"])
        open_rows: Any = stream_parquet if streaming else map_arrow if self.raw else map_parquet
        self.rows = open_rows(self.paths, self.entries)  # rows[i] is a pyarrow.Table of one row
        self.starts = np.cumsum([0] + [entry["rows"] for entry in self.entries])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> Sample:
        shard = int(np.searchsorted(self.starts, index, "right")) - 1
        path = self.paths[shard]
        with explain_errors([path], [self.entries[shard]]):
            row = self.rows[index]
        if self.raw:
            return self.read_raw(row)
        cells = (row["image"][0], row["label"][0])
        image, mask = (Stored(path, cell["path"].as_py(), cell["bytes"].as_py()) for cell in cells)
        label = mask if mask.name else None
        return read_pair(row["id"][0].as_py(), image, label, self.mask_reader, self.as_stored, self.in_channels)

    @staticmethod
    def read_raw(row: pa.Table) -> Sample:
        """Return a sample whose tensors are views of the mapped file, so that a crop reads only its own pixels."""
        height, width = row["height"][0].as_py(), row["width"][0].as_py()
        image, mask = (np.frombuffer(row[name][0].as_buffer(), np.uint8) for name in ("image", "mask"))
        pixels = view_read_only(image.reshape(height, width, 3)).permute(2, 0, 1)
        return Sample(image=pixels, mask=view_read_only(mask.reshape(height, width)), id=row["id"][0].as_py())

    def order_images(self, seed: int, epoch: int, batch_size: int, world: int) -> np.ndarray:
        """Return the order of an epoch's images: a permutation for mapped shards, `order_by_row_groups` for streamed ones."""
        if not self.streaming:
            return super().order_images(seed, epoch, batch_size, world)
        sizes = [rows for entry in self.entries for rows in entry["groups"]]
        return order_by_row_groups(sizes, seed, epoch, batch_size, world, self.rows.limit)


def map_parquet(paths: list[str], entries: list[dict[str, Any]]) -> Any:  # noqa: ANN401 - a datasets.Dataset
    """Return Parquet shards as a memory-mapped dataset; the first call writes a copy to the cache of `datasets`."""
    from datasets import Dataset

    with explain_errors(paths, entries):
        return Dataset.from_parquet(list(map(glob.escape, paths))).with_format("arrow")


def map_arrow(paths: list[str], entries: list[dict[str, Any]]) -> Any:  # noqa: ANN401 - a datasets.Dataset
    """Return Arrow shards as a memory-mapped dataset."""
    from datasets import Dataset, concatenate_datasets

    parts = []
    for path, entry in zip(paths, entries, strict=True):
        with explain_errors([path], [entry]):
            parts.append(Dataset.from_file(path))
    return concatenate_datasets(parts).with_format("arrow")


def stream_parquet(paths: list[str], entries: list[dict[str, Any]]) -> RowGroups:
    """Return Parquet shards, of which row groups are read on demand."""
    limit = count_kept_groups(sum(entry["bytes"] for entry in entries), sum(len(entry["groups"]) for entry in entries))
    groups, checksums = ([entry[key] for entry in entries] for key in ("groups", "sha256"))
    return RowGroups(paths, groups, checksums, limit=limit)


def view_read_only(array: np.ndarray) -> torch.Tensor:
    """Return a tensor that shares read-only memory, without torch's warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


def check_shard(path: str, size: int) -> None:
    """Raise UserError unless a local shard exists and has the size in the manifest."""
    if storage.is_url(path):
        return
    if not Path(path).is_file():
        raise UserError(f"{path} is missing: copy the directory again, or prepare it again")
    if (actual := Path(path).stat().st_size) != size:
        raise UserError(f"{path} has {actual:,} bytes, not {size:,}: copy it again, or prepare the dataset again")


@contextmanager
def explain_errors(paths: list[str], entries: list[dict[str, Any]]) -> Iterator[None]:
    """Replace an error of arrow, datasets or a storage library by the UserError of `explain_shard_error`."""
    try:
        yield
    except Exception as error:
        cause = error.__cause__ if type(error).__name__ == "DatasetGenerationError" else None
        if problem := explain_shard_error(paths, entries, cause or error):
            raise problem from error
        raise


def explain_shard_error(paths: list[str], entries: list[dict[str, Any]], error: BaseException) -> UserError | None:
    """Return the UserError for a failure to read shards; None if neither the operating system nor a shard caused it.

    A shard whose checksum differs from the manifest's is reported as damaged, whatever the error is.
    """
    if problem := explain_system_error(paths[0], error):
        return problem
    if storage.is_url(paths[0]):
        return explain_url_error(paths[0], error)
    text = format_error(error)
    for path, entry in zip(paths, entries, strict=True):
        check_shard(path, entry["bytes"])
        if storage.digest(Path(path)) != entry["sha256"]:
            return UserError(f"{path} cannot be read ({text}): it is damaged, copy it again (prepare --verify checks all)")
    if isinstance(error, pa.ArrowException | OSError):
        return UserError(
            f"{Path(paths[0]).parent} matches its checksums, but pyarrow {pa.__version__} cannot read it ({text}): prepare it "
            "again with this version"
        )
    return None
