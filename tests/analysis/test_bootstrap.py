"""Intervals cover the truth as often as they say, and networks that are equal are seldom called different."""

import runpy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from scipy import stats

from dilated_seg.analysis.bootstrap import Bootstrap
from dilated_seg.analysis.intervals import OTHER_IMAGES, adjust_holm
from dilated_seg.analysis.resampling import count_pixels, mean_iou
from dilated_seg.errors import UserError
from dilated_seg.metrics.confusion import compute_metrics
from dilated_seg.report.wording import format_points
from tests.conftest import ROOT

POPULATION = 20_000  # images, of which a study sees a few


class World:
    """Images with objects of unequal size and rare classes, some harder than others, and networks that look at them."""

    def __init__(self, classes, seed):
        self.rng = np.random.default_rng(seed)
        there = self.rng.random((POPULATION, classes)) < np.linspace(1, 0.2, classes)
        self.pixels = np.round(np.exp(self.rng.normal(6, 1, there.shape))) * there
        self.hardness = self.rng.normal(0, 1, (POPULATION, 1))

    def network(self, quality):
        """Counts (N, 3, C) of a network: what it misses of one class it takes for others."""
        luck = self.rng.normal(0, 0.7, self.pixels.shape)
        hits = np.round(self.pixels / (1 + np.exp(0.6 * self.hardness - quality - luck)))
        share = self.rng.dirichlet(np.ones(self.pixels.shape[1]), POPULATION)
        wrong = np.round((self.pixels - hits).sum(1, keepdims=True) * share)
        return np.stack([hits, self.pixels, hits + wrong], axis=1).astype(np.int64)


def some_counts(seed=0, images=20, classes=4):
    matrices = np.random.default_rng(seed).integers(0, 50, (images, classes, classes))
    return count_pixels(matrices)


def simulate_differences(images, classes, studies):
    """Return in how many studies the interval of a difference covers the truth, and equal networks are called different."""
    world = World(classes, seed=0)
    quality = np.linspace(2, 0.5, classes)
    first, twin = world.network(quality), world.network(quality)
    better = world.network(quality + np.linspace(0.4, -0.1, classes))
    truth = float(mean_iou(better.sum(0)) - mean_iou(first.sum(0)))
    covered, called = 0, 0
    for study in range(studies):
        seen = world.rng.integers(0, POPULATION, images)
        swap = world.rng.random((images, 1, 1)) < 0.5  # so that the two are equal on average over studies, not only nearly
        one, other = np.where(swap, twin[seen], first[seen]), np.where(swap, first[seen], twin[seen])
        bootstrap = Bootstrap({"first": [first[seen]], "better": [better[seen]], "one": [one], "other": [other]}, 600, study)
        found = bootstrap.difference("better", "first")
        covered += found.low <= truth <= found.high
        called += bootstrap.difference("one", "other").significant
    return covered, called


@pytest.mark.slow
@pytest.mark.parametrize(("images", "classes"), [(64, 8), (200, 6)])
def test_the_interval_of_a_difference_covers_the_truth_in_93_to_97_of_100_studies_and_equals_differ_in_5(images, classes):
    covered, called = simulate_differences(images, classes, studies=1000)
    assert 930 <= covered <= 970
    assert called <= 50


def test_the_interval_of_a_difference_covers_the_truth_in_about_95_of_100_studies():
    covered, called = simulate_differences(64, 8, studies=100)
    assert 89 <= covered <= 99  # 95 and less than three standard deviations
    assert called <= 11


def simulate_trainings(studies):
    """Return the shares of studies whose interval over seeds covers the truth, and that call equal networks different."""
    world = World(6, seed=7)
    quality = np.linspace(2, 0.5, 6)

    def trained(better):
        return [world.network(quality + better + world.rng.normal(0, 0.15, 6)) for _ in range(30)]

    first, second = trained(0.0), trained(0.2)
    means = [np.mean([mean_iou(run.sum(0)) for run in runs]) for runs in (second, first)]
    truth, covered, called = means[0] - means[1], 0, 0
    for study in range(studies):
        seen = world.rng.integers(0, POPULATION, 64)
        a = [first[k][seen] for k in world.rng.choice(30, 6, replace=False)]
        b = [second[k][seen] for k in world.rng.choice(30, 3, replace=False)]
        bootstrap = Bootstrap({"a": a[:3], "twin": a[3:], "b": b}, 400, study)
        found = bootstrap.difference("b", "a")
        covered += found.low <= truth <= found.high
        called += bootstrap.difference("a", "twin").significant
    return covered / studies, called / studies


@pytest.mark.slow
def test_intervals_over_seeds_cover_the_mean_over_all_seeds_of_all_images():
    covered, called = simulate_trainings(studies=400)
    assert 0.93 <= covered <= 0.98
    assert called <= 0.05


def test_intervals_over_seeds_cover_that_mean_in_most_of_a_few_studies():
    covered, called = simulate_trainings(studies=50)
    assert covered >= 0.86  # 0.95 and three standard deviations
    assert called <= 0.14


