"""Differences of mean IoU between networks, with both sources of variance: the images and the training.

Networks are compared on the same images, so each resample draws images once for all of them (Efron and Tibshirani, "An
Introduction to the Bootstrap", 1993, chapters 8 and 13), adds up the integers of those that were drawn and takes the mean IoU
of each network from its sums, as the split's own is taken. A network trained with several seeds has a second source of
variance. Its size differs between networks and is estimated from few seeds, so the estimates share a common distribution (the
scaled inverse chi-square model of Smyth, "Linear models and empirical Bayes methods", 2004). Symbols, for networks a and b:

- N: the number of images; n_a: the number of seeds of a; d_a = n_a - 1.
- v_as: the mean IoU of seed s of a on all N images.
- D = mean_s v_as - mean_s v_bs: the estimate of the difference.
- e: the standard error of D over images, the larger one of bootstrap's and jackknife's (resamples of few images with rare
  classes vary too little).
- l_a^2: the part of s_a^2 by which each seed fits these N images better or worse, from the jackknife; 0 with one seed.
- e0^2 = max(0, e^2 - l_a^2 / n_a - l_b^2 / n_b): the same of networks averaged over all trainings, as s_a^2 has the rest.
- E: the error of D from the images: the deviation of a resample from D, scaled from its standard deviation to
  e0 t(0.975, N - 1) / 1.96.
- s_a^2: the sample variance of v_a1, ..., v_an; s_a^2 ~ sigma_a^2 chi2(d_a) / d_a.
- sigma_a^2: its expectation; 1 / sigma_a^2 ~ chi2(d0) / (d0 s0^2) over networks.
- s0, d0: the common spread and how alike the spreads are; p(log s0) = const, p(d0) ~ 1 / d0^2 on ``D0``. Both are averaged over
  their posterior (a grid), never fixed at an estimate: five or seven networks say little about d0.
- sigma_a^2 = (d0 s0^2 + d_a s_a^2) / chi2(d0 + d_a): its posterior given s0 and d0, shrunk towards the common spread. A network
  with one seed has no s_a^2: it varies as one of the networks with several seeds, each equally likely.

With z ~ N(0, 1), the 95 % intervals are the middle 95 % of

- D + E: the same weights on other images. All that can be said with one seed of each network.
- D + E + z sqrt(sigma_a^2 / n_a + sigma_b^2 / n_b): the difference of the training procedures.
- D + E + z sqrt(sigma_a^2 (1 / n_a + 1 / m) + sigma_b^2 (1 / n_b + 1 / m)): what m new trainings of each will show.

A two-sided p-value is twice the share of these draws beyond 0, at least Student's for the images alone. Where networks differ
on fewer than ``LEAST`` images there is no interval: no resample can show errors that did not occur. Coverage and false
positives: ``experiments/benchmarks/significance_coverage.py``, and with fewer studies ``tests/analysis/test_bootstrap.py``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, combinations

import numpy as np
from scipy import special, stats

from dilated_seg.errors import UserError

Counts = np.ndarray  # int64 (N, 3, C): pixels of each image and class that are hits, that are the truth's, that are predicted
Seeds = Sequence[Counts]  # of one network, one array a seed, all of the same images

LEVEL = 0.95
TAIL = (1 + LEVEL) / 2
LEAST = 10  # images that two networks must differ on, or that one must err on, to say how sure that is
CHUNK = 500  # resamples at a time
ENOUGH = 3  # seeds of each network, below which no statement about networks is made
POWER = 0.8  # chance of finding the differences that `Bootstrap.find_detectable` gives

D0 = np.array([0.5, 1, 2, 4, 8, 16])  # from spreads that have little in common to spreads that are nearly equal
LOG_S0 = np.linspace(-8, 8, 129)  # s0^2 relative to the pooled variance; e^8 is 3,000

IMAGES = "these weights, other images"  # what an interval is about
TRAININGS = "trained again, other images"


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval meant to cover the truth in 95 of 100 studies; fractions of 1. NaN: nobody can tell."""

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
        kind: What the interval is about: ``IMAGES`` or ``TRAININGS``.
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
        return self.adjusted < 1 - LEVEL

    @property
    def told_apart(self) -> bool:
        """Whether the networks differ: significant, and with enough seeds of both to speak of networks at all."""
        return self.significant and self.seeds >= ENOUGH


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


