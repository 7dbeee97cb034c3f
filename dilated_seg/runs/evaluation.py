"""An evaluation of a run: counts per image under one protocol. Only this module writes and reads its files.

NAME.json holds the protocol and the confusion matrix of the split, NAME.parquet that of each image, NAME.strata.parquet the
counts stratified by object size and boundary distance.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dilated_seg.errors import UserError
from dilated_seg.metrics.confusion import compute_metrics
from dilated_seg.runs.protocol import EvaluationProtocol
from dilated_seg.runs.strata import SUFFIX, Counts, Strata, read_strata, write_strata
from dilated_seg.storage import atomic_path, write_text

UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException)


class EvaluatedImage(NamedTuple):
    """The counts of one image: its confusion matrix (C, C), and stratified counts after training."""

    id: str
    matrix: np.ndarray
    strata: Counts | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The evaluation of a run's weights on a split.

    Args:
        directory: The run's directory of evaluations.
        name: The name of the files, such as "val-best".
        protocol: The evaluation protocol.
        classes: Class names.
        matrix: The confusion matrix of all images, int64 (C, C); rows are the ground truth.
        parameters: The number of parameters of the network.
        ignore_index: The mask value of ignored pixels.
        ignored_pixels: The number of pixels with this value.
        cost: Throughput and memory, if measured.
        checkpoint_path: The evaluated file, relative to the run directory if inside; None during training.
    """

    directory: Path
    name: str
    protocol: EvaluationProtocol
    classes: list[str]
    matrix: np.ndarray
    parameters: int
    ignore_index: int
    ignored_pixels: int
    cost: dict[str, Any] | None = None
    checkpoint_path: str | None = None

    @classmethod
    def load(cls, file: Path) -> "Evaluation":
        """Read NAME.json.

        Raises:
            UserError: The file is missing, damaged, or of another version.
        """
        try:
            values = json.loads(file.read_text("utf-8"))
            matrix = np.array(values.pop("matrix"), np.int64)
            protocol = EvaluationProtocol.from_json(values.pop("protocol"))
            if matrix.shape != (len(values["classes"]),) * 2:
                raise ValueError("the matrix does not fit the classes")
            return cls(file.parent, file.stem, protocol, matrix=matrix, **values)
        except UNREADABLE as error:
            raise UserError(f"{file} cannot be read as an evaluation of this version: evaluate the run again") from error

    def save(self, images: Sequence[EvaluatedImage]) -> None:
        """Write all files atomically, NAME.json last."""
        self.directory.mkdir(parents=True, exist_ok=True)
        table = pa.table({"id": [image.id for image in images], "matrix": [image.matrix.ravel() for image in images]})
        with atomic_path(self.image_file) as partial:
            pq.write_table(table.replace_schema_metadata({"protocol": json.dumps(self.protocol.to_json())}), partial)
        if counts := [image.strata for image in images if image.strata]:
            write_strata(self.strata_file, [image.id for image in images], counts, self.protocol, self.classes)
        values = {
            "protocol": self.protocol.to_json(),
            "classes": self.classes,
            "parameters": self.parameters,
            "ignore_index": self.ignore_index,
            "ignored_pixels": self.ignored_pixels,
            "cost": self.cost,
            "checkpoint_path": self.checkpoint_path,
            "matrix": self.matrix.tolist(),
        }
        write_text(self.file, json.dumps(values, indent=1) + "\n")

    @property
    def file(self) -> Path:
        """The file of protocol and confusion matrix."""
        return self.directory / f"{self.name}.json"

    @property
    def image_file(self) -> Path:
        """The file of the images' confusion matrices."""
        return self.directory / f"{self.name}.parquet"

    @property
    def strata_file(self) -> Path:
        """The file of the images' stratified counts."""
        return self.directory / f"{self.name}{SUFFIX}"

    @cached_property
    def metrics(self) -> dict[str, torch.Tensor]:
        """All metrics of the confusion matrix: see `metrics.confusion.compute_metrics`."""
        return compute_metrics(torch.from_numpy(self.matrix))

    @property
    def mean_iou(self) -> float:
        """The mean IoU of the split, a fraction of 1."""
        return float(self.metrics["mean_iou"])

    @cached_property
    def images(self) -> tuple[list[str], np.ndarray]:
        """Image ids, and their confusion matrices (N, C, C).

        Raises:
            UserError: The file cannot be read, or does not add up to the matrix of the split.
        """
        try:
            ids, matrices = read_images(self.image_file, len(self.classes))
        except UNREADABLE as error:
            raise UserError(f"{self.image_file} cannot be read ({type(error).__name__}): evaluate the run again") from error
        if not np.array_equal(matrices.sum(0), self.matrix):
            raise UserError(f"{self.image_file} does not add up to {self.file.name}: evaluate the run again")
        return ids, matrices

    @cached_property
    def strata(self) -> Strata | None:
        """The counts stratified by object size and boundary distance; None if they were not counted."""
        return read_strata(self.strata_file) if self.strata_file.is_file() else None

    def summary(self) -> dict[str, Any]:
        """Return name, printed protocol, classes and confusion matrix for JSON, to go with the weights."""
        return {
            "evaluation": self.name,
            "protocol": self.protocol.describe(),
            "classes": self.classes,
            "matrix": self.matrix.tolist(),
        }

    def with_free_name(self, images: Sequence[EvaluatedImage]) -> "Evaluation":
        """Return this evaluation under a name whose files may be written.

        An evaluation of the same images, masks and checkpoint is replaced. If the run has another evaluation of this name, a
        digest is appended to the name.
        """
        data = describe_data([image.id for image in images], [image.matrix for image in images])
        try:
            before = Evaluation.load(self.file)
            same_data = describe_data(*read_images(self.image_file, len(before.classes))) == data
        except (UserError, *UNREADABLE):
            return self  # there is no readable one
        other_weights = None not in (self.checkpoint_path, before.checkpoint_path)
        other_weights = other_weights and self.checkpoint_path != before.checkpoint_path
        if same_data and not other_weights:
            return self if self.cost else replace(self, cost=before.cost)  # an evaluation with a CRF measures none without it
        digest = hashlib.sha256(f"{self.checkpoint_path} {data}".encode()).hexdigest()[:8]
        renamed = replace(self, name=f"{self.name}-{digest}")
        other = "another checkpoint" if same_data else "other images or masks"
        print(f"{self.file} is an evaluation of {other} and is kept: this one is {renamed.file.name}", flush=True)
        return renamed


def read_images(file: Path, num_classes: int) -> tuple[list[str], np.ndarray]:
    """Return the ids and the confusion matrices (N, C, C) of NAME.parquet."""
    table = pq.read_table(file)
    matrices = table["matrix"].combine_chunks().flatten().to_numpy().reshape(-1, num_classes, num_classes)
    return table["id"].to_pylist(), matrices


def describe_data(ids: Sequence[str], matrices: Sequence[np.ndarray] | np.ndarray) -> str:
    """Return text that identifies images and masks: each image's id and its pixels of every class."""
    return json.dumps([[name, matrix.sum(1).tolist()] for name, matrix in zip(ids, matrices, strict=True)])
