"""Splits that ``prepare`` wrote as shards: memory-mapped, or streamed from a disk or URL."""

import glob
import os
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import torch

from dilated_seg import storage
from dilated_seg.data import manifest
from dilated_seg.data.decode import Stored
from dilated_seg.data.masks import ReadLabel
from dilated_seg.data.pairs import read_pair
from dilated_seg.data.samplers import CACHED_GROUPS, order_by_row_groups
from dilated_seg.data.split import Sample, Split
from dilated_seg.errors import UserError, explain_system_error, explain_url_error, format_error


@runtime_checkable
class Rows(Protocol):
    """Random access to the rows of several shards, one after another."""

    def __getitem__(self, index: int, /) -> pa.Table: ...


class Shards(Split):
    """A prepared split.

    Args:
        root: The folder, or URL, that holds the manifest.
        facts: What the manifest says.
        name: The split.
        read_label: Reads a label's bytes as class ids; a raw store has class ids already.
        streaming: Read row groups as they are needed, from the disk or a URL, instead of mapping the shards into memory.

    Raises:
        UserError: There is no such split, or a shard is missing or damaged.
    """

    def __init__(self, root: str, facts: dict[str, Any], name: str, read_label: ReadLabel, streaming: bool) -> None:
        if name not in facts["splits"]:
            raise UserError(f"{root} holds no split '{name}', only {', '.join(facts['splits'])}: prepare it as well")
        self.labelled = facts["splits"][name]["labelled"]
        self.pixels = manifest.sum_pixels(facts, name)
        self.members = set(facts["splits"][name]["parts"])
        self.as_stored: bool | None = None  # whether masks are stored as their images' files; None: as their sizes tell
        self.read_label, self.raw = read_label, facts["store"] == "raw"
        self.entries = manifest.list_shards(facts, name)
        self.places = [storage.join(root, entry["file"]) for entry in self.entries]
        self.streaming, self.countable = streaming, not streaming
        if self.raw and (streaming or storage.is_url(root)):
            raise UserError(f"{root} is a raw store, which is mapped into memory: stream one that holds the files instead")
        if not streaming and storage.is_url(root):
            raise UserError(f"{root} is a URL: set data.streaming, or copy it to a folder")
        for place, entry in zip(self.places, self.entries, strict=True):
            check_shard(place, entry["bytes"])
        self.rows: Rows
        if streaming:
            self.rows = StreamedRows(self.places, self.entries)
        else:
            self.rows = (map_arrow if self.raw else map_parquet)(self.places, self.entries)
        self.starts = np.cumsum([0] + [entry["rows"] for entry in self.entries])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> Sample:
        shard = int(np.searchsorted(self.starts, index, "right")) - 1
        place = self.places[shard]
        try:
            row = self.rows[index]
        except Exception as error:  # arrow, datasets and every kind of storage have their own
            if problem := explain_unreadable([place], [self.entries[shard]], error):
                raise problem from error
            raise
        if self.raw:
            return self.from_raw(row)
        image, label = (
            Stored(place, cell["path"].as_py(), cell["bytes"].as_py())
            for cell in (row["image"][0], row["label"][0])
        )  # fmt: skip
        return read_pair(row["id"][0].as_py(), image, label if label.name else None, self.read_label, self.as_stored)

    @staticmethod
    def from_raw(row: pa.Table) -> Sample:
        """Return views of the mapped pixels: what no crop takes is not read from the disk."""
        height, width = row["height"][0].as_py(), row["width"][0].as_py()
        image, mask = (np.frombuffer(row[name][0].as_buffer(), np.uint8) for name in ("image", "mask"))
        pixels = view_read_only(image.reshape(height, width, 3)).permute(2, 0, 1)
        return Sample(image=pixels, mask=view_read_only(mask.reshape(height, width)), id=row["id"][0].as_py())

    def order_images(self, seed: int, epoch: int, batch_size: int, world: int) -> np.ndarray:
        """Return an epoch's order: any permutation of mapped shards; of streamed ones, one that reads row groups as wholes."""
        if not self.streaming:
            return super().order_images(seed, epoch, batch_size, world)
        sizes = [rows for entry in self.entries for rows in entry["groups"]]
        return order_by_row_groups(sizes, seed, epoch, batch_size, world)


