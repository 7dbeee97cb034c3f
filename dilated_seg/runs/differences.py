"""Differences between two resolved configurations, by option."""

from collections.abc import Iterator
from typing import Any

import yaml

# What belongs to a call or to what is written, and changes no weight.
FREE = (
    "config", "run_dir", "process_timeout", "evaluate", "ckpt_path", "wandb", "trainer.logger",
    "trainer.log_every_n_steps", "trainer.enable_progress_bar", "trainer.enable_model_summary",
    "data.init_args.num_workers", "data.init_args.eval_batch_size", "data.init_args.predict_split",
)  # fmt: skip


def find_differences(before: str, now: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name and both values of each option in which two configurations differ, but for those that are free."""
    one, other = (dict(flatten(yaml.safe_load(text))) for text in (before, now))
    for name in dict.fromkeys([*one, *other]):
        if one.get(name) != other.get(name) and not is_part(name, FREE):
            yield name, one.get(name), other.get(name)


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
