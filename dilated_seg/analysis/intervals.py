"""What a study of several networks gives: estimates with their intervals, differences of pairs, and who is told apart."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
UPPER_QUANTILE = (1 + CONFIDENCE) / 2  # where a two-sided interval ends
MIN_SEEDS = 3  # of each network, below which no statement about networks is made

OTHER_IMAGES = "these weights, other images"  # what an interval is about
NEW_TRAININGS = "trained again, other images"


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval meant to cover the truth in 95 of 100 studies; fractions of 1. NaN: not known."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Interval):
    """The mean IoU of ``better``, which is the higher one in `Bootstrap.pairs`, minus that of ``worse``.

    Args:
        better: A network's name.
        worse: Another's.
        p: The two-sided p-value.
        adjusted: The same after Holm's correction over all pairs that were compared.
        seeds: Of the network that has fewer.
        kind: What the interval is about: ``OTHER_IMAGES`` or ``NEW_TRAININGS``.
        repeat: The 95 % prediction interval for the difference in as many new trainings of each on other images; NaN without
            any spread over seeds.
        new: The same in one new training of each.
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
        """Whether the interval's kind of repetition would give a difference too, at a family-wise error of 5 %."""
        return self.adjusted < 1 - CONFIDENCE

    @property
    def told_apart(self) -> bool:
        """Whether the networks differ: significant, and with enough seeds of both to speak of networks at all."""
        return self.significant and self.seeds >= MIN_SEEDS


@dataclass(frozen=True)
class Variation:
    """How much a network's mean IoU varies, as standard deviations.

    Args:
        seeds: How many trainings.
        images: Over sets of as many images, for one training.
        measured: Over its own seeds; NaN with one.
        training: The estimate of the same: the posterior's median, with its 95 % interval; NaN without any spread.
        share: Of the variance of one training on new images, how much training contributes; NaN likewise.
    """

    seeds: int
    images: float
    measured: float
    training: Interval
    share: float


def adjust_holm(p: Sequence[float]) -> list[float]:
    """Adjust p-values so that 5 % bounds the chance of any false discovery among them (Holm, 1979)."""
    adjusted, highest = np.ones(len(p)), 0.0
    for rank, k in enumerate(np.argsort(p, kind="stable")):
        highest = max(highest, min(1.0, (len(p) - rank) * p[k]))
        adjusted[k] = highest
    return adjusted.tolist()


def find_cliques(order: Sequence[str], pairs: Sequence[Difference]) -> list[tuple[str, ...]]:
    """Return the largest groups of neighbors in ``order`` of which no two are told apart; a single network is no group."""
    different = {frozenset((pair.better, pair.worse)) for pair in pairs if pair.told_apart}
    groups: list[tuple[str, ...]] = []
    for start in range(len(order)):
        end = start + 1
        while end < len(order) and not any(frozenset((order[end], name)) in different for name in order[start:end]):
            end += 1
        if end - start > 1 and not any(set(order[start:end]) <= set(group) for group in groups):
            groups.append(tuple(order[start:end]))
    return groups