def simulate_equals(seeds, studies):
    """Return in how many studies any two of five equal networks are called different."""
    world = World(6, seed=3)
    quality, called = np.linspace(2, 0.5, 6), 0
    trained = [world.network(quality + world.rng.normal(0, 0.1 * (max(seeds) > 1), 6)) for _ in range(40)]
    for study in range(studies):
        seen = world.rng.integers(0, POPULATION, 64)
        drawn = iter([trained[k][seen] for k in world.rng.choice(40, sum(seeds), replace=False)])
        networks = {str(name): [next(drawn) for _ in range(number)] for name, number in enumerate(seeds)}
        called += any(pair.significant for pair in Bootstrap(networks, 400, study).pairs())
    return called


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [(1, 1, 1, 1, 1), (2, 2, 2, 2, 2), (3, 3, 3, 3, 3), (1, 3, 1, 3, 1)], ids=str)
def test_of_five_equal_networks_any_two_are_called_different_in_5_of_100_studies(seeds):
    assert simulate_equals(seeds, studies=200) <= 0.05 * 200


@pytest.mark.parametrize("seeds", [(1, 1, 1, 1, 1), (1, 3, 1, 3, 1)], ids=str)
def test_of_five_equal_networks_two_are_seldom_called_different(seeds):
    assert simulate_equals(seeds, studies=20) <= 0.2 * 20


def test_intervals_cover_where_spreads_differ_by_four_times_and_steady_networks_profit():
    """The benchmark's simulation with fewer studies: two steady networks, and two that seeds move four times as much."""
    simulation = runpy.run_path(str(ROOT / "experiments/benchmarks/significance_coverage.py"))
    hits = simulation["simulate"]([1, 1, 4, 4], seeds=3, studies=50, rng=np.random.default_rng(1))
    rates = {what: simulation["summarize"](hits, what)[0] for what in ("covered", "predicted", "new", "copies", "any")}
    assert min(rates["covered"], rates["predicted"], rates["new"]) >= 0.93
    assert rates["copies"] <= 0.05 and rates["any"] <= 0.05
    assert simulation["summarize"](hits, "width")[0] < 0.85 * simulation["summarize"](hits, "pooled width")[0]


def spread_over(seeds, spread, images=60):
    """Counts of one class in images of 10,000 pixels; seeds shift all images alike, so nothing is luck with these images."""
    hits = np.random.default_rng(0).integers(4000, 6000, images) + (10_000 * spread * np.asarray(seeds)[:, None]).astype(int)
    return [np.stack([own, np.full(images, 10_000), own], axis=1)[:, :, None] for own in hits]


def test_spreads_are_shrunk_towards_the_common_one_and_less_so_with_more_seeds():
    few, many = np.array([-1, 0, 1]), np.repeat([-1, 0, 1], 10)

    def estimate(seeds):
        networks = {str(k): spread_over(seeds, 0.02) for k in range(4)} | {"wild": spread_over(seeds, 0.08)}
        return Bootstrap(networks, 4000)

    three, thirty = estimate(few), estimate(many)
    assert three.vary("wild").measured == pytest.approx(0.08) and three.vary("0").measured == pytest.approx(0.02)
    assert 0.03 < three.vary("wild").training.value < 0.08 < three.vary("wild").training.high
    assert thirty.vary("wild").training.value == pytest.approx(thirty.vary("wild").measured, rel=0.05)
    steady, wild = three.difference("0", "1"), three.difference("0", "wild")
    assert steady.high - steady.low < 0.5 * (wild.high - wild.low)


def test_seeds_that_only_shift_give_the_interval_of_student():
    """With equal counts of many seeds the model has nothing to borrow: sigma^2 is known, images and seeds add up."""
    seeds = np.random.default_rng(1).normal(size=400)
    found = Bootstrap({"a": spread_over(seeds, 0.02), "b": spread_over(seeds[::-1], 0.02)}, 20_000).difference("a", "b")
    half = 1.96 * np.sqrt(2 * np.var(0.02 * seeds, ddof=1) / 400)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.04)
    assert (found.new.high - found.new.low) / 2 == pytest.approx(half * np.sqrt(401), rel=0.04)
    assert (found.repeat.high - found.repeat.low) / 2 == pytest.approx(half * np.sqrt(2), rel=0.04)


def test_one_seed_of_each_gives_an_interval_of_these_weights_and_no_prediction():
    found = Bootstrap({"a": [some_counts(0)], "b": [some_counts(1)]}, 500)
    pair = found.difference("a", "b")
    assert pair.kind == OTHER_IMAGES and pair.seeds == 1 and not pair.told_apart
    assert np.isnan(pair.new.low) and np.isnan(found.find_detectable("a", "b", 3)) and np.isnan(found.vary("a").share)


def test_networks_without_seeds_enough_are_never_told_apart():
    worse, better = spread_over([0, 0.1, 0.2], 0.001), spread_over([200, 200.1, 200.2], 0.001)
    two, three = (Bootstrap({"worse": worse[:n], "better": better[:n]}, 1000).pairs()[0] for n in (2, 3))
    assert three.told_apart and two.seeds == 2 and not two.told_apart