@dataclass(frozen=True)
class Draws:
    """One network in all resamples: what is needed to compare it with another.

    Args:
        value: The mean over seeds of the mean IoU.
        images: The same on resampled images (R,).
        without: The same without each image (N,).
        counts: Of every seed (n, N, 3, C).
        number: Of its seeds.
        measured: s_a^2; NaN with one seed.
        sigma: Draws of sigma_a^2 (R,).
        luck: l_a^2.
        normal: Standard normal draws (2, R): for the mean over its seeds, and for new ones.
    """

    value: float
    images: np.ndarray
    without: np.ndarray
    counts: np.ndarray
    number: int
    measured: float
    sigma: np.ndarray
    luck: float
    normal: np.ndarray


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
    """Networks on the same images: the intervals of their mean IoU and of its differences.

    Args:
        networks: For each name, the counts (N, 3, C) of every seed. Seeds of different networks are not paired, images are.
            Images in which no pixel was counted are left out.
        resamples: R; 10,000 of 1,449 images and 21 classes take about a second.
        seed: Of the resampling, which is a pure function of it.
        minus: Other counts of the same trainings. A training's value is then the difference of the two mean IoUs, so that
            `difference` gives a difference of differences.

    Raises:
        UserError: The networks were not counted on the same number of images and classes.
    """

    def __init__(
        self, networks: Mapping[str, Seeds], resamples: int = 10_000, seed: int = 0, minus: Mapping[str, Seeds] | None = None
    ) -> None:
        parts = [stack_runs(part) for part in (networks, minus) if part is not None]
        counted = np.logical_or.reduce([runs.any((0, 2, 3)) for runs in parts])
        parts = [runs[:, counted] if counted.any() else runs for runs in parts]
        self.size = parts[0].shape[1]
        drawn, values, without = (
            np.subtract(*found) if len(found) == 2 else found[0]
            for found in (
                [resampled(runs, resamples, np.random.default_rng(seed)) for runs in parts],
                [mean_iou(runs.sum(1)) for runs in parts],
                [np.stack([mean_iou(run.sum(0) - run) for run in runs]) for runs in parts],  # (K, N)
            )
        )
        rng = np.random.default_rng((seed, 1))
        counts = np.concatenate(parts, axis=3)
        ends = accumulate(len(seeds) for seeds in networks.values())
        slices = [slice(end - len(seeds), end) for end, seeds in zip(ends, networks.values(), strict=True)]
        freedom = np.array([k.stop - k.start - 1 for k in slices])
        variances = np.array([values[k].var() * (d + 1) / d if d else np.nan for k, d in zip(slices, freedom, strict=True)])
        sigma = draw_spreads(variances, freedom, resamples, rng)
        self.most = len(parts)  # what a difference can be
        self.kind = TRAININGS if freedom.any() else IMAGES
        self.networks: dict[str, Draws] = {}
        for name, k, variance, own in zip(networks, slices, variances, sigma, strict=True):
            self.networks[name] = Draws(
                float(values[k].mean()), drawn[k].mean(0), without[k].mean(0), counts[k], k.stop - k.start,
                float(variance), own, estimate_luck(without[k]), rng.standard_normal((2, resamples)),
            )  # fmt: skip

    def interval(self, name: str) -> Interval:
        """The mean IoU of a network, mean over its seeds.

        With few images and rare classes this interval of an absolute value is less sure than that of a difference.
        """
        hits, truth, predicted = np.moveaxis(self.networks[name].counts, 2, 0)
        errs = int(((hits != truth) | (hits != predicted)).any((0, 2)).sum())
        value, low, high, _ = self._estimate({name: 1}, errs)
        return Interval(value, float(np.clip(low, 0, 1)), float(np.clip(high, 0, 1)))

    def difference(self, better: str, worse: str) -> Difference:
        """The mean IoU of one network minus that of another, compared for itself: the p-value is not adjusted."""
        value, low, high, p = self._compare(better, worse)
        low, high = np.clip([low, high], -self.most, self.most).tolist()
        seeds = min(self.networks[better].number, self.networks[worse].number)
        repeat, new = self.predict(better, worse), self.predict(better, worse, 1)
        return Difference(value, low, high, better, worse, p, p, seeds, self.kind, repeat, new)

    def predict(self, better: str, worse: str, trainings: int | None = None) -> Interval:
        """The 95 % prediction interval for the difference that new trainings of each will show, on other images.

        It also bounds what they show on these images, where the error of the images is not made anew.

        Args:
            better: A network's name.
            worse: Another's.
            trainings: How many new ones of each, of which the mean is taken; None takes as many as there are.
        """
        fresh = {name: trainings or self.networks[name].number for name in (better, worse)}
        value, low, high, _ = self._compare(better, worse, fresh)
        if self.kind == IMAGES:
            return Interval(value, np.nan, np.nan)
        low, high = np.clip([low, high], -self.most, self.most).tolist()
        return Interval(value, low, high)

    def pairs(self) -> list[Difference]:
        """All pairs, the network with the higher mean first in each, adjusted by Holm's method over all of them."""
        order = sorted(self.networks, key=lambda name: -self.networks[name].value)
        found = [self.difference(better, worse) for better, worse in combinations(order, 2)]
        return [replace(one, adjusted=p) for one, p in zip(found, holm([one.p for one in found]), strict=True)]

    def vary(self, name: str) -> Variation:
        """How much of a network's variance comes from the images and how much from training."""
        one = self.networks[name]
        images = np.nan if np.isnan(one.value) else self._image_error({name: 1})[1]
        if self.kind == IMAGES:
            return Variation(one.number, images, np.nan, Interval(np.nan, np.nan, np.nan), np.nan)
        middle, low, high = np.sqrt(np.quantile(one.sigma, [0.5, 1 - TAIL, TAIL])).tolist()
        training = middle**2
        total = training + images**2
        share = training / total if total else np.nan
        return Variation(one.number, images, float(np.sqrt(one.measured)), Interval(middle, low, high), share)

    def find_detectable(self, better: str, worse: str, seeds: int) -> float:
        """The difference that this many seeds of each would find in 80 % of studies, at the measured spreads; NaN if unknown.

        (t(0.975, f) + t(0.8, f)) sqrt(V), where V = e0^2 + (sigma_a^2 + sigma_b^2) / n for n seeds of each, and f are Welch
        and Satterthwaite's degrees of freedom; for the pair alone, without Holm's correction.
        """
        if self.kind == IMAGES or np.isnan(self.networks[better].value - self.networks[worse].value):
            return np.nan
        error = self._image_error({better: 1, worse: -1})[1] ** 2
        terms = [float(np.median(self.networks[name].sigma)) / seeds for name in (better, worse)]
        variance = error + sum(terms)
        if not variance:
            return 0.0
        freedom = variance**2 / (error**2 / (self.size - 1) + sum(term**2 for term in terms) / (seeds - 1))
        return float((stats.t.ppf(TAIL, freedom) + stats.t.ppf(POWER, freedom)) * np.sqrt(variance))

    def _compare(self, better: str, worse: str, fresh: Mapping[str, int] | None = None) -> tuple[float, float, float, float]:
        """The difference of two networks, as `_estimate` gives it."""
        runs = np.concatenate([self.networks[name].counts for name in (better, worse)])
        differ = (runs != runs[0]).any((0, 2, 3))
        return self._estimate({better: 1, worse: -1}, int(differ.sum()), fresh)

    def _image_error(self, signs: Mapping[str, int]) -> tuple[np.ndarray, float]:
        """E of all resamples (R,), and e0."""
        terms = [(sign, self.networks[name]) for name, sign in signs.items()]
        images, without = (np.asarray(sum(sign * getattr(one, part) for sign, one in terms)) for part in ("images", "without"))
        spread = float(np.nanstd(images))
        if not spread:
            return np.where(np.isnan(images), np.nan, 0.0), 0.0
        error = max(spread**2, (self.size - 1) * float(np.nanvar(without)))
        error = np.sqrt(max(0.0, error - sum(one.luck / one.number for _, one in terms)))
        # The mean IoU of resamples lies too low, as they have fewer classes and images; in a difference that cancels.
        middle = np.nanmean(images) if len(terms) == 1 else sum(sign * one.value for sign, one in terms)
        wider = stats.t.ppf(TAIL, self.size - 1) / stats.norm.ppf(TAIL)
        return wider * error / spread * (images - middle), float(error)

    def _estimate(
        self, signs: Mapping[str, int], informative: int, fresh: Mapping[str, int] | None = None
    ) -> tuple[float, float, float, float]:
        """Value, ends of its interval and p-value; ``informative`` images have anything to say about it.

        With ``fresh`` the interval is the prediction for the mean over so many new trainings of each network.
        """
        terms = [(sign, self.networks[name]) for name, sign in signs.items()]
        value = float(sum(sign * one.value for sign, one in terms))
        if informative == 0 and len(terms) > 1:
            return value, value, value, 1.0  # the same predictions
        if informative < LEAST or np.isnan(value):
            return value, np.nan, np.nan, 1.0
        images, error = self._image_error(signs)
        deviations = images + sum(sign * one.normal[0] * np.sqrt(one.sigma / one.number) for sign, one in terms)
        for name, number in (fresh or {}).items():
            one = self.networks[name]
            deviations = deviations + signs[name] * one.normal[1] * np.sqrt(one.sigma / number)
        found = (value + deviations)[~np.isnan(deviations)]
        if len(terms) == 1 and not np.ptp(found):
            return value, np.nan, np.nan, 1.0  # nothing varies, so no resampling can tell
        low, high = np.quantile(found, [1 - TAIL, TAIL])
        p = 2 * (1 + min((found <= 0).sum(), (found >= 0).sum())) / (1 + len(found))
        if error:
            p = max(p, 2 * stats.t.sf(abs(value) / error, self.size - 1))
        return value, float(low), float(high), float(min(1.0, p))


