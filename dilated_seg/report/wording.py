"""Intervals and differences in words and in percentage points, as reports and terminals print them."""

from collections.abc import Sequence

import numpy as np

from dilated_seg.analysis.intervals import MIN_SEEDS, NEW_TRAININGS, OTHER_IMAGES, Difference, Interval


def describe_pairs(pairs: Sequence[Difference]) -> list[str]:
    """Describe the differences of pairs, one sentence for each network, the highest mean first, and what limits them.

    With fewer than ``MIN_SEEDS`` seeds the sentences are about the runs, not about the networks.
    """
    sentences = []
    for name in dict.fromkeys(pair.better for pair in pairs):
        ahead = [pair for pair in pairs if pair.better == name]
        beaten = [f"{pair.worse} by {format_points(pair)}" for pair in ahead if pair.told_apart]
        even = [pair.worse for pair in ahead if pair.seeds >= MIN_SEEDS and not pair.significant]
        parts = [f"{name} beats {join_names(beaten)} ({NEW_TRAININGS})"] if beaten else []
        parts += [f"{'' if beaten else f'{name} '}is not distinguishable from {join_names(even)}"] if even else []
        sentences += [f"{'; '.join(parts)}."] if parts else []
        if runs := [f"{format_points(pair)} above {pair.worse}" for pair in ahead if pair.seeds < MIN_SEEDS]:
            kind = next(pair.kind for pair in ahead if pair.seeds < MIN_SEEDS)
            sentences.append(f"In these runs {name} scores {join_names(runs)} ({kind}).")
    return [*sentences, *([limit] if (limit := explain_seeds(pairs)) else [])]


def explain_seeds(pairs: Sequence[Difference]) -> str:
    """Explain why too few seeds allow no statement about networks; empty if all pairs have enough."""
    few = [pair for pair in pairs if pair.seeds < MIN_SEEDS]
    if not few:
        return ""
    need = f"at least {MIN_SEEDS} seeds of each network are needed to state that networks differ"
    if few[0].kind == OTHER_IMAGES:
        return f"Each network was trained once, so these are statements about runs, not about networks: {need}."
    return (
        "Where a network has one or two seeds, its variance over trainings is hardly known and the interval is wide (two "
        f"values determine a standard deviation only up to a factor of 30) and is about these runs: {need}."
    )


def format_points(interval: Interval) -> str:
    """Format an interval in percentage points, as 1.5 [0.9, 2.2]; the value alone if its interval is not known."""
    if np.isnan(interval.low):
        return "-" if np.isnan(interval.value) else f"{100 * interval.value:.1f}"
    return f"{100 * interval.value:.1f} {format_ends(interval)}"


def format_ends(interval: Interval) -> str:
    """Format the ends of an interval in percentage points, as [0.9, 2.2]; a dash if they are not known."""
    return "-" if np.isnan(interval.low) else f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def join_names(names: Sequence[str]) -> str:
    """Join names in a sentence: a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
