"""The comparison of finished runs: a table in the terminal, report.md with its plots, and the results as Parquet."""

import csv
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from rich.console import Console
from rich.table import Table

from dilated_seg import UserError
from dilated_seg.analysis import plots
from dilated_seg.analysis.tables import percent, protocol
from dilated_seg.metrics import scores

MEANS = ("mean_iou", "mean_accuracy", "pixel_accuracy", "frequency_weighted_iou")


@dataclass(frozen=True)
class Result:
    """One evaluation of one run."""

    name: str
    folder: Path
    seed: int
    record: dict[str, Any]

    @property
    def scores(self) -> dict[str, torch.Tensor]:
        """Everything that its confusion matrix says: see ``metrics.scores``."""
        return scores(torch.tensor(self.record["matrix"]))


def compare(
    runs: Sequence[str | Path],
    out: str | Path,
    evaluation: str | None = None,
    names: Sequence[str] | None = None,
    missing: Sequence[str] = (),
) -> None:
    """Read one evaluation of each run and compare them.

    Args:
        runs: Folders of runs, or folders that hold some.
        out: Where report.md, its pictures and results.parquet are written.
        evaluation: Such as "test-last"; the one that all runs have if there is only one.
        names: Of the runs, in tables; runs of one name are its seeds. Their folders' names if None.
        missing: What should be compared as well and is not there: the report says so.

    Raises:
        UserError: A folder is no run, or the runs have no evaluation in common.
    """
    folders = [folder for run in runs for folder in expand(Path(run))]
    evaluation = evaluation or common_evaluation(folders)
    labels = names or [label(folder, folders) for folder in folders]
    results = [read(folder, evaluation, name) for folder, name in zip(folders, labels, strict=True)]
    same_split(results)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write_results(results, out / "results.parquet")
    plots.bars(results, out / "mean_iou.png")
    plots.class_bars(results, out / "class_iou.png")
    plots.curves([(result.name, history(result.folder)) for result in results], out / "curves.png")
    pictures = plots.contact_sheet(results, out / "predictions.png")
    (out / "report.md").write_text(markdown(results, pictures, missing))
    show(results)
    if missing:
        print(f"not in this comparison: {'; '.join(missing)}")
    print(f"report: {out / 'report.md'}" + (f"   pictures: {out / 'predictions.png'}" if pictures else ""))


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
    """The only evaluation that all runs have; one made after training goes before one made during it."""
    names = set.intersection(*({p.stem for p in (f / "evaluations").glob("*.json")} for f in folders))
    after = {name for name in names if "-" in name} or names
    if len(after) != 1:
        raise UserError(f"the runs have {', '.join(sorted(after)) or 'no evaluation'} in common: choose with --evaluation")
    return after.pop()


def read(folder: Path, evaluation: str, name: str) -> Result:
    """One run's evaluation."""
    file = folder / "evaluations" / f"{evaluation}.json"
    if not file.is_file():
        verb = "test" if evaluation.startswith("test") else "validate"
        raise UserError(f"{folder} has no evaluation {evaluation}: run dilated-seg {verb} on it")
    config = folder / "config.yaml"
    seed = yaml.safe_load(config.read_text())["seed_everything"] if config.is_file() else 0
    return Result(name, folder, seed, json.loads(file.read_text()))


def same_split(results: Sequence[Result]) -> None:
    """Refuse to compare numbers of different images or classes."""
    first = results[0].record
    for result in results[1:]:
        for key in ("dataset", "split", "images", "pixels"):
            ours, theirs = first["protocol"][key], result.record["protocol"][key]
            if ours != theirs or first["classes"] != result.record["classes"]:
                raise UserError(
                    f"{results[0].folder} and {result.folder} were not evaluated on the same images and classes "
                    f"({key}: {ours} and {theirs}): compare them apart"
                )


