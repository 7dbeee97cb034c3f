"""The command ``dilated-seg tune``."""

import argparse

from dilated_seg.commands import COMMANDS


def main(args: list[str]) -> int:
    """Run ``dilated-seg tune``."""
    parser = argparse.ArgumentParser("dilated-seg tune", description=COMMANDS["tune"], allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="the folder of a finished run")
    parser.add_argument("--checkpoint", metavar="FILE", help="of the run; its last if not given")
    parser.add_argument(
        "--split", default="train", help="of the run's dataset: not the images that you report (default: %(default)s)"
    )
    parser.add_argument("--images", type=int, default=20, metavar="N", help="evenly spread over it (default: %(default)s)")
    parser.add_argument("--inference", metavar="PROTOCOL", help="as in segment; the whole image if not given")
    parser.add_argument("--out", metavar="FILE", help="the overlay to write; RUN/crf.yaml if not given")
    parser.add_argument("--overwrite", action="store_true", help="replace an overlay that is there")
    parser.add_argument("--device", help="such as cpu or cuda:1; a GPU if there is one")
    options = parser.parse_args(args)
    from dilated_seg.commands import text
    from dilated_seg.inference import tune_crf as search

    how = text.parse_strategy(options.inference) if options.inference is not None else None
    checkpoint, overwrite = options.checkpoint, options.overwrite
    search.tune(options.run, options.out, options.split, options.images, checkpoint, how, options.device, overwrite)
    return 0