def stack_runs(networks: Mapping[str, Seeds]) -> np.ndarray:
    """All runs of all networks (K, N, 3, C).

    Raises:
        UserError: They were not counted on the same number of images and classes.
    """
    if len(shapes := {run.shape for seeds in networks.values() for run in seeds}) != 1 or not shapes.pop()[0]:
        raise UserError("the networks were not counted on the same images and classes, or on none: compare them apart")
    return np.stack([run for seeds in networks.values() for run in seeds])


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


def estimate_luck(without: np.ndarray) -> float:
    """l^2 of a network: the variance between its seeds (rows) that comes from these images (columns, each left out)."""
    seeds, size = without.shape
    own = (without - without.mean(0))[:, ~np.isnan(without).any(0)]
    if seeds < 2 or not own.size:
        return 0.0
    return float(((own - own.mean(1, keepdims=True)) ** 2).sum()) * (size - 1) / size / (seeds - 1)


def draw_spreads(variances: np.ndarray, freedom: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """Draw sigma_a^2 of each network from its posterior (networks, number).

    Args:
        variances: s_a^2; ignored without degrees of freedom.
        freedom: d_a.
        number: Of draws.
        rng: Of the draws.
    """
    several = np.flatnonzero(freedom)
    if not len(several) or not variances[several].any():
        return np.zeros((len(freedom), number))
    measured, d = variances[several], freedom[several]
    scale = (measured * d).sum() / d.sum() * np.exp(LOG_S0)
    posterior = find_posterior(measured, d, scale)
    cell = rng.choice(posterior.size, number, p=posterior.ravel())
    d0, s0 = D0[cell // len(scale)], scale[cell % len(scale)]
    drawn = (d0 * s0 + (d * measured)[:, None]) / rng.chisquare(d0 + d[:, None])
    pick = rng.integers(0, len(several), (len(freedom), number))  # of whom a network with one seed takes the spread
    pick[several] = np.arange(len(several))[:, None]
    return np.asarray(drawn[pick, np.arange(number)])


def find_posterior(variances: np.ndarray, freedom: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The posterior of d0 (rows, ``D0``) and s0^2 (columns, ``scale``), given s_a^2 with d_a: s_a^2 / s0^2 ~ F(d_a, d0)."""
    ratio, d, d0 = variances[:, None, None] / scale, freedom[:, None, None], D0[:, None]
    log = special.gammaln((d + d0) / 2) - special.gammaln(d0 / 2) - d / 2 * np.log(d0 * scale)
    log = (log - (d + d0) / 2 * np.log1p(d * ratio / d0)).sum(0) - 2 * np.log(D0)[:, None]
    posterior = np.exp(log - log.max())
    return np.asarray(posterior / posterior.sum())


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted so that 5 % bounds the chance of any false discovery among them (Holm, 1979)."""
    adjusted, highest = np.ones(len(p)), 0.0
    for rank, k in enumerate(np.argsort(p, kind="stable")):
        highest = max(highest, min(1.0, (len(p) - rank) * p[k]))
        adjusted[k] = highest
    return adjusted.tolist()


def cliques(order: Sequence[str], pairs: Sequence[Difference]) -> list[tuple[str, ...]]:
    """Largest groups of neighbours in ``order`` of which no two are told apart; single networks are none."""
    different = {frozenset((pair.better, pair.worse)) for pair in pairs if pair.told_apart}
    groups: list[tuple[str, ...]] = []
    for start in range(len(order)):
        end = start + 1
        while end < len(order) and not any(frozenset((order[end], name)) in different for name in order[start:end]):
            end += 1
        if end - start > 1 and not any(set(order[start:end]) <= set(group) for group in groups):
            groups.append(tuple(order[start:end]))
    return groups


def sentences(pairs: Sequence[Difference]) -> list[str]:
    """What the pairs say in words, a sentence a network, from the highest mean down, and what limits it.

    Networks with fewer than ``ENOUGH`` seeds are not said to differ: their runs are.
    """
    said = []
    for name in dict.fromkeys(pair.better for pair in pairs):
        mine = [pair for pair in pairs if pair.better == name]
        beaten = [f"{pair.worse} by {points(pair)}" for pair in mine if pair.told_apart]
        even = [pair.worse for pair in mine if pair.seeds >= ENOUGH and not pair.significant]
        parts = [f"{name} beats {listed(beaten)} ({TRAININGS})"] if beaten else []
        parts += [f"{'' if beaten else f'{name} '}is not distinguishable from {listed(even)}"] if even else []
        said += [f"{'; '.join(parts)}."] if parts else []
        if runs := [f"{points(pair)} above {pair.worse}" for pair in mine if pair.seeds < ENOUGH]:
            kind = next(pair.kind for pair in mine if pair.seeds < ENOUGH)
            said.append(f"In these runs {name} scores {listed(runs)} ({kind}).")
    return [*said, *([limit] if (limit := explain_seeds(pairs)) else [])]


def explain_seeds(pairs: Sequence[Difference]) -> str:
    """Why pairs with few seeds do not tell networks apart, and what would; empty if all have enough."""
    few = [pair for pair in pairs if pair.seeds < ENOUGH]
    if not few:
        return ""
    need = f"at least {ENOUGH} seeds of each network are needed to say which one is ahead"
    if few[0].kind == IMAGES:
        return f"Each network was trained once, so these are statements about runs, not about networks: {need}."
    return (
        "Where a network has one or two seeds, its spread over trainings is hardly known, so the interval is wide (two values "
        f"fix a spread only to within a factor of 30) and speaks of these runs: {need}."
    )


def points(interval: Interval) -> str:
    """An interval in percentage points, as 1.5 [0.9, 2.2]; the value alone if nobody can tell how sure it is."""
    if np.isnan(interval.low):
        return "-" if np.isnan(interval.value) else f"{100 * interval.value:.1f}"
    return f"{100 * interval.value:.1f} {ends(interval)}"


def ends(interval: Interval) -> str:
    """The ends of an interval in percentage points, as [0.9, 2.2]; a dash if nobody can tell."""
    return "-" if np.isnan(interval.low) else f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
