"""Reads an ablation file into the runs it stands for."""

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from dilated_seg.ablation.plan import Ablation, PlannedRun, Selection, join_parts
from dilated_seg.ablation.protocols import read_checkpoint, read_protocols
from dilated_seg.ablation.selection import advance, read_selection
from dilated_seg.errors import UserError, format_error
from dilated_seg.report import claims
from dilated_seg.runs.experiments import find_experiment

OWN = (".", "..", "dashboard", "jobs", "wandb")  # folders that no experiment may have
KEYS = (
    "experiments", "overlays", "common", "seeds", "evaluate", "protocols", "checkpoint", "select", "claims", "probe",
    "devices_per_run", "nodes_per_run",
)  # fmt: skip


def read(file: str | Path, out: str | Path | None = None, max_steps: int | None = None, devices: int | None = None) -> Ablation:
    """Expand an ablation file into its runs, in the order of the file, seeds innermost.

    Args:
        file: The ablation.
        out: The directory of its runs; runs/NAME if None, or for a rehearsal runs/NAME-rehearsal.
        max_steps: Of a rehearsal, laid over every run.
        devices: For each run, in the place of the file's ``devices_per_run``.

    Raises:
        UserError: The file is missing, is no YAML, or has unknown or missing keys.
    """
    path = Path(find_experiment(str(file)))
    content = read_content(path)
    folder = Path(out) if out else Path("runs") / (path.stem if max_steps is None else f"{path.stem}-rehearsal")
    template = PlannedRun(
        "", (), 0, folder, devices=devices or read_count(path, content, "devices_per_run"),
        nodes=read_count(path, content, "nodes_per_run"),
    )  # fmt: skip
    selection, checkpoint = read_selection(path, content), read_checkpoint(path, content)
    split = selection.then if selection else content.get("evaluate", "val")
    planned: list[PlannedRun] = []
    common = read_common(path, content, max_steps)
    for run, stages, above in plan_networks(path, content, template, selection):
        for seed in content.get("seeds", [0]):
            trial = run.trial if selection and seed in selection.seeds else None
            planned += plan_stages(replace(run, seed=seed, trial=trial), stages, (*above, *common))
    check_directories(path, folder, planned)
    names = list(dict.fromkeys(evaluation.row for one in planned for evaluation in one.evaluations))
    claimed, probe = claims.read_claims(path, content.get("claims", []), names), content.get("probe")
    rehearsal = max_steps is not None
    return advance(Ablation(path.stem, tuple(planned), (), split, folder, rehearsal, claimed, probe, checkpoint, selection))


def plan_networks(
    path: Path, content: Mapping[str, Any], template: PlannedRun, selection: Selection | None
) -> Iterator[tuple[PlannedRun, list[str], tuple[str, ...]]]:
    """Yield each network under each overlay and candidate: a run of no seed yet, its stages, and what is laid over them."""
    experiments = named(path, "experiments", content["experiments"])
    overlays = named(path, "overlays", content.get("overlays") or {"": {}})
    candidates = named(path, "select.over", content["select"]["over"]) if selection else [("", {})]
    protocols = read_protocols(path, content.get("protocols"), [name for name, _ in experiments])
    split, checkpoint = selection.then if selection else content.get("evaluate", "val"), read_checkpoint(path, content)
    taken: dict[str, str] = {}
    for (experiment, base), (overlay, over), (candidate, choice) in itertools.product(experiments, overlays, candidates):
        network = join_parts(experiment, overlay)
        own = [one for one in protocols if one.experiments is None or experiment in one.experiments]
        rows = tuple(one.plan(network, split, checkpoint) for one in own)
        for row in rows:
            if taken.setdefault(row.row, network) != network:
                raise UserError(f"{path} has two rows '{row.row}': rename a protocol, an overlay or an experiment")
        trial = replace(own[0].plan(network, selection.by, checkpoint), row="") if selection else None
        stages = [layer(path, stage) for stage in (base if isinstance(base, list) else [base])]
        above = tuple(layer(path, settings) for settings in (over, choice) if settings)
        name = join_parts(network, candidate)
        run = replace(template, name=name, network=network, candidate=candidate, evaluations=rows, trial=trial)
        yield run, stages, above


