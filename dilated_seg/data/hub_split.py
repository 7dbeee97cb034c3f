"""A split of a Parquet dataset: its rows, and the names of its images."""

import glob
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa

from dilated_seg import storage
from dilated_seg.data.hub_columns import Columns, read_cell
from dilated_seg.data.hub_files import explain_access
from dilated_seg.data.hub_index import ParquetFile
from dilated_seg.data.hub_masks import MaskCoding
from dilated_seg.data.pairs import read_pair
from dilated_seg.data.row_groups import RowGroups, count_kept_groups
from dilated_seg.data.samplers import order_by_row_groups
from dilated_seg.data.split import Sample, Split
from dilated_seg.errors import UserError, format_error


class HubSplit(Split):
    """The images of a split of a Parquet dataset.

    Args:
        name: The dataset's own name of the split.
        files: The files of the split.
        columns: The columns of images, masks and names.
        coding: Reads masks; None if there are none.
        streaming: Read row groups on demand, instead of mapping the files into memory.
        repo: The dataset's name in messages.

    Raises:
        UserError: The files cannot be mapped, or the names of images cannot be read.
    """

    def __init__(
        self, name: str, files: Sequence[ParquetFile], columns: Columns, coding: MaskCoding | None, streaming: bool, repo: str
    ) -> None:
        self.name, self.columns, self.coding, self.streaming = name, columns, coding, streaming
        self.paths, self.checksums = [file.path for file in files], [file.checksum for file in files]
        self.sizes = [rows for file in files for rows in file.groups]
        self.starts = np.cumsum([0] + [sum(file.groups) for file in files])
        self.labelled = coding is not None
        self.expected = f"{repo} has no column of masks"
        self.rows = open_rows(files, columns.all) if streaming else map_files(files, columns.all)
        names = read_names(files, columns)
        self.members = frozenset(names or ())
        self.ids = names or [f"{name}-{row:06d}" for row in range(len(self))]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> Sample:
        path = self.paths[int(np.searchsorted(self.starts, index, "right")) - 1]
        with explain_reading(path):
            row = self.rows[index]
        name = self.ids[index]
        image = read_cell(row[self.columns.image][0].as_py(), path, name)
        mask = read_cell(row[self.columns.mask][0].as_py(), path, f"mask of {name}") if self.columns.mask else None
        if image is None or (mask is None and self.coding):
            raise UserError(f"{path} has no {'mask' if image else 'image'} for {name}: its cell is empty")
        return read_pair(name, image, mask if self.coding else None, self.coding or read_nothing)

    def order_images(self, seed: int, epoch: int, batch_size: int, world: int) -> np.ndarray:
        """Return an epoch's order: a permutation if files are mapped, `order_by_row_groups` if they are streamed."""
        if not self.streaming:
            return super().order_images(seed, epoch, batch_size, world)
        return order_by_row_groups(self.sizes, seed, epoch, batch_size, world, self.rows.limit)


def open_rows(files: Sequence[ParquetFile], columns: Sequence[str]) -> RowGroups:
    """Return columns of Parquet files, of which row groups are read on demand."""
    limit = count_kept_groups(sum(file.size for file in files), sum(len(file.groups) for file in files))
    paths, groups, footers = ([getattr(file, name) for file in files] for name in ("path", "groups", "footer"))
    return RowGroups(paths, groups, [file.version + file.checksum for file in files], columns, footers, limit)


def map_files(files: Sequence[ParquetFile], columns: Sequence[str]) -> Any:  # noqa: ANN401 - a datasets.Dataset
    """Return columns of local Parquet files, mapped from a copy that `datasets` writes to its cache at the first call.

    Raises:
        UserError: They are behind a URL.
    """
    from datasets import Dataset

    if storage.is_url(files[0].path):
        raise UserError(f"{files[0].path} is a URL: remove data.streaming=false, or copy the files to a directory")
    with explain_reading(files[0].path):
        return Dataset.from_parquet([glob.escape(file.path) for file in files], columns=list(columns)).with_format("arrow")


def read_names(files: Sequence[ParquetFile], columns: Columns) -> list[str] | None:
    """Return the names of images, from a column or from their files; None if names are missing or occur twice."""
    leaf = columns.name or f"{columns.image}.path"
    if leaf not in {files[0].footer.schema.column(i).path for i in range(files[0].footer.num_columns)}:
        return None
    rows = open_rows(files, [leaf])

    def read(number: int) -> list[Any]:
        with explain_reading(files[number].path):
            tables = [rows.read(number, group)[columns.name or columns.image] for group in range(len(files[number].groups))]
        return [cell for table in tables for cell in table.to_pylist()]

    with ThreadPoolExecutor(8) as pool:
        cells = [cell for part in pool.map(read, range(len(files))) for cell in part]
    if columns.name is None:
        cells = [Path((cell or {}).get("path") or "").stem for cell in cells]
    names = [str(cell) for cell in cells if cell not in (None, "")]
    return names if len(set(names)) == len(cells) else None


def read_nothing(mask: Any) -> NoReturn:  # noqa: ANN401
    """Raise an error: the dataset has no masks."""
    raise AssertionError(mask)


@contextmanager
def explain_reading(path: str) -> Iterator[None]:
    """Raise UserError if the file at a path or URL cannot be read."""
    try:
        with explain_access(path):
            yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as Parquet ({format_error(error)}): copy or upload it again") from error
