"""Tunes the dense CRF's parameters for a trained network on a few images, as DeepLab's authors did."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from dilated_seg.crf import DenseCRF
from dilated_seg.data.split import Split
from dilated_seg.errors import UserError, format_command
from dilated_seg.inference.devices import resolve_device
from dilated_seg.inference.load import load
from dilated_seg.inference.reflected_tiles import ReflectedTiles
from dilated_seg.inference.strategies import FullImage, Inference, predict_logits
from dilated_seg.metrics import SegmentationMetrics
from dilated_seg.models.segmenter import Segmenter
from dilated_seg.runs.run import Run
from dilated_seg.runs.samples import open_labelled_split, require_same_classes, sample_evenly
from dilated_seg.runs.version import commit
from dilated_seg.storage import write_text
from dilated_seg.tensors import predict

# Start of the search; w2 = theta_gamma = 3 are fixed, as in DeepLab's paper.
START = {"w1": 10.0, "theta_alpha": 80.0, "theta_beta": 13.0}
GAIN = 5e-4  # minimum gain in mean IoU of a search step; smaller gains are noise
FACTORS = (2.0, 1.4)  # factors: a parameter is multiplied or divided by the first while that helps, then by the next

Parameters = dict[str, float]
Sample = tuple[Tensor, Tensor, Tensor]  # probabilities (1, C, H, W), plain RGB (1, 3, H, W), mask (1, H, W)


def search(
    objective: Callable[[Parameters], float], start: Parameters, factors: Iterable[float] = FACTORS
) -> tuple[Parameters, float]:
    """Return the best parameters and their objective, by coordinate ascent with coarse steps, then fine ones."""
    known: dict[tuple[float, ...], float] = {}

    def evaluate(parameters: Parameters) -> float:
        key = tuple(round(value, 6) for value in parameters.values())
        if key not in known:
            known[key] = objective(parameters)
        return known[key]

    best, highest = dict(start), evaluate(start)
    for factor in factors:
        improved = True
        while improved:
            improved = False
            for name in best:
                for step in (factor, 1 / factor):
                    other = best | {name: float(f"{best[name] * step:.3g}")}
                    if evaluate(other) >= highest + GAIN:
                        best, highest, improved = other, evaluate(other), True
    return best, highest


def build_crf(parameters: Parameters) -> DenseCRF:
    """Return the CRF of these parameters."""
    return DenseCRF(w1=parameters["w1"], theta_alpha=parameters["theta_alpha"], theta_beta=parameters["theta_beta"])


def compute_mean_iou(samples: Iterable[Sample], num_classes: int, ignore_index: int, crf: DenseCRF | None) -> float:
    """Return the mean IoU of all samples, of one confusion matrix, optionally after a CRF."""
    metrics = SegmentationMetrics(num_classes, ignore_index)
    for probabilities, image, mask in samples:
        refined = crf(probabilities.to(image.device).float(), image) if crf else probabilities
        metrics.update(predict(refined.cpu().float()), mask)
    return float(metrics.compute()["mean_iou"])


def tune(
    run: str,
    out: str | None = None,
    split: str = "train",
    images: int = 20,
    checkpoint: str | None = None,
    inference: Inference | None = None,
    device: str | None = None,
    overwrite: bool = False,
) -> None:
    """Tune w1, theta_alpha and theta_beta on evenly spaced images of a split, and write them as an overlay for --config.

    Args:
        run: A run's directory, or one of its checkpoint files.
        out: The overlay; RUN/crf.yaml if None.
        split: A split of the run's dataset.
        images: The number of images.
        checkpoint: "best", "last" or a file; the last one of the run if None.
        inference: The inference strategy; FullImage if None.
        device: The device of the network.
        overwrite: Whether to replace an existing overlay.

    Raises:
        UserError: There is no such run or checkpoint, the split has too few labelled images, or the overlay exists or cannot
            be written.
    """
    trained, weights = find_weights(run, checkpoint)
    dataset = trained.dataset()
    target = Path(out) if out else trained.crf_file
    require_new_file(target, overwrite)
    inference = inference or FullImage()
    model = load(weights).to(resolve_device(device))
    if model.crf:
        raise UserError(f"{run} was trained with a CRF: tune is for networks without one")
    if isinstance(inference, ReflectedTiles):
        inference.require_network(model)
    require_same_classes(run, dataset, model.classes)
    labelled = open_labelled_split(dataset, split)
    if not 1 <= images <= len(labelled):
        raise UserError(f"--images {images} must be between 1 and {len(labelled)}, the size of the split {split}")
    with torch.inference_mode():
        samples = predict_samples(model, labelled, images, inference)

        def objective(parameters: Parameters) -> float:
            value = compute_mean_iou(samples, dataset.num_classes, dataset.ignore_index, build_crf(parameters))
            print(f"{format_parameters(parameters)}: {100 * value:.2f}", flush=True)
            return value

        before = compute_mean_iou(samples, dataset.num_classes, dataset.ignore_index, None)
        print(f"mean IoU of {images} images of {split}, without a CRF: {100 * before:.2f}", flush=True)
        best, highest = search(objective, START)
    note = (
        f"mean IoU on {images} images of {type(dataset).__name__}'s {split}: {100 * before:.2f} without a CRF, "
        f"{100 * highest:.2f} with this one; {inference}; {model.facts['checkpoint']}, step {model.facts['step']}; {commit()}"
    )
    write_overlay(target, best, note)
    print(f"best: {format_parameters(best)}: {100 * highest:.2f}")
    command = format_command("dilated-seg", "validate", trained.path, "--checkpoint", weights, "--config", target)
    print(f"written: {target}; to evaluate it:\n  {command}")


def find_weights(run: str, checkpoint: str | None) -> tuple[Run, Path]:
    """Return a run, named by its directory or a checkpoint file, and the checkpoint file of a name; its last by default."""
    path = Path(run)
    trained = (Run.containing(path) if path.is_file() else None) or Run(path)
    if checkpoint:
        return trained, trained.checkpoint(checkpoint).path if checkpoint in ("best", "last") else Path(checkpoint)
    return trained, path if path.is_file() else trained.last_checkpoint.path


def predict_samples(model: Segmenter, split: Split, images: int, inference: Inference) -> list[Sample]:
    """Return the probabilities of images evenly spread over a split, in half precision on the CPU, with image and mask."""
    samples: list[Sample] = []
    for sample in sample_evenly(split, images):
        image = sample["image"][None].to(model.mean.device)
        samples.append((predict_logits(inference, model, image).softmax(1).half().cpu(), image, sample["mask"][None]))
    return samples


def require_new_file(target: Path, overwrite: bool) -> None:
    """Require that the overlay can be written.

    Raises:
        UserError: The file exists, or its directory does not.
    """
    if target.exists() and (target.is_dir() or not overwrite):
        raise UserError(f"{target} exists: name another --out, or replace it with --overwrite")
    if not target.parent.is_dir():
        raise UserError(f"--out {target}: there is no directory {target.parent}: create it first")


def write_overlay(target: Path, parameters: Parameters, note: str) -> None:
    """Write CRF parameters as an overlay for ``--config``, with a comment on top."""
    lines = "".join(f"    {name}: {value:g}\n" for name, value in parameters.items())
    try:
        write_text(target, f"# {note}\ncrf:\n  class_path: dilated_seg.crf.DenseCRF\n  init_args:\n{lines}")
    except OSError as error:
        raise UserError(f"--out {target}: cannot write it: {error.strerror or error}") from error


def format_parameters(parameters: Parameters) -> str:
    """Return parameters as text."""
    return ", ".join(f"{name} {value:g}" for name, value in parameters.items())
