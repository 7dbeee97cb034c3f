"""The initial weights of a training: another run's, published ones, or torchvision's ImageNet weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule

from dilated_seg.data.classes import find_first_difference
from dilated_seg.errors import UserError
from dilated_seg.runs.find import newest_checkpoint
from dilated_seg.training.scale_features import scale_features
from dilated_seg.weights import LoadResult, fetch, fetch_imagenet, load
from dilated_seg.weights.check import check_shapes
from dilated_seg.weights.match import is_left_out
from dilated_seg.weights.readers import find_class_names


def fetch_initial_weights(task: Any) -> None:  # noqa: ANN401 - a SegmentationTask, a layer above
    """Download the initial weights if they are not on this machine yet."""
    if task.weights == "imagenet":
        fetch_imagenet(task.model.net)
    elif task.weights:
        fetch(task.weights)


def load_initial_weights(task: Any, stage: str) -> None:  # noqa: ANN401 - a SegmentationTask
    """Load the initial weights into the task's network, and their normalization unless the task's arguments set it.

    Before training, their features are scaled to the random layers that follow them; see `scale_features`.

    Raises:
        UserError: The weights have other classes or an unknown normalization, or do not fill a network that is evaluated.
    """
    file = newest_checkpoint(task.weights).path if Path(task.weights).is_dir() else task.weights
    result, mean, std = load(task.model.net, file, task.weights_without)
    check_classes_of_weights(task, result, str(file))
    if result.missing and stage != "fit":
        raise UserError(
            f"model.weights {task.weights} leaves {len(result.missing)} tensors of the network untrained, such as "
            f"{result.missing[0][0]}: evaluate a trained checkpoint with --ckpt_path"
        )
    given_mean, given_std = task.normalization
    if result.reads_image and None in (mean or given_mean, std or given_std):
        raise UserError(
            f"model.weights {task.weights}: the input normalization of these weights is unknown: "
            "set model.mean and model.std (RGB, 0 to 255), or port the file with --mean"
        )
    for ours, theirs, option in zip((task.model.mean, task.model.std), (mean, std), task.normalization, strict=True):
        if theirs and not option:
            ours.copy_(torch.tensor(theirs).view(-1, 1, 1))
    if task.trainer.is_global_zero:
        print(f"{file}: {result}", flush=True)
    if stage == "fit":
        scale_features(task, [name for name, _ in result.missing])
    if task.trainer.is_global_zero:
        mean, std = (tuple(round(n, 3) for n in values.flatten().tolist()) for values in (task.model.mean, task.model.std))
        kind = "RGB" if len(mean) == 3 else f"{len(mean)} channels"
        print(f"input: {kind} from 0 to 255, minus {mean}, over {std}", flush=True)


def check_classes_of_weights(task: Any, result: LoadResult, file: str) -> None:  # noqa: ANN401 - a SegmentationTask
    """Check that weights of a layer that scores classes (one channel per class) are for the classes of the data.

    If ``weights_without`` leaves that layer out, other classes are intended.

    Raises:
        UserError: The file names other classes.
    """
    channels = {name: tuple(tensor.shape[:1]) for name, tensor in task.model.net.state_dict().items()}
    scoring = [ours for _, _, ours, _ in result.loaded if channels[ours] == (task.num_classes,)]
    missing = [name for name, _ in result.missing if channels[name] == (task.num_classes,)]
    intended = any(is_left_out(name, task.weights_without) for name in missing)
    if scoring and not intended and (difference := find_class_difference(task, result.classes, file)):
        layer = scoring[-1].split(".")[-2]
        raise UserError(
            f"model.weights: {difference}: name {layer} in model.weights_without to initialize its scores for other "
            "classes, or give the data the names and the order of those weights"
        )


def check_checkpoint(task: Any, checkpoint: dict[str, Any]) -> None:  # noqa: ANN401 - a SegmentationTask
    """Check that a checkpoint that is evaluated or continued has the classes of the data and the network of the task.

    Raises:
        UserError: The checkpoint has other classes, or tensors of another network.
    """
    if difference := find_class_difference(task, find_class_names(checkpoint)):
        raise UserError(
            f"{difference}: give the data the names and the order of the checkpoint; for other classes, start from its "
            "weights with model.weights, without the layers in model.weights_without that score classes"
        )
    saved = checkpoint["state_dict"].items()  # a loss may have tensors, too
    state = {name.removeprefix("model."): tensor for name, tensor in saved if name.startswith("model.")}
    check_shapes(state, task.model.state_dict(), "the checkpoint")


def find_class_difference(task: LightningModule, names: Sequence[str] | None, file: str | None = None) -> str | None:
    """Return a clause that names the first class in which weights and data differ, or None.

    Args:
        task: The task, with the data that its trainer has; without a trainer there are no data.
        names: The weights' classes, None if unknown.
        file: The file of the weights; None for the trainer's checkpoint.
    """
    try:
        trainer: Any = task.trainer
    except RuntimeError:
        return None
    data, source = getattr(trainer, "datamodule", None), file or trainer.ckpt_path or "the checkpoint"
    ours = getattr(data, "classes", None) or task.hparams.get("classes")
    if not names or not ours:
        return None
    data_source = getattr(data, "names_source", None) or type(data or task).__name__
    return find_first_difference(names, [str(name) for name in ours], f"in {source}", f"in {data_source}")