def history(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Everything a run logged, by name: (step, value), over all its sessions."""
    logged: dict[str, dict[int, float]] = {}
    files = [*sorted(folder.glob("metrics-*.csv"), key=lambda p: int(p.stem.partition("-")[2])), folder / "metrics.csv"]
    for file in files:
        if file.is_file():
            with file.open() as lines:
                for row in csv.DictReader(lines):
                    for key, value in row.items():
                        if value and key not in ("step", "epoch"):
                            logged.setdefault(key, {})[int(row["step"])] = float(value)
    return {key: sorted(values.items()) for key, values in logged.items()}


def by_name(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The seeds of each name, in the order of the results."""
    grouped: dict[str, list[Result]] = {}
    for result in results:
        grouped.setdefault(result.name, []).append(result)
    return grouped


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


def shared_protocol(results: Sequence[Result]) -> str:
    """How all the numbers were measured; what differs is said to differ, and listed with the runs."""
    facts = results[0].record["protocol"] | {key: "differs, see the runs in report.md" for key in different(results)}
    return protocol({"protocol": facts})


def table_rows(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the comparison, best first: the mean over seeds, every seed, and the classes."""
    classes = results[0].record["classes"]
    seeds = len({result.seed for result in results}) > 1
    header = ["network", "parameters", "mean IoU", *(["each seed"] if seeds else []), "pixel acc.", *classes]
    rows = []
    for name, group in by_name(results).items():
        means = [float(result.scores["mean_iou"]) for result in group]
        iou = torch.stack([result.scores["iou"] for result in group]).nanmean(0)
        pixel = np.mean([float(result.scores["pixel_accuracy"]) for result in group])
        each = [" ".join(percent(mean) for mean in means)] if seeds else []
        size = f"{group[0].record['parameters']:,}"
        rows.append([name, size, percent(np.mean(means)), *each, percent(pixel), *(percent(v) for v in iou)])
    rows.sort(key=lambda row: -float(row[2]))
    name, matrix = majority(results)
    values = scores(matrix)
    baseline = [f"({name} everywhere)", "0", percent(values["mean_iou"]), *([""] if seeds else [])]
    rows.append([*baseline, percent(values["pixel_accuracy"]), *(percent(v) for v in values["iou"])])
    return header, rows


def show(results: Sequence[Result]) -> None:
    """Print the comparison: a row for each network, then a row for each class, which fits on a narrow terminal too."""
    header, rows = table_rows(results)
    classes = results[0].record["classes"]
    means, per_class = Table(title="comparison, in percent"), Table(title="IoU of each class, in percent")
    for column in header[: -len(classes)]:
        means.add_column(column, justify="left" if column == "network" else "right", no_wrap=column != "network")
    for row in rows:
        means.add_row(*row[: -len(classes)], style="dim" if row is rows[-1] else None)
    for column in ["class", *(row[0] for row in rows[:-1])]:
        per_class.add_column(column, justify="left" if column == "class" else "right", overflow="fold", min_width=5)
    for k, name in enumerate(classes):
        per_class.add_row(name, *(row[len(row) - len(classes) + k] for row in rows[:-1]))
    console = Console()
    console.print(means, per_class)
    console.print(shared_protocol(results), highlight=False, soft_wrap=True)


def markdown(results: Sequence[Result], pictures: bool, missing: Sequence[str] = ()) -> str:
    """The report: table, protocol, plots, and the folder of every run."""
    header, rows = table_rows(results)
    lines = ["# Comparison", "", f"| {' | '.join(header)} |", f"|{'|'.join(['---'] + ['---:'] * (len(header) - 1))}|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", f"{shared_protocol(results)}; in percent.", ""]
    lines += [f"**Not in this comparison: {'; '.join(missing)}.**", ""] if missing else []
    for title, picture in (
        ("Mean IoU", "mean_iou.png"), ("IoU of each class", "class_iou.png"),
        ("Training", "curves.png"), *([("Image, truth, predictions", "predictions.png")] if pictures else []),
    ):  # fmt: skip
        lines += [f"## {title}", "", f"![{title}]({picture})", ""]
    lines += ["## Runs", ""]
    apart = different(results)
    for result in results:
        own = "; ".join(f"{key}: {result.record['protocol'][key]}" for key in apart)
        lines.append(f"- {result.name}, seed {result.seed}: `{result.folder}`" + (f" ({own})" if own else ""))
    return "\n".join(lines) + "\n"


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
