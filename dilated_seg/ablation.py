"""Many runs from one file: what is missing is trained, what was interrupted continues, then all are compared."""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.rule import Rule

from dilated_seg import UserError

KEYS = ("experiments", "overlays", "common", "seeds", "evaluate")


@dataclass(frozen=True)
class Run:
    """One run of an ablation: a name in its tables, the configurations laid over each other, a seed, a folder."""

    name: str
    configs: tuple[str, ...]
    seed: int
    folder: Path

    @property
    def arguments(self) -> list[str]:
        """What follows ``dilated-seg`` to train it; the same command continues it."""
        configs = [word for config in self.configs for word in ("--config", config)]
        return ["fit", *configs, "--seed_everything", str(self.seed), "--run_dir", str(self.folder)]


@dataclass(frozen=True)
class Ablation:
    """An ablation file, expanded.

    The file is YAML with these keys; paths in it are relative to the file.

    - ``experiments``: a name for each experiment's file.
    - ``overlays`` (optional): a name for each variant, which is a file or settings laid over an experiment (``{}`` for the
      experiment as it is); every experiment runs under every overlay.
    - ``common`` (optional): settings laid over every run.
    - ``seeds`` (optional): every run is repeated with each; [0] if not given.
    - ``evaluate`` (optional): the split that the last weights are compared on, "val" (if not given) or "test".
    """

    name: str
    runs: tuple[Run, ...]
    split: str

    @property
    def evaluation(self) -> str:
        """The name of the evaluation that is compared."""
        return f"{self.split}-last"


def read(file: str | Path, out: str | Path | None = None) -> Ablation:
    """Expand an ablation file into its runs, in the order of the file, seeds innermost.

    Raises:
        UserError: The file is missing, is no YAML, or has unknown or missing keys.
    """
    path = Path(file)
    if not path.is_file():
        raise UserError(f"there is no ablation file {path}")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not content.get("experiments"):
        raise UserError(f"{path} names no experiments: give it a key 'experiments' with a name for each file")
    if unknown := sorted(content.keys() - set(KEYS)):
        raise UserError(f"{path} has the unknown key '{unknown[0]}': an ablation has {', '.join(KEYS)}")
    split = content.get("evaluate", "val")
    if split not in ("val", "test"):
        raise UserError(f"{path} evaluates '{split}': choose val or test")
    common = [layer(path, content["common"])] if content.get("common") else []
    folder = Path(out) if out else Path("runs") / path.stem
    seeds = content.get("seeds", [0])
    runs = []
    for (experiment, base), (overlay, over) in itertools.product(
        content["experiments"].items(), (content.get("overlays") or {"": {}}).items()
    ):
        name = ", ".join(part for part in (experiment, overlay) if part)
        configs = (layer(path, base), *([layer(path, over)] if over else []), *common)
        for seed in seeds:
            place = name if len(seeds) == 1 else f"{name}/seed{seed}"
            runs.append(Run(name, configs, seed, folder / place.replace(" ", "_").replace(",", "")))
    return Ablation(path.stem, tuple(runs), split)


def layer(ablation: Path, value: str | Mapping[str, Any]) -> str:
    """A layer of configuration as ``--config`` takes it: a file beside the ablation's, or settings as they are."""
    if isinstance(value, Mapping):
        return json.dumps(value)
    path = ablation.parent / value
    if not path.is_file():
        raise UserError(f"{ablation} names {value}, but there is no file {path}")
    return str(path)


def run(file: str, out: str | None = None) -> int:
    """Train and evaluate what is missing, one run after another, then write and print the comparison.

    Interrupted, it exits with 1; called again it continues where it was and ends with the same numbers.
    """
    from dilated_seg.analysis import report

    ablation, console = read(file, out), Console()
    check(ablation)
    for number, one in enumerate(ablation.runs, start=1):
        label = f"{number} of {len(ablation.runs)}: {one.name}, seed {one.seed}"
        if finished(one, ablation):
            console.print(f"{label} is finished", highlight=False)
            continue
        console.print(Rule(label, align="left"))
        try:
            train(one, ablation)
        except (KeyboardInterrupt, SystemExit):
            print(f"interrupted; to continue: dilated-seg ablate {file}" + (f" --out {out}" if out else ""), flush=True)
            return 1
    folder = Path(out) if out else Path("runs") / ablation.name
    report.compare([one.folder for one in ablation.runs], folder, ablation.evaluation, [one.name for one in ablation.runs])
    return 0


def check(ablation: Ablation) -> None:
    """Parse every run before the first is trained, and refuse folders that hold runs of another configuration."""
    from dilated_seg.cli import Resolve

    for one in ablation.runs:
        text, saved = Resolve(one.arguments).text, one.folder / "config.yaml"
        if saved.is_file() and saved.read_text() != text:
            raise UserError(f"{one.folder} holds a run of another configuration: name another --out or remove it")
        if yaml.safe_load(text)["trainer"]["devices"] not in (1, "1"):
            raise UserError(f"{one.name} asks for several devices, but ablate trains on one: set trainer.devices to 1")


def finished(one: Run, ablation: Ablation) -> bool:
    """Whether the evaluation that ends a run is there."""
    return (one.folder / "evaluations" / f"{ablation.evaluation}.json").is_file()


def train(one: Run, ablation: Ablation) -> None:
    """Train a run, or continue it, and evaluate its last weights."""
    import wandb

    from dilated_seg.cli import CLI

    cli = CLI(one.arguments)
    evaluate = cli.trainer.test if ablation.split == "test" else cli.trainer.validate
    evaluate(cli.model, cli.datamodule, verbose=False)
    if wandb.run is not None:
        wandb.finish()
