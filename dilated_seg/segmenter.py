"""A trained network with all it takes to use it, from wherever it lies: a run, a checkpoint, a folder to hand on, the Hub."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dilated_seg import UserError, build, models
from dilated_seg.colours import palette as default_palette
from dilated_seg.crf import DenseCRF
from dilated_seg.inference import MOST
from dilated_seg.models.layers import promote
from dilated_seg.runs import of_run, verified
from dilated_seg.shapes import Image, Logits
from dilated_seg.weights.caffemodel import CorruptError
from dilated_seg.weights.files import load_torch, tensors
from dilated_seg.weights.fit import shape, some

# The files of a folder that `save_pretrained` writes.
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"

CHANNELS = torch.Size((3, 1, 1))


def normalised(image: Tensor, mean: Tensor, std: Tensor) -> Image:
    """What a network takes, of plain RGB (B, 3, H, W), 0 to 255."""
    return (image.float() - mean) / std


def followed(crf: DenseCRF | None, logits: Logits, image: Tensor) -> Logits:
    """The logits of a network that a CRF belongs to, whose probabilities these then are; or as they are."""
    return logits if crf is None else crf(logits.softmax(1), image).clamp_min(torch.finfo(logits.dtype).tiny).log()


class Segmenter(nn.Module):
    """A trained network with normalisation, class names and colours: plain RGB in, logits out.

    Args:
        net: Takes normalised RGB (B, 3, H, W), gives logits (B, C, H, W).
        classes: The names of the C classes.
        mean: Of each channel (RGB, 0 to 255), subtracted from the image.
        std: The image is then divided by it.
        palette: A colour (RGB) for each class; VOC's if None.
        ignore_index: The value of a mask where nothing is labelled.
        submitted: A test server's value for each class, if it is not the class id.
        dataset: What it was trained on.
        built: The network's class and arguments, from which it can be built again; None if nobody knows.
        crf: Part of it, if it was trained with one (CRF-RNN).
        facts: Where it comes from: ``checkpoint``, a file's name, its ``sha256``, its ``step``, and the ``evaluations`` that
            its run has of these weights, with protocol, classes and confusion matrix.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        classes: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        *,
        palette: Sequence[Sequence[int]] | None = None,
        ignore_index: int = 255,
        submitted: Sequence[int] | None = None,
        dataset: str | None = None,
        built: tuple[str, dict[str, Any]] | None = None,
        crf: DenseCRF | None = None,
        facts: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.crf = crf
        self.net = net.to(memory_format=torch.channels_last)
        self.classes = list(classes)
        self.palette = [(r, g, b) for r, g, b in palette or default_palette(len(classes))]
        self.ignore_index, self.dataset = ignore_index, dataset
        self.submitted = list(submitted) if submitted else None
        self.built, self.facts = built, facts or {}
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(CHANNELS))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(CHANNELS))
        for name, values in (("colours", self.palette), ("submitted values", self.submitted)):
            if values and len(values) != len(self.classes):
                raise UserError(f"there are {len(self.classes)} classes, but {len(values)} {name}")
        if len(self.classes) > MOST:
            raise UserError(f"class ids are written as bytes, of which 255 says void: {len(self.classes)} classes are too many")
        if not all(0 <= number <= 255 for number in (*(c for colour in self.palette for c in colour), *(self.submitted or ()))):
            raise UserError("colours and submitted values are numbers from 0 to 255")
        if not (self.mean.isfinite().all() and self.std.isfinite().all() and (self.std > 0).all()):
            raise UserError("mean and deviation of the image must be finite, the deviation above 0")

    def forward(self, image: Tensor) -> Logits:
        """Logits (B, C, H, W) of plain RGB (B, 3, H, W), 0 to 255, of any number type."""
        return followed(self.crf, promote(self.net(self.normalised(image))), image)

    def normalised(self, image: Tensor) -> Image:
        """What the network takes, of plain RGB (B, 3, H, W), 0 to 255."""
        return normalised(image, self.mean, self.std).contiguous(memory_format=torch.channels_last)

    def save_pretrained(self, folder: str | Path, licence: str | None = None) -> None:
        """Write a folder that `load`, `from_pretrained` and the Hub read: configuration, safetensors, a model card.

        Args:
            folder: Where; its files of these names are replaced.
            licence: Of the weights, which depends on what they were trained on; the card says "not stated" without.
        """
        from dilated_seg import hub

        hub.save(self, Path(folder), licence)

    def push_to_hub(self, repository: str, licence: str | None = None, private: bool = True) -> str:
        """Upload that folder to OWNER/NAME at the Hugging Face Hub; gives its address."""
        from dilated_seg import hub

        return hub.push(self, repository, licence, private)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "Segmenter":
        """The segmenter of a folder that `save_pretrained` wrote, or of the Hugging Face Hub's OWNER/NAME, as `load`.

        Nothing is executed: the network is one of `dilated_seg.models`, or none.

        Raises:
            UserError: It cannot be had, or is not as `save_pretrained` writes it.
        """
        return of_folder(Path(source) if Path(source).is_dir() else downloaded(str(source))).eval()


def load(source: str | Path, net: nn.Module | None = None) -> Segmenter:
    """A trained network, ready to use: in evaluation mode, on the CPU.

    Args:
        source: A finished run's folder or a folder of runs, whose newest counts; a checkpoint; a folder that
            `Segmenter.save_pretrained` wrote; or, if no such path exists, OWNER/NAME at the Hugging Face Hub.
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
    """What `save_pretrained` wrote; its network is one of `dilated_seg.models`."""
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
        raise UserError(f"{folder / CONFIG} is not what save_pretrained writes: {said(error)}") from error


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


def said(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
