"""Ends a run whose masks have no valid pixel, and warns of classes without a pixel in the training crops."""

import sys
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer

from dilated_seg.data.classes import format_classes
from dilated_seg.errors import UserError

# Number of training crops to check, unless the first epoch is shorter. If one crop in a hundred has a label, a thousand
# crops without any have a probability of 0.99^1000 = 4e-5: sparse labels do not end a run.
CROPS = 1000


class NothingToLearnError(UserError):
    """A run has trained on no valid pixel: its parameters have learned nothing."""


class RequireLabels(Callback):
    """Checks the masks of the first epoch, or of its first thousand crops, over all processes.

    Without a valid pixel the run ends. A warning names the classes without a pixel, unless the masks of the dataset were
    counted before the first step.
    """

    def __init__(self) -> None:
        # bool (C + 1,): whether each class, or any other value, has a pixel; None after the check
        self.occurs: torch.Tensor | None = None
        self.crops = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        task: Any = pl_module
        self.crops = 0
        begins = trainer.global_step == 0  # the rest of an epoch may be too short
        self.occurs = torch.zeros(task.num_classes + 1, dtype=torch.bool, device=task.device) if begins else None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: ANN401
        if self.occurs is None:
            return
        mask, classes = batch["mask"], len(self.occurs) - 1
        # Does not synchronize a GPU. On a CPU it takes 2 ms for a mask of 375 x 500, 1 % of a training step.
        ids = torch.where((mask >= 0) & (mask < classes), mask.long(), classes)
        self.occurs.index_fill_(0, ids.flatten(), True)
        self.crops += len(mask) * trainer.world_size

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:  # noqa: ANN401
        if self.occurs is not None and self.crops >= CROPS:
            self.check(trainer, f"the first {self.crops:,} training crops", enough=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.occurs is not None and self.crops:
            whole = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
            self.check(trainer, f"the {self.crops:,} training crops", enough=whole)

    def check(self, trainer: Trainer, crops: str, enough: bool) -> None:
        """End the run if no class occurs; otherwise name the absent classes, if there were enough crops.

        Raises:
            NothingToLearnError: No pixel of any class was trained on.
        """
        assert self.occurs is not None
        occurs = [number > 0 for number in trainer.strategy.reduce(self.occurs.float(), reduce_op="sum").tolist()[:-1]]
        self.occurs = None
        task, data = cast(Any, trainer.lightning_module), getattr(trainer, "datamodule", None)
        if not any(occurs):
            raise NothingToLearnError(
                f"none of {crops} has a pixel of any class, so nothing was learned: every mask value is the ignore index "
                f"({task.ignore_index}); correct the masks, or the ignore index of the dataset"
            )
        absent = [k for k, there in enumerate(occurs) if not there]
        counted = getattr(data, "train_split", None) in getattr(data, "label_counts", ())
        if absent and enough and trainer.is_global_zero and not counted:
            names = format_classes(absent, task.classes)
            print(f"warning: none of {crops} has a pixel of {names}, which cannot be learned", file=sys.stderr)
