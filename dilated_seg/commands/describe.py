"""The command ``dilated-seg describe``."""

import argparse

from dilated_seg.commands import COMMANDS
from dilated_seg.errors import UserError


def main(args: list[str]) -> int:
    """Run ``dilated-seg describe``."""
    parser = argparse.ArgumentParser("dilated-seg describe", description=COMMANDS["describe"], allow_abbrev=False)
    parser.add_argument("network", nargs="?", help="such as 'FCN(21, stride=8)' or DilatedNet; all networks if not given")
    parser.add_argument(
        "--size", nargs=2, type=int, default=(500, 500), metavar=("HEIGHT", "WIDTH"), help="of the image (500 500)"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="everything, for machines")
    form.add_argument("--markdown", action="store_true", help="the table of networks as docs/networks.md has it")
    options = parser.parse_args(args)
    if min(options.size) < 1:
        raise UserError(f"--size {options.size[0]} {options.size[1]}: an image has at least 1 x 1 pixels")
    from dilated_seg.analysis import summary

    descriptions = [
        summary.describe(call, tuple(options.size))
        for call in ([options.network] if options.network is not None else summary.FAMILY)
    ]
    if options.json:
        print(summary.as_json(descriptions))
    elif options.markdown:
        print(summary.markdown(descriptions), end="")
    elif options.network is not None:
        summary.show(descriptions[0])
    else:
        summary.show_family(descriptions)
    return 0
