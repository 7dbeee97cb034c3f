"""Counts of an evaluation stratified by object size and boundary distance: integers per image, written and read."""

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

# Pixels counted at once: many small images together, but few enough for the processor's cache.
PIXELS = 1 << 18

Counts = dict[str, tuple[np.ndarray, np.ndarray]]  # by stratification: indices of nonzero cells, and their counts


@dataclass(frozen=True)
class Cells:
    """The nonzero cells of one stratification of all images, sorted by image."""

    image: np.ndarray
    stratum: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    count: np.ndarray


@dataclass(frozen=True)
class Strata:
    """The stratified counts of an evaluation of N images and C classes.

    Methods return (N, 3, C), int64 except for sizes: hits, pixels of the class in the mask, and in the prediction. With sums
    over images, IoU = hits / (truth + predicted - hits); a class that occurs in neither has no IoU.

    Attributes:
        ids: Image ids, in the split's order.
        classes: Class names.
        sizes: First region sizes (pixels) of bins 1, 2, ...; bin 0 begins with 1.
        width: The largest boundary distance that is counted separately, in pixels.
        protocol: The evaluation protocol.
        cells: Counts by the names of ``dilated_seg.metrics.stratified.STRATA``.
    """

    ids: list[str]
    classes: list[str]
    sizes: tuple[int, ...]
    width: int
    protocol: EvaluationProtocol
    cells: dict[str, Cells]

    def size(self, low_bin: int, high_bin: int) -> np.ndarray:
        """Return counts of objects whose sizes are in bins ``low_bin`` to ``high_bin``: float64 (N, 3, C).

        False positives belong to no object, so a class's false positives are divided among sizes in proportion to its pixels in
        the masks: false = (all predicted - all hits) * truth in these bins / truth in all bins. Over all bins, hits, misses and
        false positives add up to those of the evaluation.

        Raises:
            UserError: There are no such bins.
        """
        if not 0 <= low_bin <= high_bin <= len(self.sizes):
            raise UserError(f"object sizes have {len(self.sizes) + 1} bins, 0 to {len(self.sizes)}")
        selected, everywhere = (self._sum_cells("size", *bins) for bins in ((low_bin, high_bin), (0, len(self.sizes))))
        share = selected[:, 1].sum(0) / np.maximum(everywhere[:, 1].sum(0), 1)
        false = (everywhere[:, 2] - everywhere[:, 0]) * share
        return np.stack([selected[:, 0], selected[:, 1], selected[:, 0] + false], 1)

    def trimap(self, width: int) -> np.ndarray:
        """Return counts of pixels at most ``width`` pixels from a boundary of the mask: (N, 3, C)."""
        return self.band(1, width)

    def band(self, low: int, high: int) -> np.ndarray:
        """Return counts of pixels at distances ``low`` to ``high`` from a boundary of the mask; width + 1 is all beyond.

        Raises:
            UserError: There are no such distances.
        """
        if not 1 <= low <= high <= self.width + 1:
            raise UserError(f"boundary distances are counted from 1 to {self.width}, and {self.width + 1} is all beyond")
        return self._sum_cells("boundary", low, high)

    def boundary_iou(self) -> np.ndarray:
        """Return counts of pixels near the boundary of their region, in mask and prediction: (N, 3, C).

        Their IoU is Boundary IoU (Cheng et al., CVPR 2021), except that the image's border is not a boundary.
        """
        both = self._sum_cells("boundary_iou", BOTH, BOTH)
        truth, predicted = (self._sum_cells("boundary_iou", band, band) for band in (TRUTH, PREDICTION))
        return np.stack([both[:, 0], both[:, 1] + truth[:, 1], both[:, 2] + predicted[:, 2]], 1)

    def matrices(self, name: str = "boundary") -> np.ndarray:
        """Return the confusion matrix of each image (N, C, C): the sum over the bins of any stratification."""
        cells, classes = self.cells[name], len(self.classes)
        matrices = np.zeros((len(self.ids), classes, classes), np.int64)
        np.add.at(matrices, (cells.image, cells.truth, cells.predicted), cells.count)
        return matrices

    def _sum_cells(self, name: str, low: int, high: int) -> np.ndarray:
        """Return hits, truth and predicted of each class in bins ``low`` to ``high`` (N, 3, C)."""
        cells = self.cells[name]
        inside = (cells.stratum >= low) & (cells.stratum <= high)
        hits = inside & (cells.truth == cells.predicted)
        counts = np.zeros((len(self.ids), 3, len(self.classes)), np.int64)
        for k, (selected, classes) in enumerate(((hits, cells.truth), (inside, cells.truth), (inside, cells.predicted))):
            np.add.at(counts, (cells.image[selected], k, classes[selected]), cells.count[selected])
        return counts