def read_common(path: Path, content: Mapping[str, Any], max_steps: int | None) -> list[str]:
    """Return the configurations laid over every run: the file's, and that of a rehearsal."""
    common = [layer(path, content["common"])] if content.get("common") else []
    if max_steps is None:
        return common
    steps = {"max_steps": max_steps}
    if read_checkpoint(path, content) == "best":  # of which there is none before the first validation
        steps["val_check_interval"] = max_steps
    return [*common, json.dumps({"trainer": steps})]


def read_content(path: Path) -> dict[str, Any]:
    """Read an ablation file and check its keys and the values that are not files.

    Raises:
        UserError: The file is missing, is no YAML, or has unknown or missing keys or other values.
    """
    if not path.is_file():
        raise UserError(f"there is no ablation file {path}")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no YAML: {format_error(error)}") from None
    if not isinstance(content, dict) or not content.get("experiments"):
        raise UserError(f"{path} names no experiments: give it a key 'experiments' with a name for each file")
    if unknown := sorted(content.keys() - set(KEYS)):
        raise UserError(f"{path} has the unknown key '{unknown[0]}': an ablation has {', '.join(KEYS)}")
    split, seeds, probe = content.get("evaluate", "val"), content.get("seeds", [0]), content.get("probe")
    if split not in ("val", "test"):
        raise UserError(f"{path} evaluates '{split}': choose val or test")
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise UserError(f"{path} has seeds {seeds}: give a list of whole numbers, such as [0, 1, 2]")
    if probe is not None and (type(probe) is not int or probe < 1):
        raise UserError(f"{path} probes at {probe} pixels: give a whole number, such as 256")
    return content


def plan_stages(run: PlannedRun, stages: Sequence[str], above: tuple[str, ...]) -> list[PlannedRun]:
    """Return the runs of one experiment with one seed, each of which starts from the weights of the one before.

    Args:
        run: With the name, the seed and the ablation's directory.
        stages: The configuration of each stage.
        above: Configurations laid over every stage.
    """
    place = run.folder / re.sub(r"[^\w.+-]+", "_", run.name.replace(",", "")) / f"seed{run.seed}"
    if len(stages) == 1:
        return [replace(run, configs=(stages[0], *above), folder=place)]
    folders = [place / f"stage{number}" for number in range(1, len(stages) + 1)]
    planned = [
        replace(run, configs=(stage, *above), folder=folder, stage=f"stage {number} of {len(stages)}", before=before)
        for number, (stage, folder, before) in enumerate(zip(stages, folders, [None, *folders], strict=False), start=1)
    ]
    return [*(replace(one, evaluations=(), trial=None) for one in planned[:-1]), planned[-1]]


def check_directories(path: Path, folder: Path, runs: Sequence[PlannedRun]) -> None:
    """Require a directory of its own for every run.

    Raises:
        UserError: Two share one, or one is the ablation's own.
    """
    if own := [one for one in runs if one.folder.relative_to(folder).parts[0] in OWN]:
        raise UserError(f"{path} names an experiment '{own[0].name}': its folder is the ablation's own; rename it")
    for one, two in itertools.combinations(runs, 2):
        if one.folder == two.folder:
            raise UserError(f"{path}: '{one.name}' and '{two.name}' would share the folder {one.folder}: rename one")


def read_count(path: Path, content: Mapping[str, Any], key: str) -> int:
    """Return a number of devices or nodes from an ablation file; 1 if it has no such key.

    Raises:
        UserError: It is not a whole number from 1 on.
    """
    count = content.get(key, 1)
    if type(count) is not int or count < 1:
        raise UserError(f"{path} has {key} {count}: give a whole number from 1 on, such as 4")
    return count


def named(ablation: Path, key: str, value: Any) -> list[tuple[str, Any]]:  # noqa: ANN401 - anything YAML can hold
    """Return the names and values of a mapping in an ablation file."""
    staged = key == "experiments"  # which may have a list of files
    kinds = str | dict | list if staged else str | dict
    if not isinstance(value, dict) or not all(isinstance(entry, kinds) and entry != [] for entry in value.values()):
        raise UserError(f"{ablation} has a key '{key}' that does not give each name a file or settings: write NAME: FILE")
    return [(str(name), entry) for name, entry in value.items()]


def layer(ablation: Path, value: str | Mapping[str, Any]) -> str:
    """Return a layer of configuration for ``--config``: a file, relative to the ablation's, or settings as JSON."""
    if isinstance(value, Mapping):
        return json.dumps(value)
    path = ablation.parent / value
    if not path.is_file():
        raise UserError(f"{ablation} names {value}, but there is no file {path}")
    return str(path)
