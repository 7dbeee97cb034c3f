"""The run of a command: its directory, and the checkpoint that is evaluated."""

import os
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only

from dilated_seg.cli.explain import EVALUATIONS
from dilated_seg.errors import UserError
from dilated_seg.runs.experiments import experiment_name
from dilated_seg.runs.run import Run

RUN_DIR = "DILATED_SEG_RUN_DIR"  # tells the processes that Lightning starts which directory the first one chose


def choose_run(verb: str | None, config: Any) -> tuple[Run, Path | None]:  # noqa: ANN401 - jsonargparse's Namespace
    """Return the run, and its directory if this process makes it.

    The run is that of --run_dir, of the checkpoint that is evaluated, or a new one.

    Raises:
        UserError: No directory can be made for all processes.
    """
    first = rank_zero_only.rank == 0  # type: ignore[attr-defined] # the others neither make the directory nor remove it
    if directory := config.run_dir or os.environ.get(RUN_DIR):
        run = Run(directory)
        return run, run.path if first and not run.path.exists() else None
    if verb is None:
        return Run("runs"), None  # nothing is run: nothing is made
    if verb in EVALUATIONS and config.ckpt_path and (run_of_checkpoint := Run.containing(Path(config.ckpt_path))):
        return run_of_checkpoint, None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("several processes were started from outside: name the run's folder with --run_dir")
    run = Run.create(Path("runs") / experiment_name(config))
    return run, run.path


def choose_checkpoint(config: Any) -> str | None:  # noqa: ANN401 - jsonargparse's Namespace
    """Return the checkpoint that --checkpoint names, or else the best of the run, or its last one if it was never validated.

    The run is the one of --run_dir or of --config RUN/config.yaml. It is left alone if other weights than those that it
    started from are named with --model.weights.

    Raises:
        UserError: There is no run that has the checkpoint.
    """
    name = config.checkpoint
    if name not in (None, "best", "last"):
        return str(name)
    files = [Path(str(path)) for path in config.get("config") or []]
    runs = [Run(config.run_dir)] if config.run_dir else []
    runs += [Run(file.parent) for file in reversed(files) if file.name == "config.yaml"]
    for run in (run for run in runs if run.is_run):
        if name:
            return str(run.checkpoint(name).path)
        best = run.checkpoint_dir / "best.ckpt"
        if run.config.weights == config.model.weights and (checkpoint := best if best.is_file() else run.newest_checkpoint()):
            if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
                print(f"no --ckpt_path: evaluating {checkpoint}", flush=True)
            return str(checkpoint)
    if name:
        raise UserError(f"--checkpoint {name} is of a run: name the run first, or a file with --checkpoint FILE")
    return None
