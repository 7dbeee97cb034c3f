"""What an evaluation counted in the strata of its images, as the integers that scores and intervals are made of."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dilated_seg.errors import UserError
from dilated_seg.metrics.stratified import BOTH, DIAGONAL, MAX_BOUNDARY_DISTANCE, PREDICTION, SIZES, STRATA, TRUTH, count_strata
from dilated_seg.runs.protocol import EvaluationProtocol
from dilated_seg.storage import atomic_path

SUFFIX = ".strata.parquet"

# Pixels that are counted at once: so many that small images cost little each, so few that all about them stays in a cache.
PIXELS = 1 << 18

Counts = dict[str, tuple[np.ndarray, np.ndarray]]  # by stratification: cells that are not empty, and what they hold


@dataclass(frozen=True)
class Cells:
    """One stratification of all images: only cells that are not 0, sorted by image."""

    image: np.ndarray
    stratum: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    count: np.ndarray


@dataclass(frozen=True)
class Strata:
    """The strata of an evaluation's N images, of C classes.

    What it gives is (N, 3, C), int64 but for sizes: hits, and pixels of the class in the truth and in the prediction, all
    within what was asked for. IoU is hits / (truth + predicted - hits) of their sums over images; a class in neither has none.

    Attributes:
        ids: Of the images, in the split's order.
        classes: Their names.
        sizes: Pixels of a region with which bins 1, 2, ... of sizes begin; bin 0 begins with 1.
        width: The largest distance from a boundary that is told apart.
        protocol: How the evaluation was made.
        cells: By the names of ``dilated_seg.metrics.stratified.STRATA``.
    """

    ids: list[str]
    classes: list[str]
    sizes: tuple[int, ...]
    width: int
    protocol: EvaluationProtocol
    cells: dict[str, Cells]

    def size(self, low_bin: int, high_bin: int) -> np.ndarray:
        """Objects whose sizes are in these bins and those between: float64 (N, 3, C), hits and truth in whole numbers.

        Where a class is wrongly seen there is no object of it whose size one could take. So a class's false alarms are shared
        among sizes in proportion to its true pixels of each: what is seen everywhere scores low at every size. Over all bins
        hits, misses and false alarms add up to those of the evaluation.
        """
        if not 0 <= low_bin <= high_bin <= len(self.sizes):
            raise UserError(f"objects have sizes of {len(self.sizes) + 1} bins, 0 to {len(self.sizes)}")
        here, everywhere = (self._counted("size", *bins) for bins in ((low_bin, high_bin), (0, len(self.sizes))))
        share = here[:, 1].sum(0) / np.maximum(everywhere[:, 1].sum(0), 1)
        false = (everywhere[:, 2] - everywhere[:, 0]) * share
        return np.stack([here[:, 0], here[:, 1], here[:, 0] + false], 1)

    def trimap(self, width: int) -> np.ndarray:
        """Pixels no further than ``width`` from a boundary of the truth: (N, 3, C)."""
        return self.band(1, width)

    def band(self, low: int, high: int) -> np.ndarray:
        """Pixels that are from ``low`` to ``high`` pixels, and these, from a boundary of the truth; width + 1 is all beyond."""
        if not 1 <= low <= high <= self.width + 1:
            raise UserError(f"distances from a boundary are known from 1 to {self.width}, and {self.width + 1} is beyond")
        return self._counted("boundary", low, high)

    def boundary_iou(self) -> np.ndarray:
        """Pixels near the boundary of their object, in the truth, in the prediction, and in both: (N, 3, C).

        IoU of these is Boundary IoU (Cheng et al., CVPR 2021), but for the image's border, which is no boundary here.
        """
        both = self._counted("boundary_iou", BOTH, BOTH)
        truth, predicted = (self._counted("boundary_iou", band, band) for band in (TRUTH, PREDICTION))
        return np.stack([both[:, 0], both[:, 1] + truth[:, 1], both[:, 2] + predicted[:, 2]], 1)

    def matrices(self, name: str = "boundary") -> np.ndarray:
        """The confusion matrix of each image (N, C, C), which is the sum over the strata of any stratification."""
        cells, classes = self.cells[name], len(self.classes)
        found = np.zeros((len(self.ids), classes, classes), np.int64)
        np.add.at(found, (cells.image, cells.truth, cells.predicted), cells.count)
        return found

    def _counted(self, name: str, low: int, high: int) -> np.ndarray:
        """Hits, truth and predicted of each class in these strata of one stratification (N, 3, C)."""
        cells = self.cells[name]
        inside = (cells.stratum >= low) & (cells.stratum <= high)
        found = np.zeros((len(self.ids), 3, len(self.classes)), np.int64)
        for k, (where, by) in enumerate(
            ((inside & (cells.truth == cells.predicted), cells.truth), (inside, cells.truth), (inside, cells.predicted))
        ):
            np.add.at(found, (cells.image[where], k, by[where]), cells.count[where])
        return found


def counted(batch: dict[str, Any], prediction: np.ndarray, num_classes: int, ignore_index: int) -> list[Counts]:
    """What each image of a batch has in the strata.

    Args:
        batch: As ``data.batches.pad`` makes it.
        prediction: Class ids (B, H, W).
        num_classes: C, not counting the ignored label.
        ignore_index: The mask value that counts nowhere.
    """
    masks = batch["mask"].cpu().numpy()
    sizes = [tuple(size) for size in batch.get("size") or [masks.shape[1:]] * len(masks)]
    found: list[Counts] = []
    while len(found) < len(masks):
        first, (height, width) = len(found), sizes[len(found)]
        some = slice(first, first + max(1, PIXELS // max(1, height * width)) if len(set(sizes)) == 1 else first + 1)
        counts = count_strata(prediction[some, :height, :width], masks[some, :height, :width], num_classes, ignore_index)
        found += [{name: sparse(counts[name][i]) for name in STRATA} for i in range(len(masks[some]))]
    return found


def sparse(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where counts are not 0, as int32 indices into the flat array, and these counts."""
    flat = counts.ravel()
    cells = np.flatnonzero(flat)
    return cells.astype(np.int32), flat[cells]


