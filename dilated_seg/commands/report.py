"""The command ``dilated-seg report``."""

from dilated_seg.commands.parser import CommandParser
from dilated_seg.errors import format_command


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = CommandParser("report", "runs/camvid/segnet runs/camvid/unet --evaluation test-last")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's directory, or a directory of runs")
    parser.add_argument(
        "--out", default="report", metavar="DIRECTORY", help="for report.html, report.md and their files (default: %(default)s)"
    )
    parser.add_argument("--evaluation", metavar="NAME", help="to compare, such as test-last or val-best")
    return parser


def main(args: list[str]) -> int:
    """Run ``dilated-seg report``."""
    options = build_parser().parse_args(args)
    from dilated_seg.report.compare import compare
    from dilated_seg.report.results import find_results

    results = find_results(options.runs, options.evaluation)
    rest = ("--out", options.out, "--evaluation", results[0].evaluation.name)
    compare(results, options.out, command=format_command("dilated-seg", "report", *options.runs, *rest))
    return 0
