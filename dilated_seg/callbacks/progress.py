"""What a run says of itself while it trains."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


class Progress(RichProgressBar):
    """Lightning's progress bar, without a number of epochs that nobody set and a version that names nothing."""

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Training, epoch {current_epoch}"

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What stands behind the bar."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics
