"""Intervals from three seeds hold for three others: recomputed from the committed evaluations of fifty trainings."""

import runpy

import numpy as np
import pytest

from dilated_seg.analysis.resampling import count_pixels
from dilated_seg.data import Shapes
from tests.conftest import ROOT

STUDY = runpy.run_path(str(ROOT / "experiments/benchmarks/replication.py"))
COPIES = set(STUDY["COPIES"])


@pytest.fixture(scope="module")
def counts():
    return STUDY["load"]()


@pytest.fixture(scope="module")
def rates(counts):
    return STUDY["compare"](counts, STUDY["RESAMPLES"])


@pytest.fixture(scope="module")
def copies(counts):
    return STUDY["rate_copies"](counts, STUDY["RESAMPLES"])


def mean_rate(rates, word):
    return np.mean([row[word] for row in rates.values()])


@pytest.mark.slow
def test_intervals_of_three_seeds_hold_the_difference_of_three_others_in_93_of_100_comparisons(rates):
    assert mean_rate(rates, "repeat") >= 0.93
    assert mean_rate(rates, "foreign") >= 0.93  # of groups without an environment in common


@pytest.mark.slow
def test_no_groups_of_seeds_tell_different_networks_apart_in_opposite_directions(rates):
    different = {pair: row for pair, row in rates.items() if set(pair) != COPIES}
    assert len(different) == 9 and mean_rate(different, "opposite") == 0
    assert mean_rate(different, "apart") > 0.5  # or there is little to contradict


@pytest.mark.slow
def test_copies_of_one_network_are_told_apart_in_at_most_5_of_100_draws(copies):
    assert copies <= 0.05


@pytest.mark.slow
def test_intervals_of_one_seed_do_not_hold_for_another(rates):
    assert mean_rate(rates, "one seed") < 0.5


def test_all_runs_were_evaluated_on_the_test_images_of_shapes(counts):
    split = Shapes(**STUDY["DATA"]).split("test")
    classes = range(STUDY["DATA"]["num_classes"])
    pixels = [[int((sample["mask"] == k).sum()) for k in classes] for sample in (split[i] for i in range(len(split)))]
    assert list(counts) == list(STUDY["NETWORKS"])
    for seeds in counts.values():
        assert len(seeds) == STUDY["SEEDS"] and (seeds[:, :, 1] == pixels).all()


def test_every_run_is_another_training(counts):
    runs = np.concatenate(list(counts.values()))
    assert len({run.tobytes() for run in runs}) == len(runs) == 50


@pytest.mark.slow
def test_collected_counts_equal_those_of_the_trained_runs(tmp_path):
    study = runpy.run_path(str(ROOT / "experiments/benchmarks/replication.py"))["load"].__globals__
    networks = {name: (*study["NETWORKS"][name][:3], 2) for name in COPIES}
    study |= {"NETWORKS": networks, "RESULTS": tmp_path / "results/small.parquet", "SEEDS": 1}
    study |= {"ENVIRONMENTS": study["ENVIRONMENTS"][:1], "DATA": study["DATA"] | {"images": (12, 1, 3)}}
    study["train_seed"](tmp_path, 0)
    study["collect"](tmp_path)
    counts = study["load"](study["RESULTS"])
    for name, seeds in counts.items():
        _, matrices = study["locate"](tmp_path, name, 0).evaluation("test-last").images
        assert seeds.shape == (1, 3, 3, 6) and (seeds[0] == count_pixels(matrices)).all()


@pytest.mark.slow
def test_the_protocol_prints_the_tables_of_the_committed_evaluations(counts, rates, copies):
    page = (ROOT / "docs/protocol.md").read_text().splitlines()
    assert [line for line in STUDY["tabulate"](counts, rates, copies) if line not in page] == []
