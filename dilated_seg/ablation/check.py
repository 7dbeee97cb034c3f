"""Checks of an ablation before its first run is trained."""

import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dilated_seg.ablation.plan import Ablation, PlannedRun
from dilated_seg.errors import UserError
from dilated_seg.report import claims
from dilated_seg.runs.config import build_dataset
from dilated_seg.runs.experiments import find_experiment
from dilated_seg.runs.run import Run


def check_ablation(ablation: Ablation) -> None:
    """Parse the configuration of every run and open its data before the first is trained.

    Raises:
        UserError: A configuration, a dataset or initial weights are wrong, or a directory contains another run.
    """
    from dilated_seg.cli.resolve import resolve_experiment

    checked = []
    for run in ablation.runs:
        text, present = resolve_experiment(run.arguments[1:]), Run(run.directory)
        if present.is_run and present.config_file.read_text() != text:
            learnt = present.checkpoint_dir.exists() and not ablation.rehearsal
            if learnt:
                raise UserError(f"{run.directory} contains a run of another configuration: name another --out or remove it")
            shutil.rmtree(run.directory)  # it failed before its first checkpoint, or was a rehearsal
        settings = yaml.safe_load(text)
        check_devices(run, settings)
        check_evaluations(run, settings)
        start = settings["model"]["weights"]
        if start and start != "imagenet" and run.before is None and not Path(start).exists():
            raise UserError(f"{run.name} starts from {start}, which does not exist: {suggest_start(start)}")
        if settings["data"] not in checked:
            checked.append(settings["data"])
            data = build_dataset(settings["data"])
            claims.require_known_classes(ablation.claims, data.classes)
            for split in (data.train_split, "val", ablation.split, *([ablation.selection.by] if ablation.selection else [])):
                data.open_split(split)


def check_devices(run: PlannedRun, settings: Mapping[str, Any]) -> None:
    """Check that a run's settings fit the devices that the ablation assigns to it.

    Raises:
        UserError: The experiment sets other devices, or its batch size would depend on their number.
    """
    requested = settings["trainer"]["devices"], settings["trainer"]["num_nodes"]
    if tuple(map(str, requested)) != (str(run.devices), str(run.nodes)):
        raise UserError(
            f"{run.name} sets trainer.devices to {requested[0]} and trainer.num_nodes to {requested[1]}: leave both out, and "
            "set devices_per_run (nodes_per_run) in the ablation"
        )
    if run.devices * run.nodes > 1 and settings["data"]["init_args"].get("global_batch_size") is None:
        raise UserError(
            f"{run.name} states data.batch_size, which is per process, so its steps would depend on the number of devices: set "
            "data.global_batch_size, such as common: {data: {init_args: {global_batch_size: 8}}}"
        )


def check_evaluations(run: PlannedRun, settings: Mapping[str, Any]) -> None:
    """Check that a run's checkpoint and protocols fit its settings.

    Raises:
        UserError: The run would have no best checkpoint, or its network has a CRF of its own.
    """
    interval, steps = settings["trainer"]["val_check_interval"], settings["trainer"]["max_steps"]
    never = type(interval) is int and 0 < steps < interval
    for evaluation in run.evaluations:
        if evaluation.checkpoint == "best" and never:
            raise UserError(
                f"{run.name} would have no best checkpoint: it ends after {steps} steps, before its first validation; lower "
                f"trainer.val_check_interval ({interval}), or evaluate checkpoint: last"
            )
        if settings["model"]["crf"] and any(option.startswith("--crf") for option in evaluation.options):
            raise UserError(
                f"{run.name} has a CRF of its own, model.crf, so the protocol '{evaluation.protocol}' would refine twice: "
                "limit the protocol to others by its key 'experiments'"
            )


def suggest_start(weights: str) -> str:
    """Return the remedy for missing initial weights: train the experiment that writes them, if there is one."""
    file = Path("experiments", *Path(weights).parts[1:]).with_suffix(".yaml")
    if Path(weights).parts[0] == "runs" and Path(find_experiment(str(file))).is_file():
        return f"first dilated-seg fit --config {shlex.quote(str(file))}"
    return "name a file, or the directory of a finished run, in model.weights"
