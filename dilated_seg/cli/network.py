"""The trained network of an evaluation: a run, a checkpoint file, an exported directory, or a repository of the Hub."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only

from dilated_seg.errors import UserError
from dilated_seg.inference.load import CONFIG, WEIGHTS, download_from_hub, load_directory
from dilated_seg.runs.config import RunConfig
from dilated_seg.runs.run import Run


def expand_network(args: Sequence[str]) -> list[str]:
    """Return the arguments with the network, their first argument, replaced by options.

    Args:
        args: The first argument may be a network as `dilated_seg.inference.load` accepts it: a run directory, or a directory of
            runs, of which the last one to finish is used; a checkpoint file of a run; a directory that ``export`` wrote; or
            OWNER/NAME at the Hugging Face Hub. The last two have no dataset, so ``--data`` is required.

    Raises:
        UserError: There is no such network.
    """
    if not args or not args[0][:1].isascii() or args[0].startswith("-"):
        return list(args)
    source, path, rest = args[0], Path(args[0]), args[1:]
    if path.is_file():
        run = Run.containing(path)
        if run is None or not run.is_run:
            raise UserError(f"{source} is in no run directory: pass --config EXPERIMENT.yaml --ckpt_path {source}")
        return ["--config", str(run.config_file), "--ckpt_path", source, *rest]
    if not path.exists() or (path / CONFIG).is_file():
        directory = path if path.exists() else download_from_hub(source)
        return ["--config", json.dumps({"model": describe_exported(directory)}), *rest]
    run = Run(path)
    if not run.is_run and any(path.glob(f"*/{run.config_file.name}")):
        run = Run.newest(path)
    RunConfig.read(run.config_file)
    return ["--config", str(run.config_file), *rest]


def describe_exported(directory: Path) -> dict[str, Any]:
    """Return the task's options for a network that ``export`` wrote.

    Raises:
        UserError: The directory is damaged, or the network has a CRF of its own.
    """
    model = load_directory(directory)
    if model.crf:
        raise UserError(f"{directory} was trained with a CRF: evaluate a checkpoint of its run instead")
    name, arguments = model.built or ("", {})
    return {
        "net": {"class_path": name if "." in name else f"dilated_seg.models.{name}", "init_args": arguments},
        "weights": str(directory / WEIGHTS),
        "mean": model.mean.flatten().tolist(),
        "std": model.std.flatten().tolist(),
    }


def choose_checkpoint(config: Any) -> str | None:  # noqa: ANN401 - jsonargparse's Namespace
    """Return the checkpoint of --checkpoint; by default the best of the run, or the last if the run was never validated.

    The run is that of --run_dir or of --config RUN/config.yaml; None if --model.weights names other weights than those that
    the run started from.

    Raises:
        UserError: There is no run that has the checkpoint.
    """
    name = config.checkpoint
    if name not in (None, "best", "last"):
        return str(name)
    files = [Path(str(path)) for path in config.get("config") or []]
    runs = [Run(config.run_dir)] if config.run_dir else []
    runs += [Run(file.parent) for file in reversed(files) if file.name == Run("").config_file.name]
    for run in (run for run in runs if run.is_run):
        if name:
            return str(run.checkpoint(name).path)
        best = run.best_checkpoint.path
        if run.config.weights == config.model.weights and (checkpoint := best if best.is_file() else run.newest_checkpoint()):
            if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
                print(f"no --ckpt_path: evaluating {checkpoint}", flush=True)
            return str(checkpoint)
    if name:
        raise UserError(f"--checkpoint {name} needs a run: name its directory first, or pass --checkpoint FILE")
    return None
