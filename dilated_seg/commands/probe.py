"""The command ``dilated-seg probe``."""

import argparse

from dilated_seg.commands import COMMANDS


def main(args: list[str]) -> int:
    """Run ``dilated-seg probe``."""
    parser = argparse.ArgumentParser("dilated-seg probe", description=COMMANDS["probe"], allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or one that holds runs")
    parser.add_argument(
        "--evaluation", metavar="SPLIT-CHECKPOINT", help="on which images and weights, such as test-last; as in report"
    )
    parser.add_argument(
        "--images", type=int, default=64, metavar="N", help="evenly spread over the split (default: %(default)s)"
    )
    parser.add_argument(
        "--pixels",
        type=int,
        default=256,
        metavar="N",
        help="whose class is asked for, of all classes alike (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice of pixels (default: %(default)s)")
    parser.add_argument("--device", help="such as cpu or cuda:1; a GPU if there is one")
    options = parser.parse_args(args)
    from dilated_seg.analysis.receptive_field import measure

    measure.probe(options.runs, options.evaluation, options.images, options.pixels, options.seed, options.device)
    return 0
