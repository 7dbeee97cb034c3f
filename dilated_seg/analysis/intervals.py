"""Results of a comparison of networks: estimates with intervals, differences of pairs, Holm's correction, groups."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
UPPER_QUANTILE = (1 + CONFIDENCE) / 2  # the upper end of a two-sided interval: 0.975
MIN_SEEDS = 3  # of each network, for a statement about networks and not only about runs

OTHER_IMAGES = "these weights, other images"  # the kinds of repetition that an interval covers
NEW_TRAININGS = "trained again, other images"


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % confidence or prediction interval, as fractions of 1; NaN where unknown."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Interval):
    """The mean IoU of the network ``better`` minus that of ``worse``; in `Bootstrap.pairs`, ``better`` has the higher one.

    Args:
        better: The name of one network.
        worse: The name of the other network.
        p: The two-sided p-value.
        adjusted: The p-value after Holm's correction over all compared pairs.
        seeds: The number of seeds of the network that has fewer.
        kind: The repetition that the interval covers: ``OTHER_IMAGES`` or ``NEW_TRAININGS``.
        repeat: The 95 % prediction interval for the difference between as many new trainings of each on other images; NaN if
            no network has several seeds.
        new: The 95 % prediction interval for the difference between one new training of each.
    """

    better: str
    worse: str
    p: float
    adjusted: float
    seeds: int
    kind: str
    repeat: Interval
    new: Interval

    @property
    def significant(self) -> bool:
        """Whether the difference is significant, for the interval's kind of repetition, at a family-wise error of 5 %."""
        return self.adjusted < 1 - CONFIDENCE

    @property
    def told_apart(self) -> bool:
        """Whether the networks differ: the difference is significant, and both have at least ``MIN_SEEDS`` seeds."""
        return self.significant and self.seeds >= MIN_SEEDS


@dataclass(frozen=True)
class Variation:
    """Standard deviations of a network's mean IoU over images and over trainings.

    Args:
        seeds: The number of trainings.
        images: The standard deviation over sets of as many images, for one training.
        measured: The sample standard deviation over the seeds; NaN with one seed.
        training: The estimated standard deviation over seeds: the posterior's median with its 95 % interval; NaN if no network
            has several seeds.
        share: The fraction of the variance of one training on new images that is due to training; NaN likewise.
    """

    seeds: int
    images: float
    measured: float
    training: Interval
    share: float


def adjust_holm(p: Sequence[float]) -> list[float]:
    """Return p-values adjusted for multiple comparisons, which control the family-wise error (Holm, 1979).

    Of m sorted values, the k-th is max_{j <= k} min(1, (m - j + 1) p_j): (0.01, 0.04, 0.03) gives (0.03, 0.06, 0.06).
    """
    adjusted, highest = np.ones(len(p)), 0.0
    for rank, k in enumerate(np.argsort(p, kind="stable")):
        highest = max(highest, min(1.0, (len(p) - rank) * p[k]))
        adjusted[k] = highest
    return adjusted.tolist()


def find_cliques(order: Sequence[str], pairs: Sequence[Difference]) -> list[tuple[str, ...]]:
    """Return the maximal groups of neighbors in ``order``, of two or more, of which no two are told apart.

    If of a, b, c only a and c are told apart, the groups are (a, b) and (b, c).
    """
    different = {frozenset((pair.better, pair.worse)) for pair in pairs if pair.told_apart}
    groups: list[tuple[str, ...]] = []
    for start in range(len(order)):
        end = start + 1
        while end < len(order) and not any(frozenset((order[end], name)) in different for name in order[start:end]):
            end += 1
        if end - start > 1 and not any(set(order[start:end]) <= set(group) for group in groups):
            groups.append(tuple(order[start:end]))
    return groups
