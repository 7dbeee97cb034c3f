"""Every sweep below experiments/sweeps/ would run unchanged: `wandb sweep FILE`, then an agent."""

import itertools

import pytest
import torch
import yaml
from wandb.sdk.launch.sweeps import utils as sweeps

from dilated_seg.cli.resolve import resolve_experiment
from dilated_seg.metrics.confusion import compute_metrics
from dilated_seg.runs.run import Run
from dilated_seg.training.loggers import read_wandb_id
from tests.conftest import ROOT
from tests.experiments.test_experiments import EXPERIMENTS

SWEEPS = sorted((ROOT / "experiments/sweeps").glob("*.yaml"))
KEYS = {"project", "name", "method", "metric", "parameters", "command", "early_terminate"}


def name(file):
    return file.stem


def points(sweep):
    """Settings as W&B's server would draw them: the first and the last value of every parameter, each end of its range."""
    ends = {
        key: (how["values"][0], how["values"][-1]) if "values" in how else (how["min"], how["max"])
        for key, how in sweep["parameters"].items()
    }
    return [{key: {"value": pair[end]} for key, pair in ends.items()} for end in (0, 1)]


def arguments(sweep, point):
    """The command of W&B's agent for a point, without the words before `fit`."""
    made = sweeps.create_sweep_command_args({"args": point}) | {"env": ["/usr/bin/env"]}
    words = (made[word[2:-1]] if word.startswith("${") else [word] for word in sweeps.create_sweep_command(sweep["command"]))
    command = list(itertools.chain(*words))
    assert command[:4] == ["/usr/bin/env", "python", "-m", "dilated_seg"]
    return command[4:]


def leaf(config, path):
    """A value of the resolved experiment; it must be there."""
    for key in path.split("."):
        config = config[key]
    return config


@pytest.mark.parametrize("file", SWEEPS, ids=name)
def test_every_parameter_of_a_sweep_is_an_argument_and_takes_its_values(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    sweep = yaml.safe_load(file.read_text())
    for point in points(sweep):
        resolved = yaml.safe_load(resolve_experiment(arguments(sweep, point)[1:]))
        for key, setting in point.items():
            value = setting["value"]
            expected = yaml.safe_load(value) if isinstance(value, str) else value
            assert leaf(resolved, key) == expected, key


@pytest.mark.parametrize("file", SWEEPS, ids=name)
def test_a_sweep_has_what_wandb_asks_for(file):
    sweep = yaml.safe_load(file.read_text())
    assert sweep.keys() <= KEYS
    assert sweep["method"] in ("grid", "random", "bayes")
    for how in sweep["parameters"].values():
        if "values" in how:
            assert how.keys() == {"values"} and len(how["values"]) > 1
        else:
            assert sweep["method"] != "grid"
            assert how["distribution"] in ("uniform", "log_uniform_values") and how["min"] < how["max"]
    if "early_terminate" in sweep:
        assert (
            sweep["early_terminate"].keys() == {"type", "min_iter", "eta"} and sweep["early_terminate"]["type"] == "hyperband"
        )


@pytest.mark.parametrize("file", SWEEPS, ids=name)
def test_a_sweep_begins_from_an_experiment_and_looks_at_a_score_that_is_logged(file):
    sweep = yaml.safe_load(file.read_text())
    (config,) = [word for word in sweep["command"] if word.startswith("--config=")]
    assert ROOT / config.removeprefix("--config=") in EXPERIMENTS
    assert sweep["command"].index(config) < sweep["command"].index("${args}")
    split, _, score = sweep["metric"]["name"].partition("/")
    assert split == "val" and score in compute_metrics(torch.eye(2))
    assert sweep["metric"]["goal"] == "maximize"
    assert f"wandb sweep experiments/sweeps/{file.name}" in file.read_text()


def test_a_run_of_a_sweep_has_the_id_that_the_agent_gave_it(tmp_path, monkeypatch):
    drawn = read_wandb_id(Run(tmp_path))
    assert read_wandb_id(Run(tmp_path)) == drawn
    monkeypatch.setenv("WANDB_RUN_ID", "sweep123")
    assert read_wandb_id(Run(tmp_path)) == "sweep123"
    monkeypatch.delenv("WANDB_RUN_ID")
    assert read_wandb_id(Run(tmp_path)) == "sweep123"
