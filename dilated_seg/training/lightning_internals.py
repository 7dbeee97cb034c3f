"""Every private name of Lightning and W&B that this package uses, each behind one function.

Private names may change in any release: setup.cfg bounds the versions, and tests/training/test_lightning_internals.py fails if
a name is gone.
"""

from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import RichProgressBar


def is_validation_due(trainer: Trainer) -> bool:
    """Return whether a validation follows the training batch that has just ended."""
    return trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]


def get_logged_step(trainer: Trainer) -> int:
    """Return the step at which Lightning logs metrics."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def set_logged_step(trainer: Trainer, step: int) -> None:
    """Set the step at which Lightning logs metrics."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = step


def dump_checkpoint(trainer: Trainer) -> dict[str, Any]:
    """Return the checkpoint that Trainer.save_checkpoint would write, without waiting for other processes."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


class EpochProgressBar(RichProgressBar):
    """Lightning's progress bar without the number of epochs: the length of training is given in steps."""

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Training, epoch {current_epoch}"


def dump_wandb_view(view: Any) -> str:  # noqa: ANN401 - a Workspace or Report of wandb_workspaces, which have no class in common
    """Return what W&B's server is sent of a workspace or report, as JSON."""
    return str(view._to_model().model_dump_json(by_alias=True, exclude_none=True))


def workspace_identity(workspace: Any) -> dict[str, str]:  # noqa: ANN401 - wandb_workspaces is imported for a dashboard only
    """Return the name and id that W&B gave a saved workspace."""
    return {"name": workspace._internal_name, "id": workspace._internal_id}


def set_workspace_identity(workspace: Any, name: str, id: str) -> None:  # noqa: ANN401
    """Let the next save of a workspace replace the one with this name and id."""
    workspace._internal_name, workspace._internal_id = name, id
