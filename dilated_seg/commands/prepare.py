"""The command ``dilated-seg prepare``."""

import argparse
import os
from pathlib import Path

from dilated_seg.commands import COMMANDS
from dilated_seg.errors import UserError

# The datasets that prepare takes, and their classes in dilated_seg.data.
DATASETS = {
    "voc": "VOC",
    "cityscapes": "Cityscapes",
    "camvid": "CamVid",
    "folder": "Folder",
}


def main(args: list[str]) -> int:
    """Run ``dilated-seg prepare``."""
    parser = argparse.ArgumentParser("dilated-seg prepare", description=COMMANDS["prepare"], allow_abbrev=False)
    parser.add_argument("dataset", choices=DATASETS)
    parser.add_argument("--root", help="the folder of its release, or of its archives; or its environment variable is taken")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="to make; then name it as data.root")
    parser.add_argument(
        "--store",
        choices=("files", "raw"),
        default="files",
        help="the original files in Parquet; or decoded pixels in Arrow: larger, and several times as fast to read",
    )
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="all that are there if not given")
    parser.add_argument("--sbd", metavar="FOLDER", help="voc: SBD, for trainaug; or its environment variable is taken")
    parser.add_argument("--labels", choices=("gtFine", "gtCoarse"), help="cityscapes: of training images (gtFine)")
    parser.add_argument(
        "--mask_orientation",
        choices=("upright", "as_stored"),
        help="how masks lie whose images EXIF turns: as these are seen, or as their files; found out if not given",
    )
    parser.add_argument("--download", action="store_true", help="voc: fetch the archives of VOC and SBD into --root first")
    parser.add_argument("--other_counts", action="store_true", help="accept other numbers of images than were published")
    parser.add_argument(
        "--on_bad_image", choices=("error", "skip"), default="error", help="skip: leave out training images that cannot be read"
    )
    parser.add_argument("--verify", action="store_true", help="only compare the files of --out with their checksums")
    options = parser.parse_args(args)
    from dilated_seg.data import prepare

    if options.verify:
        prepare.verify(options.out)
        return 0
    own = {"voc": "sbd", "cityscapes": "labels"}
    for dataset, option in own.items():
        if getattr(options, option) and dataset != options.dataset:
            raise UserError(f"--{option} is for {dataset}, not for {options.dataset}")
    given = {option: value for option in own.values() if (value := getattr(options, option))}
    if options.mask_orientation:
        given["mask_orientation"] = options.mask_orientation
    if options.dataset == "voc" and "sbd" not in given and os.environ.get("DILATED_SEG_SBD"):
        given["sbd"] = os.environ["DILATED_SEG_SBD"]
    if options.dataset == "folder" and not options.root:
        raise UserError("name the folder with --root")
    name = DATASETS[options.dataset]
    skip, counts = options.on_bad_image == "skip", options.other_counts
    prepare.prepare(name, options.root, options.out, options.store, options.splits, given, counts, skip, options.download)
    return 0
