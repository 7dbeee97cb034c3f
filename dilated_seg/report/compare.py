"""The comparison of finished runs: a table in the terminal, and a page with plots, tables and the evaluation protocol."""

from collections.abc import Sequence
from pathlib import Path

from dilated_seg.report.blocks import Section
from dilated_seg.report.claims import Claim
from dilated_seg.report.comparison import Comparison
from dilated_seg.report.render import write_report
from dilated_seg.report.results import Result, write_results
from dilated_seg.report.sections import build_sections
from dilated_seg.report.terminal import show_comparison


def compare(
    results: Sequence[Result],
    out: str | Path,
    missing: Sequence[str] = (),
    claims: Sequence[Claim] = (),
    command: str | None = None,
    title: str = "Comparison",
    extra: Sequence[Section] = (),
) -> Path:
    """Compare evaluations, write and print the report, and return its page.

    Args:
        results: The evaluations: `find_results` reads them from directories. Results of the same name are seeds of one network;
            one run may have several results, of different names and evaluations.
        out: The directory for report.html, report.md, their images and tables, and results.parquet.
        missing: Names of runs that are not finished, which the report lists.
        claims: Statements to test.
        command: The command that repeats the ablation or the report.
        title: The title of the page.
        extra: Sections that follow the result.

    Raises:
        UserError: The evaluations are not of the same images and classes.
    """
    comparison = Comparison(results)
    out = Path(out)
    sections = build_sections(comparison, missing, claims, [command] if command else [])
    sections[1:1] = extra
    write_report(title, sections, out, list_names(comparison, missing, claims))
    write_results(comparison.results, comparison.settings, out / "results.parquet")
    show_comparison(comparison)
    if missing:
        print(f"not in this comparison: {'; '.join(missing)}")
    print(f"report: {out / 'report.html'} (and report.md, with its plots and tables as files)")
    return out / "report.html"


def list_names(comparison: Comparison, missing: Sequence[str], claims: Sequence[Claim]) -> set[str]:
    """Return all names that users chose: networks, classes, images, directories, values of protocols, claims."""
    names = {*comparison.groups, *comparison.classes, *missing, *(claim.says for claim in claims)}
    for result in comparison.results:
        ids, values = result.evaluation.images[0], result.evaluation.protocol.describe().values()
        names |= {*ids, str(result.run), str(result.run.path.resolve()), *values}
    return names
