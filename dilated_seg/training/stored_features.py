"""The dataset that `CachedFrontEnd` trains on: features of training images in shards on disk."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import Dataset

from dilated_seg import storage
from dilated_seg.data.samplers import Key
from dilated_seg.errors import UserError

ROWS = 16  # images in a shard

Block = tuple[int, int]  # a shard's variant, and its number among those of the variant


class StoredFeatures(Dataset[dict[str, Any]]):
    """The features and the mask of every variant of every training image; indexed by (epoch, index), as images are.

    A shard is named after its variant, its number and its checksum, and written atomically.

    Args:
        directory: The directory of shards.
        images: The number of images of the split.
        variants: The number of augmentations of each.
    """

    def __init__(self, directory: Path, images: int, variants: int) -> None:
        self.directory, self.images, self.variants = directory, images, variants
        self.blocks = {(variant, block) for variant in range(variants) for block in range(-(-images // ROWS))}
        self.shards: dict[Block, Path] = {}
        self.files: dict[Path, Any] = {}  # those that this process has open

    def __len__(self) -> int:
        return self.images

    def rows(self, block: int) -> range:
        """Return the images of a block."""
        return range(block * ROWS, min(self.images, (block + 1) * ROWS))

    def find_shards(self) -> None:
        """Read the names of the shards in the directory."""
        for path in self.directory.glob("*-*-*.safetensors"):
            variant, block, _ = path.stem.split("-")
            self.shards[int(variant), int(block)] = path

    def find_missing(self) -> set[Block]:
        """Return the missing shards, after removing damaged and unfinished ones."""
        for path in self.directory.glob(".*.partial*"):
            path.unlink(missing_ok=True)
        for path in self.directory.glob("*-*-*.safetensors"):
            if not storage.digest(path).startswith(path.stem.rpartition("-")[2]):
                path.unlink(missing_ok=True)
        self.find_shards()
        return self.blocks - self.shards.keys()

    def write(self, variant: int, block: int, samples: list[dict[str, Any]]) -> int:
        """Write a shard of samples with ``features``, ``mask`` and ``id``; return its size in bytes.

        Raises:
            UserError: The disk is full, or the directory cannot be written.
        """
        tensors = {f"{row}.{name}": s[name].contiguous() for row, s in enumerate(samples) for name in ("features", "mask")}
        content = save(tensors, metadata={"ids": json.dumps([sample["id"] for sample in samples])})
        path = self.directory / f"{variant}-{block}-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
        try:
            with storage.atomic_path(path) as partial:
                partial.write_bytes(content)
        except OSError as error:
            raise UserError(f"the front end's features cannot be written to {self.directory}: {error}") from error
        return len(content)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key or 0)
        path, row = self.shards[epoch % self.variants, index // ROWS], index % ROWS
        if path not in self.files:
            self.files[path] = safe_open(path, "pt")
        shard = self.files[path]
        tensors = {name: shard.get_tensor(f"{row}.{name}") for name in ("features", "mask")}
        return tensors | {"id": json.loads(shard.metadata()["ids"])[row]}

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a worker process, which opens the files that it needs."""
        return self.__dict__ | {"files": {}}


def stack_features(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Return samples of equal size as a batch, with features as its images."""
    tensors: dict[str, Tensor] = {name: torch.stack([s[name] for s in samples]) for name in ("features", "mask")}
    return {**tensors, "id": [sample["id"] for sample in samples]}
