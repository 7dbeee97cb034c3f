"""The report's section on claims: each claim of the ablation, measured, with its verdict."""

from collections.abc import Sequence

import numpy as np

from dilated_seg.analysis.intervals import MIN_SEEDS
from dilated_seg.errors import UserError
from dilated_seg.report.blocks import Block, Fold, ReportTable, Section
from dilated_seg.report.claims import Claim
from dilated_seg.report.comparison import Comparison, Verdict
from dilated_seg.report.wording import format_ends, format_points, join_names

HEADER = (
    "claim", "networks", "measure", "seeds", "difference ({kind})", "one new training of each", "elsewhere ({kind})",
    "verdict",
)  # fmt: skip
CSV_HEADER = (
    "claim", "better", "worse", "measure", "seeds", "difference", "low", "high", "interval", "new low", "new high", "p",
    "elsewhere", "verdict",
)  # fmt: skip


def build_section(comparison: Comparison, claims: Sequence[Claim]) -> Section | None:
    """Build the section of an ablation's claims; None if it has none."""
    if not claims:
        return None
    measured: list[tuple[Claim, Verdict]] = []
    sentences = []
    for claim in claims:
        try:
            verdict = measure_claim(comparison, claim)
        except UserError as error:
            sentences.append(f"**{claim.says}: not measured.** {str(error)[0].upper()}{str(error)[1:]}.")
            continue
        measured.append((claim, verdict))
        sentences.append(f"**{claim.says}: {judge_claim(verdict)}.** {describe_verdict(claim, verdict)}")
    header = [column.format(kind=comparison.kind) for column in HEADER]
    csv = (CSV_HEADER, [list_csv_cells(claim, verdict) for claim, verdict in measured])
    table = ReportTable("claims", header, [list_cells(claim, verdict) for claim, verdict in measured], csv=csv)
    explained: list[Block] = [Fold("The measurements as a table", [table]), explain_verdicts(comparison)] if measured else []
    return Section("Claims", [*sentences, *explained])


def measure_claim(comparison: Comparison, claim: Claim) -> Verdict:
    """Measure a claim.

    Raises:
        UserError: The comparison lacks one of the networks, or the classes or counts that the claim names.
    """
    if missing := [name for name in (claim.better, claim.worse) if name not in comparison.groups]:
        raise UserError(f"{join_names(missing)} {'is' if len(missing) == 1 else 'are'} not in this comparison")
    return comparison.verdict(claim)


def list_cells(claim: Claim, verdict: Verdict) -> list[str]:
    """List the cells of a claim under ``HEADER``."""
    here, elsewhere = verdict.here, format_points(verdict.elsewhere) if verdict.elsewhere else "-"
    pair = f"{claim.better} - {claim.worse}"
    numbers = [str(here.seeds), format_points(here), format_ends(here.new), elsewhere]
    return [claim.says, pair, claim.measure, *numbers, judge_claim(verdict)]


def list_csv_cells(claim: Claim, verdict: Verdict) -> list[str]:
    """List the cells of a claim under ``CSV_HEADER``."""
    here, elsewhere = verdict.here, format_points(verdict.elsewhere) if verdict.elsewhere else "-"
    difference = [f"{100 * value:.2f}" for value in (here.value, here.low, here.high)]
    new = [f"{100 * value:.2f}" for value in (here.new.low, here.new.high)]
    words = [claim.says, claim.better, claim.worse, claim.measure, str(here.seeds)]
    return [*words, *difference, here.kind, *new, f"{here.p:.4f}", elsewhere, judge_claim(verdict)]


def judge_claim(verdict: Verdict) -> str:
    """Judge whether a claim is supported, and whether by more than elsewhere; of runs only if there are few seeds."""
    here, more = verdict.here, verdict.more
    if np.isnan(here.low):
        return "not measured"
    if here.seeds < MIN_SEEDS:
        return "observed in these runs" if here.low > 0 else "not observed in these runs"
    if here.low > 0:
        return "holds, not only here" if more is not None and not np.isnan(more.low) and more.low <= 0 else "holds"
    return "does not hold" if here.high < 0 else "is open"


def describe_verdict(claim: Claim, verdict: Verdict) -> str:
    """Describe a claim's measurement in a sentence."""
    here, elsewhere, more = verdict.here, verdict.elsewhere, verdict.more
    sentence = f"{claim.better} minus {claim.worse}: {format_points(here)} points of {claim.measure}"
    if np.isnan(here.low):
        return f"{sentence}; they differ on too few images to tell."
    sentence = f"{sentence} ({here.kind})"
    if here.seeds < MIN_SEEDS:
        rest = f"; elsewhere the difference is {format_points(elsewhere)}" if elsewhere else ""
        return f"{sentence}{rest}; at least {MIN_SEEDS} seeds of each are needed for a statement about the networks."
    if not elsewhere or not more or np.isnan(more.low) or np.isnan(elsewhere.low):
        return f"{sentence}."
    other = format_points(elsewhere)
    if here.low <= 0:
        behind = f", so {claim.better} is the worse one" if here.high < 0 else ""
        return f"{sentence}{behind}; elsewhere the difference is {other}."
    if more.low > 0:
        return f"{sentence}; more than elsewhere, where it is {other}."
    less = "less than" if more.high < 0 else "not distinguishable from"
    return f"{sentence}; {less} the difference elsewhere, {other}: the gain is not specific to what the claim names."


def explain_verdicts(comparison: Comparison) -> str:
    """Explain the verdicts that this report can have."""
    few = (
        'A claim is "observed in these runs" if the 95 % interval of the difference is above zero; statements about '
        f"networks need at least {MIN_SEEDS} seeds of each. "
    )
    enough = (
        "A claim holds if the 95 % interval of the difference is above zero, does not hold if it is below zero, and is open "
        'otherwise; claims are not adjusted for their number. "Holds, not only here" means that the difference '
        f"elsewhere is not shown to be smaller. With fewer than {MIN_SEEDS} seeds of a network, a claim is observed in these "
        "runs, or not. "
    )
    return (enough if comparison.enough else few) + (
        "The difference elsewhere is that on larger objects, or farther from boundaries, of the same classes, or that on the "
        "other classes. A claim is tested as a difference, not as a cause: the networks may also differ in other ways."
    )
