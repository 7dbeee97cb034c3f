"""The manifest of a prepared dataset: its shards, their images and their checksums."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dilated_seg.errors import UserError
from dilated_seg.storage import digest, is_url, join, read_text

NAME = "manifest.json"
FORMAT = 2


def read(root: str) -> dict[str, Any] | None:
    """Return the manifest of a prepared directory or URL; None if a directory has none, such as a dataset as released.

    Raises:
        UserError: The manifest cannot be read, or is of another version.
    """
    if not is_url(root) and not (Path(root) / NAME).is_file():
        return None
    text = read_text(root, NAME)
    try:
        manifest = json.loads(text)
        current = manifest["format"] == FORMAT
        if current:
            [manifest[key] for key in ("asked", "dataset", "store", "classes")]
            keys = ("file", "rows", "sha256", "pixels")
            [shard[key] for part in manifest["shards"].values() for shard in part for key in keys]
            [(split["images"], split["labelled"], split["parts"]) for split in manifest["splits"].values()]
            [manifest[key].items() for key in ("options", "files")]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{join(root, NAME)} is not the manifest of a prepared dataset: prepare it again") from error
    if not current:
        raise UserError(f"{join(root, NAME)} was written by another version of dilated-seg: prepare the dataset again")
    return manifest


def list_shards(manifest: dict[str, Any], split: str) -> list[dict[str, Any]]:
    """Return the shards that make up a split, in the order of its images."""
    return [shard for part in manifest["splits"][split]["parts"] for shard in manifest["shards"][part]]


def sum_pixels(manifest: dict[str, Any], split: str, key: str = "pixels") -> list[int] | None:
    """Return the number of pixels of each of the 256 class ids in a split; None if not all of its images have masks.

    With the key "image_pixels", it is that of all pixels of the images in which the class id occurs; None in shards of
    earlier versions.
    """
    shards = list_shards(manifest, split)
    if not manifest["splits"][split]["labelled"] or any(key not in shard for shard in shards):
        return None
    total = [0] * 256
    for shard in shards:
        for value, count in shard[key].items():
            total[int(value)] += count
    return total


def list_altered(root: Path, manifest: dict[str, Any]) -> Iterator[str]:
    """Yield a sentence for each file of a prepared directory that is missing or altered."""
    expected = {shard["file"]: shard["sha256"] for part in manifest["shards"].values() for shard in part}
    for name, checksum in (expected | manifest["files"]).items():
        path = root / name
        if not path.is_file():
            yield f"{path} is missing"
        elif digest(path) != checksum:
            yield f"{path} is altered: its checksum differs"
