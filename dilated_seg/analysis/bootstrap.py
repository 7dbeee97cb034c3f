"""Paired bootstrap of differences in mean IoU, with both sources of variance: the images and the training.

Each resample draws images with replacement, the same for all networks (Efron and Tibshirani, "An Introduction to the
Bootstrap", 1993, chapters 8 and 13), adds up their counts and computes each network's mean IoU from the sums. The variance
over seeds differs between networks, and few seeds estimate it poorly. So the variances of all networks have a common prior
(the scaled inverse chi-square model of Smyth, "Linear models and empirical Bayes methods", 2004). For networks a and b:

- N: the number of images; n_a: the number of seeds of a; d_a = n_a - 1.
- v_as: the mean IoU of seed s of a on all N images.
- D = mean_s v_as - mean_s v_bs: the estimate of the difference.
- e: the standard error of D over images: the larger of the bootstrap's and the jackknife's (with few images and rare classes,
  the bootstrap's is too small).
- l_a^2: the part of s_a^2 that is due to these N images, since a seed may fit them better or worse than other images; estimated
  by the jackknife; 0 with one seed.
- e0^2 = max(0, e^2 - l_a^2 / n_a - l_b^2 / n_b): e^2 without that part, which s_a^2 and s_b^2 contain already.
- E: the error of D due to the images: the deviation of a resample from D, rescaled to the standard deviation
  e0 t(0.975, N - 1) / 1.96.
- s_a^2: the sample variance of v_a1, ..., v_an; s_a^2 ~ sigma_a^2 chi2(d_a) / d_a.
- sigma_a^2: the expectation of s_a^2; its prior is 1 / sigma_a^2 ~ chi2(d0) / (d0 s0^2).
- s0, d0: scale and degrees of freedom of the prior; p(log s0) = const, p(d0) ~ 1 / d0^2 on ``D0_GRID``. Draws
  are from their posterior on a grid, not from one estimate of each: five or seven networks determine d0 poorly.
- (d0 s0^2 + d_a s_a^2) / chi2(d0 + d_a): the posterior of sigma_a^2 given s0 and d0, which shrinks it towards s0^2. With one
  seed there is no s_a^2: each draw uses the sigma^2 of a random network that has several seeds.

With z ~ N(0, 1), the 95 % intervals are the middle 95 % of

- D + E: the same weights on other images; the only interval with one seed of each network.
- D + E + z sqrt(sigma_a^2 / n_a + sigma_b^2 / n_b): the difference of the training procedures.
- D + E + z sqrt(sigma_a^2 (1 / n_a + 1 / m) + sigma_b^2 (1 / n_b + 1 / m)): prediction for m new trainings of each.

Example, in percentage points: v_a = (60, 62, 64), v_b = (56, 57, 58), e0 = 1, sigma_a = 2, sigma_b = 1. Then D = 5, and the
three distributions have the standard deviations 1, sqrt(1 + 4/3 + 1/3) = 1.6 and, with m = 1,
sqrt(1 + 4 (1/3 + 1) + (1/3 + 1)) = 2.8.

The two-sided p-value is twice the fraction of draws beyond 0, but at least that of Student's t-test over images alone. If two
networks differ on fewer than ``MIN_INFORMATIVE_IMAGES`` images there is no interval: resamples contain no errors that did not
occur. Coverage and
false positives are measured by ``experiments/benchmarks/significance_coverage.py`` and ``replication.py``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import accumulate, combinations

import numpy as np
from scipy import stats

from dilated_seg.analysis.intervals import (
    NEW_TRAININGS,
    OTHER_IMAGES,
    UPPER_QUANTILE,
    Difference,
    Interval,
    Variation,
    adjust_holm,
)
from dilated_seg.analysis.resampling import Seeds, drop_uncounted_images, leave_each_out, mean_iou, resample, stack_runs
from dilated_seg.analysis.seed_variance import draw_variances, estimate_luck

MIN_INFORMATIVE_IMAGES = 10  # images on which two networks differ, or one network errs; with fewer there is no interval
POWER = 0.8  # the probability of detecting the difference that `Bootstrap.find_detectable` returns


@dataclass(frozen=True)
class Draws:
    """The mean IoU of one network, and its resamples.

    Args:
        value: The mean of v_as over seeds.
        resampled: The same on each set of resampled images (R,).
        left_out: The same with each image left out (N,).
        counts: The counts of every seed (n, N, 3, C).
        n: The number of seeds.
        s2: s_a^2; NaN with one seed.
        sigma2: Draws of sigma_a^2 (R,).
        luck: l_a^2.
        z: Standard normal draws (2, R): [0] for the mean over the seeds, [1] for new trainings.
    """

    value: float
    resampled: np.ndarray
    left_out: np.ndarray
    counts: np.ndarray
    n: int
    s2: float
    sigma2: np.ndarray
    luck: float
    z: np.ndarray


class Bootstrap:
    """Intervals of the mean IoU of networks on the same images, and of its differences.

    Args:
        networks: The counts (N, 3, C) of every seed, by network. Comparisons are paired by image but not by seed; for two
            evaluations of the same trainings, `compare_paired` pairs both. Images without a counted pixel are left out.
        resamples: R; 10,000 with 1,449 images and 21 classes take about a second.
        seed: The seed of the resampling.
        minus: Further counts of the same trainings, such as on other pixels. Each training's value is then its mean IoU minus
            that of ``minus``, and `difference` returns a difference of differences.
        others: Networks that only contribute to the prior of the variance over seeds.

    Raises:
        UserError: The networks differ in the number of images or classes.
    """

    def __init__(
        self, networks: Mapping[str, Seeds], resamples: int = 10_000, seed: int = 0,
        minus: Mapping[str, Seeds] | None = None, others: Sequence[Draws] = (),
    ) -> None:  # fmt: skip
        parts = drop_uncounted_images([stack_runs(part) for part in (networks, minus) if part is not None])
        self.size = parts[0].shape[1]  # N
        self.bound = len(parts)  # the largest possible difference
        resampled = reduce(np.subtract, [resample(runs, resamples, np.random.default_rng(seed)) for runs in parts])  # (K, R)
        values = reduce(np.subtract, [mean_iou(runs.sum(1)) for runs in parts])  # v_as of all runs (K,)
        left_out = reduce(np.subtract, [leave_each_out(runs) for runs in parts])  # (K, N)
        counts = np.concatenate(parts, axis=3)
        ends = accumulate(len(seeds) for seeds in networks.values())
        slices = [slice(end - len(seeds), end) for end, seeds in zip(ends, networks.values(), strict=True)]
        freedom = np.array([k.stop - k.start - 1 for k in slices])  # d_a
        s2 = np.array([values[k].var() * (d + 1) / d if d else np.nan for k, d in zip(slices, freedom, strict=True)])
        rng = np.random.default_rng((seed, 1))
        known = np.append(s2, [other.s2 for other in others]), np.append(freedom, [other.n - 1 for other in others])
        sigma2 = draw_variances(*known, resamples, rng)
        self.kind = NEW_TRAININGS if freedom.any() else OTHER_IMAGES
        self.networks: dict[str, Draws] = {}
        for a, (name, k) in enumerate(zip(networks, slices, strict=True)):
            self.networks[name] = Draws(
                float(values[k].mean()), resampled[k].mean(0), left_out[k].mean(0), counts[k], k.stop - k.start,
                float(s2[a]), sigma2[a], estimate_luck(left_out[k]), rng.standard_normal((2, resamples)),
            )  # fmt: skip

    def interval(self, name: str) -> Interval:
        """Return the mean over seeds of a network's mean IoU; this interval is less exact than that of a difference."""
        hits, truth, predicted = np.moveaxis(self.networks[name].counts, 2, 0)
        errs = int(((hits != truth) | (hits != predicted)).any((0, 2)).sum())
        value, low, high, _ = self.estimate({name: 1}, errs)
        return Interval(value, float(np.clip(low, 0, 1)), float(np.clip(high, 0, 1)))

    def difference(self, better: str, worse: str) -> Difference:
        """Return the mean IoU of one network minus that of another; the p-value is not adjusted for other pairs."""
        estimate, p = self._compare(better, worse)
        seeds = min(self.networks[better].n, self.networks[worse].n)
        repeat, new = self.predict(better, worse), self.predict(better, worse, 1)
        return Difference(estimate.value, estimate.low, estimate.high, better, worse, p, p, seeds, self.kind, repeat, new)

    def predict(self, better: str, worse: str, trainings: int | None = None) -> Interval:
        """Return the 95 % prediction interval for the difference between new trainings of each network on other images.

        For new trainings on the same images the interval is too wide, since it includes the error due to the images.

        Args:
            better: The name of one network.
            worse: The name of the other network.
            trainings: m, the number of new trainings of each, whose mean is predicted; by default as many as there are.
        """
        estimate, _ = self._compare(better, worse, {name: trainings or self.networks[name].n for name in (better, worse)})
        return Interval(estimate.value, np.nan, np.nan) if self.kind == OTHER_IMAGES else estimate

    def pairs(self) -> list[Difference]:
        """Return the differences of all pairs, the network with the higher mean first, adjusted by Holm's method."""
        order = sorted(self.networks, key=lambda name: -self.networks[name].value)
        pairs = [self.difference(better, worse) for better, worse in combinations(order, 2)]
        return [replace(pair, adjusted=p) for pair, p in zip(pairs, adjust_holm([pair.p for pair in pairs]), strict=True)]

    def vary(self, name: str) -> Variation:
        """Return the standard deviations of a network's mean IoU over images and over trainings."""
        network = self.networks[name]
        images = np.nan if np.isnan(network.value) else self.estimate_image_error({name: 1})[1]
        if self.kind == OTHER_IMAGES:
            return Variation(network.n, images, np.nan, Interval(np.nan, np.nan, np.nan), np.nan)
        quantiles = np.quantile(network.sigma2, [0.5, 1 - UPPER_QUANTILE, UPPER_QUANTILE])
        middle, low, high = np.sqrt(quantiles).tolist()
        training = middle**2
        total = training + images**2
        share = training / total if total else np.nan
        return Variation(network.n, images, float(np.sqrt(network.s2)), Interval(middle, low, high), share)

    def find_detectable(self, better: str, worse: str, seeds: int) -> float:
        """Return the difference that ``seeds`` seeds of each detect with 80 % power, without Holm's correction, or NaN."""
        if self.kind == OTHER_IMAGES or np.isnan(self.networks[better].value - self.networks[worse].value):
            return np.nan
        e0_2 = self.estimate_image_error({better: 1, worse: -1})[1] ** 2
        terms = [float(np.median(self.networks[name].sigma2)) / seeds for name in (better, worse)]
        # V = e0^2 + (sigma_a^2 + sigma_b^2) / n for n seeds of each
        variance = e0_2 + sum(terms)
        if not variance:
            return 0.0
        # Welch and Satterthwaite: f = V^2 / (e0^4 / (N - 1) + (sigma_a^4 + sigma_b^4) / n^2 / (n - 1))
        freedom = variance**2 / (e0_2**2 / (self.size - 1) + sum(term**2 for term in terms) / (seeds - 1))
        # (t(0.975, f) + t(0.8, f)) sqrt(V)
        return float((stats.t.ppf(UPPER_QUANTILE, freedom) + stats.t.ppf(POWER, freedom)) * np.sqrt(variance))

    def estimate_image_error(self, signs: Mapping[str, int]) -> tuple[np.ndarray, float]:
        """Return E of all resamples (R,), and e0, for the signed sum of networks: {a: 1, b: -1} is their difference."""
        terms = [(sign, self.networks[name]) for name, sign in signs.items()]
        resampled = np.asarray(sum(sign * network.resampled for sign, network in terms))
        left_out = np.asarray(sum(sign * network.left_out for sign, network in terms))
        spread = float(np.nanstd(resampled))
        if not spread:
            return np.where(np.isnan(resampled), np.nan, 0.0), 0.0
        # e^2: the larger one of the bootstrap's variance and the jackknife's, (N - 1) / N sum (v_-i - mean v_-i)^2
        e_2 = max(spread**2, (self.size - 1) * float(np.nanvar(left_out)))
        # e0^2 = max(0, e^2 - l_a^2 / n_a - l_b^2 / n_b)
        e0 = np.sqrt(max(0.0, e_2 - sum(network.luck / network.n for _, network in terms)))
        # The mean IoU of resamples is biased, as they have fewer classes and images; in a difference the bias cancels.
        middle = np.nanmean(resampled) if len(terms) == 1 else sum(sign * network.value for sign, network in terms)
        # E = (resample - D) / spread * e0 t(0.975, N - 1) / 1.96
        wider = stats.t.ppf(UPPER_QUANTILE, self.size - 1) / stats.norm.ppf(UPPER_QUANTILE)
        return wider * e0 / spread * (resampled - middle), float(e0)

    def _compare(self, better: str, worse: str, new: Mapping[str, int] | None = None) -> tuple[Interval, float]:
        """Return the difference of two networks and its p-value; with ``new``, see `estimate`."""
        runs = np.concatenate([self.networks[name].counts for name in (better, worse)])
        differ = (runs != runs[0]).any((0, 2, 3))
        value, low, high, p = self.estimate({better: 1, worse: -1}, int(differ.sum()), new)
        low, high = np.clip([low, high], -self.bound, self.bound).tolist()
        return Interval(value, low, high), p

    def estimate(
        self, signs: Mapping[str, int], informative: int, new: Mapping[str, int] | None = None
    ) -> tuple[float, float, float, float]:
        """Return the signed sum of networks, the ends of its interval and its p-value.

        Args:
            signs: 1 or -1 for each network of the sum.
            informative: The number of informative images: those on which the networks differ, or one errs.
            new: m for each network, to return the prediction interval for the mean of m new trainings instead.
        """
        terms = [(sign, self.networks[name]) for name, sign in signs.items()]
        value = float(sum(sign * network.value for sign, network in terms))  # D
        if informative == 0 and len(terms) > 1:
            return value, value, value, 1.0  # the same predictions
        if informative < MIN_INFORMATIVE_IMAGES or np.isnan(value):
            return value, np.nan, np.nan, 1.0
        e, e0 = self.estimate_image_error(signs)
        # E + z sqrt(sigma_a^2 / n_a + sigma_b^2 / n_b), with independent z for each network
        deviations = e + sum(sign * network.z[0] * np.sqrt(network.sigma2 / network.n) for sign, network in terms)
        for name, m in (new or {}).items():  # + z sqrt(sigma_a^2 / m + sigma_b^2 / m)
            network = self.networks[name]
            deviations = deviations + signs[name] * network.z[1] * np.sqrt(network.sigma2 / m)
        draws = (value + deviations)[~np.isnan(deviations)]
        if len(terms) == 1 and not np.ptp(draws):
            return value, np.nan, np.nan, 1.0  # no variance, so no interval
        low, high = np.quantile(draws, [1 - UPPER_QUANTILE, UPPER_QUANTILE])
        p = 2 * (1 + min((draws <= 0).sum(), (draws >= 0).sum())) / (1 + len(draws))
        if e0:  # at least Student's for the images alone
            p = max(p, 2 * stats.t.sf(abs(value) / e0, self.size - 1))
        return value, float(low), float(high), float(min(1.0, p))
