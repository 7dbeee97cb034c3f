"""Is one network better than another, or were the images kind to it?  Paired bootstrap over images, seeds as a second level.

Networks are compared on the same images, so each resample draws images once for all of them (Efron and Tibshirani, "An
Introduction to the Bootstrap", 1993, chapters 8 and 13), adds up the integers of those that were drawn and takes the mean IoU
of each network from its sums, as the split's own is taken. Three things make the intervals hold what they promise on the few
images that there often are; ``tests/test_significance.py`` simulates studies to see that they do:

- A resample of few images, some with large rare objects, varies too little. Its deviations are enlarged by how much the
  jackknife's standard error exceeds the bootstrap's.
- Means of a handful of seeds are not normal. The interval is widened as Student's t is wider than the normal distribution, for
  the degrees of freedom of images and seeds together (Welch and Satterthwaite).
- That seeds differ is partly that each has its own luck with these very images, which resampling images shows already. This
  part, read from the jackknife, is taken off what seeds contribute, from three seeds on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy import stats

from dilated_seg import UserError

Counts = np.ndarray  # int64 (N, 3, C): pixels of each image and class that are hits, that are the truth's, that are predicted
Seeds = Sequence[Counts]  # of one network, one array a seed, all of the same images

LEVEL = 0.95
CHUNK = 500  # resamples at a time


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval that covers the truth in 95 of 100 studies; fractions of 1."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Interval):
    """By how much ``better`` exceeds ``worse``: its mean IoU minus the other's, with the two-sided p-value.

    ``adjusted`` is the p-value after Holm's correction over all pairs that were compared.
    """

    better: str
    worse: str
    p: float
    adjusted: float

    @property
    def significant(self) -> bool:
        """Whether the two differ, at a family-wise error of 5 %."""
        return self.adjusted < 1 - LEVEL


@dataclass(frozen=True)
class Draws:
    """One network, seen by all resamples: what it takes to compare it with another."""

    value: float  # mean over seeds of the mean IoU
    images: np.ndarray  # (R,) the same on resampled images
    seeds: np.ndarray  # (R,) what resampling seeds adds to it
    seed_variance: float  # of the mean over seeds
    seed_freedom: int
    without: np.ndarray  # (N,) the value without each image


def counts(matrices: np.ndarray) -> Counts:
    """Hits, truth and prediction of each image and class (N, 3, C), of confusion matrices (N, C, C)."""
    return np.stack([np.diagonal(matrices, axis1=1, axis2=2), matrices.sum(2), matrices.sum(1)], axis=1)


def mean_iou(totals: np.ndarray) -> np.ndarray:
    """Of sums (..., 3, C) of hits, truth and prediction; classes absent from both are left out, without any it is NaN."""
    hits, union = totals[..., 0, :], totals[..., 1, :] + totals[..., 2, :] - totals[..., 0, :]
    present = union > 0
    found = np.divide(hits, union, out=np.zeros(union.shape), where=present)
    number = present.sum(-1)
    return np.divide(found.sum(-1), number, out=np.full(number.shape, np.nan), where=number > 0)


class Bootstrap:
    """Networks on the same images, and how sure their mean IoU and its differences are.

    Args:
        networks: Of each name, the counts (N, 3, C) of every seed. Seeds of different networks are not paired, images are.
        resamples: How many; 10,000 of 1,449 images and 21 classes take about a second.
        seed: Of the resampling, which is a pure function of it.

    Raises:
        UserError: The networks were not counted on the same number of images and classes.
    """

    def __init__(self, networks: Mapping[str, Seeds], resamples: int = 10_000, seed: int = 0) -> None:
        runs = [run for seeds in networks.values() for run in seeds]
        if len({run.shape for run in runs}) != 1:
            raise UserError("the networks were not counted on the same number of images and classes: compare them apart")
        self.size = len(runs[0])
        rng = np.random.default_rng(seed)
        drawn = resampled(np.stack(runs), resamples, rng)
        self.networks: dict[str, Draws] = {}
        for name, seeds in networks.items():
            mine, drawn = drawn[: len(seeds)], drawn[len(seeds) :]
            self.networks[name] = draws(seeds, mine, rng)

    def interval(self, name: str) -> Interval:
        """The mean IoU of a network, mean over its seeds.

        With few images and rare classes this interval of an absolute value is less sure than that of a difference.
        """
        nothing = Draws(0.0, none := np.zeros_like(self.networks[name].images), none, 0.0, 1, np.zeros(self.size))
        value, low, high, _ = self._between(self.networks[name], nothing)
        return Interval(value, float(np.clip(low, 0, 1)), float(np.clip(high, 0, 1)))

    def difference(self, better: str, worse: str) -> Difference:
        """The mean IoU of one network minus that of another, compared for itself: nothing is adjusted."""
        value, low, high, p = self._between(self.networks[better], self.networks[worse])
        return Difference(value, float(np.clip(low, -1, 1)), float(np.clip(high, -1, 1)), better, worse, p, p)

    def pairs(self) -> list[Difference]:
        """All pairs, the better network first in each, adjusted by Holm's method over all of them."""
        order = sorted(self.networks, key=lambda name: -self.networks[name].value)
        found = [self.difference(better, worse) for better, worse in combinations(order, 2)]
        return [replace(one, adjusted=p) for one, p in zip(found, holm([one.p for one in found]), strict=True)]

    def _between(self, one: Draws, other: Draws) -> tuple[float, float, float, float]:
        """Difference, ends of its interval, p-value; with a single image nothing is known but the difference."""
        value = float(one.value - other.value)
        if self.size < 2 or np.isnan(value):
            return value, np.nan, np.nan, 1.0
        images = one.images - other.images
        spread = float(np.nanstd(images))
        left_out = one.without - other.without
        jackknife = float(np.sqrt((self.size - 1) * np.nanvar(left_out)))
        enlarged = max(1.0, jackknife / spread) if spread else 1.0
        parts = [((enlarged * spread) ** 2, self.size - 1)]
        parts += [(network.seed_variance, network.seed_freedom) for network in (one, other)]
        total, weighted = sum(v for v, _ in parts), sum(v * v / n for v, n in parts)
        tail = (1 + LEVEL) / 2
        wider = stats.t.ppf(tail, total**2 / weighted) / stats.norm.ppf(tail) if weighted else 1.0
        deviations = enlarged * (images - value) + one.seeds - other.seeds
        found = (value + wider * deviations)[~np.isnan(images)]
        low, high = np.quantile(found, [1 - tail, tail])
        p = min(1.0, 2 * (1 + min((found <= 0).sum(), (found >= 0).sum())) / (1 + len(found)))
        return value, float(low), float(high), float(p)


