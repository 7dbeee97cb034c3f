"""Measures receptive fields of trained networks: how far they look, and what context buys them."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dilated_seg.analysis import receptive_field
from dilated_seg.errors import UserError
from dilated_seg.inference.image import chosen
from dilated_seg.runs.results import common_evaluation, expand
from dilated_seg.runs.run import Run, commit
from dilated_seg.runs.samples import open_labelled_split, require_same_classes, sample_evenly


def probe(
    runs: Sequence[str | Path],
    evaluation: str | None = None,
    images: int = 64,
    pixels: int = 256,
    seed: int = 0,
    device: str | None = None,
    radii: Sequence[int | None] = receptive_field.RADII,
) -> None:
    """Measure every run, and say what was found in a line each.

    Args:
        runs: Folders of runs, or folders that hold some.
        evaluation: On which split and weights, such as "test-last"; the evaluation that all runs have if there is only one.
        images: Of the split, evenly spread; all if it has fewer.
        pixels: See `receptive_field.context`; so are seed and radii.
        seed: Of the choice of pixels.
        device: Such as "cuda:1"; a GPU if there is one.
        radii: How far a network may see.

    Raises:
        UserError: A folder is no run, or its checkpoint or dataset is not there.
    """
    folders = [folder for run in runs for folder in expand(Path(run))]
    name = evaluation or common_evaluation(folders)
    name = name if "-" in name else f"{name}-last"  # an evaluation during training is of the weights that it went on with
    for folder in folders:
        start = time.monotonic()
        measured, anew = measure(folder, name, images, pixels, seed, device, radii)
        print(f"{folder}: {said(measured)} ({f'{time.monotonic() - start:.0f} s' if anew else 'was there'})", flush=True)


def measure(
    folder: Path,
    name: str,
    images: int = 64,
    pixels: int = 256,
    seed: int = 0,
    device: str | None = None,
    radii: Sequence[int | None] = receptive_field.RADII,
) -> tuple[receptive_field.Measured, bool]:
    """What the run keeps as receptive_fields/NAME, and whether it was measured now; see `probe`.

    Raises:
        UserError: This is no run, or its checkpoint or dataset is not there.
    """
    if images < 1:
        raise UserError(f"--images {images}: at least one is needed")
    split, _, checkpoint = name.partition("-")
    run = Run(folder)
    try:
        file = run.checkpoint(checkpoint)
    except UserError as error:
        raise UserError(f"{error}; name --evaluation as SPLIT-CHECKPOINT, such as test-last") from error
    dataset = run.dataset()
    if pixels < len(dataset.classes):
        raise UserError(f"--pixels {pixels}: {folder} has {len(dataset.classes)} classes, each of which needs one")
    opened = open_labelled_split(dataset, split)
    request: dict[str, Any] = {
        "dataset": type(dataset).__name__, "split": split, "images": min(images, len(opened)), "pixels": pixels, "seed": seed,
        "radii": list(radii), "sha256": file.verify(),
    }  # fmt: skip
    if (found := known(folder, name)) and found.request == request:
        return found, False
    model = run.model(checkpoint).to(chosen(device)).requires_grad_(False)
    require_same_classes(folder, dataset, model.classes)
    samples = sample_evenly(opened, request["images"])
    pictures = [sample["image"].to(model.mean.device) for sample in samples]
    field = receptive_field.effective(model, pictures)
    context = receptive_field.context(model, samples, radii, pixels, seed)
    protocol = {
        "dataset": request["dataset"],
        "split": split,
        "images": len(opened) if len(samples) == len(opened) else f"{len(samples)} of {len(opened)}",
        "pixels": len(context.truth),
        "seed": seed,
        "resolution": "the mask's own",
        "inference": "whole image",
        "checkpoint": f"{checkpoint}, step {model.facts['step']}",
        "commit": commit(),
    }
    theory = {
        "side": receptive_field.logits_side(model.net),
        "box": list(receptive_field.logits_box(model.net, *field.shape)),
    }
    measured = receptive_field.Measured(request, protocol, model.classes, theory, field, context)
    receptive_field.write(folder, name, measured)
    return measured, True


def known(folder: Path, name: str) -> receptive_field.Measured | None:
    """What was measured before, if it can be read."""
    try:
        return receptive_field.read(folder, name)
    except UserError:
        return None


def said(measured: receptive_field.Measured) -> str:
    """What was found, in a line."""
    sides = ", ".join(f"{share:.0%} in {side} pixels" for share, side in measured.sides().items())
    radii = ["whole" if radius is None else str(radius) for radius in measured.context.radii]
    accuracy = " ".join(f"{r}: {100 * a:.0f}" for r, a in zip(radii, measured.context.accuracy(), strict=True))
    field = receptive_field.format_side(measured.theory["side"])
    return f"field {field} by theory, effectively {sides}; % right within a radius of {accuracy}"
