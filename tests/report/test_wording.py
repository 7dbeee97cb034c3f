"""Differences of networks in words, and the groups that are drawn: networks with few seeds are never said to differ."""

import numpy as np

from dilated_seg.analysis.intervals import NEW_TRAININGS, OTHER_IMAGES, Difference, Interval, find_cliques
from dilated_seg.report.wording import describe_pairs, format_points

UNKNOWN = Interval(np.nan, np.nan, np.nan)


def difference(better, worse, value, adjusted, seeds=3):
    kind = OTHER_IMAGES if seeds == 1 else NEW_TRAININGS
    return Difference(value, value - 0.01, value + 0.01, better, worse, adjusted, adjusted, seeds, kind, UNKNOWN, UNKNOWN)


def test_pairs_are_described_in_words_and_grouped_into_cliques():
    pairs = [difference("a", "b", 0.02, 0.3), difference("a", "c", 0.09, 0.001), difference("b", "c", 0.07, 0.002)]
    assert describe_pairs(pairs) == [
        "a beats c by 9.0 [8.0, 10.0] (trained again, other images); is not distinguishable from b.",
        "b beats c by 7.0 [6.0, 8.0] (trained again, other images).",
    ]
    assert find_cliques(["a", "b", "c"], pairs) == [("a", "b")]
    assert format_points(pairs[0]) == "2.0 [1.0, 3.0]"


def test_pairs_with_one_seed_are_described_as_runs_with_the_number_of_seeds_needed():
    pairs = [difference("a", "b", 0.02, 0.001, seeds=1)]
    assert describe_pairs(pairs) == [
        "In these runs a scores 2.0 [1.0, 3.0] above b (these weights, other images).",
        "Each network was trained once, so these are statements about runs, not about networks: at least 3 seeds of each "
        "network are needed to state that networks differ.",
    ]
    assert find_cliques(["a", "b"], pairs) == [("a", "b")]


def test_groups_overlap_where_only_the_ends_differ():
    pairs = [difference("a", "b", 0.02, 0.3), difference("a", "c", 0.09, 0.001), difference("b", "c", 0.01, 0.8)]
    assert find_cliques(["a", "b", "c"], pairs) == [("a", "b"), ("b", "c")]
