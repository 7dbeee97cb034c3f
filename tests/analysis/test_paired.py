"""Two evaluations of the same trainings are compared training by training."""

import numpy as np
import pytest

from dilated_seg.analysis.bootstrap import Bootstrap
from dilated_seg.analysis.intervals import NEW_TRAININGS, OTHER_IMAGES
from dilated_seg.analysis.paired import compare_paired
from dilated_seg.analysis.resampling import mean_iou

IMAGES, CLASSES, SEEDS = 60, 4, 3


def simulate_trainings(rng, gain):
    """Counts of trainings of unequal quality, and of the same with a gain that hardly depends on the training."""
    pixels = np.round(np.exp(rng.normal(6, 0.5, (IMAGES, CLASSES))))
    first, second = [], []
    for quality in rng.normal(1.5, 0.4, SEEDS):
        noise = rng.normal(0, 0.3, pixels.shape)
        for counts, shift in ((first, gain), (second, 0.0)):
            hits = np.round(pixels / (1 + np.exp(-(quality + shift + noise + rng.normal(0, 0.05, pixels.shape)))))
            wrong = np.round((pixels - hits).sum(1, keepdims=True) / CLASSES)
            counts.append(np.stack([hits, pixels, hits + wrong], axis=1).astype(np.int64))
    return first, second


def test_a_gain_in_every_training_is_significant_only_if_trainings_are_paired():
    first, second = simulate_trainings(np.random.default_rng(0), gain=0.15)
    paired = compare_paired("crf", "plain", first, second, 1000)
    apart = Bootstrap({"crf": first, "plain": second}, 1000).difference("crf", "plain")
    expected = np.mean([mean_iou(a.sum(0)) - mean_iou(b.sum(0)) for a, b in zip(first, second, strict=True)])
    assert paired.value == pytest.approx(expected) and paired.value == pytest.approx(apart.value)
    assert paired.kind == NEW_TRAININGS and paired.seeds == SEEDS
    assert 0 < paired.low < paired.high and paired.p < 0.05
    assert apart.low < 0 and apart.p > 0.05
    assert paired.new.low < paired.repeat.low < paired.low


def test_the_variance_of_other_networks_narrows_the_interval_of_three_trainings():
    first, second = simulate_trainings(np.random.default_rng(2), gain=0.15)
    steady = {name: [first[0], first[0] // 2 * 2, first[0] // 4 * 4] for name in "abcd"}  # seeds that differ by a few pixels
    others = list(Bootstrap(steady, 1000).networks.values())
    alone, helped = (compare_paired("crf", "plain", first, second, 1000, guide) for guide in ((), others))
    assert helped.value == alone.value and helped.high - helped.low < alone.high - alone.low and helped.p < alone.p


def test_evaluations_without_a_difference_are_seldom_called_different():
    called = 0
    for study in range(60):
        first, second = simulate_trainings(np.random.default_rng(study), gain=0.0)
        called += compare_paired("crf", "plain", first, second, 300).p < 0.05
    assert called <= 7  # 3 are expected; more than 7 of 60 have a chance of 1.5 % at 5 %


def test_one_training_gives_an_interval_of_other_images_and_equal_predictions_none():
    first, second = simulate_trainings(np.random.default_rng(1), gain=0.3)
    found = compare_paired("crf", "plain", first[:1], second[:1], 500)
    assert found.kind == OTHER_IMAGES and found.low < found.value < found.high and np.isnan(found.new.low)
    same = compare_paired("a", "b", first, first, 500)
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
