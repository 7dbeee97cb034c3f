"""The command ``dilated-seg tune``."""

from dilated_seg.commands.parser import CommandParser


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = CommandParser("tune", "runs/mine --checkpoint best --images 50")
    parser.add_argument("run", metavar="RUN", help="a run's directory, or one of its checkpoint files")
    parser.add_argument("--checkpoint", metavar="NAME", help="best, last, or a file; default: last")
    parser.add_argument(
        "--split", default="train", help="of the run's dataset; do not report results on it (default: %(default)s)"
    )
    parser.add_argument(
        "--images", type=int, default=20, metavar="N", help="evenly spread over the split (default: %(default)s)"
    )
    parser.add_object("inference", metavar="STRATEGY", help="as in segment; default: FullImage")
    parser.add_argument("--out", metavar="FILE", help="the overlay to write; default: RUN/crf.yaml")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing overlay")
    parser.add_argument("--device", help="such as cpu or cuda:1; default: a GPU if there is one")
    parser.add_import()
    return parser


def main(args: list[str]) -> int:
    """Run ``dilated-seg tune``."""
    options = build_parser().parse_args(args)
    from dilated_seg.commands.objects import parse_strategy
    from dilated_seg.inference.tune_crf import tune

    tune(
        options.run,
        options.out,
        options.split,
        options.images,
        options.checkpoint,
        parse_strategy(options.inference),
        options.device,
        options.overwrite,
    )
    return 0
