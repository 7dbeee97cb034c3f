"""Loads a trained network from a run, a checkpoint, an exported directory, or the Hugging Face Hub."""

import json
import re
import sys
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
    """Return a trained network in evaluation mode, on the CPU.

    Args:
        source: A run directory, or a directory of runs, of which the last one to finish is used; a checkpoint file; a directory
            that `export.hub.save` wrote; or, if no such path exists, OWNER/NAME at the Hugging Face Hub.
        net: The network, for a checkpoint that cannot rebuild it because it was built in Python.

    Raises:
        UserError: There is no such network, or it is damaged or incomplete.
    """
    path = Path(source)
    if len(str(source)) > 4000 or any(len(part.encode()) > 255 for part in path.parts):
        raise UserError(f"{str(source)[:80]}... is too long for a file name: name a run's directory or a checkpoint file")
    if path.is_dir():
        model = load_directory(path) if (path / CONFIG).is_file() else load_segmenter(newest_checkpoint(path), net)
    elif path.is_file():
        model = load_segmenter(Checkpoint(path), net)
    else:
        model = load_directory(download_from_hub(str(source)))
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise UserError(f"{source}: {name} is not finite: train again, or use an earlier checkpoint")
    return model.eval()


def load_directory(directory: Path) -> Segmenter:
    """Return the network of a directory that `export.hub.save` wrote.

    Raises:
        UserError: The directory is damaged, or its network is neither of `dilated_seg.models` nor of an imported module.
    """
    try:
        config = json.loads((directory / CONFIG).read_text("utf-8"))
        name, arguments = config["net"]["class"], dict(config["net"]["arguments"])
        if name not in models.__all__ and str(name).rpartition(".")[0] not in sys.modules:  # a file must not cause an import
            raise UserError(
                f"{directory / CONFIG} names {str(name)[:80]!r}, neither of dilated_seg.models nor imported: if you trust it, "
                "import its module first (--import MODULE)"
            )
        state, names = load_file(directory / WEIGHTS), config["classes"]
        if not isinstance(names, list) or not all(isinstance(label, str) for label in names):
            raise TypeError("classes must be a list of names")
        if not isinstance(config["facts"], dict) or type(config["ignore_index"]) is not int:
            raise TypeError("facts must be an object, and ignore_index a whole number")
        if arguments.get("num_classes", len(names)) != len(names):
            raise ValueError(f"there are {len(names)} class names, but the network has {arguments['num_classes']} classes")
        weights = {key: tensor for key, tensor in state.items() if not key.startswith("crf.")}
        net = rebuild(name, arguments, weights, str(directory / WEIGHTS), "meta" if name in models.__all__ else "cpu")
        crf = build_crf(config.get("crf"), len(config["classes"]), state)
        fields = ("palette", "ignore_index", "submitted", "dataset", "facts")
        return Segmenter(
            net, config["classes"], config["mean"], config["std"],
            **{field: config[field] for field in fields}, built=(name, arguments), crf=crf,
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"cannot read {error.filename or directory}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise UserError(f"{directory / WEIGHTS} is damaged: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError) as error:
        raise UserError(
            f"{directory / CONFIG} is not the configuration of an exported network: {describe_error(error)}"
        ) from error


def download_from_hub(source: str) -> Path:
    """Download OWNER/NAME from the Hub; return its directory in the local cache.

    Raises:
        UserError: The source is not OWNER/NAME, or cannot be downloaded.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise UserError(
            f"there is no {source}: name a run's directory, a checkpoint file, an exported directory, or OWNER/NAME at the Hub"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # every library below raises its own
        raise UserError(
            f"there is no path {source}, and it cannot be downloaded from the Hugging Face Hub: {describe_error(error)}"
        ) from error
