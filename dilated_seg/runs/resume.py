"""Find the checkpoint from which a run continues, and compare configurations."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from dilated_seg.errors import UserError
from dilated_seg.runs.run import Run

# Options that change no weight.
FREE = (
    "config", "run_dir", "process_timeout", "evaluate", "ckpt_path", "wandb", "trainer.logger",
    "trainer.log_every_n_steps", "trainer.enable_progress_bar", "trainer.enable_model_summary",
    "data.init_args.num_workers", "data.init_args.eval_batch_size", "data.init_args.predict_split",
)  # fmt: skip


def find_resumed_checkpoint(run: Run, config: str, checkpoint: str | None) -> Path | None:
    """Return the checkpoint from which a run continues; None if it begins, or continues another run's training.

    An interrupted run continues to the weights of an uninterrupted one in these steps:

    1. ``fit`` in a directory without config.yaml begins a run. With ``checkpoint`` (``--ckpt_path``) it continues another
       run's training here: `training.recipe.Recipe` compares the recipes; settings that must not differ raise an error.
    2. In a directory with config.yaml it continues the run, if the configurations differ in nothing but options that
       change no weight (`FREE`).
    3. It continues from last.ckpt, or from the newest checkpoint whose checksum fits (`Run.newest_checkpoint`);
       `training.checkpoint_io` writes them so that at every moment there is one, and reads them without executing anything.
    4. The checkpoint holds parameters, the optimizer, the schedule, Lightning's loops, the state of callbacks, the sums of
       an accumulation (`SegmentationTask.accumulated`) and its gradients (`training.interruption.KeepGradients`).
    5. Nothing else is random: dropout is seeded by the step (`training.interruption.SeedEveryStep`), and order and augmentation
       of the images are a function of seed and position (`data.samplers`), so the data module skips those that were trained on.
    6. `training.signals.StopOnSignal` and `training.interruption.SaveOnError` write last.ckpt after a whole step when a signal
       or an error ends a session.
    7. An earlier session's metrics.csv becomes metrics-N.csv (`Run.keep_history`); W&B continues by the id in wandb_id.
    8. A run that is finished (`Run.mark_finished`) loads its weights and trains no more.

    Args:
        run: The run directory of `fit`.
        config: The resolved configuration of the training, YAML.
        checkpoint: The checkpoint of ``--ckpt_path``, if any.

    Raises:
        UserError: The directory has a run of another configuration, or no checkpoint is intact.
    """
    if not run.is_run:
        return None
    if change := next(find_differences(run.config_file.read_text(), config), None):
        name, before, now = change
        raise UserError(
            f"{run} has a run of another configuration ({name} is {before} there and {now} here): name another directory or "
            "remove this one; --ckpt_path continues the run with this configuration in another directory"
        )
    if checkpoint and Path(checkpoint).resolve().parent == run.checkpoint_dir.resolve():
        return None  # --ckpt_path names one of its own
    return run.newest_checkpoint()  # also if it began from another run's checkpoint


def find_differences(before: str, now: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield name and both values of each option in which two configurations (YAML) differ, except those in `FREE`."""
    old, new = (dict(flatten(yaml.safe_load(text))) for text in (before, now))
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name) and not is_part(name, FREE):
            yield name, old.get(name), new.get(name)


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    """Yield the names of options, with dots, and their values."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flatten(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def is_part(name: str, options: tuple[str, ...]) -> bool:
    """Return whether an option is one of these, or part of one."""
    return any(name == option or name.startswith(f"{option}.") for option in options)
