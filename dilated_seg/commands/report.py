"""The command ``dilated-seg report``."""

import argparse

from dilated_seg.commands import COMMANDS
from dilated_seg.errors import format_command


def main(args: list[str]) -> int:
    """Run ``dilated-seg report``."""
    parser = argparse.ArgumentParser("dilated-seg report", description=COMMANDS["report"], allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or one that holds runs")
    parser.add_argument(
        "--out", default="report", help="folder of report.html, report.md and their files (default: %(default)s)"
    )
    parser.add_argument("--evaluation", help="which evaluation of the runs to compare, such as test-last or val-best")
    options = parser.parse_args(args)
    from dilated_seg.report.compare import compare
    from dilated_seg.report.results import find_results

    results = find_results(options.runs, options.evaluation)
    rest = ("--out", options.out, "--evaluation", results[0].evaluation.name)
    compare(results, options.out, command=format_command("dilated-seg", "report", *options.runs, *rest))
    return 0
