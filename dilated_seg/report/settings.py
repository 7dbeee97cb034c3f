"""Settings in which compared runs differ, read from the resolved configuration of each run."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dilated_seg.errors import UserError
from dilated_seg.report.results import Result, list_differences
from dilated_seg.runs import Run

STEPS, BATCH = "training steps, all stages", "batch size, all devices"  # computed, not a key of a configuration
# Kinds of settings by prefix of their names; the first prefix that matches counts.
BUDGET = {
    STEPS: "training steps", "trainer.max_epochs": "training steps", "trainer.max_time": "training steps",
    "trainer.overfit_batches": "training steps", "trainer.limit_train_batches": "training steps", BATCH: "batch size",
    "data.augmentation": "crops and augmentation", "model.weights": "initial weights", "data": "training data",
}  # fmt: skip
# Settings of paths or outputs, or without influence on results.
IGNORED = re.compile(
    r"seed_everything|run_dir|ckpt_path|wandb|process_timeout|trainer\.(logger|default_root_dir|enable_|profiler|log_every)"
    r"|trainer\.callbacks\.(Progress|Gallery)|.*\.(dirpath|save_dir)$"
)
SPEED_ONLY = re.compile(
    r"data\.(num_workers|eval_batch_size|global_batch_size|batch_size|predict_split|on_bad_image|streaming)"
)
ABSENT = "-"  # the value of a setting that a run does not have

Settings = dict[str, str]


def read_settings(run: Run) -> Settings:
    """Return the settings of a run by their dotted name, with the total of its steps and its batch size; empty without any."""
    if not run.is_run:
        return {}
    content = yaml.safe_load(run.config.text)
    settings = {name: value for name, value in flatten_settings(content) if not IGNORED.match(name)}
    settings["model.weights"] = shorten_path(settings.get("model.weights", ABSENT))
    return {STEPS: count_steps(content), BATCH: format_batch_size(content), **settings}


def flatten_settings(value: Any, name: str = "") -> Iterator[tuple[str, str]]:  # noqa: ANN401 - anything YAML can hold
    """Yield the settings below a name: {net: {class_path: a.FCN, init_args: {stride: 8}}} is net FCN and net.stride 8."""
    if isinstance(value, dict) and "class_path" in value:
        yield name, str(value["class_path"]).rpartition(".")[2]
        value = value.get("init_args") or {}
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from flatten_settings(entry, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and value and all(isinstance(entry, dict) and "class_path" in entry for entry in value):
        classes: list[str] = []
        for entry in value:
            classes.append(str(entry["class_path"]).rpartition(".")[2])
            number = f" {classes.count(classes[-1])}" if classes.count(classes[-1]) > 1 else ""
            yield from flatten_settings(entry, f"{name}.{classes[-1]}{number}")
    else:
        yield name, value if isinstance(value, str) else json.dumps(value, default=str)


def shorten_path(path: str) -> str:
    """Return the last parts of a path, without the seed's, so that seeds of one network agree."""
    parts = [part for part in Path(path).parts if not re.fullmatch(r"seed\d+|checkpoints", part)]
    return "/".join(parts[-2:]) if "/" in path else path


def count_steps(content: Mapping[str, Any]) -> str:
    """Return the training steps of a configuration, plus those of the run whose weights it starts from."""
    trainer = content.get("trainer") or {}
    steps, epochs = trainer.get("max_steps"), trainer.get("max_epochs")
    stage = str(steps) if steps is not None and steps >= 0 else ABSENT if epochs is None else f"{epochs} epochs"
    weights = Path(str(content["model"].get("weights")))
    try:
        earlier = Run.newest(weights) if weights.is_dir() else Run.containing(weights)
    except UserError:  # a directory of weights, not of runs
        earlier = None
    if not earlier or not earlier.is_run:
        return stage
    before = count_steps(yaml.safe_load(earlier.config.text))
    return str(int(before) + int(stage)) if before.isdigit() and stage.isdigit() else f"{before} + {stage}"


def format_batch_size(content: Mapping[str, Any]) -> str:
    """Return the images of one training step, over all devices and accumulated batches."""
    data, trainer = content["data"].get("init_args") or {}, content.get("trainer") or {}
    if data.get("global_batch_size"):
        return str(data["global_batch_size"])
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes") or 1
    devices = len(devices) if isinstance(devices, list) else devices
    times = nodes * (trainer.get("accumulate_grad_batches") or 1)
    size = data.get("batch_size")
    if not isinstance(size, int):
        return ABSENT
    return str(size * times * devices) if isinstance(devices, int) and devices > 0 else f"{size * times} on each device"


def compare_settings(groups: Mapping[str, Sequence[Result]]) -> dict[str, dict[str, str]]:
    """Return the settings and values of the protocol that differ between runs, with the value of each network.

    Those of ``BUDGET`` come first. If the seeds of a network differ, both values are given: "400 | 800". Runs without a
    configuration are left out.
    """
    read = {result.run.path: read_settings(result.run) for group in groups.values() for result in group}
    table: dict[str, dict[str, list[str]]] = {}
    names = dict.fromkeys(key for settings in read.values() for key in settings)
    for name in names:
        table[name] = {
            network: list(dict.fromkeys(read[result.run.path].get(name, ABSENT) for result in group if read[result.run.path]))
            for network, group in groups.items()
        }
    results = [result for group in groups.values() for result in group]
    for key in list_differences(results):
        table[f"evaluation: {key}"] = {
            network: list(dict.fromkeys(result.evaluation.protocol.describe()[key] for result in group))
            for network, group in groups.items()
        }
    differing = {
        name: {network: " | ".join(values) or ABSENT for network, values in row.items()}
        for name, row in table.items()
        if len({value for values in row.values() for value in values}) > 1
    }
    return dict(sorted(differing.items(), key=lambda item: find_kind(item[0]) is None))


def find_kind(name: str) -> str | None:
    """Return which part of the training budget a setting belongs to; None for the others."""
    if SPEED_ONLY.match(name):
        return None
    return next((kind for prefix, kind in BUDGET.items() if name == prefix or name.startswith(f"{prefix}.")), None)


def list_warnings(differing: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return warnings about kinds of settings that differ between networks, or between the seeds of one network."""
    kinds: dict[str, list[str]] = {}
    for name, row in differing.items():
        if kind := find_kind(name):
            kinds.setdefault(kind, [f"{name}: {shorten_list(list(dict.fromkeys(row.values())))}"])
    sentences = []
    if kinds:
        details = "; ".join(entry for entries in kinds.values() for entry in entries)
        sentences.append(f"**Not trained alike: {', '.join(kinds)} differ** ({details}); see Settings that differ.")
    if mixed := [name for name, row in differing.items() if not name.startswith("evaluation") and mixes_seeds(row)]:
        sentences.append(f"**Runs of one name differ in more than the seed: {shorten_list(mixed)}.**")
    return sentences


def mixes_seeds(row: Mapping[str, str]) -> bool:
    """Return whether the seeds of a network have different values."""
    return any(" | " in value for value in row.values())


def shorten_list(values: Sequence[str], most: int = 4, characters: int = 40) -> str:
    """Join the first few values, each shortened."""
    shown = [value if len(value) <= characters else f"{value[: characters - 1]}…" for value in values[:most]]
    return ", ".join([*shown, *(["…"] if len(values) > most else [])])
