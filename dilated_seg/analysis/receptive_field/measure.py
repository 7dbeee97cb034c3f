"""Measurement of receptive fields of trained runs: the effective field, and the accuracy with limited context."""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dilated_seg.analysis import receptive_field
from dilated_seg.data.split import Sample
from dilated_seg.errors import UserError
from dilated_seg.inference.devices import resolve_device
from dilated_seg.models.segmenter import Segmenter
from dilated_seg.runs.find import find_common_evaluation, find_evaluated_runs
from dilated_seg.runs.run import Run
from dilated_seg.runs.samples import open_labelled_split, require_same_classes, sample_evenly
from dilated_seg.runs.version import commit


def probe(
    runs: Sequence[str | Path],
    evaluation: str | None = None,
    images: int = 64,
    pixels: int = 256,
    seed: int = 0,
    device: str | None = None,
    radii: Sequence[int | None] = receptive_field.RADII,
) -> None:
    """Measure every run and print a line for each; measurements that exist are not repeated.

    Args:
        runs: Directories of runs, or directories that contain runs.
        evaluation: Split and weights, such as "test-last"; by default the only evaluation that all runs have.
        images: The number of images, evenly spaced in the split; all if it has fewer.
        pixels: The number of pixels: see `receptive_field.context`.
        seed: The seed of the choice of pixels.
        device: The name of a device, such as "cuda:1"; by default a GPU if there is one.
        radii: The visible radii: see `receptive_field.Context`.

    Raises:
        UserError: A directory is not a run, or its checkpoint or dataset is missing.
    """
    evaluated = [run for directory in runs for run in find_evaluated_runs(directory)]
    name = evaluation or find_common_evaluation(evaluated)
    name = name if "-" in name else f"{name}-last"  # an evaluation during training, "val", is of the weights at that step
    for run in evaluated:
        start = time.monotonic()
        measured, is_new = measure(run, name, images, pixels, seed, device, radii)
        duration = f"{time.monotonic() - start:.0f} s" if is_new else "was there"
        print(f"{run}: {describe_measured(measured)} ({duration})", flush=True)


def measure(
    run: Run,
    name: str,
    images: int = 64,
    pixels: int = 256,
    seed: int = 0,
    device: str | None = None,
    radii: Sequence[int | None] = receptive_field.RADII,
) -> tuple[receptive_field.Measured, bool]:
    """Return the measurement receptive_fields/NAME of a run, and whether this call measured it; see `probe`.

    Raises:
        UserError: The path is not a run directory, or its checkpoint or dataset is missing.
    """
    if images < 1:
        raise UserError(f"--images {images}: at least one is needed")
    split, _, weights = name.partition("-")
    try:
        checkpoint = run.checkpoint(weights)
    except UserError as error:
        raise UserError(f"{error}; name --evaluation as SPLIT-CHECKPOINT, such as test-last") from error
    dataset = run.dataset()
    if pixels < len(dataset.classes):
        raise UserError(f"--pixels {pixels}: {run} has {len(dataset.classes)} classes, each of which needs one")
    opened = open_labelled_split(dataset, split)
    request: dict[str, Any] = {
        "dataset": type(dataset).__name__, "split": split, "images": min(images, len(opened)), "pixels": pixels, "seed": seed,
        "radii": list(radii), "sha256": checkpoint.verify(),
    }  # fmt: skip
    with suppress(UserError):  # missing or damaged
        if (stored := receptive_field.read(run, name)).request == request:
            return stored, False
    model = run.model(weights).to(resolve_device(device)).requires_grad_(False)
    require_same_classes(run, dataset, model.classes)
    measured = measure_model(model, sample_evenly(opened, request["images"]), request, len(opened), weights)
    receptive_field.write(run, name, measured)
    return measured, True


def measure_model(
    model: Segmenter, samples: Sequence[Sample], request: dict[str, Any], available: int, checkpoint: str
) -> receptive_field.Measured:
    """Measure a network on samples of a split of ``available`` images; ``request`` has the options of `measure`."""
    field = receptive_field.effective(model, [sample["image"].to(model.mean.device) for sample in samples])
    context = receptive_field.context(model, samples, request["radii"], request["pixels"], request["seed"])
    protocol = receptive_field.MeasurementProtocol(
        dataset=request["dataset"],
        split=request["split"],
        images=len(samples),
        available=available,
        pixels=len(context.truth),
        seed=request["seed"],
        checkpoint=checkpoint,
        step=model.facts["step"],
        commit=commit(),
    )
    theory = {
        "side": receptive_field.logits_side(model.net),
        "box": list(receptive_field.logits_box(model.net, *field.shape)),
    }
    return receptive_field.Measured(request, protocol, model.classes, theory, field, context)


def describe_measured(measured: receptive_field.Measured) -> str:
    """Describe a measurement in one line."""
    sides = ", ".join(f"{share:.0%} in {side} pixels" for share, side in measured.sides().items())
    radii = ["whole" if radius is None else str(radius) for radius in measured.context.radii]
    accuracy = " ".join(f"{r}: {100 * a:.0f}" for r, a in zip(radii, measured.context.accuracy(), strict=True))
    field = receptive_field.format_side(measured.theory["side"])
    return f"field {field} by theory, effectively {sides}; % right within a radius of {accuracy}"
