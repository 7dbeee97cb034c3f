"""The command ``dilated-seg export``."""

import argparse

from dilated_seg.commands import COMMANDS
from dilated_seg.errors import UserError


def main(args: list[str]) -> int:
    """Run ``dilated-seg export``."""
    parser = argparse.ArgumentParser("dilated-seg export", description=COMMANDS["export"], allow_abbrev=False)
    parser.add_argument("source", help="a run's folder, a folder of runs, a checkpoint, or a folder of --format hub")
    parser.add_argument("--format", required=True, choices=("onnx", "pt2", "hub"))
    parser.add_argument("--out", required=True, metavar="PATH", help="a file .onnx or .pt2; a folder for hub")
    parser.add_argument(
        "--size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), help="the one size of images it is to take; any if not given"
    )
    parser.add_argument("--licence", metavar="NAME", help="hub: of the weights, such as cc-by-nc-4.0; not stated if not given")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --out")
    options = parser.parse_args(args)
    if options.size and (options.format == "hub" or min(options.size) < 1):
        raise UserError("--size takes height and width from 1 on, and is for --format onnx and pt2")
    if options.licence and options.format != "hub":
        raise UserError("--licence is for --format hub")
    from dilated_seg.export.program import export_network

    size = tuple(options.size) if options.size else None
    export_network(options.source, options.format, options.out, size, options.overwrite, options.licence)
    return 0
