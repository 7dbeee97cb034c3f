"""A frozen front end's scores of training images, computed once and kept in shards on the disk."""

import json
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset

from dilated_seg.data.samplers import Key
from dilated_seg.errors import UserError
from dilated_seg.storage import digest

ROWS = 16  # images in a shard


class StoredScores(Dataset[dict[str, Any]]):
    """The scores and the masks of every variant of every training image, in the place of the images.

    A shard is named after its variant, its number and its own checksum, and appears whole or not at all.

    Args:
        folder: Where the shards are.
        images: How many images the split has.
        variants: How many augmentations of each there are.
    """

    def __init__(self, folder: Path, images: int, variants: int) -> None:
        self.folder, self.images, self.variants = folder, images, variants
        self.blocks = -(-images // ROWS)
        self.places: dict[tuple[int, int], Path] = {}
        self.opened: dict[Path, tuple[Any, list[str]]] = {}

    def __len__(self) -> int:
        return self.images

    def missing(self) -> list[tuple[int, int]]:
        """The shards (variant, block) that are not there as they were written; damaged ones are removed."""
        for path in set(self.folder.glob("*-*-*.safetensors")) - set(self.places.values()):
            if digest(path).startswith(path.stem.rpartition("-")[2]):
                self.add(path)
            else:
                path.unlink(missing_ok=True)
        return [(v, b) for v in range(self.variants) for b in range(self.blocks) if (v, b) not in self.places]

    def rows(self, block: int) -> range:
        """The images of a block."""
        return range(block * ROWS, min(self.images, (block + 1) * ROWS))

    def add(self, path: Path) -> None:
        """Know a shard by its name."""
        variant, block, _ = path.stem.split("-")
        self.places[int(variant), int(block)] = path

    def write(self, variant: int, block: int, samples: Iterable[dict[str, Any]]) -> int:
        """Write a shard of samples with ``scores``, ``mask`` and ``id``; gives its size in bytes.

        Raises:
            UserError: The disk is full, or the folder cannot be written to.
        """
        tensors: dict[str, Tensor] = {}
        names: list[str] = []
        for row, sample in enumerate(samples):
            tensors |= {f"{row}.scores": sample["scores"].contiguous(), f"{row}.mask": sample["mask"].contiguous()}
            names.append(sample["id"])
        partial = self.folder / f"{variant}-{block}.{socket.gethostname()}-{os.getpid()}.partial"  # others may compute it too
        try:
            save_file(tensors, partial, metadata={"ids": json.dumps(names)})
            size = partial.stat().st_size
            partial.replace(self.folder / f"{variant}-{block}-{digest(partial)[:16]}.safetensors")
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise UserError(f"the front end's scores cannot be written to {self.folder}: {error}") from error
        return size

    def __getitem__(self, key: Key) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key or 0)
        place = self.places[epoch % self.variants, index // ROWS]
        if place not in self.opened:
            shard: Any = safe_open(place, "pt")
            self.opened[place] = shard, json.loads(shard.metadata()["ids"])
        shard, names = self.opened[place]
        row = index % ROWS
        return {name: shard.get_tensor(f"{row}.{name}") for name in ("scores", "mask")} | {"id": names[row]}

    def __getstate__(self) -> dict[str, Any]:
        """For a worker process: it opens for itself what it needs."""
        return self.__dict__ | {"opened": {}}
