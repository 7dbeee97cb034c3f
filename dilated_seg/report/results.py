"""The evaluated runs of a comparison: what they have in common, how they differ, and their metrics as one table."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dilated_seg.data.classes import find_first_difference
from dilated_seg.errors import UserError
from dilated_seg.runs import Evaluation, Run
from dilated_seg.runs.find import find_common_evaluation, find_evaluated_runs
from dilated_seg.storage import atomic_path

MEANS = ("mean_iou", "mean_accuracy", "pixel_accuracy", "frequency_weighted_iou")


@dataclass(frozen=True, eq=False)
class Result:
    """One evaluation of one run, and the network's name in the comparison; results of one name are seeds of a network."""

    name: str
    run: Run
    evaluation: Evaluation

    @property
    def seed(self) -> int:
        """The seed of the training."""
        return self.run.seed


def read_results(runs: Sequence[Run], evaluation: str, names: Sequence[str]) -> list[Result]:
    """Read one evaluation of each run."""
    return [Result(name, run, run.evaluation(evaluation)) for run, name in zip(runs, names, strict=True)]


def find_results(
    directories: Sequence[str | Path], evaluation: str | None = None, names: Sequence[str] | None = None
) -> list[Result]:  # fmt: skip
    """Find runs in directories and read one evaluation of each.

    Args:
        directories: Run directories, or directories that contain runs.
        evaluation: The name of the evaluation, such as "test-last"; if None, the only one that all runs have.
        names: A name for each run; runs of the same name are seeds of one network. If None, from the names of directories.

    Raises:
        UserError: A directory contains no evaluated run, or the runs have no evaluation in common.
    """
    runs = [run for directory in directories for run in find_evaluated_runs(directory)]
    return read_results(runs, evaluation or find_common_evaluation(runs), names or [name_run(run, runs) for run in runs])


def name_run(run: Run, runs: Sequence[Run]) -> str:
    """Return a run's name: its path below the common parent of all runs, without a last part that is only the seed."""
    path = run.path.resolve()
    parents = [other.path.resolve().parent for other in runs]
    parts = path.parts[len(Path(os.path.commonpath(parents)).parts) :]
    if re.fullmatch(r"seed\d+", parts[-1]):
        parts = parts[:-1] or path.parts[-2:-1]
    return "/".join(parts)


def require_same_split(results: Sequence[Result]) -> None:
    """Require evaluations of the same images and classes.

    Raises:
        UserError: Two evaluations differ.
    """
    first = results[0]
    for result in results[1:]:
        expected, actual = first.evaluation, result.evaluation
        places = f"in {first.run}", f"in {result.run}"
        if difference := find_first_difference(expected.classes, actual.classes, *places):
            raise UserError(f"{difference}: only runs of the same classes can be compared")
        for key in ("dataset", "split", "images", "pixels"):
            value, other = (evaluation.protocol.describe()[key] for evaluation in (expected, actual))
            if value != other:
                raise UserError(
                    f"{first.run} and {result.run} were not evaluated on the same images and classes "
                    f"({key}: {value} and {other}): compare them separately"
                )
        (ids, matrices), (other_ids, other_matrices) = expected.images, actual.images
        if ids != other_ids or not np.array_equal(matrices.sum(2), other_matrices.sum(2)):
            raise UserError(f"{first.run} and {result.run} were not evaluated on the same images: compare them separately")


def group_by_name(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Return the seeds of each network, the highest mean first."""
    grouped: dict[str, list[Result]] = {}
    for result in results:
        grouped.setdefault(result.name, []).append(result)
    return dict(sorted(grouped.items(), key=lambda item: -np.mean([result.evaluation.mean_iou for result in item[1]])))


def predict_majority(results: Sequence[Result]) -> tuple[str, torch.Tensor]:
    """Return the most frequent class of the split, and the confusion matrix of predicting it everywhere."""
    evaluation = results[0].evaluation
    truth = torch.from_numpy(evaluation.matrix).sum(1)
    matrix = torch.zeros(len(truth), len(truth), dtype=torch.int64)
    matrix[:, int(truth.argmax())] = truth
    return evaluation.classes[int(truth.argmax())], matrix


def list_differences(results: Sequence[Result]) -> list[str]:
    """Return the names of the protocol's values in which evaluations differ."""
    protocols = [result.evaluation.protocol.describe() for result in results]
    return [key for key in protocols[0] if len({protocol[key] for protocol in protocols}) > 1]


def describe_shared_protocol(results: Sequence[Result]) -> str:
    """Return the protocol of all evaluations as one line; values that differ are marked."""
    protocol = results[0].evaluation.protocol.describe()
    protocol |= {key: "differs, see the runs" for key in list_differences(results)}
    return "; ".join(f"{key}: {value}" for key, value in protocol.items())


def measure_difficulty(matrices: Sequence[np.ndarray], groups: int = 5) -> np.ndarray:
    """Return the difficulty group of each image (N,), 0 the easiest, by the fraction of wrong pixels, averaged over runs.

    Groups have equal sizes, up to one image; images of equal error keep the split's order. An image without a valid pixel has
    no error and is in the easiest group.

    Args:
        matrices: The confusion matrices (N, C, C) of the images, by each run.
        groups: The number of groups.
    """
    right = np.stack([np.trace(each, axis1=1, axis2=2) for each in matrices])
    pixels = np.stack([each.sum((1, 2)) for each in matrices])
    error = (1 - right / np.maximum(pixels, 1)).mean(0) * (pixels[0] > 0)
    group = np.empty(len(error), np.int64)
    group[np.argsort(error, kind="stable")] = np.arange(len(error)) * groups // max(1, len(error))
    return group


def write_results(results: Sequence[Result], settings: Mapping[str, Mapping[str, str]], file: Path) -> None:
    """Write a Parquet table, one row for each result: metrics, confusion matrix, protocol, run, and the settings that differ.

    Args:
        results: The rows.
        settings: The value of each network of every setting that differs.
        file: The path of the table.
    """
    rows = []
    for result in results:
        evaluation = result.evaluation
        row: dict[str, Any] = {"network": result.name, "seed": result.seed, "run": str(result.run)}
        row |= {mean: float(evaluation.metrics[mean]) for mean in MEANS}
        row |= {f"iou/{c}": float(v) for c, v in zip(evaluation.classes, evaluation.metrics["iou"], strict=True)}
        row |= {"confusion": evaluation.matrix.ravel().tolist()}  # by rows of the ground truth
        row |= {"settings": json.dumps({name: values[result.name] for name, values in settings.items()})}
        rows.append(row | {"protocol": json.dumps(evaluation.protocol.to_json())})
    with atomic_path(file) as partial:
        pq.write_table(pa.Table.from_pylist(rows), partial)
