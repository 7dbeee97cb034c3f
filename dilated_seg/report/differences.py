"""The report's section on differences: every pair of networks, and which are told apart."""

from dilated_seg.analysis.intervals import MIN_SEEDS, NEW_TRAININGS, Difference
from dilated_seg.report.blocks import ReportTable, Section
from dilated_seg.report.comparison import Comparison
from dilated_seg.report.wording import describe_pairs, format_ends, format_points

CSV_HEADER = (
    "better", "worse", "seeds", "difference", "low", "high", "interval", "repeat low", "repeat high", "new low", "new high",
    "p", "p adjusted", "told apart",
)  # fmt: skip
PAIRS_EXPLAINED = (
    "Each interval and p is of its pair alone (two-sided); p, Holm is adjusted for all pairs. So an interval may exclude 0 "
    "beside a no. No means not shown to differ, not equal."
)
TRAININGS_EXPLAINED = (
    " The first interval is meant to cover the mean difference over all trainings; the next two, what will be measured "
    "when each network is trained again as often as here, and once: 95 % prediction intervals."
)


def build_section(comparison: Comparison) -> Section | None:
    """Build the section of all pairs of networks, the one with the higher mean first; None if there is one network."""
    pairs = comparison.pairs
    if not pairs:
        return None
    header = [
        "pair", "seeds", f"difference in mean IoU ({comparison.kind})", "as many new trainings", "one new training of each",
        "p", "p, Holm", "told apart",
    ]  # fmt: skip
    table = ReportTable(
        "pairs", header, [list_cells(pair) for pair in pairs], csv=(CSV_HEADER, list(map(list_csv_cells, pairs)))
    )
    title = "Differences between networks" if comparison.enough else "Differences between these runs"
    explained = PAIRS_EXPLAINED + (TRAININGS_EXPLAINED if comparison.kind == NEW_TRAININGS else "")
    return Section(title, [*describe_pairs(pairs), table, explained])


def list_cells(pair: Difference) -> list[str]:
    """List the cells of a pair as they are read."""
    intervals = [format_points(pair), format_ends(pair.repeat), format_ends(pair.new)]
    return [
        f"{pair.better} - {pair.worse}", str(pair.seeds), *intervals, format_p(pair.p), format_p(pair.adjusted), say_apart(pair)
    ]  # fmt: skip


def list_csv_cells(pair: Difference) -> list[object]:
    """List the cells of a pair under ``CSV_HEADER``."""
    difference = [f"{100 * value:.3f}" for value in (pair.value, pair.low, pair.high)]
    new = [f"{100 * value:.3f}" for value in (pair.repeat.low, pair.repeat.high, pair.new.low, pair.new.high)]
    return [pair.better, pair.worse, pair.seeds, *difference, pair.kind, *new, pair.p, pair.adjusted, say_apart(pair)]


def say_apart(pair: Difference) -> str:
    """Say whether two networks are told apart, or that they have too few seeds for it."""
    return f"{pair.seeds} of {MIN_SEEDS} seeds" if pair.seeds < MIN_SEEDS else "yes" if pair.told_apart else "no"


def format_p(p: float) -> str:
    """Format a p-value."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
