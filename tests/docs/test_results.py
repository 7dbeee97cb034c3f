"""The tables of pages and the headers of experiments are those of the committed results, which hold figures only."""

import runpy
import shlex
from pathlib import Path

import pytest

from dilated_seg import ablation
from dilated_seg.report.saved import SavedComparison
from dilated_seg.runs.experiments import find_experiment
from tests.conftest import ROOT

RESULTS = sorted(path for path in (ROOT / "experiments/results").iterdir() if (path / "comparison.json").is_file())
HEADERS = sorted((ROOT / "experiments").rglob("*.yaml"))
each_result = pytest.mark.parametrize("directory", RESULTS, ids=lambda path: path.name)


def check(*files):
    return runpy.run_path(str(ROOT / "docs/results.py"))["main"](["--check", *map(str, files)])


def test_readme_and_the_headers_of_experiments_have_the_committed_results():
    assert check(ROOT / "README.md", *HEADERS) == 0, "make results"


@pytest.mark.slow
def test_every_page_has_the_committed_results():
    assert check() == 0, "make results"


def test_a_figure_that_differs_from_the_results_is_found(tmp_path, capsys):
    header = "# ours: 1.0 (results/quickstart, FCN-8s)"
    fill = runpy.run_path(str(ROOT / "docs/results.py"))["fill"]
    scores = [f"{100 * one.evaluation.mean_iou:.1f}" for one in read_quickstart() if one.name == "FCN-8s"]
    assert fill(header) == f"# ours: {', '.join(scores)} (results/quickstart, FCN-8s)" and len(scores) == 3
    table = "<!-- results quickstart: table network, each seed -->\n<!-- results: end -->"
    assert f"| FCN-8s | {' '.join(scores)} |" in fill(table)
    missing = "<!-- results not_run: pairs -->\n<!-- results: end -->"
    assert "Not run yet: `dilated-seg ablate experiments/ablations/not_run.yaml`." in fill(missing)


def read_quickstart():
    return SavedComparison.read(ROOT / "experiments/results/quickstart").results


@each_result
def test_committed_results_are_whole_and_hold_figures_only(directory):
    kinds = {".json", ".parquet", ".yaml", ".csv", ".npz", ".sha256", ""}
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= kinds and sum(path.stat().st_size for path in files) < 8e6
    assert f"<!-- results {directory.name}: " in (ROOT / "docs/results.md").read_text()
    for result in SavedComparison.read(directory).results:
        assert not result.evaluation.protocol.partial and result.run.config.seed == result.seed
        assert (result.evaluation.images[1].sum(0) == result.evaluation.matrix).all() and result.run.history()


@each_result
def test_an_experiment_whose_results_are_committed_does_not_say_that_it_was_not_run(directory):
    command = shlex.split(SavedComparison.read(directory).command)
    assert command[:2] == ["dilated-seg", "ablate"]
    file = Path(find_experiment(command[2]))
    files = {file, *(Path(path) for run in ablation.read(file).planned for path in run.configs if path.endswith(".yaml"))}
    assert not [file for file in files if "not run here" in file.read_text()]
