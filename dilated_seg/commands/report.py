"""The command ``dilated-seg report``."""

from pathlib import Path

from dilated_seg.commands.parser import CommandParser
from dilated_seg.errors import format_command


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = CommandParser("report", "runs/camvid/segnet runs/camvid/unet --evaluation test-last")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a directory of a run, runs, an ablation or saved results")
    parser.add_argument(
        "--out", default="report", metavar="DIRECTORY", help="for report.html, report.md and their files (default: %(default)s)"
    )
    parser.add_argument("--evaluation", metavar="NAME", help="to compare, such as test-last or val-best")
    parser.add_argument(
        "--save", metavar="DIRECTORY", help="copy the results there, without weights and images, and report on the copy"
    )
    return parser


def main(args: list[str]) -> int:
    """Run ``dilated-seg report``."""
    options = build_parser().parse_args(args)
    from dilated_seg.ablation.selection import read_section
    from dilated_seg.report.compare import compare
    from dilated_seg.report.saved import SavedComparison

    saved = SavedComparison.find(options.runs, options.evaluation)
    runs, evaluation = options.runs, ("--evaluation", saved.results[0].evaluation.name)
    if options.save:
        saved = saved.save(Path(options.save))
        runs = [options.save]
    again = format_command("dilated-seg", "report", *runs, "--out", options.out, *(() if saved.command else evaluation))
    command = "\n".join(command for command in (saved.command, again) if command)
    selection = read_section(Path(runs[0]))
    compare(saved.results, options.out, saved.missing, saved.claims, command, saved.title, [selection] if selection else [])
    return 0
