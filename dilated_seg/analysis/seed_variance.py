"""How much networks vary over seeds: estimates from few seeds, shrunk towards the spread that the networks share.

The model is that of `dilated_seg.analysis.bootstrap`, with its symbols: s_a^2 ~ sigma_a^2 chi2(d_a) / d_a and
1 / sigma_a^2 ~ chi2(d0) / (d0 s0^2).
"""

import numpy as np
from scipy import special

D0_GRID = np.array([0.5, 1, 2, 4, 8, 16])  # from spreads that have little in common to spreads that are nearly equal
LOG_S0_GRID = np.linspace(-8, 8, 129)  # log of s0^2 relative to the pooled variance; e^8 is 3,000


def estimate_luck(left_out: np.ndarray) -> float:
    """Return l_a^2 of a network: the variance between seeds (rows) that comes from these images (columns, each left out)."""
    seeds, size = left_out.shape
    own = (left_out - left_out.mean(0))[:, ~np.isnan(left_out).any(0)]
    if seeds < 2 or not own.size:
        return 0.0
    # l^2 = sum_s jackknife variance of (v_s - mean_s v_s) / (n - 1)
    return float(((own - own.mean(1, keepdims=True)) ** 2).sum()) * (size - 1) / size / (seeds - 1)


def draw_variances(s2: np.ndarray, d: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """Draw sigma_a^2 of each network from its posterior (networks, number).

    Args:
        s2: s_a^2; ignored without degrees of freedom.
        d: d_a, the degrees of freedom.
        number: Of draws.
        rng: Of the draws.
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
    source = rng.integers(0, len(several), (len(d), number))  # a network with one seed varies as one of the others
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
