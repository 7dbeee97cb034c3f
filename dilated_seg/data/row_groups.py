"""Rows of Parquet files, read one row group at a time from a disk or URL."""

import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from dilated_seg import storage
from dilated_seg.data.samplers import CACHED_GROUPS
from dilated_seg.errors import UserError

CACHE = "DILATED_SEG_CACHE"  # environment variable: directory of the disk cache of row groups and indices of URLs
CACHE_GB = "DILATED_SEG_CACHE_GB"  # environment variable: size of the disk cache in GB, 10 by default
MEMORY = 512 << 20  # bytes of row groups that a process keeps
PAUSES = (1.0, 4.0)  # seconds before a failed request is sent again

T = TypeVar("T")


class RowGroups:
    """Rows of Parquet files: ``rows[i]`` is a pyarrow.Table of row i.

    The ``limit`` most recently used row groups stay open. Those of local files are held in memory; those of URLs are
    memory-mapped from the disk cache (`find_cache`), so that the processes of a machine together download each one once.

    Args:
        paths: The files: paths or URLs.
        groups: Number of rows in each row group of each file.
        versions: A string for each file that changes with its content, such as an ETag; part of the key in the cache.
        columns: The columns to read; all by default.
        footers: The files' metadata, if already read.
        limit: Number of row groups that stay open.
    """

    def __init__(
        self,
        paths: Sequence[str],
        groups: Sequence[Sequence[int]],
        versions: Sequence[str],
        columns: Sequence[str] | None = None,
        footers: Sequence[pq.FileMetaData] | None = None,
        limit: int = CACHED_GROUPS,
    ) -> None:
        self.paths, self.versions, self.limit = list(paths), list(versions), limit
        self.columns, self.footers = list(columns) if columns else None, footers
        self.starts = np.cumsum([0] + [rows for sizes in groups for rows in sizes])
        self.positions = [(file, group) for file, sizes in enumerate(groups) for group in range(len(sizes))]
        self.reset()

    def reset(self) -> None:
        """Drop open files and cached row groups."""
        self.process = os.getpid()
        self.files: dict[int, pq.ParquetFile] = {}
        self.groups: OrderedDict[int, pa.Table] = OrderedDict()

    def __getitem__(self, index: int) -> pa.Table:
        if self.process != os.getpid():
            self.reset()
        group = int(np.searchsorted(self.starts, index, "right")) - 1
        if group not in self.groups:
            self.groups[group] = self.read(*self.positions[group])
            if len(self.groups) > self.limit:
                self.groups.popitem(last=False)
        self.groups.move_to_end(group)
        return self.groups[group].slice(index - int(self.starts[group]), 1)

    def read(self, file: int, group: int) -> pa.Table:
        """Return a row group; one of a URL comes from the disk cache, if any process of the machine has downloaded it."""
        if not storage.is_url(self.paths[file]):
            return self.open(file).read_row_group(group, self.columns)
        name = repr((self.paths[file], self.versions[file], group, self.columns))
        key = hashlib.sha256(name.encode()).hexdigest()[:32]
        cache = find_cache()
        target = cache / f"{key}.arrow"
        with FileLock(cache / f"{key[:2]}.lock"):
            if (table := map_table(target)) is not None:
                return table
            with storage.atomic_path(target) as partial:
                table = self.fetch(file, group)
                with pa.OSFile(str(partial), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
                    writer.write_table(table)
            self.files.pop(file, None)  # so that no connection stays open
        trim_cache(cache, target)
        table = map_table(target)
        if table is None:
            raise UserError(f"{target} cannot be read after it was written: check the disk, or set {CACHE} to another one")
        return table

    def fetch(self, file: int, group: int) -> pa.Table:
        """Download a row group."""

        def read() -> pa.Table:
            try:
                return self.open(file).read_row_group(group, self.columns)
            except Exception:  # the next attempt opens the file again
                self.files.pop(file, None)
                raise

        return retry(read)

    def open(self, file: int) -> pq.ParquetFile:
        """Open a file, or return it if it is open; the footer is read only if it was not given."""
        if file not in self.files:
            footer = self.footers[file] if self.footers else None
            self.files[file] = pq.ParquetFile(open_file(self.paths[file]), metadata=footer, pre_buffer=True)
        return self.files[file]

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a spawned worker process: without files and cache."""
        return self.__dict__ | {"process": 0, "files": {}, "groups": OrderedDict()}


def retry(request: Callable[[], T]) -> T:
    """Return the result of a request; if the connection fails, send it again after each of `PAUSES`."""
    for pause in PAUSES:
        try:
            return request()
        except (FileNotFoundError, PermissionError, ImportError, pa.ArrowInvalid, UserError):
            raise
        except Exception:  # of any storage library; the last attempt raises
            time.sleep(pause)
    return request()


def open_file(path: str) -> Any:  # noqa: ANN401 - a path, or a file of fsspec's
    """Return a path unchanged; open a URL as a file that requests only the bytes that are read."""
    if not storage.is_url(path):
        return path
    system, name = storage.find_system(path)
    return system.open(name, "rb", cache_type="none")


def find_cache() -> Path:
    """Return the directory of the disk cache, and create it."""
    cache = Path(os.environ.get(CACHE) or "~/.cache/dilated_seg").expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def map_table(path: Path) -> pa.Table | None:
    """Return a cached row group, memory-mapped; None if it is missing or damaged (and deleted)."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        os.utime(path)
        return table
    except FileNotFoundError:
        return None
    except pa.ArrowInvalid:  # such as after a power failure
        path.unlink(missing_ok=True)
        return None


def trim_cache(cache: Path, kept: Path) -> None:
    """Delete the least recently used row groups until the cache has its size; processes that map them can read on."""
    limit = float(os.environ.get(CACHE_GB) or 10) * 1e9
    states = []
    for path in cache.glob("*.arrow"):
        with suppress(FileNotFoundError):  # another process deletes too
            states.append((path.stat().st_mtime_ns, path.stat().st_size, path))
    total = sum(size for _, size, _ in states)
    for _, size, path in sorted(states):
        if total <= limit:
            return
        if path != kept:
            path.unlink(missing_ok=True)
            total -= size


def count_kept_groups(size: int, groups: int) -> int:
    """Return how many of ``groups`` row groups, ``size`` bytes in total, to keep in memory."""
    return int(np.clip(MEMORY * groups // max(size, 1), 2, CACHED_GROUPS))
