"""The dense CRF's numbers for a trained network, searched on a few images as DeepLab's authors did."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from dilated_seg.crf import DenseCRF
from dilated_seg.errors import UserError, format_command
from dilated_seg.inference.image import chosen
from dilated_seg.inference.load import load
from dilated_seg.inference.reflected_tiles import ReflectedTiles
from dilated_seg.inference.strategies import FullImage, Inference, predict_logits
from dilated_seg.metrics import SegmentationMetrics
from dilated_seg.runs.run import Run, commit
from dilated_seg.runs.samples import open_labelled_split, require_same_classes, sample_evenly
from dilated_seg.storage import write_text
from dilated_seg.tensors import predict

# What is searched, from where; the smoothness kernel stays as it is (w2 = theta_gamma = 3), as in DeepLab's paper.
START = {"w1": 10.0, "theta_alpha": 80.0, "theta_beta": 13.0}
GAIN = 5e-4  # of mean IoU, which a step must bring: less is chance
FACTORS = (2.0, 1.4)  # a number is multiplied or divided by the first of these while that helps, then by the next

Numbers = dict[str, float]
Sample = tuple[Tensor, Tensor, Tensor]  # probabilities (1, C, H, W), plain RGB (1, 3, H, W), mask (1, H, W)


def search(score: Callable[[Numbers], float], start: Numbers, factors: Iterable[float] = FACTORS) -> tuple[Numbers, float]:
    """The numbers of the highest score, one changed at a time, coarse steps before fine ones; a step must bring ``GAIN``."""
    known: dict[tuple[float, ...], float] = {}

    def scored(numbers: Numbers) -> float:
        key = tuple(round(value, 6) for value in numbers.values())
        if key not in known:
            known[key] = score(numbers)
        return known[key]

    best, highest = dict(start), scored(start)
    for factor in factors:
        improved = True
        while improved:
            improved = False
            for name in best:
                for step in (factor, 1 / factor):
                    other = best | {name: float(f"{best[name] * step:.3g}")}
                    if scored(other) >= highest + GAIN:
                        best, highest, improved = other, scored(other), True
    return best, highest


def crf(numbers: Numbers) -> DenseCRF:
    """The CRF of these numbers."""
    return DenseCRF(w1=numbers["w1"], theta_alpha=numbers["theta_alpha"], theta_beta=numbers["theta_beta"])


def mean_iou(samples: Iterable[Sample], num_classes: int, ignore_index: int, refine: DenseCRF | None) -> float:
    """Of all images together, with a CRF or without."""
    metrics = SegmentationMetrics(num_classes, ignore_index)
    for probabilities, image, mask in samples:
        found = refine(probabilities.to(image.device).float(), image) if refine else probabilities
        metrics.update(predict(found.cpu().float()), mask)
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
    if target.exists() and (target.is_dir() or not overwrite):
        raise UserError(f"{target} exists: name another --out, or replace it with --overwrite")
    if not target.parent.is_dir():
        raise UserError(f"--out {target}: there is no folder {target.parent}; make it first")
    if images < 1:
        raise UserError(f"--images {images}: at least one is needed")
    inference = inference or FullImage()
    model = load(checkpoint or trained.path).to(chosen(device))
    if model.crf:
        raise UserError(f"{run} was trained with a CRF: there is no other to tune")
    if isinstance(inference, ReflectedTiles):
        inference.require_network(model)
    require_same_classes(run, dataset, model.classes)
    opened = open_labelled_split(dataset, split)
    if images > len(opened):
        raise UserError(f"--images {images}: the split {split} has {len(opened)}")
    samples: list[Sample] = []
    with torch.inference_mode():
        for sample in sample_evenly(opened, images):
            image = sample["image"][None].to(model.mean.device)
            probabilities = predict_logits(inference, model, image).softmax(1).half().cpu()
            samples.append((probabilities, image, sample["mask"][None]))

        def score(numbers: Numbers) -> float:
            value = mean_iou(samples, dataset.num_classes, dataset.ignore_index, crf(numbers))
            print(f"{said(numbers)}: {100 * value:.2f}", flush=True)
            return value

        before = mean_iou(samples, dataset.num_classes, dataset.ignore_index, None)
        print(f"mean IoU of {images} images of {split}, without a CRF: {100 * before:.2f}", flush=True)
        best, highest = search(score, START)
    note = (
        f"mean IoU on {images} images of {type(dataset).__name__}'s {split}: {100 * before:.2f} without a CRF, "
        f"{100 * highest:.2f} with this one; {inference}; {model.facts['checkpoint']}, step {model.facts['step']}; {commit()}"
    )
    numbers = "".join(f"    {name}: {value:g}\n" for name, value in best.items())
    written(target, f"# {note}\ncrf:\n  class_path: dilated_seg.crf.DenseCRF\n  init_args:\n{numbers}")
    print(f"best: {said(best)}: {100 * highest:.2f}")
    weights = checkpoint or trained.checkpoint_dir / model.facts["checkpoint"]
    again = format_command(
        "dilated-seg", "validate", "--config", trained.config_file, "--config", target, "--ckpt_path", weights
    )
    print(f"written: {target}; to score it:\n  {again}")


def written(target: Path, text: str) -> None:
    """Write the overlay."""
    try:
        write_text(target, text)
    except OSError as error:
        raise UserError(f"--out {target}: cannot write it: {error.strerror or error}") from error


def said(numbers: Numbers) -> str:
    """Numbers by their names."""
    return ", ".join(f"{name} {value:g}" for name, value in numbers.items())
