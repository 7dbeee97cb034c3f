"""The command ``dilated-seg prepare``."""

import argparse
import difflib
import inspect
import json
import os
from pathlib import Path
from typing import Any

from dilated_seg.commands.parser import CommandParser
from dilated_seg.errors import UserError

# Options of a dataset's own constructor.
OPTIONS = ("sbd", "labels", "mask_orientation", "val_fraction", "split_seed")


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = CommandParser("prepare", "voc --root ~/VOCdevkit --sbd ~/SBD --out data/voc")
    parser.add_argument("dataset", help="a dataset's class in lower case: voc, cityscapes, camvid, folder, ...")
    parser.add_argument("--root", help="the directory of its files or archives; default: its environment variable")
    parser.add_argument("--out", type=Path, metavar="DIRECTORY", help="to write; data.root then names it")
    parser.add_argument(
        "--store",
        choices=("files", "raw"),
        default="files",
        help="the original files in Parquet; or decoded pixels in Arrow: larger, and several times as fast to read",
    )
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="default: all that exist")
    parser.add_argument("--sbd", metavar="DIRECTORY", help="voc: SBD, for trainaug; default: its environment variable")
    parser.add_argument("--labels", choices=("gtFine", "gtCoarse"), help="cityscapes: of training images (gtFine)")
    parser.add_argument(
        "--mask_orientation",
        choices=("upright", "as_stored"),
        help="folder: orientation of the masks of images that EXIF rotates; default: determined from their sizes",
    )
    parser.add_argument("--val_fraction", type=float, help="folder: the part of the training images to draw as val")
    parser.add_argument("--split_seed", type=int, help="folder: of this drawing (0)")
    parser.add_argument(
        "--dry_run", action="store_true", help="folder: only show what would be read: files, and values of masks with shares"
    )
    parser.add_argument(
        "--sheet", type=Path, metavar="FILE.png", help="with --dry_run: write images with their masks in colors"
    )
    parser.add_argument("--download", action="store_true", help="voc: download the archives of VOC and SBD into --root first")
    parser.add_argument("--other_counts", action="store_true", help="accept splits whose size differs from the published one")
    parser.add_argument(
        "--on_bad_image", choices=("error", "skip"), default="error", help="skip: leave out unreadable training images"
    )
    parser.add_argument("--verify", action="store_true", help="only compare the files of --out with their checksums")
    parser.add_argument("--like", metavar="DATASET", default="voc", help="hub --verify: the dataset whose classes it has (voc)")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload --out to the Hugging Face Hub, into a private repository")
    return parser


def main(args: list[str]) -> int:
    """Run ``dilated-seg prepare``."""
    options = build_parser().parse_args(args)
    if options.sheet and not options.dry_run:
        raise UserError("--sheet goes with --dry_run")
    if options.dry_run:
        if options.dataset != "folder" or not options.root:
            raise UserError("--dry_run goes with folder and --root DIRECTORY")
        from dilated_seg.data.prepare.dry_run import show_files

        show_files(options.root)
        if options.sheet:
            from dilated_seg.data.prepare.contact_sheet import write_sheet

            write_sheet(options.root, options.sheet)
        return 0
    if options.dataset == "hub":
        return check_hub(options)
    if options.out is None:
        raise UserError("prepare needs the directory to write: pass --out DIRECTORY")
    status = prepare_or_verify(options)
    if options.push:
        from dilated_seg.data.prepare.hub import push

        push(options.out, options.push)
    return status


def check_hub(options: argparse.Namespace) -> int:
    """Check a Parquet dataset, which needs no preparation."""
    datasets = list_datasets()
    if not options.verify or not options.root:
        raise UserError("a Parquet dataset needs no preparation; check it with prepare hub --root OWNER/NAME --verify")
    if options.like not in datasets:
        raise UserError(f"--like {options.like}: choose one of {', '.join(datasets)}")
    from dilated_seg.data import Hub
    from dilated_seg.data.prepare.hub import check

    check(Hub(options.root, like=datasets[options.like]))
    return 0


def prepare_or_verify(options: argparse.Namespace) -> int:
    """Write or verify the shards of a dataset."""
    arguments = {name: value for name in OPTIONS if (value := getattr(options, name))}
    if options.dataset == "voc" and os.environ.get("DILATED_SEG_SBD"):
        arguments.setdefault("sbd", os.environ["DILATED_SEG_SBD"])
    if not options.verify and is_prepared(options, arguments):
        out = os.path.abspath(options.out)
        print(f"{out} is prepared already: nothing to do. To read the data again, remove it; --verify checks its own files")
        return 0
    from dilated_seg.data import prepare

    if options.verify:
        prepare.verify(options.out)
        return 0
    datasets = list_datasets()
    if options.dataset not in datasets:
        near = difflib.get_close_matches(options.dataset, datasets, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"choose one of {', '.join(datasets)}"
        raise UserError(f"unknown dataset '{options.dataset}': {hint}")
    kind = datasets[options.dataset]
    for name in arguments:
        accepting = [dataset for dataset, other in datasets.items() if name in inspect.signature(other).parameters]
        if options.dataset not in accepting:
            raise UserError(f"--{name} goes with {', '.join(accepting)}, not for {options.dataset}")
    if not kind.variable and not options.root:
        raise UserError(f"prepare {options.dataset} needs the directory of its files: pass --root DIRECTORY")
    skip, counts = options.on_bad_image == "skip", options.other_counts
    prepare.prepare(
        kind.__name__, options.root, options.out, options.store, options.splits, arguments, counts, skip, options.download
    )
    return 0


def is_prepared(options: argparse.Namespace, arguments: dict[str, Any]) -> bool:
    """Return whether ``--out`` was written by the same request, without importing anything heavy."""
    splits = sorted(options.splits) if options.splits else None
    request = {
        "dataset": options.dataset,
        "store": options.store,
        "splits": splits,
        "options": [*map(list, sorted(arguments.items()))],
    }
    try:
        asked = json.loads((options.out / "manifest.json").read_text())["asked"]
        return bool(asked | {"dataset": asked["dataset"].lower()} == request)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False  # `prepare` reports the error


def list_datasets() -> dict[str, Any]:
    """Return the classes of all datasets on a disk, by the names that the command takes."""
    from dilated_seg import data

    kinds = {name.lower(): getattr(data, name) for name in data.__all__}
    return {name: kind for name, kind in kinds.items() if kind.list_splits is not data.SegmentationDataModule.list_splits}
