"""Reading of ablation files: expand one into its planned runs."""

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

RESERVED = (".", "..", "dashboard", "jobs", "wandb")  # names of directories that no experiment may have
KEYS = (
    "experiments", "overlays", "common", "seeds", "evaluate", "protocols", "checkpoint", "select", "claims", "probe",
    "devices_per_run", "nodes_per_run",
)  # fmt: skip


def read(file: str | Path, out: str | Path | None = None, max_steps: int | None = None, devices: int | None = None) -> Ablation:
    """Expand an ablation file into its runs, in the order of the file, seeds innermost.

    Args:
        file: The ablation file.
        out: The directory of its runs; by default runs/NAME, or runs/NAME-rehearsal for a rehearsal.
        max_steps: The number of steps of every run, for a rehearsal.
        devices: The number of devices of each run, in place of the file's ``devices_per_run``.

    Raises:
        UserError: The file is missing, is not YAML, or has unknown keys, missing keys or invalid values.
    """
    path = Path(find_experiment(str(file)))
    content = read_content(path)
    directory = Path(out) if out else Path("runs") / (path.stem if max_steps is None else f"{path.stem}-rehearsal")
    template = PlannedRun(
        "", (), 0, directory, devices=devices or read_count(path, content, "devices_per_run"),
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
    check_directories(path, directory, planned)
    names = list(dict.fromkeys(evaluation.row for run in planned for evaluation in run.evaluations))
    stated, probe = claims.read_claims(path, content.get("claims", []), names), content.get("probe")
    rehearsal = max_steps is not None
    return advance(Ablation(path.stem, tuple(planned), (), split, directory, rehearsal, stated, probe, checkpoint, selection))


def plan_networks(
    path: Path, content: Mapping[str, Any], template: PlannedRun, selection: Selection | None
) -> Iterator[tuple[PlannedRun, list[str], tuple[str, ...]]]:
    """Yield a run without a seed, its stages and the overlays on them, for each network, overlay and candidate."""
    experiments = read_mapping(path, "experiments", content["experiments"])
    overlays = read_mapping(path, "overlays", content.get("overlays") or {"": {}})
    candidates = read_mapping(path, "select.over", content["select"]["over"]) if selection else [("", {})]
    protocols = read_protocols(path, content.get("protocols"), [name for name, _ in experiments])
    split, checkpoint = selection.then if selection else content.get("evaluate", "val"), read_checkpoint(path, content)
    owners: dict[str, str] = {}  # the network of each row
    for (experiment, base), (overlay, over), (candidate, choice) in itertools.product(experiments, overlays, candidates):
        network = join_parts(experiment, overlay)
        applicable = [protocol for protocol in protocols if protocol.experiments is None or experiment in protocol.experiments]
        rows = tuple(protocol.plan(network, split, checkpoint) for protocol in applicable)
        for row in rows:
            if owners.setdefault(row.row, network) != network:
                raise UserError(f"{path} has two rows '{row.row}': rename a protocol, an overlay or an experiment")
        trial = replace(applicable[0].plan(network, selection.by, checkpoint), row="") if selection else None
        stages = [resolve_config(path, stage) for stage in (base if isinstance(base, list) else [base])]
        above = tuple(resolve_config(path, settings) for settings in (over, choice) if settings)
        name = join_parts(network, candidate)
        run = replace(template, name=name, network=network, candidate=candidate, evaluations=rows, trial=trial)
        yield run, stages, above


def read_common(path: Path, content: Mapping[str, Any], max_steps: int | None) -> list[str]:
    """Return the overlays of every run: the key ``common`` of the file, and the steps of a rehearsal."""
    common = [resolve_config(path, content["common"])] if content.get("common") else []
    if max_steps is None:
        return common
    steps = {"max_steps": max_steps}
    if read_checkpoint(path, content) == "best":  # which is written at a validation
        steps["val_check_interval"] = max_steps
    return [*common, json.dumps({"trainer": steps})]


def read_content(path: Path) -> dict[str, Any]:
    """Read an ablation file and check its keys and the values that are not files.

    Raises:
        UserError: The file is missing, is not YAML, or has unknown keys, missing keys or invalid values.
    """
    if not path.is_file():
        raise UserError(f"there is no ablation file {path}")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {format_error(error)}") from None
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
    """Return the runs of one experiment with one seed; each stage starts from the weights of the stage before.

    Args:
        run: The run without stages: its name, its seed and the ablation's directory.
        stages: The configuration of each stage.
        above: The overlays on every stage, in order.
    """
    directory = run.directory / re.sub(r"[^\w.+-]+", "_", run.name.replace(",", "")) / f"seed{run.seed}"
    if len(stages) == 1:
        return [replace(run, configs=(stages[0], *above), directory=directory)]
    directories = [directory / f"stage{number}" for number in range(1, len(stages) + 1)]
    planned = [
        replace(run, configs=(stage, *above), directory=path, stage=f"stage {number} of {len(stages)}", before=before)
        for number, (stage, path, before) in enumerate(zip(stages, directories, [None, *directories], strict=False), start=1)
    ]
    return [*(replace(run, evaluations=(), trial=None) for run in planned[:-1]), planned[-1]]


def check_directories(path: Path, directory: Path, runs: Sequence[PlannedRun]) -> None:
    """Check that every run has a directory of its own.

    Args:
        path: The ablation file, for messages.
        directory: The ablation's directory.
        runs: All its runs.

    Raises:
        UserError: Two runs share a directory, or a run has one that the ablation itself uses.
    """
    for run in runs:
        if run.directory.relative_to(directory).parts[0] in RESERVED:
            raise UserError(f"{path} names an experiment '{run.name}', whose directory the ablation itself uses: rename it")
    for first, second in itertools.combinations(runs, 2):
        if first.directory == second.directory:
            raise UserError(
                f"{path}: '{first.name}' and '{second.name}' would share the directory {first.directory}: rename one"
            )


def read_count(path: Path, content: Mapping[str, Any], key: str) -> int:
    """Return the number of devices or nodes in an ablation file; 1 without the key.

    Raises:
        UserError: The value is not a positive integer.
    """
    count = content.get(key, 1)
    if type(count) is not int or count < 1:
        raise UserError(f"{path} has {key} {count}: give a positive whole number, such as 4")
    return count


def read_mapping(ablation: Path, key: str, value: Any) -> list[tuple[str, Any]]:  # noqa: ANN401 - anything YAML can hold
    """Return the names and values of a mapping in an ablation file.

    Raises:
        UserError: The value is not a mapping from names to files or settings.
    """
    staged = key == "experiments"  # a value may be a list of files
    kinds = str | dict | list if staged else str | dict
    if not isinstance(value, dict) or not all(isinstance(entry, kinds) and entry != [] for entry in value.values()):
        raise UserError(f"{ablation} has a key '{key}' that does not give each name a file or settings: write NAME: FILE")
    return [(str(name), entry) for name, entry in value.items()]


def resolve_config(ablation: Path, value: str | Mapping[str, Any]) -> str:
    """Return the value of ``--config`` for one entry: a path, given relative to the ablation file, or settings as JSON.

    Raises:
        UserError: The file does not exist.
    """
    if isinstance(value, Mapping):
        return json.dumps(value)
    path = ablation.parent / value
    if not path.is_file():
        raise UserError(f"{ablation} names {value}, but there is no file {path}")
    return str(path)
