"""The strata of an evaluation's images, from its batches to the file that ``analysis.strata`` reads."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dilated_seg.strata import DIAGONAL, SIZES, STRATA, WIDTH, strata

# Pixels that are counted at once: so many that small images cost little each, so few that all about them stays in a cache.
PIXELS = 1 << 18

Counts = dict[str, tuple[np.ndarray, np.ndarray]]  # by stratification: cells that are not empty, and what they hold


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
        counts = strata(prediction[some, :height, :width], masks[some, :height, :width], num_classes, ignore_index)
        found += [{name: sparse(counts[name][i]) for name in STRATA} for i in range(len(masks[some]))]
    return found


def sparse(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where counts are not 0, as int32 indices into the flat array, and these counts."""
    flat = counts.ravel()
    cells = np.flatnonzero(flat)
    return cells.astype(np.int32), flat[cells]


def write_strata(file: Path, ids: list[str], rows: list[Counts], facts: dict[str, Any]) -> None:
    """Write one row an image, whole or not at all.

    Args:
        file: NAME.strata.parquet.
        ids: Of the images.
        rows: What each has in the strata.
        facts: ``protocol`` and ``classes`` of the evaluation.
    """
    columns: dict[str, Any] = {"id": pa.array(ids, pa.string())}
    for name in STRATA:
        columns[f"{name}_cells"] = pa.array([row[name][0] for row in rows], pa.list_(pa.int32()))
        columns[f"{name}_counts"] = pa.array([row[name][1] for row in rows], pa.list_(pa.int64()))
    facts = facts | {
        "num_classes": len(facts["classes"]),
        "cells": "(stratum * num_classes + class) * num_classes + class predicted",
        "sizes": SIZES,
        "width": WIDTH,
        "d": f"max(1, round({DIAGONAL} * diagonal)) pixels",
        "strata": STRATA,
    }
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    pq.write_table(pa.table(columns).replace_schema_metadata({"strata": json.dumps(facts)}), partial)
    partial.replace(file)
