"""The evaluations of finished runs, read from their folders: nothing is run again."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from dilated_seg.data.classes import first_difference
from dilated_seg.errors import UserError, format_command
from dilated_seg.metrics.confusion import compute_metrics
from dilated_seg.runs import strata
from dilated_seg.runs.strata import Strata

MEANS = ("mean_iou", "mean_accuracy", "pixel_accuracy", "frequency_weighted_iou")


@dataclass(frozen=True)
class Result:
    """One evaluation of one run."""

    name: str
    folder: Path
    seed: int
    record: dict[str, Any]

    @cached_property
    def scores(self) -> dict[str, torch.Tensor]:
        """Everything that its confusion matrix says: see `metrics.confusion.compute_metrics`."""
        return compute_metrics(torch.tensor(self.record["matrix"]))

    @property
    def file(self) -> Path:
        """The confusion matrices of its images."""
        return self.folder / "evaluations" / f"{self.record['evaluation']}.parquet"

    @cached_property
    def images(self) -> tuple[list[str], np.ndarray]:
        """The names of the images, and their confusion matrices (N, C, C).

        Raises:
            UserError: They are not there, or do not add up to what the evaluation says.
        """
        try:
            table = pq.read_table(self.file)
            number = len(self.record["classes"])
            matrices = table["matrix"].combine_chunks().flatten().to_numpy().reshape(-1, number, number)
            names = table["id"].to_pylist()
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            raise UserError(f"{self.file} cannot be read ({type(error).__name__}): evaluate the run again") from error
        if not np.array_equal(matrices.sum(0), self.record["matrix"]):
            raise UserError(f"{self.file} does not add up to the matrix beside it: evaluate the run again")
        return names, matrices

    @cached_property
    def strata(self) -> Strata | None:
        """Where it erred; None if it was evaluated before that was counted."""
        file = self.file.with_name(f"{self.file.stem}.strata.parquet")
        return strata.read(file) if file.is_file() else None


def expand(folder: Path) -> list[Path]:
    """A run's folder, or the runs inside a folder, sorted."""
    found = sorted(path.parent for path in folder.glob("**/evaluations"))
    if not found:
        raise UserError(f"{folder} holds no evaluated run: name a folder that fit, validate or test wrote")
    return found


def label(folder: Path, folders: Sequence[Path]) -> str:
    """A run's name: its path below what all have in common, without a last part that only gives the seed."""
    resolved = [other.resolve() for other in folders]
    path = folder.resolve()
    parts = path.parts[len(Path(os.path.commonpath([other.parent for other in resolved])).parts) :]
    if re.fullmatch(r"seed\d+", parts[-1]):
        parts = parts[:-1] or path.parts[-2:-1]
    return "/".join(parts)


def common_evaluation(folders: Sequence[Path]) -> str:
    """The only evaluation that all runs have; one made after training goes before one made during it.

    One of some of a split's images is not chosen; it can be named.
    """
    files = [file for folder in folders for file in (folder / "evaluations").glob("*.json")]
    names = set.intersection(*({file.stem for file in files if file.parents[1] == folder} for folder in folders))
    partial = {file.stem for file in files if file.stem in names and name_partial(json.loads(file.read_text()))}
    whole = names - partial
    after = {name for name in whole if "-" in name} or whole
    if partial and not whole:
        raise UserError(
            f"the runs have only {', '.join(sorted(partial))} in common, of some of the split's images: evaluate the whole "
            "split, or choose with --evaluation"
        )
    if len(after) != 1:
        raise UserError(f"the runs have {', '.join(sorted(after)) or 'no evaluation'} in common: choose with --evaluation")
    return after.pop()


