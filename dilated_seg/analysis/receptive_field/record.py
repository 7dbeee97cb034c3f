"""What was measured of a run's receptive fields, kept in the run: receptive_fields/NAME.json, and NAME.npz with the arrays."""

import json
import shlex
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dilated_seg.analysis.receptive_field.gradient import SHARES, side_of
from dilated_seg.analysis.receptive_field.grey import Context
from dilated_seg.errors import UserError
from dilated_seg.storage import digest, write_text

FOLDER = "receptive_fields"
PLACES = ("image", "row", "column", "truth", "predicted")  # the arrays of a Context


@dataclass(frozen=True)
class Measured:
    """One network's receptive fields.

    Args:
        request: What was asked for; the same again need not be measured again.
        protocol: On which images and weights it was measured, as an evaluation's.
        classes: Their names.
        theory: ``side`` of the field of a pixel's logits, None if it is larger than any image that was tried; and ``box``, the
            first and last row, first and last column that the middle pixel of the effective field can see.
        effective: The effective receptive field (H, W) of the middle pixel.
        context: What context buys.
    """

    request: Mapping[str, Any]
    protocol: Mapping[str, Any]
    classes: list[str]
    theory: Mapping[str, Any]
    effective: np.ndarray
    context: Context

    def sides(self) -> dict[float, int | None]:
        """Side of the square around the middle pixel that holds 50, 90 and 95 % of the effective field."""
        return {share: side_of(self.effective, share) for share in SHARES}


def write(folder: Path, name: str, measured: Measured) -> None:
    """Put it into a run's folder; the JSON file comes last and names the checksum of the other."""
    file = folder / FOLDER / f"{name}.npz"
    file.parent.mkdir(exist_ok=True)
    context = measured.context
    arrays = {key: getattr(context, key) for key in PLACES}
    partial = file.with_suffix(".npz.partial")
    with partial.open("wb") as opened:
        np.savez_compressed(opened, effective=measured.effective, **arrays)
    partial.replace(file)
    facts = {
        "request": measured.request,
        "protocol": measured.protocol,
        "classes": measured.classes,
        "theory": measured.theory,
        "sides": {f"{share:g}": side for share, side in measured.sides().items()},
        "radii": context.radii,
        "accuracy": context.accuracy().tolist(),
        "ids": context.ids,
        "arrays": digest(file),
    }
    write_text(file.with_suffix(".json"), json.dumps(facts, indent=1) + "\n")


def read(folder: Path, name: str) -> Measured:
    """What was measured of a run under this name, such as test-last.

    Raises:
        UserError: Nothing was, or the files are damaged.
    """
    file = folder / FOLDER / f"{name}.json"
    if not file.is_file():
        raise UserError(
            f"{folder} has no receptive fields of {name}: measure them with {shlex.join(['dilated-seg', 'probe', str(folder)])}"
        )
    try:
        facts, arrays = json.loads(file.read_text()), file.with_suffix(".npz")
        if digest(arrays) != facts["arrays"]:
            raise ValueError(f"{arrays.name} does not belong to it")
        with np.load(arrays) as loaded:
            context = Context(ids=facts["ids"], radii=tuple(facts["radii"]), **{key: loaded[key] for key in PLACES})
            fields = {key: facts[key] for key in ("request", "protocol", "classes", "theory")}
            return Measured(**fields, effective=loaded["effective"], context=context)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{file} is damaged ({error}): delete it and measure again, {shlex.join(['dilated-seg', 'probe', str(folder)])}"
        ) from error
