"""Variance over seeds: estimates from few seeds, shrunk towards the variance that the networks have in common.

The model is that of `dilated_seg.analysis.bootstrap`, with its symbols: s_a^2 ~ sigma_a^2 chi2(d_a) / d_a and
1 / sigma_a^2 ~ chi2(d0) / (d0 s0^2). A network's measured variance s_a^2 is averaged with s0^2 by their degrees of freedom:

    three seeds with s_a = 1 point (d_a = 2), and s0 = 2 points with d0 = 4
    (d0 s0^2 + d_a s_a^2) / (d0 + d_a) = (16 + 2) / 6 = 3, a standard deviation of 1.7 points instead of 1
"""

import numpy as np
from scipy import special

D0_GRID = np.array([0.5, 1, 2, 4, 8, 16])  # from variances with little in common to nearly equal ones
LOG_S0_GRID = np.linspace(-8, 8, 129)  # log of s0^2 relative to the pooled variance; e^8 is 3,000


def estimate_luck(left_out: np.ndarray) -> float:
    """Return l_a^2: the part of a network's variance over seeds that is due to these images.

    Args:
        left_out: The mean IoU of each seed without each image (n, N).
    """
    seeds, size = left_out.shape
    deviations = (left_out - left_out.mean(0))[:, ~np.isnan(left_out).any(0)]
    if seeds < 2 or not deviations.size:
        return 0.0
    # l^2 = sum_s jackknife variance of (v_s - mean_s v_s) / (n - 1)
    return float(((deviations - deviations.mean(1, keepdims=True)) ** 2).sum()) * (size - 1) / size / (seeds - 1)


def draw_variances(s2: np.ndarray, d: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """Draw sigma_a^2 of each network from its posterior (networks, number).

    Args:
        s2: s_a^2 of each network; ignored where d_a is 0.
        d: d_a of each network, the degrees of freedom.
        number: The number of draws.
        rng: The random generator.
    """
    several = np.flatnonzero(d)
    if not len(several) or not s2[several].any():
        return np.zeros((len(d), number))
    known, d_known = s2[several], d[several]
    s0_grid = (known * d_known).sum() / d_known.sum() * np.exp(LOG_S0_GRID)
    posterior = compute_posterior(known, d_known, s0_grid)
    cell = rng.choice(posterior.size, number, p=posterior.ravel())
    d0, s0 = D0_GRID[cell // len(s0_grid)], s0_grid[cell % len(s0_grid)]
    # sigma_a^2 = (d0 s0^2 + d_a s_a^2) / chi2(d0 + d_a)
    sigma2 = (d0 * s0 + (d_known * known)[:, None]) / rng.chisquare(d0 + d_known[:, None])
    source = rng.integers(0, len(several), (len(d), number))  # a network with one seed has the variance of a random other one
    source[several] = np.arange(len(several))[:, None]
    return np.asarray(sigma2[source, np.arange(number)])


def compute_posterior(s2: np.ndarray, d: np.ndarray, s0_grid: np.ndarray) -> np.ndarray:
    """Return the posterior of d0 (rows, ``D0_GRID``) and s0^2 (columns) given all s_a^2 with d_a degrees of freedom."""
    ratio, d, d0 = s2[:, None, None] / s0_grid, d[:, None, None], D0_GRID[:, None]
    # s_a^2 / s0^2 ~ F(d_a, d0): the logarithm of its density, without what depends on neither d0 nor s0
    log = special.gammaln((d + d0) / 2) - special.gammaln(d0 / 2) - d / 2 * np.log(d0 * s0_grid)
    # summed over networks, plus the prior p(d0) ~ 1 / d0^2; p(log s0) is constant
    log = (log - (d + d0) / 2 * np.log1p(d * ratio / d0)).sum(0) - 2 * np.log(D0_GRID)[:, None]
    posterior = np.exp(log - log.max())
    return np.asarray(posterior / posterior.sum())