def read(folder: Path, evaluation: str, name: str) -> Result:
    """One run's evaluation."""
    file = folder / "evaluations" / f"{evaluation}.json"
    if not file.is_file():
        verb, checkpoint = "test" if evaluation.startswith("test") else "validate", evaluation.partition("-")[2] or "last"
        again = format_command(
            "dilated-seg",
            verb,
            "--config",
            folder / "config.yaml",
            "--ckpt_path",
            folder / "checkpoints" / f"{checkpoint}.ckpt",
        )
        raise UserError(f"{folder} has no evaluation {evaluation}: run {again}")
    config = folder / "config.yaml"
    seed = yaml.safe_load(config.read_text())["seed_everything"] if config.is_file() else 0
    return Result(name, folder, seed, json.loads(file.read_text()))


def same_split(results: Sequence[Result]) -> None:
    """Refuse to compare numbers of different images or classes."""
    first = results[0].record
    for result in results[1:]:
        where = f"in {results[0].folder}", f"in {result.folder}"
        if difference := first_difference(first["classes"], result.record["classes"], *where):
            raise UserError(f"{difference}: only runs of the same classes can be compared")
        for key in ("dataset", "split", "images", "pixels"):
            ours, theirs = first["protocol"][key], result.record["protocol"][key]
            if ours != theirs:
                raise UserError(
                    f"{results[0].folder} and {result.folder} were not evaluated on the same images and classes "
                    f"({key}: {ours} and {theirs}): compare them apart"
                )
        ours, theirs = results[0].images, result.images
        if ours[0] != theirs[0] or not np.array_equal(ours[1].sum(2), theirs[1].sum(2)):
            raise UserError(
                f"{results[0].folder} and {result.folder} were not evaluated on the same images: compare them apart"
            )


def by_name(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The seeds of each network, best mean first."""
    grouped: dict[str, list[Result]] = {}
    for result in results:
        grouped.setdefault(result.name, []).append(result)
    return dict(sorted(grouped.items(), key=lambda kv: -np.mean([float(result.scores["mean_iou"]) for result in kv[1]])))


def majority(results: Sequence[Result]) -> tuple[str, torch.Tensor]:
    """The most frequent class of the split, and the confusion matrix of predicting it everywhere."""
    truth = torch.tensor(results[0].record["matrix"]).sum(1)
    matrix = torch.zeros(len(truth), len(truth), dtype=torch.int64)
    matrix[:, int(truth.argmax())] = truth
    return results[0].record["classes"][int(truth.argmax())], matrix


def different(results: Sequence[Result]) -> list[str]:
    """What the protocols do not have in common."""
    keys = results[0].record["protocol"]
    return [key for key in keys if len({str(result.record["protocol"][key]) for result in results}) > 1]


def protocol(record: dict[str, Any]) -> str:
    """How an evaluation was made, in one line."""
    return "; ".join(f"{key}: {value}" for key, value in record["protocol"].items())


def shared_protocol(results: Sequence[Result]) -> str:
    """How all the numbers were measured; what differs is said to differ, and listed with the runs."""
    facts = results[0].record["protocol"] | {key: "differs, see the runs" for key in different(results)}
    return protocol({"protocol": facts})


def write_results(results: Sequence[Result], file: Path) -> None:
    """One row a run: its scores, the IoU of each class, its protocol and its folder."""
    rows = []
    for result in results:
        values = result.scores
        row: dict[str, Any] = {"network": result.name, "seed": result.seed, "run": str(result.folder)}
        row |= {mean: float(values[mean]) for mean in MEANS}
        row |= {f"iou/{c}": float(v) for c, v in zip(result.record["classes"], values["iou"], strict=True)}
        rows.append(row | {"protocol": json.dumps(result.record["protocol"])})
    pq.write_table(pa.Table.from_pylist(rows), file)


def name_partial(record: dict[str, Any]) -> str:
    """Return "partial: 2 of 101 images" for an evaluation of some of its split's images; nothing for one of all."""
    images = record["protocol"]["images"]
    return f"partial: {images.removesuffix(', partial')} images" if isinstance(images, str) else ""
