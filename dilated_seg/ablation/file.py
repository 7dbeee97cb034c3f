"""An ablation file and the runs it stands for: which they are, and how far each is."""

import itertools
import json
import os
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dilated_seg.errors import UserError, format_error
from dilated_seg.report import claims
from dilated_seg.report.claims import Claim
from dilated_seg.runs.config import build_dataset
from dilated_seg.runs.run import Run
from dilated_seg.runs.version import EXPERIMENTS

FAILED = "failed"  # a file in the folder of a run that failed, which says why
OWN = (".", "..", "dashboard", "jobs", "wandb")  # folders that no experiment may have
KEYS = ("experiments", "overlays", "common", "seeds", "evaluate", "claims", "probe", "devices_per_run", "nodes_per_run")
DDP = json.dumps({"trainer": {"strategy": "ddp"}})  # below the experiment, which may name another strategy


@dataclass(frozen=True)
class PlannedRun:
    """One run of an ablation: a name in its tables, the configurations laid over each other, a seed, a folder.

    A stage of a staged experiment starts from the weights of the stage ``before`` it; the last one is compared. It trains on
    so many ``devices`` of each of its ``nodes`` (machines), and is scored on the split ``evaluate`` at its end.
    """

    name: str
    configs: tuple[str, ...]
    seed: int
    folder: Path
    stage: str = ""
    before: Path | None = None
    compared: bool = True
    devices: int = 1
    nodes: int = 1
    evaluate: str | None = None

    @property
    def label(self) -> str:
        """How the terminal calls it."""
        return ", ".join(part for part in (self.name, f"seed {self.seed}", self.stage) if part)

    @property
    def arguments(self) -> list[str]:
        """What follows ``dilated-seg`` to train it; the same command continues it."""
        several = self.devices * self.nodes > 1
        configs = [word for config in ([DDP] * several + list(self.configs)) for word in ("--config", config)]
        start = ["--model.weights", str(self.before)] if self.before else []
        devices = ["--trainer.devices", str(self.devices), "--trainer.num_nodes", str(self.nodes)] if several else []
        end = ["--evaluate", self.evaluate] if self.evaluate else []
        own = ["--seed_everything", str(self.seed), "--run_dir", str(self.folder)]
        return ["fit", *configs, *start, *devices, *end, *own]


Chain = tuple[PlannedRun, ...]  # the stages of one experiment with one seed, in order: what is trained in one go


