"""Every private name of Lightning and W&B that this package uses, each behind one function.

Private names may change in any release: setup.cfg bounds the versions, and tests/training/test_lightning_internals.py fails if
a name is gone.
"""

from typing import Any

from lightning import Trainer
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters


def are_hyperparameters_given() -> bool:
    """Return whether Lightning's command line builds the module: it then gives YAML values for the checkpoint to hold."""
    return _given_hyperparameters.get() is not None


def is_validation_due(trainer: Trainer) -> bool:
    """Return whether a validation follows the training batch that has just ended."""
    return trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]


def logged_step(trainer: Trainer) -> int:
    """Return the step at which Lightning logs metrics."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def set_logged_step(trainer: Trainer, step: int) -> None:
    """Set the step at which Lightning logs metrics."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = step


def dump_checkpoint(trainer: Trainer) -> dict[str, Any]:
    """Return the checkpoint that Trainer.save_checkpoint would write, without waiting for other processes."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
