"""The command ``dilated-seg port``."""

import argparse

from dilated_seg.commands import COMMANDS


def main(args: list[str]) -> int:
    """Run ``dilated-seg port``."""
    parser = argparse.ArgumentParser("dilated-seg port", description=COMMANDS["port"], allow_abbrev=False)
    parser.add_argument("file", help=".caffemodel, .npz, .pth or .safetensors")
    parser.add_argument(
        "--net", required=True, metavar="NETWORK", help="what it is for, such as 'FCN(21, stride=8, form=authors)'"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="where the weights go, a .safetensors file")
    parser.add_argument(
        "--channels", choices=("bgr", "rgb"), help="of the image the file's network takes; found by its kind if not given"
    )
    parser.add_argument(
        "--mean", nargs=3, type=float, metavar=("R", "G", "B"), help="what that network subtracts from the image (0 to 255)"
    )
    parser.add_argument("--std", nargs=3, type=float, metavar=("R", "G", "B"), help="what it then divides by")
    parser.add_argument("--without", nargs="+", default=(), metavar="LAYER", help="layers or parts that are to start anew")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --out")
    options = parser.parse_args(args)
    from dilated_seg import weights
    from dilated_seg.commands.text import parse_network

    normalization = options.mean, options.std
    net, name = parse_network(options.net), options.net
    weights.port(options.file, net, name, options.out, options.channels, *normalization, options.overwrite, options.without)
    return 0
