"""The key of the features that `CachedFrontEnd` caches: everything that they depend on."""

import hashlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from lightning import Trainer

from dilated_seg import storage
from dilated_seg.data import (
    SegmentationDataModule,
    chain,
    collate,
    decode,
    hub_columns,
    hub_masks,
    masks,
    pairs,
    samplers,
    shards,
    transforms,
)
from dilated_seg.data.chain import Chain
from dilated_seg.data.hub_split import HubSplit
from dilated_seg.data.pairs import Pairs
from dilated_seg.data.samplers import get_run_seed
from dilated_seg.data.shards import Shards
from dilated_seg.data.split import Split
from dilated_seg.errors import UserError

# The modules that determine the tensors of a training image: files, decoding, seeds, augmentation.
READING = (chain, decode, masks, collate, hub_columns, hub_masks, pairs, samplers, shards, transforms)


def describe_features(trainer: Trainer, task: Any, data: SegmentationDataModule) -> dict[str, Any]:  # noqa: ANN401
    """Return what determines the features: network, normalization, precision, images, augmentation, seed, and code."""
    net = task.model.net
    weights = hashlib.sha256()
    for name, tensor in net.front_end.state_dict().items():
        weights.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    layers = {type(layer).__module__ for layer in (net, *net.front_end.modules())}
    ours = (sys.modules[name] for name in sorted(layers) if not name.startswith("torch."))
    steps = data.augmentation.steps if isinstance(data.augmentation, Chain) else [data.augmentation]
    sources = {sys.modules[module.__module__] for module in (*steps, type(data)) if module is not None}
    return {
        "weights": weights.hexdigest(), "front_end": repr(net.front_end), "margin": net.margin,
        "mean": task.model.mean.flatten().tolist(), "std": task.model.std.flatten().tolist(),
        "precision": str(trainer.precision),
        "network_code": hash_code(*ours),
        "data": describe_images(data), "data_code": hash_code(*sources, *READING),
    }  # fmt: skip


def describe_images(data: SegmentationDataModule) -> dict[str, Any]:
    """Return what determines the training images and their augmentations.

    Raises:
        UserError: The values of the augmentation or the split are unknown.
    """
    augmentation = getattr(data.augmentation, "__qualname__", repr(data.augmentation))
    if " at 0x" in augmentation:
        raise UserError(
            f"CachedFrontEnd cannot detect changes of {type(data.augmentation).__name__}: give it a __repr__ of all its values"
        )
    split = data.open_split(data.train_split)
    texts = {name: storage.read_text(data.require_root(), name) for name in data.texts}
    return {
        "dataset": type(data).__name__, "split": data.train_split, "classes": list(data.classes), "texts": texts,
        "choices": data.choices, "images": len(split), "files": describe_split(split), "seed": get_run_seed(),
        "augmentation": augmentation, "on_bad_image": data.on_bad_image,
    }  # fmt: skip


def describe_split(split: Split) -> str:
    """Return a hash of the images of a split: of names, sizes and times of files, checksums of shards, or plain values.

    Raises:
        UserError: The split is of another kind, and has other attributes than plain values.
    """
    if isinstance(split, Pairs):
        files = ((name, path) for name, *both in split.pairs for path in both if path)
        facts: Any = [(name, path.name, path.stat().st_size, path.stat().st_mtime_ns) for name, path in files]
        return hash_text(repr((facts, split.as_stored)))
    if isinstance(split, Shards):
        return hash_text(repr(([entry["sha256"] for entry in split.entries], split.as_stored)))
    if isinstance(split, HubSplit):
        return hash_text(repr((split.checksums, split.columns, split.coding)))
    values = {name: value for name, value in vars(split).items() if not name.startswith("_")}  # private ones are caches
    if not all(isinstance(value, str | int | float | tuple) for value in values.values()):
        raise UserError(f"CachedFrontEnd cannot detect changes of the images of {type(split).__name__}: use Freeze")
    return hash_text(repr(sorted(values.items())))


def hash_text(text: str) -> str:
    """Return the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def hash_code(*modules: ModuleType) -> str:
    """Return the SHA-256 of the source files of some modules; code typed into a console has no file."""
    paths = sorted({file for module in modules if (file := getattr(module, "__file__", None))})
    return hashlib.sha256(b"".join(Path(path).read_bytes() for path in paths)).hexdigest()
