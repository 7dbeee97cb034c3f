"""Loads a trained network with all it takes to use it: from a run, a checkpoint, an exported directory, or the Hub."""

import json
import re
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from dilated_seg import models
from dilated_seg.errors import UserError, describe_error
from dilated_seg.models.segmenter import Segmenter
from dilated_seg.runs.checkpoint import Checkpoint
from dilated_seg.runs.find import newest_checkpoint
from dilated_seg.runs.run import load_segmenter
from dilated_seg.runs.segmenter import build_crf
from dilated_seg.weights.check import rebuild

# The files of an exported directory.
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"


def load(source: str | Path, net: nn.Module | None = None) -> Segmenter:
    """Return a trained network, ready to use: in evaluation mode, on the CPU.

    Args:
        source: A finished run's folder or a folder of runs, whose newest counts; a checkpoint; a folder that
            `export.hub.save` wrote; or, if no such path exists, OWNER/NAME at the Hugging Face Hub.
        net: The network of a checkpoint that does not say how to build it, because it was built in Python.

    Raises:
        UserError: There is none, it is damaged, or it does not say what it takes to use it.
    """
    path = Path(source)
    if len(str(source)) > 4000 or any(len(part.encode()) > 255 for part in path.parts):
        raise UserError(f"there is no {str(source)[:80]}...: the name is too long for a file")
    if path.is_dir():
        found = load_directory(path) if (path / CONFIG).is_file() else load_segmenter(newest_checkpoint(path), net)
    elif path.is_file():
        found = load_segmenter(Checkpoint(path), net)
    else:
        found = load_directory(download_from_hub(str(source)))
    for name, parameter in found.named_parameters():
        if not parameter.isfinite().all():
            raise UserError(
                f"{source}: {name} is not finite: these weights are broken, train again or take an earlier checkpoint"
            )
    return found.eval()


def load_directory(folder: Path) -> Segmenter:
    """Return the network of a directory that `export.hub.save` wrote, which is one of `dilated_seg.models`."""
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        name, arguments = config["net"]["class"], dict(config["net"]["arguments"])
        if name not in models.__all__:
            raise UserError(f"{folder / CONFIG} names {str(name)[:80]!r}: only those of dilated_seg.models are built")
        state, names = load_file(folder / WEIGHTS), config["classes"]
        if not isinstance(names, list) or not all(isinstance(label, str) for label in names):
            raise TypeError("classes are no list of names")
        if not isinstance(config["facts"], dict) or type(config["ignore_index"]) is not int:
            raise TypeError("facts are no object, or ignore_index is no whole number")
        if arguments.get("num_classes", len(names)) != len(names):
            raise ValueError(f"there are {len(names)} names of classes, but the network has {arguments['num_classes']}")
        weights = {key: tensor for key, tensor in state.items() if not key.startswith("crf.")}
        net = rebuild(name, arguments, weights, str(folder / WEIGHTS))
        crf = build_crf(config.get("crf"), len(config["classes"]), state)
        fields = ("palette", "ignore_index", "submitted", "dataset", "facts")
        return Segmenter(
            net, config["classes"], config["mean"], config["std"],
            **{field: config[field] for field in fields}, built=(name, arguments), crf=crf,
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"cannot read {error.filename or folder}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise UserError(f"{folder / WEIGHTS} is damaged: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError) as error:
        raise UserError(
            f"{folder / CONFIG} is no directory that export --format hub writes: {describe_error(error)}"
        ) from error


def download_from_hub(source: str) -> Path:
    """Download configuration and weights of OWNER/NAME at the Hub; return their directory in the local cache."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise UserError(f"there is no {source}: name a run's folder, a checkpoint, a saved folder, or OWNER/NAME at the Hub")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # every layer below has its own
        raise UserError(
            f"there is no path {source}, and the Hugging Face Hub does not give it: {describe_error(error)}"
        ) from error
