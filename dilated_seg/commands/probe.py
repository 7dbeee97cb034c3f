"""The command ``dilated-seg probe``."""

from dilated_seg.commands.parser import CommandParser


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = CommandParser("probe", "runs/quickstart --evaluation val-last --images 32")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's directory, or a directory of runs")
    parser.add_argument("--evaluation", metavar="NAME", help="whose images and weights, such as test-last; as in report")
    parser.add_argument(
        "--images", type=int, default=64, metavar="N", help="evenly spread over the split (default: %(default)s)"
    )
    parser.add_argument(
        "--pixels", type=int, default=256, metavar="N", help="to classify, equally many of each class (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice of pixels (default: %(default)s)")
    parser.add_argument("--device", help="such as cpu or cuda:1; default: a GPU if there is one")
    parser.add_import()
    return parser


def main(args: list[str]) -> int:
    """Run ``dilated-seg probe``."""
    options = build_parser().parse_args(args)
    from dilated_seg.analysis.receptive_field import measure

    measure.probe(options.runs, options.evaluation, options.images, options.pixels, options.seed, options.device)
    return 0