def write_strata(file: Path, ids: list[str], rows: list[Counts], protocol: EvaluationProtocol, classes: Sequence[str]) -> None:
    """Write one row an image, atomically.

    Args:
        file: NAME.strata.parquet.
        ids: Of the images.
        rows: What each has in the strata.
        protocol: Of the evaluation.
        classes: Class names.
    """
    columns: dict[str, Any] = {"id": pa.array(ids, pa.string())}
    for name in STRATA:
        columns[f"{name}_cells"] = pa.array([row[name][0] for row in rows], pa.list_(pa.int32()))
        columns[f"{name}_counts"] = pa.array([row[name][1] for row in rows], pa.list_(pa.int64()))
    facts = {
        "protocol": protocol.to_json(),
        "classes": list(classes),
        "num_classes": len(classes),
        "cells": "(stratum * num_classes + class) * num_classes + class predicted",
        "sizes": SIZES,
        "width": MAX_BOUNDARY_DISTANCE,
        "d": f"max(1, round({DIAGONAL} * diagonal)) pixels",
        "strata": STRATA,
    }
    with atomic_path(file) as partial:
        pq.write_table(pa.table(columns).replace_schema_metadata({"strata": json.dumps(facts)}), partial)


def read_strata(file: str | Path) -> Strata:
    """The strata of an evaluation, which add up to the confusion matrices beside them.

    Args:
        file: evaluations/NAME.strata.parquet.

    Raises:
        UserError: The file is missing, damaged, or of another evaluation than NAME.parquet.
    """
    file = Path(file)
    plain = file.with_name(file.name.removesuffix(SUFFIX) + ".parquet")
    try:
        table = pq.read_table(file)
        facts = json.loads(table.schema.metadata[b"strata"])
        cells = {name: unpacked(table, name, facts["strata"][name], len(facts["classes"])) for name in STRATA}
        protocol = EvaluationProtocol.from_json(facts["protocol"])
        found = Strata(table["id"].to_pylist(), facts["classes"], tuple(facts["sizes"]), facts["width"], protocol, cells)
        record = pq.read_table(plain)
        side = len(found.classes)
        ids, matrices = record["id"].to_pylist(), np.array(record["matrix"].to_pylist(), np.int64).reshape(-1, side, side)
    except FileNotFoundError as error:
        missing = plain if file.is_file() else file
        raise UserError(f"{missing} is missing: run dilated-seg validate or test on the run, which writes it") from error
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} cannot be read as the strata of an evaluation: evaluate the run again") from error
    if found.ids != ids or any(not np.array_equal(found.matrices(name), matrices) for name in cells):
        raise UserError(f"{file} does not add up to {plain.name}: evaluate the run again")
    return found


def unpacked(table: pa.Table, name: str, strata: int, num_classes: int) -> Cells:
    """The cells of one stratification.

    Raises:
        ValueError: They are none of so many strata and classes.
    """
    cells, counts = (table[f"{name}_{part}"].combine_chunks() for part in ("cells", "counts"))
    image = np.repeat(np.arange(len(table)), cells.value_lengths().to_numpy())
    index, count = (part.flatten().to_numpy() for part in (cells, counts))
    if not cells.value_lengths().equals(counts.value_lengths()):
        raise ValueError(f"{name} has other numbers of cells than of counts")
    stratum, truth, predicted = np.unravel_index(index, (strata, num_classes, num_classes))
    return Cells(image, stratum, truth, predicted, count)
