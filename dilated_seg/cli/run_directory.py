"""The run directory of a command."""

import os
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only

from dilated_seg.cli.explain import EVALUATIONS
from dilated_seg.data import SegmentationDataModule
from dilated_seg.data.hub_files import pin_revision
from dilated_seg.data.pairs import Pairs
from dilated_seg.errors import UserError
from dilated_seg.runs.experiments import experiment_name
from dilated_seg.runs.run import Run
from dilated_seg.storage import write_text

RUN_DIR = "DILATED_SEG_RUN_DIR"  # passes the directory to the processes that Lightning starts


def choose_run(command: str | None, config: Any) -> tuple[Run, Path | None]:  # noqa: ANN401 - jsonargparse's Namespace
    """Return the run, and its directory if this process creates it.

    The run is that of --run_dir, of the evaluated checkpoint, or a new one.

    Raises:
        UserError: No directory can be created for all processes.
    """
    first = rank_zero_only.rank == 0  # type: ignore[attr-defined] # the others neither create nor remove the directory
    if directory := config.run_dir or os.environ.get(RUN_DIR):
        run = Run(directory)
        return run, run.path if first and not run.path.exists() else None
    if command is None:
        return Run("runs"), None  # nothing is run, so nothing is created
    if command in EVALUATIONS and config.ckpt_path and (run_of_checkpoint := Run.containing(Path(config.ckpt_path))):
        return run_of_checkpoint, None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("several processes were started from outside: name the run directory with --run_dir")
    run = Run.create(Path("runs") / experiment_name(config))
    return run, run.path


def pin_dataset(config: Any, run: Run) -> None:  # noqa: ANN401 - jsonargparse's Namespace
    """Write the revision of a dataset at the Hub into the configuration: that of a run that continues, else the newest.

    Raises:
        UserError: There is no such dataset, or the Hub cannot be reached.
    """
    arguments = config.data.get("init_args", ())
    if "repo" in arguments and "revision" in arguments:  # Hub, or a subclass
        before = run.config.data.init_args if run.config_file.is_file() else {}
        if arguments.revision is None and before.get("repo") == arguments.repo:
            arguments.revision = before.get("revision")
        arguments.revision = pin_revision(arguments.repo, arguments.revision)


def keep_drawn_split(run: Run, data: SegmentationDataModule, write: bool) -> None:
    """Write the names of the images that a dataset draws as its split "val" into the run's val.txt, or compare with it.

    Raises:
        UserError: The directory of the images has changed, so that others are drawn now.
    """
    if getattr(data, "val_fraction", None) is None or not isinstance(split := data.open_split("val"), Pairs):
        return
    names, file = "".join(f"{name}\n" for name, *_ in split.pairs), run.path / "val.txt"
    if not file.is_file():
        if write:
            write_text(file, names)
    elif file.read_text() != names:
        raise UserError(f"data.val_fraction draws other images than those in {file}: restore the images, or begin a new run")