def resampled(runs: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """The mean IoU of runs (K, N, 3, C) on images drawn with replacement, the same for all of them: (K, resamples)."""
    number, size = runs.shape[:2]
    columns = runs.transpose(1, 0, 2, 3).reshape(size, -1).astype(np.float64)  # whole numbers below 2**53: sums are exact
    found = []
    for start in range(0, resamples, CHUNK):
        many = min(CHUNK, resamples - start)
        drawn = rng.integers(0, size, (many, size), dtype=np.int32) + size * np.arange(many, dtype=np.int32)[:, None]
        times = np.bincount(drawn.ravel(), minlength=many * size).reshape(many, size).astype(np.float64)
        found.append(mean_iou((times @ columns).reshape(many, number, *runs.shape[2:])))
    return np.concatenate(found).T


def draws(seeds: Seeds, images: np.ndarray, rng: np.random.Generator) -> Draws:
    """A network from its seeds, and the mean IoU of each on resampled images (S, R)."""
    values = np.array([float(mean_iou(run.sum(0))) for run in seeds])
    without = np.stack([mean_iou(run.sum(0) - run) for run in seeds])  # (S, N)
    number, size = without.shape
    if number == 1:
        return Draws(float(values[0]), images[0], np.zeros(images.shape[1]), 0.0, 1, without[0])
    variance = float(values.var(ddof=1))
    own = variance
    if number > 2 and size > 1:  # of two, what is their own luck cannot be told from what is not
        luck = without - without.mean(0) - (without.mean(1, keepdims=True) - without.mean())
        own = max(0.0, variance - float((luck**2).sum()) / (number - 1) * (size - 1) / size)
    share = rng.multinomial(number, [1 / number] * number, images.shape[1]).T / number - 1 / number
    enlarged = np.sqrt(number / (number - 1) * (own / variance if variance else 0.0))
    apart = enlarged * (share * images).sum(0)
    return Draws(float(values.mean()), images.mean(0), apart, own / number, number - 1, without.mean(0))


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted so that 5 % bounds the chance of any false discovery among them (Holm, 1979)."""
    adjusted, highest = np.ones(len(p)), 0.0
    for rank, k in enumerate(np.argsort(p, kind="stable")):
        highest = max(highest, min(1.0, (len(p) - rank) * p[k]))
        adjusted[k] = highest
    return adjusted.tolist()


def cliques(order: Sequence[str], pairs: Sequence[Difference]) -> list[tuple[str, ...]]:
    """Largest groups of neighbours in ``order`` of which no two differ significantly; single networks are none."""
    different = {frozenset((pair.better, pair.worse)) for pair in pairs if pair.significant}
    groups: list[tuple[str, ...]] = []
    for start in range(len(order)):
        end = start + 1
        while end < len(order) and not any(frozenset((order[end], name)) in different for name in order[start:end]):
            end += 1
        if end - start > 1 and not any(set(order[start:end]) <= set(group) for group in groups):
            groups.append(tuple(order[start:end]))
    return groups


def sentences(pairs: Sequence[Difference]) -> list[str]:
    """What the pairs say in words, a sentence a network, best first: whom it beats by how much, whom not."""
    said = []
    for name in dict.fromkeys(pair.better for pair in pairs):
        mine = [pair for pair in pairs if pair.better == name]
        beaten = [f"{pair.worse} by {points(pair)}" for pair in mine if pair.significant]
        even = [pair.worse for pair in mine if not pair.significant]
        parts = [f"beats {listed(beaten)}"] if beaten else []
        parts += [f"is not distinguishable from {listed(even)}"] if even else []
        said.append(f"{name} {'; '.join(parts)}.")
    return said


def points(interval: Interval) -> str:
    """An interval in percentage points, as 1.5 [0.9, 2.2]."""
    value, low, high = (f"{100 * number:.1f}" for number in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
