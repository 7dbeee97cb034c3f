"""The command ``dilated-seg export``."""

from dilated_seg.commands.parser import CommandParser
from dilated_seg.errors import UserError


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = CommandParser("export", "runs/mine --format onnx --out mine.onnx")
    parser.add_argument(
        "source",
        metavar="NETWORK",
        help="a run's directory, a checkpoint file, a directory that export wrote, or OWNER/NAME at the Hugging Face Hub",
    )
    parser.add_argument("--format", required=True, choices=("onnx", "pt2", "hub"))
    parser.add_argument("--out", required=True, metavar="PATH", help="a file .onnx or .pt2; a directory for hub")
    parser.add_argument(
        "--size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), help="the only image size of the program; default: any size"
    )
    parser.add_argument("--licence", metavar="NAME", help="hub: of the weights, such as cc-by-nc-4.0; default: not stated")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --out")
    parser.add_import()
    return parser


def main(args: list[str]) -> int:
    """Run ``dilated-seg export``."""
    options = build_parser().parse_args(args)
    if options.size and (options.format == "hub" or min(options.size) < 1):
        raise UserError("--size takes a height and a width of at least 1, and goes with --format onnx or pt2")
    if options.licence and options.format != "hub":
        raise UserError("--licence goes with --format hub")
    from dilated_seg.export.program import export_network

    size = tuple(options.size) if options.size else None
    export_network(options.source, options.format, options.out, size, options.overwrite, options.licence)
    return 0
