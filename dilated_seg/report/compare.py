"""The comparison of finished runs: a table in the terminal, and a page with its plots, its tables and how all was measured."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from dilated_seg.report.claims import Claim
from dilated_seg.report.comparison import Comparison
from dilated_seg.report.render import write_report
from dilated_seg.report.results import name_run, read_results, write_results
from dilated_seg.report.sections import build_sections
from dilated_seg.report.terminal import show_comparison
from dilated_seg.runs.find import find_common_evaluation, find_evaluated_runs


def compare(
    runs: Sequence[str | Path],
    out: str | Path,
    evaluation: str | None = None,
    names: Sequence[str] | None = None,
    missing: Sequence[str] = (),
    claims: Sequence[Claim] = (),
    command: str | None = None,
    title: str = "Comparison",
) -> Path:
    """Read one evaluation of each run, compare them, and return the page.

    Args:
        runs: Directories of runs, or directories that hold some.
        out: Where report.html, report.md, their images and tables, and results.parquet are written.
        evaluation: Such as "test-last"; the one that all runs have if there is only one.
        names: Of the runs, in tables; runs of one name are its seeds. Their directories' names if None.
        missing: What should be compared as well and is not there: the report says so.
        claims: To test.
        command: That trained and evaluated all of this.
        title: Of the page.

    Raises:
        UserError: A directory is no run, or the runs have no evaluation in common.
    """
    found = [run for directory in runs for run in find_evaluated_runs(directory)]
    evaluation = evaluation or find_common_evaluation(found)
    comparison = Comparison(read_results(found, evaluation, names or [name_run(run, found) for run in found]))
    out = Path(out)
    again = shlex.join(["dilated-seg", "report", *map(str, runs), "--out", str(out), "--evaluation", evaluation])
    sections = build_sections(comparison, missing, claims, [command] if command else [again])
    write_report(title, sections, out, list_names(comparison, missing, claims))
    write_results(comparison.results, out / "results.parquet")
    show_comparison(comparison)
    if missing:
        print(f"not in this comparison: {'; '.join(missing)}")
    print(f"report: {out / 'report.html'} (and report.md, with its plots and tables as files)")
    return out / "report.html"


def list_names(comparison: Comparison, missing: Sequence[str], claims: Sequence[Claim]) -> set[str]:
    """Return what users named: networks, classes, images, directories, values of protocols, claims."""
    names = {*comparison.groups, *comparison.classes, *missing, *(claim.says for claim in claims)}
    for result in comparison.results:
        ids, values = result.evaluation.images[0], result.evaluation.protocol.describe().values()
        names |= {*ids, str(result.run), str(result.run.path.resolve()), *values}
    return names
