"""Is one network better than another, or were the images kind to it?  Paired bootstrap over images, seeds as a second level.

Networks are compared on the same images, so each resample draws images once for all of them (Efron and Tibshirani, "An
Introduction to the Bootstrap", 1993, chapters 8 and 13), adds up the integers of those that were drawn and takes the mean IoU
of each network from its sums, as the split's own is taken. What it takes to hold what 95 % promise on the few images and seeds
that there often are; ``tests/test_significance.py`` simulates studies to see that it does:

- A resample of few images, some with large rare objects, varies too little. Its deviations are enlarged by how much the
  jackknife's standard error exceeds the bootstrap's.
- A handful of seeds says little about their spread. All networks are taken to vary alike over seeds, so their residuals are
  pooled, and a network of one seed has the spread of the others.
- That seeds differ is partly that each has its own luck with these very images, which resampling images shows already. This
  part, read from the jackknife, is taken off what seeds contribute.
- Means of few numbers are not normal. Intervals and p-values are at least as wide as Student's t is, for the degrees of freedom
  of images and seeds together (Welch and Satterthwaite).
- Where networks differ on a few images only, no resampling can tell what others would show: then there is no interval.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, combinations

import numpy as np
from scipy import stats

from dilated_seg import UserError

Counts = np.ndarray  # int64 (N, 3, C): pixels of each image and class that are hits, that are the truth's, that are predicted
Seeds = Sequence[Counts]  # of one network, one array a seed, all of the same images

LEVEL = 0.95
LEAST = 10  # images that two networks must differ on, or that one must err on, to say how sure that is
CHUNK = 500  # resamples at a time


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval meant to cover the truth in 95 of 100 studies; fractions of 1. NaN: nobody can tell."""

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
class Spread:
    """Of seeds: residuals to draw from, their variance without and with the luck of these images, degrees of freedom."""

    residuals: np.ndarray
    own: float
    variance: float
    freedom: int