def count_batch(batch: dict[str, Any], prediction: np.ndarray, num_classes: int, ignore_index: int) -> list[Counts]:
    """Return the stratified counts of each image of a batch.

    Args:
        batch: The batch that `data.collate.pad` builds.
        prediction: Class ids (B, H, W).
        num_classes: C, not counting the ignore index.
        ignore_index: The mask value that is not counted.
    """
    masks = batch["mask"].cpu().numpy()
    sizes = [tuple(size) for size in batch.get("size") or [masks.shape[1:]] * len(masks)]
    rows: list[Counts] = []
    while len(rows) < len(masks):
        first, (height, width) = len(rows), sizes[len(rows)]
        images = slice(first, first + max(1, PIXELS // max(1, height * width)) if len(set(sizes)) == 1 else first + 1)
        counts = count_strata(prediction[images, :height, :width], masks[images, :height, :width], num_classes, ignore_index)
        rows += [{name: to_sparse(counts[name][i]) for name in STRATA} for i in range(len(masks[images]))]
    return rows


def to_sparse(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the nonzero counts as int32 indices into the flat array, and values."""
    flat = counts.ravel()
    cells = np.flatnonzero(flat)
    return cells.astype(np.int32), flat[cells]


def write_strata(file: Path, ids: list[str], rows: list[Counts], protocol: EvaluationProtocol, classes: Sequence[str]) -> None:
    """Write a row per image, atomically.

    Args:
        file: NAME.strata.parquet.
        ids: Image ids.
        rows: Stratified counts per image.
        protocol: The evaluation protocol.
        classes: Class names.
    """
    columns: dict[str, Any] = {"id": pa.array(ids, pa.string())}
    for name in STRATA:
        columns[f"{name}_cells"] = pa.array([row[name][0] for row in rows], pa.list_(pa.int32()))
        columns[f"{name}_counts"] = pa.array([row[name][1] for row in rows], pa.list_(pa.int64()))
    metadata = {
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
        pq.write_table(pa.table(columns).replace_schema_metadata({"strata": json.dumps(metadata)}), partial)


def read_strata(file: str | Path) -> Strata:
    """Read the stratified counts of an evaluation, which add up to the confusion matrices of NAME.parquet.

    Args:
        file: evaluations/NAME.strata.parquet.

    Raises:
        UserError: The file is missing, damaged, or of another evaluation than NAME.parquet.
    """
    file = Path(file)
    image_file = file.with_name(file.name.removesuffix(SUFFIX) + ".parquet")
    try:
        table = pq.read_table(file)
        metadata = json.loads(table.schema.metadata[b"strata"])
        cells = {name: read_cells(table, name, metadata["strata"][name], len(metadata["classes"])) for name in STRATA}
        protocol = EvaluationProtocol.from_json(metadata["protocol"])
        classes, sizes = metadata["classes"], tuple(metadata["sizes"])
        strata = Strata(table["id"].to_pylist(), classes, sizes, metadata["width"], protocol, cells)
        record = pq.read_table(image_file)
        shape = (-1, len(classes), len(classes))
        ids, matrices = record["id"].to_pylist(), np.array(record["matrix"].to_pylist(), np.int64).reshape(shape)
    except FileNotFoundError as error:
        missing = image_file if file.is_file() else file
        raise UserError(f"{missing} is missing: evaluate the run with `dilated-seg validate` or `test`") from error
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} cannot be read as stratified counts: evaluate the run again") from error
    if strata.ids != ids or any(not np.array_equal(strata.matrices(name), matrices) for name in cells):
        raise UserError(f"{file} does not add up to {image_file.name}: evaluate the run again")
    return strata


def read_cells(table: pa.Table, name: str, strata: int, num_classes: int) -> Cells:
    """Return the cells of one stratification.

    Raises:
        ValueError: An index is out of range, or cells and counts differ in number.
    """
    cells, counts = (table[f"{name}_{part}"].combine_chunks() for part in ("cells", "counts"))
    image = np.repeat(np.arange(len(table)), cells.value_lengths().to_numpy())
    index, count = (part.flatten().to_numpy() for part in (cells, counts))
    if not cells.value_lengths().equals(counts.value_lengths()):
        raise ValueError(f"{name} has more or fewer cells than counts")
    stratum, truth, predicted = np.unravel_index(index, (strata, num_classes, num_classes))
    return Cells(image, stratum, truth, predicted, count)
