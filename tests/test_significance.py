"""Intervals cover the truth as often as they say, and networks that are equal are seldom called different."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from scipy import stats

from dilated_seg import UserError
from dilated_seg.analysis.significance import (
    Bootstrap,
    Difference,
    cliques,
    counts,
    holm,
    mean_iou,
    points,
    sentences,
)
from dilated_seg.metrics import scores

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
    return counts(matrices)


@pytest.mark.parametrize(("images", "classes"), [(64, 8), (200, 6)])
def test_the_interval_of_a_difference_covers_the_truth_in_93_to_97_of_100_studies_and_equals_differ_in_5(images, classes):
    world = World(classes, seed=0)
    quality = np.linspace(2, 0.5, classes)
    first, twin = world.network(quality), world.network(quality)
    better = world.network(quality + np.linspace(0.4, -0.1, classes))
    truth = float(mean_iou(better.sum(0)) - mean_iou(first.sum(0)))
    covered, called = 0, 0
    for study in range(1000):
        seen = world.rng.integers(0, POPULATION, images)
        swap = world.rng.random((images, 1, 1)) < 0.5  # so that the two are equal on average over studies, not only nearly
        one, other = np.where(swap, twin[seen], first[seen]), np.where(swap, first[seen], twin[seen])
        bootstrap = Bootstrap({"first": [first[seen]], "better": [better[seen]], "one": [one], "other": [other]}, 600, study)
        found = bootstrap.difference("better", "first")
        covered += found.low <= truth <= found.high
        called += bootstrap.difference("one", "other").significant
    assert 930 <= covered <= 970
    assert called <= 50


def test_intervals_over_seeds_cover_the_mean_over_all_seeds_of_all_images():
    world = World(6, seed=7)
    quality = np.linspace(2, 0.5, 6)

    def trained(better):
        return [world.network(quality + better + world.rng.normal(0, 0.15, 6)) for _ in range(30)]

    first, second = trained(0.0), trained(0.2)
    means = [np.mean([mean_iou(run.sum(0)) for run in runs]) for runs in (second, first)]
    truth, covered, called = means[0] - means[1], 0, 0
    for study in range(400):
        seen = world.rng.integers(0, POPULATION, 64)
        a = [first[k][seen] for k in world.rng.choice(30, 6, replace=False)]
        b = [second[k][seen] for k in world.rng.choice(30, 3, replace=False)]
        bootstrap = Bootstrap({"a": a[:3], "twin": a[3:], "b": b}, 400, study)
        found = bootstrap.difference("b", "a")
        covered += found.low <= truth <= found.high
        called += bootstrap.difference("a", "twin").significant
    assert 0.93 <= covered / 400 <= 0.98
    assert called / 400 <= 0.05


@pytest.mark.parametrize("seeds", [(1, 1, 1, 1, 1), (2, 2, 2, 2, 2), (3, 3, 3, 3, 3), (1, 3, 1, 3, 1)], ids=str)
def test_of_five_equal_networks_any_two_are_called_different_in_5_of_100_studies(seeds):
    world = World(6, seed=3)
    quality, studies, called = np.linspace(2, 0.5, 6), 200, 0
    trained = [world.network(quality + world.rng.normal(0, 0.1 * (max(seeds) > 1), 6)) for _ in range(40)]
    for study in range(studies):
        seen = world.rng.integers(0, POPULATION, 64)
        drawn = iter([trained[k][seen] for k in world.rng.choice(40, sum(seeds), replace=False)])
        networks = {str(name): [next(drawn) for _ in range(number)] for name, number in enumerate(seeds)}
        called += any(pair.significant for pair in Bootstrap(networks, 400, study).pairs())
    assert called <= 0.05 * studies


def test_seeds_that_differ_make_an_interval_wider_also_of_a_network_with_one():
    world = World(4, seed=1)
    seen = world.rng.integers(0, POPULATION, 400)
    runs = [world.network(np.ones(4) + shift)[seen] for shift in (-0.4, 0.0, 0.4)]
    other = world.network(np.ones(4))[seen]
    alone, three = (Bootstrap({"a": seeds, "b": [other]}, 2000) for seeds in (runs[1:2], runs))
    for name in ("a", "b"):
        narrow, wide = alone.interval(name), three.interval(name)
        assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_where_only_few_images_differ_nobody_can_tell():
    rng = np.random.default_rng(0)
    one = rng.integers(10, 50, (200, 3, 3))
    other = one.copy()
    other[:5] += 20 * np.eye(3, dtype=np.int64)
    found = Bootstrap({"a": [counts(one)], "b": [counts(other)]}).difference("b", "a")
    assert found.value > 0 and np.isnan(found.low) and found.p == 1
    assert points(found) == f"{100 * found.value:.1f}"


def test_images_without_a_valid_pixel_say_nothing():
    rng = np.random.default_rng(0)
    matrices = rng.integers(10, 50, (2, 30, 3, 3))
    padded = np.concatenate([matrices, np.zeros((2, 300, 3, 3), np.int64)], axis=1)
    plain, with_void = (Bootstrap({"a": [counts(m[0])], "b": [counts(m[1])]}, 500) for m in (matrices, padded))
    assert plain.difference("a", "b") == with_void.difference("a", "b")


def test_a_difference_of_differences_of_the_same_is_nothing():
    a, b = some_counts(0), some_counts(1)
    bootstrap = Bootstrap({"a": [a], "b": [b], "a again": [a], "b again": [b]}, 500)
    found = bootstrap.contrast({"a": 1, "b": -1, "a again": -1, "b again": 1})
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_the_same_predictions_are_never_different():
    run = some_counts()
    found = Bootstrap({"a": [run], "b": [run]}).difference("a", "b")
    assert (found.value, found.low, found.high, found.p, found.significant) == (0, 0, 0, 1, False)


def test_a_network_that_is_better_on_every_image_beats_the_other():
    rng = np.random.default_rng(0)
    worse = rng.integers(10, 50, (30, 3, 3))
    better = worse + 40 * np.eye(3, dtype=np.int64) - 3
    found = Bootstrap({"worse": [counts(worse)], "better": [counts(better)]}).pairs()
    assert [(pair.better, pair.worse, pair.significant) for pair in found] == [("better", "worse", True)]
    assert 0 < found[0].low < found[0].value < found[0].high


def test_the_mean_iou_is_that_of_the_metrics():
    matrices = np.random.default_rng(3).integers(0, 9, (7, 5, 5))
    matrices[:, 2], matrices[:, :, 2] = 0, 0  # absent
    assert mean_iou(counts(matrices).sum(0)) == pytest.approx(float(scores(torch.tensor(matrices.sum(0)))["mean_iou"]))


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


def test_networks_on_other_images_are_refused():
    with pytest.raises(UserError, match="not counted on the same images"):
        Bootstrap({"a": [some_counts(0, 5)], "b": [some_counts(0, 6)]})


@given(some.lists(some.floats(0, 1), min_size=1, max_size=8))
def test_holm_adjusts_as_its_definition_says(p):
    order = sorted(range(len(p)), key=lambda k: p[k])
    for rank, k in enumerate(order):
        smaller = [min(1.0, (len(p) - before) * p[order[before]]) for before in range(rank + 1)]
        assert holm(p)[k] == max(smaller)


def difference(better, worse, value, adjusted):
    return Difference(value, value - 0.01, value + 0.01, better, worse, adjusted, adjusted)


def test_pairs_are_said_in_words_and_drawn_as_groups():
    pairs = [difference("a", "b", 0.02, 0.3), difference("a", "c", 0.09, 0.001), difference("b", "c", 0.07, 0.002)]
    assert sentences(pairs) == [
        "a beats c by 9.0 [8.0, 10.0]; is not distinguishable from b.",
        "b beats c by 7.0 [6.0, 8.0].",
    ]
    assert cliques(["a", "b", "c"], pairs) == [("a", "b")]
    assert points(pairs[0]) == "2.0 [1.0, 3.0]"


def test_groups_overlap_where_only_the_ends_differ():
    pairs = [difference("a", "b", 0.02, 0.3), difference("a", "c", 0.09, 0.001), difference("b", "c", 0.01, 0.8)]
    assert cliques(["a", "b", "c"], pairs) == [("a", "b"), ("b", "c")]
