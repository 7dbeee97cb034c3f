"""What ``prepare`` wrote into a folder: shards, how many images each holds, and the checksums they must have.

Nothing heavy is imported before it is needed: asking whether a dataset is prepared takes no time.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dilated_seg import UserError
from dilated_seg.reading import explain_url_error, format_error

NAME = "manifest.json"
FORMAT = 1


def is_url(root: str) -> bool:
    """Whether data lie behind a URL (hf://, s3://, https://) and not in a folder."""
    return "://" in root


def join(root: str, name: str) -> str:
    """A file's place below a folder or URL."""
    return f"{root.rstrip('/')}/{name}"


def read(root: str) -> dict[str, Any] | None:
    """The manifest of a prepared folder or URL; None if a folder has none, as a dataset's own folders.

    Raises:
        UserError: It cannot be read, or is of another version.
    """
    if not is_url(root) and not (Path(root) / NAME).is_file():
        return None
    text = read_text(root, NAME)
    try:
        manifest = json.loads(text)
        known = manifest["format"] == FORMAT
        if known:
            [manifest[key] for key in ("asked", "dataset", "store")]
            [(shard["file"], shard["rows"], shard["sha256"]) for part in manifest["shards"].values() for shard in part]
            [(split["images"], split["labelled"], split["parts"]) for split in manifest["splits"].values()]
            [manifest[key].items() for key in ("options", "files")]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{join(root, NAME)} is no manifest of a prepared dataset: prepare it again") from error
    if not known:
        raise UserError(f"{join(root, NAME)} was written by another version of dilated-seg: prepare the dataset again")
    return manifest


def read_text(root: str, name: str) -> str:
    """A small text file in a folder or behind a URL.

    Raises:
        UserError: It cannot be read.
    """
    place = join(root, name)
    try:
        if not is_url(root):
            return Path(place).read_text("utf-8-sig")
        import fsspec  # comes with datasets

        with fsspec.open(place, encoding="utf-8-sig", mode="rt") as file:
            return str(file.read())
    except UnicodeDecodeError as error:
        raise UserError(f"{place} is no UTF-8 text: save it as such") from error
    except ImportError as error:  # fsspec names the package that this kind of URL needs
        raise UserError(f"cannot read {place}: {format_error(error)}") from error
    except Exception as error:
        if is_url(root) and (problem := explain_url_error(place, error)):
            raise problem from error
        if isinstance(error, OSError):
            raise UserError(f"cannot read {place}: {error.strerror or error}") from error
        raise


def shards(manifest: dict[str, Any], split: str) -> list[dict[str, Any]]:
    """The shards that make up a split, in the order of its images."""
    return [shard for part in manifest["splits"][split]["parts"] for shard in manifest["shards"][part]]


def pixels(manifest: dict[str, Any], split: str) -> list[int] | None:
    """Return the number of pixels of each of the 256 class ids in a split; None if ``prepare`` did not count them yet."""
    total = [0] * 256
    for shard in shards(manifest, split):
        if "pixels" not in shard or not manifest["splits"][split]["labelled"]:
            return None
        for value, number in shard["pixels"].items():
            total[int(value)] += number
    return total


def digest(path: Path) -> str:
    """A file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def altered(root: Path, manifest: dict[str, Any]) -> Iterator[str]:
    """What is missing from a prepared folder or not as it was written, a sentence each."""
    expected = {shard["file"]: shard["sha256"] for part in manifest["shards"].values() for shard in part}
    for name, checksum in (expected | manifest["files"]).items():
        path = root / name
        if not path.is_file():
            yield f"{path} is missing"
        elif digest(path) != checksum:
            yield f"{path} is not as it was written: its checksum differs"
