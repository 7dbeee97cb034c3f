"""The report's section on pairwise differences: every pair of networks, and which are told apart."""

from dilated_seg.analysis.intervals import MIN_SEEDS, NEW_TRAININGS, Difference
from dilated_seg.report.blocks import TOLD_APART, Fold, ReportTable, Section
from dilated_seg.report.comparison import Comparison
from dilated_seg.report.wording import describe_pairs, explain_seeds, format_ends, format_points

MATRIX_WITH_INTERVALS = 8  # networks, above which the cells of the matrix have no intervals
CSV_HEADER = (
    "better", "worse", "seeds", "difference", "low", "high", "interval", "repeat low", "repeat high", "new low", "new high",
    "p", "p adjusted", "told apart",
)  # fmt: skip
MATRIX_EXPLAINED = "Mean IoU of the row minus that of the column, in points ({kind}). {shading}"
PAIRS_EXPLAINED = (
    "Intervals and p are two-sided and not adjusted for the number of pairs; p, Holm is. So an interval may exclude 0 although "
    '"told apart" is no. No means that no difference is shown, not that the networks are equal.'
)
TRAININGS_EXPLAINED = (
    " The first interval is for the mean difference over all trainings. The next two are 95 % prediction intervals for the "
    "difference that is measured when each network is trained again, with as many seeds or with one."
)


def build_section(comparison: Comparison) -> Section | None:
    """Build the section of all pairs of networks, the one with the higher mean first; None if there is one network."""
    pairs = comparison.pairs
    if not pairs:
        return None
    shading = "Shaded: told apart." if any(pair.told_apart for pair in pairs) else "No two networks are told apart."
    explained = PAIRS_EXPLAINED + (TRAININGS_EXPLAINED if comparison.kind == NEW_TRAININGS else "")
    limit = explain_seeds(pairs)
    return Section("Pairwise differences", [
        *([limit] if limit else []),
        build_matrix(comparison),
        MATRIX_EXPLAINED.format(kind=comparison.kind, shading=shading),
        Fold("In words", [sentence for sentence in describe_pairs(pairs) if sentence != limit]),
        Fold(f"All {len(pairs)} pairs with p-values and prediction intervals", [tabulate_pairs(comparison), explained]),
    ])  # fmt: skip


def build_matrix(comparison: Comparison) -> ReportTable:
    """Build the matrix of differences: rows minus columns, the highest mean first, so that all are positive."""
    names = list(dict.fromkeys([comparison.pairs[0].better, *(pair.worse for pair in comparison.pairs)]))
    by_names = {(pair.better, pair.worse): pair for pair in comparison.pairs}
    full = len(names) <= MATRIX_WITH_INTERVALS
    rows, shades = [], []
    for better in names[:-1]:
        pairs = [by_names.get((better, worse)) for worse in names[1:]]
        rows.append([better, *("" if pair is None else format_cell(pair, full) for pair in pairs)])
        shades.append([TOLD_APART if pair is not None and pair.told_apart else "" for pair in pairs])
    return ReportTable("matrix", ["", *names[1:]], rows, shades, matrix=True)


def format_cell(pair: Difference, full: bool) -> str:
    """Format a difference in points, with its interval if there is space."""
    return format_points(pair) if full else f"{100 * pair.value:.1f}"


def tabulate_pairs(comparison: Comparison) -> ReportTable:
    """Tabulate all pairs with their intervals and p-values."""
    header = [
        "pair", "seeds", f"difference in mean IoU ({comparison.kind})", "as many new trainings", "one new training of each",
        "p", "p, Holm", "told apart",
    ]  # fmt: skip
    csv = (CSV_HEADER, list(map(list_csv_cells, comparison.pairs)))
    return ReportTable("pairs", header, list(map(list_cells, comparison.pairs)), csv=csv)


def list_cells(pair: Difference) -> list[str]:
    """List the cells of a pair as they are read."""
    intervals = [format_points(pair), format_ends(pair.repeat), format_ends(pair.new)]
    cells = [format_p(pair.p), format_p(pair.adjusted), describe_apart(pair)]
    return [f"{pair.better} - {pair.worse}", str(pair.seeds), *intervals, *cells]


def list_csv_cells(pair: Difference) -> list[object]:
    """List the cells of a pair under ``CSV_HEADER``."""
    difference = [f"{100 * value:.3f}" for value in (pair.value, pair.low, pair.high)]
    new = [f"{100 * value:.3f}" for value in (pair.repeat.low, pair.repeat.high, pair.new.low, pair.new.high)]
    cells = [pair.p, pair.adjusted, describe_apart(pair)]
    return [pair.better, pair.worse, pair.seeds, *difference, pair.kind, *new, *cells]


def describe_apart(pair: Difference) -> str:
    """Return whether two networks are told apart, or that they have too few seeds for it."""
    return f"{pair.seeds} of {MIN_SEEDS} seeds" if pair.seeds < MIN_SEEDS else "yes" if pair.told_apart else "no"


def format_p(p: float) -> str:
    """Format a p-value."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
