"""Stored measurements of a run's receptive fields: receptive_fields/NAME.json, and NAME.npz with the arrays."""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dilated_seg.analysis.receptive_field.gradient import SHARES, side_of
from dilated_seg.analysis.receptive_field.grey import Context
from dilated_seg.errors import UserError, format_command
from dilated_seg.runs import Run
from dilated_seg.storage import atomic_path, digest, write_text

ARRAYS = ("image", "row", "column", "truth", "predicted")  # the arrays of a Context


@dataclass(frozen=True)
class MeasurementProtocol:
    """Images, pixels and weights of a measurement of receptive fields; attributes as in `EvaluationProtocol`."""

    dataset: str
    split: str
    images: int
    available: int
    pixels: int
    seed: int
    checkpoint: str
    step: int
    commit: str

    def __str__(self) -> str:
        images = str(self.images) if self.images == self.available else f"{self.images} of {self.available}"
        return (
            f"dataset: {self.dataset}; split: {self.split}; images: {images}; pixels: {self.pixels}; seed: {self.seed}; "
            f"resolution: the mask's own; inference: whole image; checkpoint: {self.checkpoint}, step {self.step}; "
            f"commit: {self.commit}"
        )


@dataclass(frozen=True)
class Measured:
    """One network's receptive fields.

    Args:
        request: The options of the measurement; with equal options it is not repeated.
        protocol: The images and weights of the measurement.
        classes: Class names.
        theory: ``side`` of the field of a pixel's logits, None if it is larger than every image that was tried; and ``box``,
            first and last row, first and last column of the field of the middle pixel.
        effective: The effective receptive field (H, W) of the middle pixel.
        context: The predictions with limited context.
    """

    request: Mapping[str, Any]
    protocol: MeasurementProtocol
    classes: list[str]
    theory: Mapping[str, Any]
    effective: np.ndarray
    context: Context

    def sides(self) -> dict[float, int | None]:
        """Return the sides of the squares around the middle pixel with 50, 90 and 95 % of the effective field."""
        return {share: side_of(self.effective, share) for share in SHARES}


def write(run: Run, name: str, measured: Measured) -> None:
    """Write the files into a run; the JSON file is written last and contains the checksum of the arrays."""
    file = run.receptive_field_dir / f"{name}.npz"
    file.parent.mkdir(exist_ok=True)
    context = measured.context
    arrays = {key: getattr(context, key) for key in ARRAYS}
    with atomic_path(file) as partial:
        np.savez_compressed(partial, effective=measured.effective, **arrays)
    content = {
        "request": measured.request,
        "protocol": asdict(measured.protocol),
        "classes": measured.classes,
        "theory": measured.theory,
        "sides": {f"{share:g}": side for share, side in measured.sides().items()},
        "radii": context.radii,
        "accuracy": context.accuracy().tolist(),
        "ids": context.ids,
        "arrays": digest(file),
    }
    write_text(file.with_suffix(".json"), json.dumps(content, indent=1) + "\n")


def read(run: Run, name: str) -> Measured:
    """Read a measurement of a run by its name, such as test-last.

    Raises:
        UserError: The measurement does not exist, or its files are damaged.
    """
    file = run.receptive_field_dir / f"{name}.json"
    if not file.is_file():
        raise UserError(
            f"{run} has no receptive fields of {name}: measure them with {format_command('dilated-seg', 'probe', run.path)}"
        )
    try:
        content, arrays = json.loads(file.read_text()), file.with_suffix(".npz")
        if digest(arrays) != content["arrays"]:
            raise ValueError(f"{arrays.name} does not belong to it")
        with np.load(arrays) as loaded:
            context = Context(ids=content["ids"], radii=tuple(content["radii"]), **{key: loaded[key] for key in ARRAYS})
            protocol = MeasurementProtocol(**content["protocol"])
            fields = {key: content[key] for key in ("request", "classes", "theory")}
            return Measured(**fields, protocol=protocol, effective=loaded["effective"], context=context)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{file} is damaged ({error}): delete it and measure again, {format_command('dilated-seg', 'probe', run.path)}"
        ) from error
