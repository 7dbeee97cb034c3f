"""Fills tables of pages and headers of experiments from the committed results, experiments/results/NAME.

In a page, <!-- results NAME: PART; PART --> begins what is filled and <!-- results: end --> ends it. A part is "table COLUMN,
COLUMN" (columns of the report's table; "classes" stands for all classes, "interval" for the mean with its 95 % interval),
"protocol", "pairs" or "claims"; without the directory, one sentence says that it has not been run. In the header of an
experiment, "ours: VALUES (results/NAME, ROW)" gets the mean IoU of every seed of a row.

run:    python docs/results.py                  writes them
        python docs/results.py --check [FILE]   exits with 1 and names the files that are out of date
"""

import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from dilated_seg.analysis.bootstrap import Bootstrap
from dilated_seg.analysis.intervals import MIN_SEEDS, OTHER_IMAGES, Difference
from dilated_seg.errors import UserError
from dilated_seg.metrics.confusion import percent
from dilated_seg.report.claims import Claim
from dilated_seg.report.comparison import Comparison, count_all_pixels
from dilated_seg.report.markdown import escape, render_row
from dilated_seg.report.results import describe_shared_protocol
from dilated_seg.report.saved import SavedComparison
from dilated_seg.report.sections.claims import judge_claim, measure_claim
from dilated_seg.report.sections.result import tabulate_networks
from dilated_seg.report.wording import describe_pairs, format_points, join_names

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments/results"
BLOCK = re.compile(r"(<!-- results (\w+): (.*?) -->\n).*?(<!-- results: end -->)", re.DOTALL)
HEADER = re.compile(r"(ours: +)[^(\n]*?( \(results/(\w+), ([^)\n]+)\))")
MOST_SEEDS = 30  # of each network, that an undecided difference is said to take


@cache
def read(name: str) -> tuple[SavedComparison, Comparison]:
    """Return the comparison in a directory of results."""
    saved = SavedComparison.read(RESULTS / name)
    return saved, Comparison(saved.results)


def fill(text: str) -> str:
    """Return a page or a header with its results filled in."""
    text = BLOCK.sub(lambda block: f"{block[1]}{render(block[2], block[3])}\n{block[4]}", text)
    return HEADER.sub(lambda line: f"{line[1]}{list_seeds(line[3], line[4])}{line[2]}", text)


def render(name: str, parts: str) -> str:
    """Return the parts of a comparison as Markdown."""
    if not (RESULTS / name).is_dir():
        return f"Not run yet: `dilated-seg ablate experiments/ablations/{name}.yaml`."
    blocks = []
    for part in parts.split("; "):
        kind, _, columns = part.partition(" ")
        blocks.append(tabulate(name, columns.split(", ")) if kind == "table" else PARTS[kind](name))
    return "\n\n".join(blocks)


def list_seeds(name: str, row: str) -> str:
    """Return the mean IoU of every seed of a row, in percent."""
    return ", ".join(percent(one.evaluation.mean_iou) for one in read(name)[1].groups[row])


def tabulate(name: str, columns: list[str]) -> str:
    """Return columns of the comparison's table, the highest mean first."""
    comparison = read(name)[1]
    header, rows = tabulate_networks(comparison)
    chosen = [word for column in columns for word in (comparison.classes if column == "classes" else [column])]
    lines = [render_row(["mean IoU" if word == "interval" else word for word in chosen])]
    lines.append(render_row(["---" if word == "network" else "---:" for word in chosen]))
    for row in rows[: None if "classes" in columns else -1]:  # the last one predicts the most frequent class everywhere
        cells = dict(zip(header, row, strict=True))
        if "interval" in columns:
            known = row[0] in comparison.groups
            cells["interval"] = format_points(comparison.intervals[row[0]]) if known else cells["mean IoU"]
        lines.append(render_row([cells.get(word, "") for word in chosen]))
    return "\n".join(lines)


