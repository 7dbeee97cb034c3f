"""Rebuilds a Segmenter from a checkpoint."""

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
    """Return the network of a checkpoint, with its normalization, classes and palette.

    Args:
        checkpoint: The checkpoint of a run.
        net: The network, if the checkpoint cannot rebuild it.
        evaluations: Evaluations of the run; those of these weights are added to the facts of the Segmenter.

    Raises:
        UserError: The checkpoint is damaged or incomplete, or does not fit the network.
    """
    checksum, content, path = checkpoint.verify(), checkpoint.read(), checkpoint.path
    if "hyper_parameters" not in content:
        raise UserError(f"{path} {NO_CHECKPOINT}")
    state = {name.removeprefix("model."): tensor for name, tensor in content["state_dict"].items()}
    arguments = {key: content[key] for key in ("net",) if key in content} | dict(content["hyper_parameters"])
    try:
        weights = {name.removeprefix("net."): tensor for name, tensor in state.items() if name.startswith("net.")}
        dataset = content.get("dataset", {})  # missing after a training on another data module
        step = content["global_step"]
        of_step = [each for each in evaluations if each.protocol.step == step and not each.protocol.partial]
        built = find_constructor(arguments, path) if net is None else None
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
            dataset=dataset.get("name") or next((each.protocol.dataset for each in of_step), None),
            built=built,
            crf=build_crf(content.get("crf") or arguments.get("crf"), len(classes), state),
            facts={
                "checkpoint": path.name,
                "sha256": checksum,
                "step": step,
                "evaluations": [evaluation.summary() for evaluation in of_step],
            },
        )
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path} is incomplete ({describe_error(error)}): train its run again") from error


def build_crf(arguments: Mapping[str, Any] | None, num_classes: int, state: Mapping[str, Tensor]) -> DenseCRF | None:
    """Return the CRF that was trained with a network; None if there is none.

    Args:
        arguments: The saved class and arguments of the CRF.
        num_classes: C of the network.
        state: The saved tensors; those of the CRF are named ``crf.*``.

    Raises:
        UserError: Arguments and tensors do not fit, or its class is not imported.
    """
    tensors = {name.removeprefix("crf."): tensor for name, tensor in state.items() if name.startswith("crf.")}
    if not arguments:
        if tensors:
            raise UserError("there are tensors of a CRF, but not its arguments")
        return None
    init_args: dict[str, Any] = dict(arguments.get("init_args") or {})
    if init_args.pop("num_classes", None) not in (None, num_classes):
        raise UserError(f"its CRF has other than {num_classes} classes")
    crf = find_crf(arguments.get("class_path", "DenseCRF"))(**init_args)
    if crf.learnable:
        crf.add_parameters(num_classes)
    check_shapes(tensors, crf.state_dict(), "its CRF")
    crf.load_state_dict(tensors)
    return crf


def find_crf(class_path: str) -> type[DenseCRF]:
    """Return the class of a saved CRF.

    Raises:
        UserError: It is another package's and is not imported: a file must not cause an import.
    """
    module, _, name = class_path.rpartition(".")
    if name == "DenseCRF":
        return DenseCRF
    kind = getattr(sys.modules.get(module), name, None)
    if not (isinstance(kind, type) and issubclass(kind, DenseCRF)):
        raise UserError(f"its CRF {class_path} is not imported: if you trust it, add --import {module}, or import it in Python")
    return kind


def find_constructor(hyperparameters: Mapping[str, Any], path: Path) -> tuple[str, dict[str, Any]]:
    """Return the network's class and arguments in hyperparameters of the command line; classes of `models` by name.

    Raises:
        UserError: The network was built in Python, of other objects, or its class is not imported.
    """
    if "net" not in hyperparameters:
        raise UserError(f"{path}: the network was built in Python: pass it as load(source, net=...)")
    net = hyperparameters["net"]
    class_path, arguments = net["class_path"], dict(net.get("init_args") or {})
    if any(isinstance(value, dict) and "class_path" in value for value in arguments.values()):
        raise UserError(f"{path}: {class_path} is built of other objects: build it and pass it as load(source, net=...)")
    module, _, name = class_path.rpartition(".")
    if module not in sys.modules:  # a file must not cause an import
        raise UserError(f"{path}: {class_path} is not imported: if you trust it, add --import {module}, or import it in Python")
    return (name if build.find_network(class_path) is getattr(models, name, None) else class_path), arguments
