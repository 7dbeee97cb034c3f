"""The comparisons of architectures on VOC and Cityscapes, rehearsed on small datasets: from shards to the report."""

import csv
import json

import pytest
import yaml

from dilated_seg.__main__ import main
from tests.support import fake_datasets
from tests.support.commands import ROOT, THREADS

ABLATIONS = ROOT / "experiments/ablations"
DATASETS = ("voc", "cityscapes")


@pytest.fixture(scope="module", params=DATASETS)
def prepared(request, tmp_path_factory):
    """The name of a dataset, and the directory of its shards."""
    folder = tmp_path_factory.mktemp(request.param)
    root = getattr(fake_datasets, request.param)(folder / "release")
    sbd = ["--sbd", str(root / "sbd")] if request.param == "voc" else []
    shards = ["--root", str(root), *sbd, "--out", str(folder / "shards"), "--other_counts"]
    assert main(["prepare", request.param, *shards]) == 0
    return request.param, folder


@pytest.fixture
def rehearsal(prepared, monkeypatch):
    """The name of a dataset that is prepared as users do it, and the directory that training will write into."""
    dataset, folder = prepared
    monkeypatch.setenv(f"DILATED_SEG_{dataset.upper()}", str(folder / "shards"))
    monkeypatch.setenv("OMP_NUM_THREADS", THREADS)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(folder)
    return prepared


def rehearse(dataset, folder, out, *words, **changes):
    """Rehearse the narrow file with some keys changed, None for left out, and return the seeds of each row of its report."""
    content = yaml.safe_load((ABLATIONS / f"{dataset}_architectures_narrow.yaml").read_text()) | changes
    content = {key: value for key, value in content.items() if value is not None}
    files = {name: str(ABLATIONS / file) for name, file in content["experiments"].items()}
    (folder / f"{out}.yaml").write_text(yaml.safe_dump(content | {"experiments": files}, sort_keys=False))
    assert main(["ablate", str(folder / f"{out}.yaml"), "--max_steps", "2", "--out", str(folder / out), *words]) == 0
    with (folder / out / "networks.csv").open() as file:
        return {row["network"]: row["seeds"] for row in csv.DictReader(file) if not row["network"].startswith("(")}


@pytest.mark.slow
def test_a_network_of_each_comparison_is_streamed_selected_and_scored_with_its_crf(rehearsal):
    dataset, folder = rehearsal
    network = {"DeepLab-LargeFOV": "../architectures/deeplab.yaml"}
    rows = rehearse(dataset, folder, "one", experiments=network, claims=[], seeds=[0])
    assert rows == {"DeepLab-LargeFOV": "1", "DeepLab-LargeFOV, CRF": "1"}
    selection = json.loads((folder / "one/selection.json").read_text())["networks"]["DeepLab-LargeFOV"]
    assert selection["selected"] in selection["mean_iou"] and len(selection["mean_iou"]) == 2
    runs = [yaml.safe_load(file.read_text()) for file in (folder / "one").glob("*/seed0/config.yaml")]
    assert len(runs) == 2
    for run in runs:
        assert run["data"]["init_args"]["streaming"] and run["data"]["init_args"]["num_workers"] == 2
        assert run["model"]["net"]["init_args"]["width"] == 1 / 32


@pytest.mark.slow
@pytest.mark.timeout(1800)  # ten networks, each on two processes
def test_each_comparison_on_two_processes_a_run_ends_in_a_report_with_every_row(rehearsal, capfd):
    dataset, folder = rehearsal
    rows = rehearse(dataset, folder, "all", "--devices_per_run", "2", seeds=[0], select=None)  # a third of the runs
    experiments = yaml.safe_load((ABLATIONS / f"{dataset}_architectures.yaml").read_text())["experiments"]
    assert rows == dict.fromkeys([*experiments, "DeepLab-LargeFOV, CRF"], "1")
    assert "2 images a step (1 in each of 2 processes)" in capfd.readouterr().out
    assert len([*(folder / "all").glob("*/seed0/wandb/offline-run-*")]) >= len(experiments)


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_narrow_comparison_has_the_networks_protocols_and_claims_of_the_full_one(dataset):
    full, narrow = (
        yaml.safe_load((ABLATIONS / f"{dataset}_architectures{end}.yaml").read_text()) for end in ("", "_narrow")
    )  # fmt: skip
    assert [key for key in full if full[key] != narrow[key]] == ["common", "select", "seeds"]
