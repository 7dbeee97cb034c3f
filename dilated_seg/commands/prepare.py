"""The command ``dilated-seg prepare``."""

import argparse
import inspect
import json
import os
from pathlib import Path
from typing import Any

from dilated_seg.commands import COMMANDS
from dilated_seg.errors import UserError

# Options of a dataset's own constructor.
OPTIONS = ("sbd", "labels", "mask_orientation")


def main(args: list[str]) -> int:
    """Run ``dilated-seg prepare``."""
    options = parse(args)
    given = {name: value for name in OPTIONS if (value := getattr(options, name))}
    if options.dataset == "voc" and os.environ.get("DILATED_SEG_SBD"):
        given.setdefault("sbd", os.environ["DILATED_SEG_SBD"])
    if not options.verify and is_prepared(options, given):
        out = os.path.abspath(options.out)
        print(f"{out} is prepared already: nothing to do. To look at the data anew, remove it; --verify checks its own files")
        return 0
    from dilated_seg.data import prepare

    if options.verify:
        prepare.verify(options.out)
        return 0
    datasets = list_datasets()
    if options.dataset not in datasets:
        raise UserError(f"there is no dataset '{options.dataset}' to prepare: choose one of {', '.join(datasets)}")
    kind = datasets[options.dataset]
    for name in given:
        takers = [dataset for dataset, other in datasets.items() if name in inspect.signature(other).parameters]
        if options.dataset not in takers:
            raise UserError(f"--{name} is for {', '.join(takers)}, not for {options.dataset}")
    if not kind.variable and not options.root:
        raise UserError("name the folder with --root")
    skip, counts = options.on_bad_image == "skip", options.other_counts
    prepare.prepare(
        kind.__name__, options.root, options.out, options.store, options.splits, given, counts, skip, options.download
    )
    return 0


def is_prepared(options: argparse.Namespace, given: dict[str, str]) -> bool:
    """Return whether ``--out`` holds what is asked for; nothing heavy is imported to tell."""
    splits = sorted(options.splits) if options.splits else None
    request = {
        "dataset": options.dataset,
        "store": options.store,
        "splits": splits,
        "options": [*map(list, sorted(given.items()))],
    }
    try:
        asked = json.loads((options.out / "manifest.json").read_text())["asked"]
        return bool(asked | {"dataset": asked["dataset"].lower()} == request)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False  # prepare itself tells what is wrong


def parse(args: list[str]) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser("dilated-seg prepare", description=COMMANDS["prepare"], allow_abbrev=False)
    parser.add_argument("dataset", help="a dataset's class in lower case: voc, cityscapes, camvid, folder, ...")
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
        help="folder: how masks lie whose images EXIF turns: as these are seen, or as their files; found out if not given",
    )
    parser.add_argument("--download", action="store_true", help="voc: fetch the archives of VOC and SBD into --root first")
    parser.add_argument("--other_counts", action="store_true", help="accept other numbers of images than were published")
    parser.add_argument(
        "--on_bad_image", choices=("error", "skip"), default="error", help="skip: leave out training images that cannot be read"
    )
    parser.add_argument("--verify", action="store_true", help="only compare the files of --out with their checksums")
    return parser.parse_args(args)


def list_datasets() -> dict[str, Any]:
    """Return the classes of all datasets on a disk, by the names that the command takes."""
    from dilated_seg import data

    kinds = {name.lower(): getattr(data, name) for name in data.__all__}
    return {name: kind for name, kind in kinds.items() if kind.list_splits is not data.SegmentationDataModule.list_splits}
