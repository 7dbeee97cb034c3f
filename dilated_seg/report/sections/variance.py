"""The report's section on variance over images and seeds, and on the differences that more seeds would detect."""

import math

from dilated_seg.analysis.intervals import MIN_SEEDS, NEW_TRAININGS, Variation
from dilated_seg.report.blocks import Fold, ReportTable, Section
from dilated_seg.report.comparison import Comparison
from dilated_seg.report.wording import format_ends

PLANNED_SEEDS = (3, 5, 10)  # seeds per network for which the report lists the detectable difference


def build_section(comparison: Comparison) -> Section | None:
    """Build the section of variances and detectable differences; it is only a sentence if no network has two seeds."""
    if not comparison.pairs:
        return None
    if comparison.kind != NEW_TRAININGS:
        return Section("Variance over images and seeds", [
            "Each network was trained once, so the variance over seeds, and the differences that more seeds would detect, are "
            f"unknown: train at least {MIN_SEEDS} seeds of each."
        ])  # fmt: skip
    return Section("Variance over images and seeds", [
        tabulate_variances(comparison),
        "Standard deviations in points of mean IoU: of one training over sets of as many images, and over seeds. The measured "
        "one is that of the network's seeds; since few seeds measure it poorly, the estimated one uses those of all networks "
        f"(median and 95 % interval of the posterior). {explain_widths(comparison)}",
        Fold("Differences that more seeds would detect", [
            tabulate_detectable(comparison),
            "The difference that 80 % of studies with this number of seeds of each network, on as many images and with these "
            "variances, would detect (two-sided, 5 %, not adjusted for the number of pairs).",
        ]),
    ])  # fmt: skip


def tabulate_variances(comparison: Comparison) -> ReportTable:
    """Tabulate the standard deviations of each network over images and over seeds, and the share of variance over seeds."""
    header = ["network", "seeds", "over images", "over seeds, measured", "over seeds, estimated", "share of seeds, %"]
    full = [
        "network", "seeds", "over images", "over seeds measured", "over seeds estimated", "low", "high", "share of seeds",
    ]  # fmt: skip
    rows, numbers = [], []
    for name in comparison.groups:
        variation = comparison.all_pixels.vary(name)
        rows.append([name, *format_variation(variation)])
        training = variation.training
        values = (variation.images, variation.measured, training.value, training.low, training.high, variation.share)
        numbers.append([name, variation.seeds, *(f"{100 * value:.3f}" for value in values)])
    return ReportTable("variance", header, rows, csv=(full, numbers))


def format_variation(variation: Variation) -> list[str]:
    """Format the cells of a network's variances, in points of mean IoU and in percent."""
    measured = f"{100 * variation.measured:.1f}" if variation.seeds > 1 else "-"
    estimated = f"{100 * variation.training.value:.1f} {format_ends(variation.training)}"
    share = "-" if math.isnan(variation.share) else f"{100 * variation.share:.0f}"
    return [str(variation.seeds), f"{100 * variation.images:.1f}", measured, estimated, share]


def explain_widths(comparison: Comparison) -> str:
    """Explain why intervals are wide with two seeds, and what to do about it; empty with more."""
    few = max(len(group) for group in comparison.groups.values()) < MIN_SEEDS
    return (
        f"Two seeds hardly determine a variance, which is why the intervals are wide: train {MIN_SEEDS} or more." if few else ""
    )


def tabulate_detectable(comparison: Comparison) -> ReportTable:
    """Tabulate each pair: the difference measured, and those that more seeds would tell apart."""
    rows = [
        [
            f"{pair.better} - {pair.worse}",
            f"{100 * pair.value:.1f}",
            *(f"{100 * comparison.all_pixels.find_detectable(pair.better, pair.worse, seeds):.1f}" for seeds in PLANNED_SEEDS),
        ]
        for pair in comparison.pairs
    ]
    return ReportTable("power", ["pair", "measured", *(f"with {seeds} seeds" for seeds in PLANNED_SEEDS)], rows)