def describe_protocol(name: str) -> str:
    """Return the protocol, what the intervals cover, the machine, and the command."""
    saved, comparison = read(name)
    costs = [one.evaluation.cost for one in saved.results if one.evaluation.cost]
    devices = ", ".join(dict.fromkeys(str(cost["device"]) for cost in costs)) or "unknown"
    where = f"intervals: 95 %, {comparison.kind}; evaluated on: {devices}"
    command = f"; trained by `{saved.command}`" if saved.command else ""
    return f"<sub>{escape(describe_shared_protocol(saved.results))}; in percent; {where}{command}.</sub>"


def summarize_pairs(name: str) -> str:
    """Return how many pairs are told apart, which are not, and the number of seeds that would tell them apart."""
    comparison = read(name)[1]
    pairs = comparison.pairs
    if not comparison.enough:
        return "\n".join(f"- {sentence}" for sentence in describe_pairs(pairs))
    apart, seeds = [pair for pair in pairs if pair.told_apart], sorted({len(group) for group in comparison.groups.values()})
    span = f"{seeds[0]} seeds" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    sentence = f"With {span} of each network, {len(apart)} of {len(pairs)} pairs differ significantly."
    rest = [
        f"{pair.better} and {pair.worse} ({format_points(pair)}, {count_seeds(comparison.all_pixels, pair)})"
        for pair in pairs
        if not pair.told_apart
    ]
    others = "The others (difference, and the seeds of each network that would show it)"
    return f"{sentence} {others}: {join_names(rest)}." if rest else sentence


def count_seeds(bootstrap: Bootstrap, pair: Difference) -> str:
    """Return the number of seeds of each network that would tell a difference of this size apart in 80 % of studies."""
    if bootstrap.kind == OTHER_IMAGES:
        return f"unknown, at least {MIN_SEEDS} seeds"
    for seeds in range(MIN_SEEDS, MOST_SEEDS + 1):
        if bootstrap.find_detectable(pair.better, pair.worse, seeds) <= abs(pair.value):
            return f"{seeds} seeds"
    return f"more than {MOST_SEEDS} seeds"


def tabulate_claims(name: str) -> str:
    """Return the claims with their measurements, and the seeds that an undecided one would take."""
    saved, comparison = read(name)
    header = ["claim", "networks", "measure", "difference, points", "elsewhere", "verdict", "seeds it would take"]
    lines = [render_row(header), render_row(["---", "---", "---", "---:", "---:", "---", "---:"])]
    for claim in saved.claims:
        cells = [claim.says, f"{claim.better} - {claim.worse}", claim.measure]
        try:
            verdict = measure_claim(comparison, claim)
        except UserError as error:
            lines.append(render_row([*cells, "-", "-", f"not measured: {error}", "-"]))
            continue
        elsewhere = format_points(verdict.elsewhere) if verdict.elsewhere else "-"
        judged = judge_claim(verdict)
        open_ = verdict.here.seeds < MIN_SEEDS or judged == "is open"
        more = estimate_seeds(comparison, claim, verdict.here) if open_ else "-"
        lines.append(render_row([*cells, format_points(verdict.here), elsewhere, judged, more]))
    return "\n".join(lines)


def estimate_seeds(comparison: Comparison, claim: Claim, difference: Difference) -> str:
    """Return the number of seeds that would decide a claim; see `count_seeds`."""
    if comparison.pair_trainings(claim.better, claim.worse, count_all_pixels, comparison.all_pixels):
        return f"at least {MIN_SEEDS}"  # the same trainings, whose difference varies by less than its parts
    here, _ = comparison.split_counts(claim)
    assert here  # it was measured
    return count_seeds(comparison.bootstrap(here), difference)


PARTS: dict[str, Callable[[str], str]] = {
    "protocol": describe_protocol, "pairs": summarize_pairs, "claims": tabulate_claims
}  # fmt: skip


def main(arguments: list[str]) -> int:
    """Write or check the pages and headers."""
    np.seterr(invalid="ignore")
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "experiments").rglob("*.yaml"))]
    files = [Path(word).resolve() for word in arguments if not word.startswith("-")] or pages
    stale = []
    for file in files:
        before = file.read_text("utf-8")
        after = fill(before)
        if before != after:
            stale.append(file)
            if "--check" not in arguments:
                file.write_text(after, "utf-8")
    for file in stale:
        print(f"{file.relative_to(ROOT)} {'is out of date' if '--check' in arguments else 'is written'}")
    return int(bool(stale) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