@dataclass(frozen=True)
class Ablation:
    """An ablation file, expanded.

    The file is YAML with these keys. A file's name is relative to it; a path inside settings is relative to where you are.

    - ``experiments``: a name for each experiment's file; or for a list of files, which are trained in this order, each from
      the weights of the one before.
    - ``overlays`` (optional): a name for each variant, which is a file or settings laid over an experiment (``{}`` for the
      experiment as it is); every experiment runs under every overlay.
    - ``common`` (optional): settings laid over every run.
    - ``seeds`` (optional): every run is repeated with each; [0] if not given.
    - ``evaluate`` (optional): the split that the last weights are compared on, "val" (if not given) or "test".
    - ``claims`` (optional): what the ablation sets out to show, which its report puts to the test: see ``claims.Claim``.
    - ``probe`` (optional): at so many pixels, the receptive fields of what was trained are measured for the report.
    - ``devices_per_run``, ``nodes_per_run`` (optional): torchrun trains and evaluates each run on this many devices of this
      many machines (several need SLURM). The steps are those of one device, since the data state ``global_batch_size``.
    """

    name: str
    runs: tuple[PlannedRun, ...]
    split: str
    folder: Path
    rehearsal: bool = False
    claims: tuple[Claim, ...] = ()
    probe: int | None = None

    @property
    def chains(self) -> list[Chain]:
        """Its runs, those together that start from each other's weights."""
        starts = [number for number, one in enumerate(self.runs) if one.before is None]
        return [self.runs[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]

    @property
    def devices_per_run(self) -> int:
        """How many devices of a machine each run trains on."""
        return self.runs[0].devices

    @property
    def nodes_per_run(self) -> int:
        """How many machines each run trains on."""
        return self.runs[0].nodes

    @property
    def group(self) -> str:
        """What its runs are called together at W&B."""
        return os.environ.get("WANDB_RUN_GROUP", self.name)

    @property
    def jobs(self) -> Path:
        """The folder of logs and of what is known about processes."""
        return self.folder / "jobs"

    def place(self, chain: Chain) -> str:
        """The folder of a chain's runs, below that of the ablation."""
        folder = chain[0].folder if len(chain) == 1 else chain[0].folder.parent
        return str(folder.relative_to(self.folder))

    def log(self, chain: Chain) -> Path:
        """The output of a chain that was trained in a process of its own."""
        return self.jobs / f"{self.place(chain)}.log"

    @property
    def evaluation(self) -> str:
        """The name of the evaluation that is compared."""
        return f"{self.split}-last"


def read(file: str | Path, out: str | Path | None = None, max_steps: int | None = None, devices: int | None = None) -> Ablation:
    """Expand an ablation file into its runs, in the order of the file, seeds innermost.

    Args:
        file: The ablation.
        out: The folder of its runs; runs/NAME if None, or for a rehearsal runs/NAME-rehearsal.
        max_steps: Of a rehearsal, laid over every run.
        devices: For each run, in the place of the file's ``devices_per_run``.

    Raises:
        UserError: The file is missing, is no YAML, or has unknown or missing keys.
    """
    path = Path(file)
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
    split, seeds = content.get("evaluate", "val"), content.get("seeds", [0])
    if split not in ("val", "test"):
        raise UserError(f"{path} evaluates '{split}': choose val or test")
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise UserError(f"{path} has seeds {seeds}: give a list of whole numbers, such as [0, 1, 2]")
    devices = devices or read_count(path, content, "devices_per_run")
    nodes = read_count(path, content, "nodes_per_run")
    common = [layer(path, content["common"])] if content.get("common") else []
    if max_steps is not None:
        common.append(json.dumps({"trainer": {"max_steps": max_steps}}))
    folder = Path(out) if out else Path("runs") / (path.stem if max_steps is None else f"{path.stem}-rehearsal")
    runs = []
    for (experiment, base), (overlay, over) in itertools.product(
        named(path, "experiments", content["experiments"]), named(path, "overlays", content.get("overlays") or {"": {}})
    ):
        name = ", ".join(part for part in (experiment, overlay) if part)
        above = [*([layer(path, over)] if over else []), *common]
        for seed in seeds:
            place = folder / re.sub(r"[^\w.+-]+", "_", name.replace(",", "")) / f"seed{seed}"
            stages = base if isinstance(base, list) else [base]
            before = None
            for number, stage in enumerate(stages, start=1):
                here = place / f"stage{number}" if len(stages) > 1 else place
                label = f"stage {number} of {len(stages)}" if len(stages) > 1 else ""
                compared = number == len(stages)
                end = split if compared else None
                configs = (layer(path, stage), *above)
                runs.append(PlannedRun(name, configs, seed, here, label, before, compared, devices, nodes, end))
                before = here
    if own := [one for one in runs if one.folder.relative_to(folder).parts[0] in OWN]:
        raise UserError(f"{path} names an experiment '{own[0].name}': its folder is the ablation's own; rename it")
    for one, two in itertools.combinations(runs, 2):
        if one.folder == two.folder:
            raise UserError(f"{path}: '{one.name}' and '{two.name}' would share the folder {one.folder}: rename one")
    probe = content.get("probe")
    if probe is not None and (type(probe) is not int or probe < 1):
        raise UserError(f"{path} probes at {probe} pixels: give a whole number, such as 256")
    claimed = claims.read_claims(path, content.get("claims", []), list(dict.fromkeys(one.name for one in runs)))
    return Ablation(path.stem, tuple(runs), split, folder, max_steps is not None, claimed, probe)


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
    """The names and values of a mapping in an ablation file."""
    staged = key == "experiments"  # which may have a list of files
    kinds = str | dict | list if staged else str | dict
    if not isinstance(value, dict) or not all(isinstance(entry, kinds) and entry != [] for entry in value.values()):
        raise UserError(f"{ablation} has a key '{key}' that does not give each name a file or settings: write NAME: FILE")
    return [(str(name), entry) for name, entry in value.items()]


def layer(ablation: Path, value: str | Mapping[str, Any]) -> str:
    """A layer of configuration as ``--config`` takes it: a file beside the ablation's, or settings as they are."""
    if isinstance(value, Mapping):
        return json.dumps(value)
    path = ablation.parent / value
    if not path.is_file():
        raise UserError(f"{ablation} names {value}, but there is no file {path}")
    return str(path)


def check(ablation: Ablation) -> None:
    """Parse every run and look at its data before the first is trained; refuse folders with other runs in them."""
    from dilated_seg.cli.parser import resolve_experiment

    looked_at = []
    for one in ablation.runs:
        text, run = resolve_experiment(one.arguments[1:]), Run(one.folder)
        if run.is_run and run.config_file.read_text() != text:
            learnt = run.checkpoint_dir.exists() and not ablation.rehearsal
            if learnt:
                raise UserError(f"{one.folder} holds a run of another configuration: name another --out or remove it")
            shutil.rmtree(one.folder)  # it failed before it had learnt anything, or only rehearsed
        settings = yaml.safe_load(text)
        check_devices(one, settings)
        start = settings["model"]["weights"]
        if start and start != "imagenet" and one.before is None and not Path(start).exists():
            raise UserError(f"{one.name} starts from {start}, which is not there: {how_to_get(start)}")
        if settings["data"] not in looked_at:
            looked_at.append(settings["data"])
            data = build_dataset(settings["data"])
            claims.require_known_classes(ablation.claims, data.classes)
            for split in (data.train_split, "val", ablation.split):
                data.open_split(split)


def check_devices(one: PlannedRun, settings: Mapping[str, Any]) -> None:
    """Check that a run's settings fit the devices that the ablation gives it.

    Raises:
        UserError: The experiment asks for other devices, or its steps would depend on their number.
    """
    asked = settings["trainer"]["devices"], settings["trainer"]["num_nodes"]
    if tuple(map(str, asked)) != (str(one.devices), str(one.nodes)):
        raise UserError(
            f"{one.name} sets trainer.devices to {asked[0]} and trainer.num_nodes to {asked[1]}: leave both out, and set "
            "devices_per_run (nodes_per_run) in the ablation"
        )
    if one.devices * one.nodes > 1 and settings["data"]["init_args"].get("global_batch_size") is None:
        raise UserError(
            f"{one.name} states data.batch_size, which is per process, so its steps would depend on the number of devices: set "
            "data.global_batch_size, such as common: {data: {init_args: {global_batch_size: 8}}}"
        )


def how_to_get(weights: str) -> str:
    """What to do about a start that is missing: train it, if it is an experiment's run."""
    file = Path("experiments", *Path(weights).parts[1:]).with_suffix(".yaml")
    if Path(weights).parts[0] == "runs" and (EXPERIMENTS.parent / file).is_file():
        config = file if file.is_file() else EXPERIMENTS.parent / file
        return f"first {shlex.join(['dilated-seg', 'fit', '--config', str(config)])}"
    return "name a file, or the folder of a finished run, in model.weights"


def finished(one: PlannedRun, ablation: Ablation) -> bool:
    """Whether the evaluation that ends a run is there; a stage before the last ends with its training."""
    if not one.compared:
        return trained(one)
    return ablation.evaluation in Run(one.folder).evaluation_names()


def trained(one: PlannedRun) -> bool:
    """Whether a run has taken its last step."""
    return Run(one.folder).finished


def failure(one: PlannedRun, chain: Chain) -> str | None:
    """Why a run of a chain failed, or that a stage before it did; None if neither."""
    for stage in chain[: chain.index(one) + 1]:
        note = stage.folder / FAILED
        if note.is_file():
            return f"failed: {note.read_text().strip()}" if stage is one else "not tried: a stage before it failed"
    return None
