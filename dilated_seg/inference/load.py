"""Loads a trained network with all it takes to use it: from a run, a checkpoint, an exported directory, or the Hub."""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dilated_seg import models
from dilated_seg.crf import DenseCRF
from dilated_seg.errors import CorruptError, UserError, said
from dilated_seg.inference.segmenter import Segmenter
from dilated_seg.models import build
from dilated_seg.runs.checkpoint import of_run, verified
from dilated_seg.weights.mapping import shape, some
from dilated_seg.weights.readers import load_torch, tensors

# The files of an exported directory.
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"


def load(source: str | Path, net: nn.Module | None = None) -> Segmenter:
    """A trained network, ready to use: in evaluation mode, on the CPU.

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
        found = of_folder(path) if (path / CONFIG).is_file() else of_checkpoint(of_run(path), net)
    elif path.is_file():
        found = of_checkpoint(path, net)
    else:
        found = of_folder(downloaded(str(source)))
    for name, parameter in found.named_parameters():
        if not parameter.isfinite().all():
            raise UserError(
                f"{source}: {name} is not finite: these weights are broken, train again or take an earlier checkpoint"
            )
    return found.eval()


def of_checkpoint(path: Path, net: nn.Module | None = None) -> Segmenter:
    """The network of a run's checkpoint, with what the checkpoint says of the data it was trained on."""
    checksum = verified(path)
    try:
        with path.open("rb") as file:
            content = load_torch(file)
        if not isinstance(content, dict) or not {"state_dict", "global_step", "hyper_parameters"} <= content.keys():
            raise CorruptError("is no checkpoint of a run: name a file of a run's folder checkpoints/")
        state, given = tensors(content["state_dict"]), content["hyper_parameters"]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except CorruptError as error:
        raise UserError(f"{path} {error}") from error
    try:
        weights = {name.removeprefix("net."): tensor for name, tensor in state.items() if name.startswith("net.")}
        dataset = content.get("dataset", {})  # runs of earlier commits wrote none
        evaluations = of_these_weights(path, content["global_step"])
        built = constructor(given, path) if net is None else None
        mean, std = (state[name].flatten().tolist() for name in ("mean", "std"))
        classes = dataset.get("classes") or given["classes"] or [str(k) for k in range(given["num_classes"])]
        if built:
            net = rebuilt(*built, weights, str(path), "meta" if built[0] in models.__all__ else "cpu")
        elif net is not None:
            fill(net, weights, str(path))
        return Segmenter(
            net,  # type: ignore[arg-type] # built or given
            classes,
            mean,
            std,
            palette=dataset.get("palette"),
            ignore_index=dataset.get("ignore_index", given["ignore_index"]),
            submitted=dataset.get("submitted"),
            dataset=dataset.get("name") or next((record["protocol"]["dataset"] for record in evaluations), None),
            built=built,
            crf=crf_of(content.get("crf") or given.get("crf"), len(classes), state),
            facts={"checkpoint": path.name, "sha256": checksum, "step": content["global_step"], "evaluations": evaluations},
        )
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path} lacks what a run's checkpoint says of itself ({said(error)}): train its run again") from error


def crf_of(given: Mapping[str, Any] | None, classes: int, state: Mapping[str, Tensor]) -> DenseCRF | None:
    """The CRF that was trained with a network, by its saved arguments, its parameters among ``state`` as ``crf.*``."""
    learnt = {name.removeprefix("crf."): tensor for name, tensor in state.items() if name.startswith("crf.")}
    if not given:
        if learnt:
            raise UserError("there are weights of a CRF, but nothing says which")
        return None
    arguments: dict[str, Any] = dict(given.get("init_args") or {})
    if arguments.pop("num_classes", None) not in (None, classes):
        raise UserError(f"its CRF is of other than the {classes} classes")
    crf = DenseCRF(**arguments)
    if crf.learnable:
        crf.learn(classes)
    refuse_misfit(learnt, crf.state_dict(), "its CRF")
    crf.load_state_dict(learnt)
    return crf


def constructor(given: Mapping[str, Any], path: Path) -> tuple[str, dict[str, Any]]:
    """Class and arguments of the network, as the command line saved them; our own classes by their name alone."""
    if "net" not in given:
        raise UserError(f"{path} is of a network built in Python, which it cannot rebuild: hand it over, load(source, net=...)")
    name, arguments = given["net"]["class_path"], dict(given["net"].get("init_args") or {})
    if any(isinstance(value, dict) and "class_path" in value for value in arguments.values()):
        raise UserError(f"{path}: {name} is made of other objects: build it and hand it over, load(source, net=...)")
    module, _, own = name.rpartition(".")
    if module not in sys.modules:  # nothing is imported because a file names it
        raise UserError(f"{path} is of {name}, which is not imported: if it is one of yours, import its module first")
    return (own if build.find(name) is getattr(models, own, None) else name), arguments


def of_these_weights(path: Path, step: int) -> list[dict[str, Any]]:
    """What the run's folder says of evaluations at this step, tests first."""
    if path.parent.name != "checkpoints":
        return []
    found = []
    for file in sorted(path.parents[1].glob("evaluations/*.json")):
        try:
            record = json.loads(file.read_text())
            whole = isinstance(record["protocol"]["images"], int)  # not of some of the split's images
            if whole and record["protocol"]["checkpoint"].rpartition(" ")[2] == str(step):
                found.append({key: record[key] for key in ("evaluation", "protocol", "classes", "matrix")})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # no record: the weights are what is asked for
    return found


def of_folder(folder: Path) -> Segmenter:
    """What `export.hub.save` wrote; its network is one of `dilated_seg.models`."""
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
        net = rebuilt(name, arguments, weights, str(folder / WEIGHTS))
        crf = crf_of(config.get("crf"), len(config["classes"]), state)
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
        raise UserError(f"{folder / CONFIG} is no directory that export --format hub writes: {said(error)}") from error


def downloaded(source: str) -> Path:
    """The folder of the Hub's OWNER/NAME in the local cache: configuration and weights alone."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise UserError(f"there is no {source}: name a run's folder, a checkpoint, a saved folder, or OWNER/NAME at the Hub")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # every layer below has its own
        raise UserError(f"there is no path {source}, and the Hugging Face Hub does not give it: {said(error)}") from error


def rebuilt(
    name: str, arguments: dict[str, Any], weights: Mapping[str, Tensor], source: str, device: Literal["meta", "cpu"] = "meta"
) -> nn.Module:
    """A network with these weights; on the device "meta" nothing is reserved before all sizes are known to fit."""
    net = build.construct(name, (), arguments, f"{source}: {name}", device)
    fill(net, weights, source)
    return net


def fill(net: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Give a network its weights."""
    ours = net.state_dict()
    refuse_misfit(weights, ours, source)
    net.load_state_dict({name: tensor.to(ours[name].dtype) for name, tensor in weights.items()}, assign=True)


def refuse_misfit(saved: Mapping[str, Tensor], ours: Mapping[str, Tensor], source: str) -> None:
    """Refuse the weights of another network, by the first that do not fit."""
    wrong = [name for name in ours if name in saved and saved[name].shape != ours[name].shape]
    problems = {
        "it has no": [name for name in ours if name not in saved],
        "the network has no": [name for name in saved if name not in ours],
        "of another size is": [f"{name} ({shape(saved[name])}, here {shape(ours[name])})" for name in wrong],
    }
    if found := [f"{what} {some(names)}" for what, names in problems.items() if names]:
        raise UserError(f"{source} does not fit the network: {'; '.join(found)}")
