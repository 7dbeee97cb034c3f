"""The command ``dilated-seg VERB``: finds the verb, and imports what it needs only then."""

import argparse
import difflib
import io
import os
import select
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dilated_seg import REASON_FILE, LostProcessError, UserError, __version__

# Lightning's own four take --config experiments/....yaml, overlays and flags; the rest are ours.
LIGHTNING = ("fit", "validate", "test", "predict")
VERBS = {
    "fit": "train a network: --config experiments/....yaml, then overlays and flags",
    "validate": "score a checkpoint on the validation split: --config RUN/config.yaml --ckpt_path RUN/checkpoints/best.ckpt",
    "test": "score a checkpoint on the test split",
    "predict": "write a checkpoint's predictions on the validation split as PNGs",
    "prepare": "check a dataset as downloaded and write it as shards, to map into memory or to stream",
    "ablate": "run every experiment an ablation file names, here or on SLURM, then compare them",
    "report": "compare finished runs: one page of tables, plots, pictures, how sure the differences are",
    "describe": "a network layer by layer: sizes, parameters, multiply-adds, memory, receptive field; or all networks",
    "probe": "measure receptive fields of trained networks: how far they look, what context buys",
    "segment": "a trained network on files and folders of pictures: label pictures, overlays, probabilities",
    "tune": "search the dense CRF's numbers for a run, and write them for validate, test and predict --config",
    "export": "a trained network as ONNX, as torch.export's pt2, or as a folder for the Hugging Face Hub",
    "port": "Caffe's or torchvision's weights into one of our networks, as a safetensors file",
}

# The datasets that prepare takes, and their classes in dilated_seg.data.
DATASETS = {
    "voc": "VOC",
    "cityscapes": "Cityscapes",
    "camvid": "CamVid",
    "folder": "Folder",
}


def main(args: Sequence[str] | None = None) -> int:
    """Run one verb.

    Exit status: 0 done, 1 failed, 2 a mistake in what was asked, 130 Ctrl-C, 141 what reads the output has ended (as `head`
    does), 143 ended by SIGTERM.
    """
    if os.getcwd() not in (os.path.abspath(path) for path in sys.path):
        sys.path.append(os.getcwd())  # classes of one's own are found here; behind what is installed, which nothing here hides
    try:
        status = run(args)
        sys.stdout.flush()
        return status
    except (BrokenPipeError, SystemExit) as end:
        if isinstance(end, SystemExit) and isinstance(end.__context__, BrokenPipeError):
            return 141  # rich has met it, and has dropped what was left
        if drop_output(isinstance(end, BrokenPipeError)):
            return 141
        raise


def drop_output(broken: bool) -> bool:
    """Whether nobody reads standard output any more; what is left of it is then dropped.

    Args:
        broken: Whether writing to some pipe has failed, be it this one or another.
    """
    try:
        sys.stdout.flush()
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        closed = broken and any(event & select.POLLERR for _, event in poll.poll(0))
    except BrokenPipeError:
        closed = True
    except (AttributeError, OSError, ValueError):  # no poll on Windows; no file behind it, as in a notebook
        closed = False
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return closed


def run(args: Sequence[str] | None) -> int:
    """Run one verb; its mistakes and interruptions become a sentence and an exit status."""
    args = list(sys.argv[1:] if args is None else args)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name may be what the terminal has no letters for
            stream.reconfigure(errors="backslashreplace")
    try:
        if not args or args[0] in ("-h", "--help"):
            print(overview())
            return 0
        if args[0] == "--version":
            print(f"dilated-seg {__version__}")
            return 0
        verb = args.pop(0)
        if verb not in VERBS:
            near = difflib.get_close_matches(verb, VERBS, 1)
            raise UserError(f"there is no verb '{verb}': " + (f"did you mean '{near[0]}'?" if near else "see --help"))
        if verb in LIGHTNING:
            from dilated_seg.cli import CLI

            CLI([verb, *args])
            return 0
        ours = (prepare, ablate, report, describe, probe, segment, tune, export, port)
        return {own.__name__: own for own in ours}[verb](args)
    except UserError as error:
        print(f"dilated-seg: {error}", file=sys.stderr)
        if not isinstance(error, LostProcessError):
            note_reason(str(error))
        return 2
    except BrokenPipeError:
        raise
    except Exception as error:
        note_reason(f"{type(error).__name__}: {error}")
        raise
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # Lightning's way out
            return interrupted()
        if end.code is not None:
            raise
        print("dilated-seg: ended by SIGTERM", file=sys.stderr)  # Lightning's own way out, which would look like success
        return 143
    except KeyboardInterrupt:
        return interrupted()