def test_the_difference_that_more_seeds_find_is_found_in_four_of_five_studies():
    rng = np.random.default_rng(2)
    detectable = Bootstrap({name: spread_over(rng.normal(size=200), 0.02) for name in "ab"}, 500).find_detectable("a", "b", 5)
    shifts = rng.normal(size=(2, 4000, 5)) * 0.02 + np.array([detectable, 0])[:, None, None]
    assert np.mean(stats.ttest_ind(*shifts, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.05)


def test_seeds_that_differ_make_an_interval_wider_also_of_a_network_with_one():
    world = World(4, seed=1)
    seen = world.rng.integers(0, POPULATION, 400)
    runs = [world.network(np.ones(4) + shift)[seen] for shift in (-0.4, 0.0, 0.4)]
    other = world.network(np.ones(4))[seen]
    alone, three = (Bootstrap({"a": seeds, "b": [other]}, 2000) for seeds in (runs[1:2], runs))
    for name in ("a", "b"):
        narrow, wide = alone.interval(name), three.interval(name)
        assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_networks_that_differ_on_few_images_have_no_interval():
    rng = np.random.default_rng(0)
    one = rng.integers(10, 50, (200, 3, 3))
    other = one.copy()
    other[:5] += 20 * np.eye(3, dtype=np.int64)
    found = Bootstrap({"a": [count_pixels(one)], "b": [count_pixels(other)]}).difference("b", "a")
    assert found.value > 0 and np.isnan(found.low) and found.p == 1
    assert format_points(found) == f"{100 * found.value:.1f}"


def test_images_without_a_valid_pixel_say_nothing():
    rng = np.random.default_rng(0)
    matrices = rng.integers(10, 50, (2, 30, 3, 3))
    padded = np.concatenate([matrices, np.zeros((2, 300, 3, 3), np.int64)], axis=1)
    plain, with_void = (Bootstrap({"a": [count_pixels(m[0])], "b": [count_pixels(m[1])]}, 500) for m in (matrices, padded))
    assert plain.difference("a", "b") == with_void.difference("a", "b")


def test_a_difference_of_differences_of_the_same_is_nothing():
    networks = {"a": [some_counts(0)], "b": [some_counts(1)]}
    found = Bootstrap(networks, 500, minus=networks).difference("a", "b")
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_the_same_predictions_are_never_different():
    run = some_counts()
    found = Bootstrap({"a": [run], "b": [run]}).difference("a", "b")
    assert (found.value, found.low, found.high, found.p, found.significant) == (0, 0, 0, 1, False)


def test_a_network_that_is_better_on_every_image_beats_the_other():
    rng = np.random.default_rng(0)
    worse = rng.integers(10, 50, (30, 3, 3))
    better = worse + 40 * np.eye(3, dtype=np.int64) - 3
    found = Bootstrap({"worse": [count_pixels(worse)], "better": [count_pixels(better)]}).pairs()
    assert [(pair.better, pair.worse, pair.significant) for pair in found] == [("better", "worse", True)]
    assert 0 < found[0].low < found[0].value < found[0].high


def test_the_mean_iou_is_that_of_the_metrics():
    matrices = np.random.default_rng(3).integers(0, 9, (7, 5, 5))
    matrices[:, 2], matrices[:, :, 2] = 0, 0  # absent
    assert mean_iou(count_pixels(matrices).sum(0)) == pytest.approx(
        float(compute_metrics(torch.tensor(matrices.sum(0)))["mean_iou"])
    )


def test_the_bootstrap_of_a_mean_has_the_standard_error_of_a_mean():
    rng = np.random.default_rng(0)
    hits = rng.integers(0, 100, 500)
    run = np.zeros((500, 3, 1), np.int64)
    run[:, 0, 0], run[:, 1, 0], run[:, 2, 0] = hits, 100, hits  # every image is as large: IoU is the mean of hits over 100
    found = Bootstrap({"a": [run]}).interval("a")
    half = stats.t.ppf(0.975, 499) * hits.std(ddof=1) / 100 / np.sqrt(500)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.03)


def test_resampling_is_a_function_of_the_seed():
    networks = {"a": [some_counts(0), some_counts(2)], "b": [some_counts(1)]}
    first, again, other = (Bootstrap(networks, 200, seed).difference("a", "b") for seed in (0, 0, 1))
    assert first == again != other


def test_a_single_image_gives_no_interval():
    found = Bootstrap({"a": [some_counts(0, 1)], "b": [some_counts(1, 1)]}).difference("a", "b")
    assert np.isnan(found.low) and np.isnan(found.high) and not found.significant


def test_networks_evaluated_on_different_images_are_an_error():
    with pytest.raises(UserError, match="not evaluated on the same images"):
        Bootstrap({"a": [some_counts(0, 5)], "b": [some_counts(0, 6)]})


@given(some.lists(some.floats(0, 1), min_size=1, max_size=8))
def test_holm_adjusts_as_its_definition_says(p):
    order = sorted(range(len(p)), key=lambda k: p[k])
    for rank, k in enumerate(order):
        smaller = [min(1.0, (len(p) - before) * p[order[before]]) for before in range(rank + 1)]
        assert adjust_holm(p)[k] == max(smaller)
