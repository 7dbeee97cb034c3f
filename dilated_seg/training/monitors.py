"""The metrics that callbacks and schedulers watch, checked before the first step."""

import difflib
from collections.abc import Sequence

from lightning import Callback, Trainer

from dilated_seg.errors import UserError

LOGGED = ("train/loss", "train/gradient_norm", "train/images_per_second", "train/memory_gb")


def check_monitors(trainer: Trainer, metrics: Sequence[str]) -> None:
    """Require that every callback watches a metric that is logged, in its right direction.

    Args:
        trainer: With its callbacks.
        metrics: What a validation logs.

    Raises:
        UserError: A metric is not logged, or watched for the wrong extreme.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    if any(type(callback).__module__.partition(".")[0] not in ("lightning", "dilated_seg") for callback in callbacks):
        metrics = []  # such a callback may log metrics of its own
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str):
            check_monitor(type(callback).__name__, monitor, getattr(callback, "mode", None), metrics)


def check_monitor(who: str, monitor: str, mode: str | None, metrics: Sequence[str]) -> None:
    """Require that one metric is logged, and watched for the extreme that is good.

    Raises:
        UserError: It is not.
    """
    known = [*metrics, *LOGGED]
    if metrics and monitor not in known and not monitor.startswith("lr-"):
        near = difflib.get_close_matches(monitor, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}"
        raise UserError(f"{who}: monitor {monitor} is no metric that is logged: {hint}")
    best = "min" if monitor.endswith("/loss") else "max" if monitor.startswith(("val/", "test/")) else mode
    if mode in ("min", "max") and mode != best:
        better = "lower" if best == "min" else "higher"
        raise UserError(f"{who}: {monitor} is better the {better} it is, and mode is {mode}: say mode {best}")
