"""The comparison of finished runs: a table in the terminal, and a page with its plots, its tables and how all was measured."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from dilated_seg.errors import open_console
from dilated_seg.report import sections
from dilated_seg.report.claims import Claim
from dilated_seg.report.comparison import Comparison
from dilated_seg.report.render import write_report
from dilated_seg.report.results import describe_shared_protocol, name_run, read_results, write_results
from dilated_seg.report.sections import table_rows
from dilated_seg.report.wording import describe_pairs
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
    """Read one evaluation of each run and compare them; gives the page.

    Args:
        runs: Folders of runs, or folders that hold some.
        out: Where report.html, report.md, their pictures and tables, and results.parquet are written.
        evaluation: Such as "test-last"; the one that all runs have if there is only one.
        names: Of the runs, in tables; runs of one name are its seeds. Their folders' names if None.
        missing: What should be compared as well and is not there: the report says so.
        claims: What to put to the test.
        command: That trained and evaluated all of this.
        title: Of the page.

    Raises:
        UserError: A folder is no run, or the runs have no evaluation in common.
    """
    found = [run for directory in runs for run in find_evaluated_runs(directory)]
    evaluation = evaluation or find_common_evaluation(found)
    comparison = Comparison(read_results(found, evaluation, names or [name_run(run, found) for run in found]))
    out = Path(out)
    again = shlex.join(["dilated-seg", "report", *map(str, runs), "--out", str(out), "--evaluation", evaluation])
    page = sections.all_of(comparison, missing, claims, [command] if command else [again])
    write_report(title, page, out, list_names(comparison, missing, claims))
    write_results(comparison.results, out / "results.parquet")
    show(comparison)
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


def show(comparison: Comparison) -> None:
    """Print the comparison: a row for each network, then a row for each class, which fits on a narrow terminal too."""
    header, rows = table_rows(comparison)
    classes = comparison.classes
    title = ", ".join(filter(None, ("comparison, in percent", comparison.results[0].evaluation.protocol.partial)))
    means, per_class = Table(title=title), Table(title="IoU of each class, in percent")
    for column in header[: -len(classes)]:
        means.add_column(column, justify="left" if column == "network" else "right", no_wrap=column != "network")
    for row in rows:
        means.add_row(*row[: -len(classes)], style="dim" if row is rows[-1] else None)
    for column in ["class", *(row[0] for row in rows[:-1])]:
        per_class.add_column(column, justify="left" if column == "class" else "right", overflow="fold", min_width=5)
    for k, name in enumerate(classes):
        per_class.add_row(name, *(row[len(row) - len(classes) + k] for row in rows[:-1]))
    console = open_console()
    console.print(means, per_class)
    for sentence in describe_pairs(comparison.pairs):
        console.print(sentence, soft_wrap=True)
    console.print(describe_shared_protocol(comparison.results), soft_wrap=True)
