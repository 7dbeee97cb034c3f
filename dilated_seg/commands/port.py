"""The command ``dilated-seg port``."""

from dilated_seg.commands.parser import CommandParser


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = CommandParser("port", "fcn8s.caffemodel --net 'FCN(21, stride=8, form=authors)' --out fcn8s.safetensors")
    parser.add_argument("file", help=".caffemodel, .h5, .npz, .pth or .safetensors")
    parser.add_argument(
        "--net", required=True, metavar="NETWORK", help="for these weights, such as 'FCN(21, stride=8, form=authors)'"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="the .safetensors file to write")
    parser.add_argument(
        "--channels", choices=("bgr", "rgb"), help="channel order of the network's input; default: by the kind of file"
    )
    parser.add_argument(
        "--mean", nargs=3, type=float, metavar=("R", "G", "B"), help="subtracted from the network's input (0 to 255)"
    )
    parser.add_argument("--std", nargs=3, type=float, metavar=("R", "G", "B"), help="by which the input is then divided")
    parser.add_argument("--without", nargs="+", default=(), metavar="LAYER", help="layers or parts to leave initialized")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --out")
    return parser


def main(args: list[str]) -> int:
    """Run ``dilated-seg port``."""
    options = build_parser().parse_args(args)
    from dilated_seg import weights
    from dilated_seg.commands.objects import parse_network

    normalization = options.mean, options.std
    net, name = parse_network(options.net), options.net
    weights.port(options.file, net, name, options.out, options.channels, *normalization, options.overwrite, options.without)
    return 0
