"""Saves the results of a run, in the layout of a run: no weights, no images, and no paths of this machine."""

import json
import re
import shutil
from collections.abc import Collection
from pathlib import Path

import pyarrow.parquet as pq

from dilated_seg.runs.evaluation import Evaluation
from dilated_seg.runs.run import Run
from dilated_seg.storage import atomic_path, write_text


def save_results(run: Run, evaluations: Collection[str], directory: Path, moved: tuple[Path, Path]) -> Run:
    """Copy the configuration, curves, evaluations and checksums of a run, and return the copy.

    Parquet files are compressed again, which halves them. The stage from whose weights the run started is copied too if it is
    below the same directory.

    Args:
        run: The run.
        evaluations: The names of its evaluations to copy.
        directory: The directory of the copy.
        moved: The directory that the run is below, and the one that its copy is below.
    """
    copy, (above, below) = Run(directory), moved
    if run.is_run:
        text, stage = run.config.text, Path(str(run.config.weights)).resolve()
        if above.resolve() in stage.parents and Run(stage).is_run:
            earlier = save_results(Run(stage), (), below / stage.relative_to(above.resolve()), moved)
            text = text.replace(f"weights: {run.config.weights}", f"weights: {earlier}")
        write_text(copy.config_file, hide_paths(text, below))
    for file in [*run.path.glob("metrics*.csv"), run.finished_file]:
        if file.is_file():
            copy_file(file, copy.path / file.name)
    for evaluation in map(run.evaluation, evaluations):
        copy_evaluation(evaluation, copy.evaluation_dir)
        checksum = run.checkpoint_dir / f"{evaluation.protocol.checkpoint}.ckpt.sha256"
        fields = run.receptive_field_dir.glob(f"{evaluation.name}.*")
        for file in (checksum, *fields):
            if file.is_file():
                copy_file(file, copy.path / file.relative_to(run.path))
    return copy


def copy_file(file: Path, to: Path) -> None:
    """Copy a file; make its directory."""
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, to)


def copy_evaluation(evaluation: Evaluation, directory: Path) -> None:
    """Copy the files of an evaluation; the checkpoint is named by its file."""
    directory.mkdir(parents=True, exist_ok=True)
    for file in (evaluation.image_file, evaluation.strata_file):
        if file.is_file():
            with atomic_path(directory / file.name) as partial:
                pq.write_table(pq.read_table(file), partial, compression="zstd", compression_level=19)
    values = json.loads(evaluation.file.read_text("utf-8"))
    if values["checkpoint_path"]:
        values["checkpoint_path"] = Path(values["checkpoint_path"]).name
    write_text(directory / evaluation.file.name, json.dumps(values, indent=1) + "\n")


def hide_paths(text: str, below: Path) -> str:
    """Return a configuration in which absolute paths are their last names, but for those below a directory."""

    def hide(path: re.Match[str]) -> str:
        return path[0] if Path(path[0]).is_relative_to(below) else Path(path[0]).name

    return re.sub(r"(?<![\w.:~/])/[^\s'\",\]}]+", hide, text)
