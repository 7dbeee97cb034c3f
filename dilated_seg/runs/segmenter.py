"""Builds the Segmenter of a checkpoint from what the checkpoint says of itself."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dilated_seg import models
from dilated_seg.crf import DenseCRF
from dilated_seg.errors import UserError, describe_error
from dilated_seg.models import build
from dilated_seg.models.segmenter import Segmenter
from dilated_seg.runs.checkpoint import NO_CHECKPOINT, Checkpoint
from dilated_seg.runs.evaluation import Evaluation
from dilated_seg.weights.check import assign_weights, check_shapes, rebuild


def build_segmenter(checkpoint: Checkpoint, net: nn.Module | None = None, evaluations: Sequence[Evaluation] = ()) -> Segmenter:
    """Return the network of a checkpoint, with what the checkpoint records of the data it was trained on.

    Args:
        checkpoint: Of a run.
        net: The network, if the checkpoint does not say how to build it.
        evaluations: Of its run.

    Raises:
        UserError: The checkpoint is damaged, lacks something, or does not fit the network.
    """
    checksum, content, path = checkpoint.verify(), checkpoint.read(), checkpoint.path
    if "hyper_parameters" not in content:
        raise UserError(f"{path} {NO_CHECKPOINT}")
    state = {name.removeprefix("model."): tensor for name, tensor in content["state_dict"].items()}
    arguments = content["hyper_parameters"]
    try:
        weights = {name.removeprefix("net."): tensor for name, tensor in state.items() if name.startswith("net.")}
        dataset = content.get("dataset", {})  # a training on data of no SegmentationDataModule has none
        step = content["global_step"]
        own = [one for one in evaluations if one.protocol.step == step and not one.protocol.partial]
        built = constructor(arguments, path) if net is None else None
        mean, std = (state[name].flatten().tolist() for name in ("mean", "std"))
        classes = dataset.get("classes") or arguments["classes"] or [str(k) for k in range(arguments["num_classes"])]
        if built:
            net = rebuild(*built, weights, str(path), "meta" if built[0] in models.__all__ else "cpu")
        elif net is not None:
            assign_weights(net, weights, str(path))
        return Segmenter(
            net,  # type: ignore[arg-type] # built or given
            classes,
            mean,
            std,
            palette=dataset.get("palette"),
            ignore_index=dataset.get("ignore_index", arguments["ignore_index"]),
            submitted=dataset.get("submitted"),
            dataset=dataset.get("name") or next((one.protocol.dataset for one in own), None),
            built=built,
            crf=build_crf(content.get("crf") or arguments.get("crf"), len(classes), state),
            facts={
                "checkpoint": path.name,
                "sha256": checksum,
                "step": step,
                "evaluations": [evaluation.summary() for evaluation in own],
            },
        )
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"{path} lacks what a run's checkpoint says of itself ({describe_error(error)}): train its run again"
        ) from error


def build_crf(given: Mapping[str, Any] | None, num_classes: int, state: Mapping[str, Tensor]) -> DenseCRF | None:
    """The CRF that was trained with a network, by its saved arguments, its parameters among ``state`` as ``crf.*``."""
    learnt = {name.removeprefix("crf."): tensor for name, tensor in state.items() if name.startswith("crf.")}
    if not given:
        if learnt:
            raise UserError("there are weights of a CRF, but nothing says which")
        return None
    arguments: dict[str, Any] = dict(given.get("init_args") or {})
    if arguments.pop("num_classes", None) not in (None, num_classes):
        raise UserError(f"its CRF is of other than the {num_classes} classes")
    crf = DenseCRF(**arguments)
    if crf.learnable:
        crf.add_parameters(num_classes)
    check_shapes(learnt, crf.state_dict(), "its CRF")
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
    return (own if build.find_network(name) is getattr(models, own, None) else name), arguments
