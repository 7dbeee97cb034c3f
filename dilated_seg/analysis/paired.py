"""Paired comparison of two evaluations of the same trainings, such as with and without a CRF."""

from collections.abc import Sequence

import numpy as np

from dilated_seg.analysis.bootstrap import Bootstrap, Draws
from dilated_seg.analysis.intervals import OTHER_IMAGES, Difference, Interval
from dilated_seg.analysis.resampling import Seeds


def compare_paired(
    better: str, worse: str, first: Seeds, second: Seeds, resamples: int = 10_000, others: Sequence[Draws] = ()
) -> Difference:
    """Return the mean IoU of the first evaluation minus that of the second, paired by training and by image.

    Each training s gives one difference d_s = v_as - v_bs, so that the variance over seeds that both evaluations share
    cancels. The model is that of `bootstrap` for a network with the values d_1, ..., d_n: with sd(v_as) = 2 points and
    d = (1.4, 1.5, 1.6) the measured standard deviation is 0.1 points; for unpaired networks it would be 2.8. It is shrunk
    towards that of the other networks.

    Args:
        better: The name of the first evaluation.
        worse: The name of the second evaluation.
        first: Counts (N, 3, C) of each training in the first evaluation.
        second: Counts of the same trainings, in the same order, in the second evaluation.
        resamples: R, the number of bootstrap resamples.
        others: Other networks, towards whose variance over seeds that of the differences is shrunk.
    """
    n, informative = len(first), int(np.any(np.stack(first) != np.stack(second), axis=(0, 2, 3)).sum())
    if not informative:  # the same predictions
        equal = Interval(0.0, 0.0, 0.0)
        return Difference(0.0, 0.0, 0.0, better, worse, 1.0, 1.0, n, OTHER_IMAGES, equal, equal)
    bootstrap = Bootstrap({better: first}, resamples, minus={better: second}, others=others)
    value, low, high, p = bootstrap.estimate({better: 1}, informative)
    repeat = new = Interval(value, np.nan, np.nan)
    if bootstrap.kind != OTHER_IMAGES:
        repeat, new = (Interval(*bootstrap.estimate({better: 1}, informative, {better: m})[:3]) for m in (n, 1))
    return Difference(value, low, high, better, worse, p, p, n, bootstrap.kind, repeat, new)
