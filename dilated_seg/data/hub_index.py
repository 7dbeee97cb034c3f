"""Parquet files by their footers, and the cached index of the files behind a URL."""

import base64
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dilated_seg import storage
from dilated_seg.data.row_groups import find_cache


@dataclass(frozen=True)
class ParquetFile:
    """A Parquet file.

    Args:
        path: Path or URL.
        size: Size in bytes.
        version: A text that changes with the content: time of the last change, ETag, or the Hub's revision.
        footer: The metadata of the file.
        relative: The path from the dataset's root.
    """

    path: str
    size: int
    version: str
    footer: pq.FileMetaData
    relative: str

    @property
    def groups(self) -> list[int]:
        """The number of rows of each row group."""
        return [self.footer.row_group(i).num_rows for i in range(self.footer.num_row_groups)]

    @cached_property
    def checksum(self) -> str:
        """The SHA-256 of name, size and footer, which has the sizes and extremes of all column chunks."""
        return hashlib.sha256(f"{self.relative} {self.size} ".encode() + pack_footer(self.footer)).hexdigest()


def locate(root: str, name: str) -> str:
    """Return the path or URL of a file of the dataset."""
    return root if root.partition("?")[0].endswith(".parquet") else storage.join(root, name)


def pack_footer(footer: pq.FileMetaData) -> bytes:
    """Return a footer as the bytes of a Parquet file without data."""
    buffer = io.BytesIO()
    footer.write_metadata_file(buffer)
    return buffer.getvalue()


def find_index(root: str) -> Path:
    """Return the file of the cached index of a URL."""
    return find_cache() / f"{hashlib.sha256(root.encode()).hexdigest()[:32]}.index"


def read_index(root: str) -> tuple[dict[str, tuple[int, str]], dict[str, ParquetFile]]:
    """Read the index of `write_index`: names and Parquet files, both empty if it is missing or its checksum differs."""
    try:
        checksum, _, text = find_index(root).read_text().partition("\n")
        if checksum != hashlib.sha256(text.encode()).hexdigest():
            return {}, {}
        content = json.loads(text)
        names = {name: (size, version) for name, size, version in content["names"]}
        footers = {name: pq.read_metadata(pa.BufferReader(base64.b64decode(f))) for name, f in content["footers"].items()}
        return names, {name: ParquetFile(locate(root, name), *names[name], f, name) for name, f in footers.items()}
    except FileNotFoundError:
        return {}, {}


def write_index(root: str, names: Mapping[str, tuple[int, str]], files: Mapping[str, ParquetFile]) -> None:
    """Write names and footers to the cache, preceded by their SHA-256."""
    footers = {name: base64.b64encode(pack_footer(file.footer)).decode() for name, file in files.items()}
    text = json.dumps({"root": root, "names": [(name, *state) for name, state in names.items()], "footers": footers})
    storage.write_text(find_index(root), f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