def interrupted() -> int:
    """Say so, and return the exit status that a shell has for Ctrl-C."""
    print("dilated-seg: interrupted", file=sys.stderr)
    return 130


def note_reason(reason: str) -> None:
    """Write why this process fails for the command that started it; of several processes, the first one counts."""
    if path := os.environ.get(REASON_FILE):
        with suppress(OSError), Path(path).open("x", encoding="utf-8") as file:
            file.write(reason)


def overview() -> str:
    """The help of the whole command."""
    rows = "\n".join(f"  {verb:<10}{what}" for verb, what in VERBS.items())
    return (
        "usage: dilated-seg VERB ...   (dilated-seg VERB --help for one verb)\n\n"
        f"Train, compare and trust the classic networks for semantic segmentation.\n\n{rows}"
    )


def ablate(args: list[str]) -> int:
    """The verb ``ablate``."""
    parser = argparse.ArgumentParser("dilated-seg ablate", description=VERBS["ablate"], allow_abbrev=False)
    parser.add_argument("file", help="the ablation, such as experiments/quickstart.yaml")
    parser.add_argument("--out", help="folder of its runs and its report; runs/NAME if not given")
    parser.add_argument(
        "--max_steps", type=int, metavar="N", help="a rehearsal: every run ends after N steps, in runs/NAME-rehearsal"
    )
    parser.add_argument(
        "--launcher",
        choices=("local", "slurm"),
        help="several runs at once here, or jobs of SLURM, not one after another",
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="local: at once; as many as there are GPUs if not given")
    parser.add_argument(
        "--slurm", nargs="+", default=(), metavar="KEY=VALUE",
        help="slurm: submitit's parameters of a job, such as time=240 (minutes) partition=gpu gpus_per_node=1 mem_gb=32",
    )  # fmt: skip
    parser.add_argument(
        "--devices_per_run",
        type=int,
        metavar="N",
        help="GPUs (or CPU processes) of each run, started by torchrun; as in the file",
    )
    parser.add_argument("--retries", type=int, default=0, metavar="N", help="how often to try a failed run again")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry_run", action="store_true", help="only print the command of each run")
    what.add_argument("--status", action="store_true", help="only say how far each run is")
    parser.add_argument("--dashboard", action="store_true", help="then a workspace and reports at W&B; files if it is offline")
    options = parser.parse_args(args)
    if options.max_steps is not None and options.max_steps < 1:
        raise UserError(f"--max_steps {options.max_steps}: a rehearsal needs at least one step")
    for option, launcher in (("jobs", "local"), ("slurm", "slurm")):
        if getattr(options, option) and options.launcher != launcher:
            raise UserError(f"--{option} is for --launcher {launcher}")
    if options.retries < 0 or (options.jobs is not None and options.jobs < 1):
        raise UserError("--jobs takes a number from 1 on, --retries one from 0 on")
    if options.devices_per_run is not None and options.devices_per_run < 1:
        raise UserError(f"--devices_per_run {options.devices_per_run}: a run needs at least one device")
    from dilated_seg import ablation

    study = ablation.read(options.file, options.out, options.max_steps, options.devices_per_run)
    if options.dry_run or options.status:
        (ablation.show_commands if options.dry_run else ablation.show_status)(study)
        return 0
    how = {"launcher": options.launcher, "jobs": options.jobs, "slurm": options.slurm, "retries": options.retries}
    again = shlex.join(["dilated-seg", "ablate", *args])
    status = ablation.run(study, **how, again=again, wandb=options.dashboard)
    if options.dashboard and status != 143:
        from dilated_seg import dashboard

        dashboard.publish(study)
    return status


