"""The command ``dilated-seg segment``."""

from dilated_seg.commands.parser import CommandParser


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = CommandParser("segment", "street/*.jpg --checkpoint runs/mine --inference 'Tiles(size=(512, 512))'")
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="a file, a directory, or a pattern such as 'street/**/*.jpg'"
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="NETWORK",
        help="a run's directory, a checkpoint file, a directory that export wrote, or OWNER/NAME at the Hugging Face Hub",
    )
    parser.add_argument("--out", default="segmented", metavar="DIRECTORY", help="for the results (default: %(default)s)")
    parser.add_object(
        "inference",
        metavar="STRATEGY",
        help="FullImage, Tiles, MultiScale or ReflectedTiles, such as 'Tiles(size=(512, 512), overlap=128)'; "
        "default: FullImage, but Tiles above 4 megapixels",
    )
    parser.add_object("crf", "DenseCRF", metavar="CRF", help="refine with a dense CRF, such as 'DenseCRF(w1=5, iterations=5)'")
    parser.add_argument(
        "--probabilities", action="store_true", help="write probabilities too: .npy, float16 (classes, height, width)"
    )
    parser.add_argument("--submission", choices=("voc", "cityscapes"), help="write the files of a test server too")
    parser.add_argument("--overwrite", action="store_true", help="replace existing results")
    parser.add_argument("--device", help="such as cpu or cuda:1; default: a GPU if there is one")
    parser.add_import()
    return parser


def main(args: list[str]) -> int:
    """Run ``dilated-seg segment``."""
    options = build_parser().parse_args(args)
    from dilated_seg.commands import objects
    from dilated_seg.inference.folder import segment_files

    return segment_files(
        options.images,
        options.checkpoint,
        options.out,
        objects.parse_strategy(options.inference),
        objects.parse_crf(options.crf),
        probabilities=options.probabilities,
        submission=options.submission,
        overwrite=options.overwrite,
        device=options.device,
    )