@dataclass(frozen=True)
class Draws:
    """One network, seen by all resamples: what it takes to compare it with another."""

    value: float  # mean over seeds of the mean IoU
    images: np.ndarray  # (R,) the same on resampled images
    seeds: np.ndarray  # (R,) what other seeds would add to it
    number: int  # of its seeds
    without: np.ndarray  # (N,) the value without each image
    counts: np.ndarray  # (N, 3, C) mean over seeds


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
            Images in which nobody counted a pixel are left out.
        resamples: How many; 10,000 of 1,449 images and 21 classes take about a second.
        seed: Of the resampling, which is a pure function of it.

    Raises:
        UserError: The networks were not counted on the same number of images and classes.
    """

    def __init__(self, networks: Mapping[str, Seeds], resamples: int = 10_000, seed: int = 0) -> None:
        if len(shapes := {run.shape for seeds in networks.values() for run in seeds}) != 1 or not shapes.pop()[0]:
            raise UserError("the networks were not counted on the same images and classes, or on none: compare them apart")
        runs = np.stack([run for seeds in networks.values() for run in seeds])
        counted = runs.any((0, 2, 3))
        runs = runs[:, counted] if counted.any() else runs
        self.size = runs.shape[1]
        rng = np.random.default_rng(seed)
        drawn = resampled(runs, resamples, rng)
        values = mean_iou(runs.sum(1))
        without = np.stack([mean_iou(run.sum(0) - run) for run in runs])  # (K, N)
        ends = accumulate(len(seeds) for seeds in networks.values())
        own = [slice(end - len(seeds), end) for end, seeds in zip(ends, networks.values(), strict=True)]
        self.seeds = seed_spread([values[k] for k in own], [without[k] for k in own])
        self.networks: dict[str, Draws] = {}
        for name, k in zip(networks, own, strict=True):
            number = k.stop - k.start
            pool = self.seeds.residuals
            apart = rng.choice(pool, (number, resamples)).mean(0) if len(pool) else np.zeros(resamples)
            mean = float(values[k].mean())
            self.networks[name] = Draws(mean, drawn[k].mean(0), apart, number, without[k].mean(0), runs[k].mean(0))

    def interval(self, name: str) -> Interval:
        """The mean IoU of a network, mean over its seeds.

        With few images and rare classes this interval of an absolute value is less sure than that of a difference.
        """
        hits, truth, predicted = self.networks[name].counts.transpose(1, 0, 2)
        errs = int(((hits != truth) | (hits != predicted)).any(1).sum())
        value, low, high, _ = self._contrast({name: 1}, errs)
        return Interval(value, float(np.clip(low, 0, 1)), float(np.clip(high, 0, 1)))

    def difference(self, better: str, worse: str) -> Difference:
        """The mean IoU of one network minus that of another, compared for itself: nothing is adjusted."""
        differ = self.networks[better].counts != self.networks[worse].counts
        value, low, high, p = self._contrast({better: 1, worse: -1}, int(differ.any((1, 2)).sum()))
        return Difference(value, float(np.clip(low, -1, 1)), float(np.clip(high, -1, 1)), better, worse, p, p)

    def pairs(self) -> list[Difference]:
        """All pairs, the better network first in each, adjusted by Holm's method over all of them."""
        order = sorted(self.networks, key=lambda name: -self.networks[name].value)
        found = [self.difference(better, worse) for better, worse in combinations(order, 2)]
        return [replace(one, adjusted=p) for one, p in zip(found, holm([one.p for one in found]), strict=True)]

    def contrast(self, signs: Mapping[str, int]) -> Interval:
        """A sum of mean IoUs with these signs, such as a difference of two differences."""
        differ = sum(sign * self.networks[name].counts for name, sign in signs.items())
        return Interval(*self._contrast(signs, int(np.asarray(differ).any((1, 2)).sum()))[:3])

    def _contrast(self, signs: Mapping[str, int], informative: int) -> tuple[float, float, float, float]:
        """Value, ends of its interval and p-value; ``informative`` images speak for it at all."""
        terms = [(sign, self.networks[name]) for name, sign in signs.items()]
        value = float(sum(sign * one.value for sign, one in terms))
        if informative == 0 and len(terms) > 1:
            return value, value, value, 1.0  # the same predictions
        if informative < LEAST or np.isnan(value):
            return value, np.nan, np.nan, 1.0
        images, seeds, without = (
            sum(sign * getattr(one, part) for sign, one in terms) for part in ("images", "seeds", "without")
        )
        spread = float(np.nanstd(images))
        if len(terms) == 1 and not spread and not self.seeds.own:
            return value, np.nan, np.nan, 1.0  # nothing varies, so no resampling can tell
        jackknife = float(np.sqrt((self.size - 1) * np.nanvar(without)))
        enlarged = max(1.0, jackknife / spread) if spread else 1.0
        among = sum(1 / one.number for _, one in terms)
        total = (enlarged * spread) ** 2 + self.seeds.own * among
        sure = (enlarged * spread) ** 4 / (self.size - 1) + (self.seeds.variance * among) ** 2 / max(1, self.seeds.freedom)
        least = min(self.size - 1, self.seeds.freedom or self.size - 1)
        freedom, tail = max(least, total**2 / sure) if sure else np.inf, (1 + LEVEL) / 2
        wider = stats.t.ppf(tail, freedom) / stats.norm.ppf(tail)
        # The mean IoU of resamples lies too low, as they have fewer classes and images; in a difference that cancels.
        middle = np.nanmean(images) if len(terms) == 1 else value
        deviations = enlarged * (images - middle) + seeds
        found = (value + wider * deviations)[~np.isnan(images)]
        low, high = np.quantile(found, [1 - tail, tail])
        p = 2 * (1 + min((found <= 0).sum(), (found >= 0).sum())) / (1 + len(found))
        if total:
            p = max(p, 2 * stats.t.sf(abs(value) / np.sqrt(total), freedom))
        return value, float(low), float(high), float(min(1.0, p))


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


def seed_spread(values: Sequence[np.ndarray], without: Sequence[np.ndarray]) -> Spread:
    """How far a seed's mean IoU lies from its network's mean, of all networks together.

    Args:
        values: The mean IoU of each seed, for each network.
        without: The same without each image (seeds, N), for each network.
    """
    several = [k for k, own in enumerate(values) if len(own) > 1]
    freedom = sum(len(values[k]) - 1 for k in several)
    if not freedom:
        return Spread(np.zeros(0), 0.0, 0.0, 0)
    residuals = np.concatenate([
        (values[k] - values[k].mean()) * np.sqrt(len(values[k]) / (len(values[k]) - 1)) for k in several
    ])  # fmt: skip
    variance = sum(float(((values[k] - values[k].mean()) ** 2).sum()) for k in several) / freedom
    size, luck = without[0].shape[1], 0.0
    if freedom > 1 and size > 1:  # of one difference, what is luck cannot be told from what is not
        for k in several:
            own = without[k] - without[k].mean(0)
            luck += float(((own - own.mean(1, keepdims=True)) ** 2).sum()) * (size - 1) / size / freedom
    kept = max(0.0, variance - luck)
    return Spread(residuals * np.sqrt(kept / variance if variance else 0.0), kept, variance, freedom)


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
    """An interval in percentage points, as 1.5 [0.9, 2.2]; the value alone if nobody can tell how sure it is."""
    if np.isnan(interval.low):
        return "-" if np.isnan(interval.value) else f"{100 * interval.value:.1f}"
    value, low, high = (f"{100 * number:.1f}" for number in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
