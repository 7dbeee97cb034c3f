"""Searches the parameters of the dense CRF for a trained network on a few images, as DeepLab's authors did."""

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

# What is searched, from where; the smoothness kernel stays as it is (w2 = theta_gamma = 3), as in DeepLab's paper.
START = {"w1": 10.0, "theta_alpha": 80.0, "theta_beta": 13.0}
GAIN = 5e-4  # of mean IoU, which a step must bring: less is chance
FACTORS = (2.0, 1.4)  # a parameter is multiplied or divided by the first of these while that helps, then by the next

Parameters = dict[str, float]
Sample = tuple[Tensor, Tensor, Tensor]  # probabilities (1, C, H, W), plain RGB (1, 3, H, W), mask (1, H, W)


def search(
    objective: Callable[[Parameters], float], start: Parameters, factors: Iterable[float] = FACTORS
) -> tuple[Parameters, float]:
    """Return the parameters of the highest objective, and it: one is changed at a time, coarse steps before fine ones."""
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


def mean_iou(samples: Iterable[Sample], num_classes: int, ignore_index: int, crf: DenseCRF | None) -> float:
    """Return the mean IoU of all samples together, refined by a CRF or not."""
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
    """Search w1, theta_alpha and theta_beta on images of a split, evenly spread, and write them as an overlay for --config.

    Raises:
        UserError: There is no such run, there are not so many labelled images, or the overlay is there or cannot be written.
    """
    trained = Run(run)
    dataset = trained.dataset()
    target = Path(out) if out else trained.crf_file
    require_new_file(target, overwrite)
    inference = inference or FullImage()
    model = load(checkpoint or trained.path).to(resolve_device(device))
    if model.crf:
        raise UserError(f"{run} was trained with a CRF: there is no other to tune")
    if isinstance(inference, ReflectedTiles):
        inference.require_network(model)
    require_same_classes(run, dataset, model.classes)
    opened = open_labelled_split(dataset, split)
    if not 1 <= images <= len(opened):
        raise UserError(f"--images {images}: at least one is needed, and the split {split} has {len(opened)}")
    with torch.inference_mode():
        samples = predict_samples(model, opened, images, inference)

        def objective(parameters: Parameters) -> float:
            value = mean_iou(samples, dataset.num_classes, dataset.ignore_index, build_crf(parameters))
            print(f"{format_parameters(parameters)}: {100 * value:.2f}", flush=True)
            return value

        before = mean_iou(samples, dataset.num_classes, dataset.ignore_index, None)
        print(f"mean IoU of {images} images of {split}, without a CRF: {100 * before:.2f}", flush=True)
        best, highest = search(objective, START)
    note = (
        f"mean IoU on {images} images of {type(dataset).__name__}'s {split}: {100 * before:.2f} without a CRF, "
        f"{100 * highest:.2f} with this one; {inference}; {model.facts['checkpoint']}, step {model.facts['step']}; {commit()}"
    )
    write_overlay(target, best, note)
    print(f"best: {format_parameters(best)}: {100 * highest:.2f}")
    weights = checkpoint or trained.checkpoint_dir / model.facts["checkpoint"]
    again = format_command(
        "dilated-seg", "validate", "--config", trained.config_file, "--config", target, "--ckpt_path", weights
    )
    print(f"written: {target}; to score it:\n  {again}")


def predict_samples(model: Segmenter, split: Split, images: int, inference: Inference) -> list[Sample]:
    """Return the probabilities of images evenly spread over a split, in half precision on the CPU, with image and mask."""
    samples: list[Sample] = []
    for sample in sample_evenly(split, images):
        image = sample["image"][None].to(model.mean.device)
        samples.append((predict_logits(inference, model, image).softmax(1).half().cpu(), image, sample["mask"][None]))
    return samples


def require_new_file(target: Path, overwrite: bool) -> None:
    """Require that the overlay can be written and replaces nothing unasked.

    Raises:
        UserError: It exists, or its directory does not.
    """
    if target.exists() and (target.is_dir() or not overwrite):
        raise UserError(f"{target} exists: name another --out, or replace it with --overwrite")
    if not target.parent.is_dir():
        raise UserError(f"--out {target}: there is no folder {target.parent}; make it first")


def write_overlay(target: Path, parameters: Parameters, note: str) -> None:
    """Write CRF parameters as an overlay for ``--config``, below a comment."""
    lines = "".join(f"    {name}: {value:g}\n" for name, value in parameters.items())
    try:
        write_text(target, f"# {note}\ncrf:\n  class_path: dilated_seg.crf.DenseCRF\n  init_args:\n{lines}")
    except OSError as error:
        raise UserError(f"--out {target}: cannot write it: {error.strerror or error}") from error


def format_parameters(parameters: Parameters) -> str:
    """Return parameters with their names."""
    return ", ".join(f"{name} {value:g}" for name, value in parameters.items())
