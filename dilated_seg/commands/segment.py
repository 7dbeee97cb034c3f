"""The command ``dilated-seg segment``."""

import argparse

from dilated_seg.commands import COMMANDS


def main(args: list[str]) -> int:
    """Run ``dilated-seg segment``."""
    parser = argparse.ArgumentParser("dilated-seg segment", description=COMMANDS["segment"], allow_abbrev=False)
    parser.add_argument(
        "pictures", nargs="+", metavar="PICTURE", help="a file, a folder, or a pattern such as 'street/**/*.jpg'"
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="FILE",
        help="or a run's folder, a folder that export wrote, OWNER/NAME at the Hub",
    )
    parser.add_argument("--out", default="segmented", metavar="FOLDER", help="of the results (default: %(default)s)")
    parser.add_argument(
        "--inference",
        metavar="PROTOCOL",
        help="FullImage, Tiles, MultiScale or ReflectedTiles, such as 'Tiles(size=(512, 512), overlap=128)'; the whole picture "
        "if not given, but Tiles above 4 megapixels",
    )
    parser.add_argument(
        "--crf",
        nargs="?",
        const="DenseCRF",
        metavar="CRF",
        help="refine by a dense CRF, such as 'DenseCRF(w1=5, iterations=5)'",
    )
    parser.add_argument(
        "--probabilities", action="store_true", help="write them too, as .npy of float16 (classes, height, width)"
    )
    parser.add_argument("--submission", choices=("voc", "cityscapes"), help="write what the test server takes as well")
    parser.add_argument("--overwrite", action="store_true", help="replace results that are there")
    parser.add_argument("--device", help="such as cpu or cuda:1; a GPU if there is one")
    options = parser.parse_args(args)
    from dilated_seg.commands import text
    from dilated_seg.inference.folder import segment_files

    return segment_files(
        options.pictures,
        options.checkpoint,
        options.out,
        text.parse_strategy(options.inference) if options.inference is not None else None,
        text.parse_crf(options.crf) if options.crf is not None else None,
        probabilities=options.probabilities,
        submission=options.submission,
        overwrite=options.overwrite,
        device=options.device,
    )
