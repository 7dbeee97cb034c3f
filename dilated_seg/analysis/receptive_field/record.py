"""What was measured of a run's receptive fields, kept in the run: receptive_fields/NAME.json, and NAME.npz with the arrays."""

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
    """On which images, pixels and weights receptive fields were measured; fields as in an evaluation's protocol."""

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
        request: What was asked for; the same again need not be measured again.
        protocol: On which images and weights they were measured.
        classes: Their names.
        theory: ``side`` of the field of a pixel's logits, None if it is larger than any image that was tried; and ``box``, the
            first and last row, first and last column that the middle pixel of the effective field can see.
        effective: The effective receptive field (H, W) of the middle pixel.
        context: What context buys.
    """

    request: Mapping[str, Any]
    protocol: MeasurementProtocol
    classes: list[str]
    theory: Mapping[str, Any]
    effective: np.ndarray
    context: Context

    def sides(self) -> dict[float, int | None]:
        """Side of the square around the middle pixel that holds 50, 90 and 95 % of the effective field."""
        return {share: side_of(self.effective, share) for share in SHARES}


def write(run: Run, name: str, measured: Measured) -> None:
    """Write the files into a run; the JSON file comes last and names the checksum of the other."""
    file = run.receptive_field_dir / f"{name}.npz"
    file.parent.mkdir(exist_ok=True)
    context = measured.context
    arrays = {key: getattr(context, key) for key in ARRAYS}
    with atomic_path(file) as partial:
        np.savez_compressed(partial, effective=measured.effective, **arrays)
    facts = {
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
    write_text(file.with_suffix(".json"), json.dumps(facts, indent=1) + "\n")


def read(run: Run, name: str) -> Measured:
    """Return what was measured of a run under a name, such as test-last.

    Raises:
        UserError: Nothing was, or the files are damaged.
    """
    file = run.receptive_field_dir / f"{name}.json"
    if not file.is_file():
        raise UserError(
            f"{run} has no receptive fields of {name}: measure them with {format_command('dilated-seg', 'probe', run.path)}"
        )
    try:
        facts, arrays = json.loads(file.read_text()), file.with_suffix(".npz")
        if digest(arrays) != facts["arrays"]:
            raise ValueError(f"{arrays.name} does not belong to it")
        with np.load(arrays) as loaded:
            context = Context(ids=facts["ids"], radii=tuple(facts["radii"]), **{key: loaded[key] for key in ARRAYS})
            protocol = MeasurementProtocol(**facts["protocol"])
            fields = {key: facts[key] for key in ("request", "classes", "theory")}
            return Measured(**fields, protocol=protocol, effective=loaded["effective"], context=context)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{file} is damaged ({error}): delete it and measure again, {format_command('dilated-seg', 'probe', run.path)}"
        ) from error