def report(args: list[str]) -> int:
    """The verb ``report``."""
    parser = argparse.ArgumentParser("dilated-seg report", description=VERBS["report"], allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or one that holds runs")
    parser.add_argument(
        "--out", default="report", help="folder of report.html, report.md and their files (default: %(default)s)"
    )
    parser.add_argument("--evaluation", help="which evaluation of the runs to compare, such as test-last or val-best")
    parser.add_argument(
        "--wandb", action="store_true", help="log the report to W&B as well; it waits in --out if W&B is offline"
    )
    options = parser.parse_args(args)
    from dilated_seg.report.compare import compare

    compare(options.runs, options.out, options.evaluation, wandb=options.wandb)
    return 0


def describe(args: list[str]) -> int:
    """The verb ``describe``."""
    parser = argparse.ArgumentParser("dilated-seg describe", description=VERBS["describe"], allow_abbrev=False)
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
    from dilated_seg.analysis import describe

    descriptions = [
        describe.describe(call, tuple(options.size))
        for call in ([options.network] if options.network is not None else describe.FAMILY)
    ]
    if options.json:
        print(describe.as_json(descriptions))
    elif options.markdown:
        print(describe.markdown(descriptions), end="")
    elif options.network is not None:
        describe.show(descriptions[0])
    else:
        describe.show_family(descriptions)
    return 0


def probe(args: list[str]) -> int:
    """The verb ``probe``."""
    parser = argparse.ArgumentParser("dilated-seg probe", description=VERBS["probe"], allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or one that holds runs")
    parser.add_argument(
        "--evaluation", metavar="SPLIT-CHECKPOINT", help="on which images and weights, such as test-last; as in report"
    )
    parser.add_argument(
        "--images", type=int, default=64, metavar="N", help="evenly spread over the split (default: %(default)s)"
    )
    parser.add_argument(
        "--pixels",
        type=int,
        default=256,
        metavar="N",
        help="whose class is asked for, of all classes alike (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice of pixels (default: %(default)s)")
    parser.add_argument("--device", help="such as cpu or cuda:1; a GPU if there is one")
    options = parser.parse_args(args)
    from dilated_seg import probe

    probe.probe(options.runs, options.evaluation, options.images, options.pixels, options.seed, options.device)
    return 0


def prepare(args: list[str]) -> int:
    """The verb ``prepare``."""
    parser = argparse.ArgumentParser("dilated-seg prepare", description=VERBS["prepare"], allow_abbrev=False)
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
    from dilated_seg import prepare

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


def segment(args: list[str]) -> int:
    """The verb ``segment``."""
    parser = argparse.ArgumentParser("dilated-seg segment", description=VERBS["segment"], allow_abbrev=False)
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
        help="Whole, Tiles, MultiScale or ReflectedTiles, such as 'Tiles(size=(512, 512), overlap=128)'; the whole picture "
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
    from dilated_seg import build, inference
    from dilated_seg.crf import DenseCRF
    from dilated_seg.segment.files import segment_files

    return segment_files(
        options.pictures,
        options.checkpoint,
        options.out,
        inference.from_text(options.inference) if options.inference is not None else None,
        build.one_of(options.crf, "CRF", "DenseCRF(w1=5)", [DenseCRF]) if options.crf is not None else None,
        probabilities=options.probabilities,
        submission=options.submission,
        overwrite=options.overwrite,
        device=options.device,
    )


def tune(args: list[str]) -> int:
    """The verb ``tune``."""
    parser = argparse.ArgumentParser("dilated-seg tune", description=VERBS["tune"], allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="the folder of a finished run")
    parser.add_argument("--checkpoint", metavar="FILE", help="of the run; its last if not given")
    parser.add_argument(
        "--split", default="train", help="of the run's dataset: not the images that you report (default: %(default)s)"
    )
    parser.add_argument("--images", type=int, default=20, metavar="N", help="evenly spread over it (default: %(default)s)")
    parser.add_argument("--inference", metavar="PROTOCOL", help="as in segment; the whole image if not given")
    parser.add_argument("--out", metavar="FILE", help="the overlay to write; RUN/crf.yaml if not given")
    parser.add_argument("--overwrite", action="store_true", help="replace an overlay that is there")
    parser.add_argument("--device", help="such as cpu or cuda:1; a GPU if there is one")
    options = parser.parse_args(args)
    from dilated_seg import inference
    from dilated_seg import tune as search

    how = inference.from_text(options.inference) if options.inference is not None else None
    checkpoint, overwrite = options.checkpoint, options.overwrite
    search.tune(options.run, options.out, options.split, options.images, checkpoint, how, options.device, overwrite)
    return 0


def export(args: list[str]) -> int:
    """The verb ``export``."""
    parser = argparse.ArgumentParser("dilated-seg export", description=VERBS["export"], allow_abbrev=False)
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
    from dilated_seg.export import export

    size = tuple(options.size) if options.size else None
    export(options.source, options.format, options.out, size, options.overwrite, options.licence)
    return 0


def port(args: list[str]) -> int:
    """The verb ``port``."""
    parser = argparse.ArgumentParser("dilated-seg port", description=VERBS["port"], allow_abbrev=False)
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

    weights.port(
        options.file, options.net, options.out, options.channels, options.mean, options.std, options.overwrite, options.without
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