def map_parquet(places: list[str], entries: list[dict[str, Any]]) -> Rows:
    """Return Parquet shards as `datasets` maps them: through a copy in its cache that is made when they are first opened."""
    from datasets import Dataset

    try:
        return Dataset.from_parquet(list(map(glob.escape, places))).with_format("arrow")
    except Exception as error:  # DatasetGenerationError, whose cause is any of those that shards can raise
        if problem := explain_unreadable(places, entries, error.__cause__ or error):
            raise problem from error
        raise


def map_arrow(places: list[str], entries: list[dict[str, Any]]) -> Rows:
    """Return Arrow shards, mapped as they are."""
    from datasets import Dataset, concatenate_datasets

    parts = []
    for place, entry in zip(places, entries, strict=True):
        try:
            parts.append(Dataset.from_file(place))
        except Exception as error:
            if problem := explain_unreadable([place], [entry], error):
                raise problem from error
            raise
    return concatenate_datasets(parts).with_format("arrow")


class StreamedRows:
    """Parquet shards, one row group of which is read at a time; every process opens those that it needs."""

    def __init__(self, places: list[str], entries: list[dict[str, Any]]) -> None:
        import datasets  # noqa: F401 - takes a second: here, before workers are forked, and not in each of them

        self.places = [place if storage.is_url(place) else glob.escape(place) for place in places]
        self.starts = np.cumsum([0] + [rows for entry in entries for rows in entry["groups"]])
        self.within = [(shard, group) for shard, entry in enumerate(entries) for group in range(len(entry["groups"]))]
        self.forget()

    def forget(self) -> None:
        """Drop what was opened and read."""
        self.process = os.getpid()
        self.streams: dict[int, Any] = {}
        self.groups: OrderedDict[int, pa.Table] = OrderedDict()

    def __getitem__(self, index: int) -> pa.Table:
        if self.process != os.getpid():
            self.forget()
        group = int(np.searchsorted(self.starts, index, "right")) - 1
        if group not in self.groups:
            self.groups[group] = self.read(*self.within[group])
            if len(self.groups) > CACHED_GROUPS:
                self.groups.popitem(last=False)
        self.groups.move_to_end(group)
        return self.groups[group].slice(index - int(self.starts[group]), 1)

    def read(self, shard: int, group: int) -> pa.Table:
        """Return one row group: the shard's stream is cut into as many parts as it has groups, so no other is read."""
        from datasets import IterableDataset

        if shard not in self.streams:
            self.streams[shard] = IterableDataset.from_parquet(self.places[shard]).reshard().with_format("arrow")
        stream = self.streams[shard]
        return pa.concat_tables(stream.shard(num_shards=stream.num_shards, index=group).iter(batch_size=1 << 20))

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a worker process that is not forked, without what was opened."""
        return self.__dict__ | {"process": 0, "streams": {}, "groups": OrderedDict()}


def view_read_only(array: np.ndarray) -> torch.Tensor:
    """Return a tensor on read-only memory; torch would warn of that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


def check_shard(place: str, size: int) -> None:
    """Check that a local shard exists and has the size that was written.

    Raises:
        UserError: It is not.
    """
    if storage.is_url(place):
        return
    path = Path(place)
    if not path.is_file():
        raise UserError(f"{path} is missing: copy the folder again, or prepare it again")
    if path.stat().st_size != size:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes, not {size:,}: copy it again, or prepare the folder again")


def explain_unreadable(places: list[str], entries: list[dict[str, Any]], error: BaseException) -> UserError | None:
    """Return what to tell the user if reading shards has failed; None if neither they nor the system are at fault.

    A shard is damaged if its checksum differs from the manifest's: any error can follow from that, and no error proves it.
    """
    if problem := explain_system_error(places[0], error):
        return problem
    if storage.is_url(places[0]):
        return explain_url_error(places[0], error)
    said = format_error(error)
    for place, entry in zip(places, entries, strict=True):
        check_shard(place, entry["bytes"])
        if storage.digest(Path(place)) != entry["sha256"]:
            return UserError(f"{place} cannot be read ({said}): it is damaged, copy it again (prepare --verify checks all)")
    if isinstance(error, pa.ArrowException | OSError):
        return UserError(
            f"{Path(places[0]).parent} is as it was written, but pyarrow {pa.__version__} cannot read it ({said}): prepare it "
            "again with this version"
        )
    return None
