"""Ends a run that learns from nothing, and names classes that training does not show."""

import sys
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer

from dilated_seg.data.classes import format_classes
from dilated_seg.errors import UserError

# Training crops after which to judge, unless the first epoch is shorter. Where only one crop in a hundred has a label, a
# thousand crops without any have a probability of 4e-5: sparse labels are no reason to end.
CROPS = 1000


class NothingToLearnError(UserError):
    """A run has trained on no valid pixel: its parameters are worth nothing."""


class RequireLabels(Callback):
    """Look at the masks that training sees, over all processes, until the first epoch or its first thousand crops are over.

    No valid pixel among them ends the run. Classes that none of them holds are named in a warning, unless the masks of the
    dataset were counted before the first step.
    """

    def __init__(self) -> None:
        # bool (C + 1,): whether each class, or anything else, has a pixel; None when this is over
        self.occurs: torch.Tensor | None = None
        self.crops = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        task: Any = pl_module
        self.crops = 0
        begins = trainer.global_step == 0  # the rest of an epoch, after which a run continues, may be too short to tell
        self.occurs = torch.zeros(task.num_classes + 1, dtype=torch.bool, device=task.device) if begins else None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: ANN401
        if self.occurs is None:
            return
        mask, classes = batch["mask"], len(self.occurs) - 1
        # On a GPU this waits for nothing. On a CPU it takes 2 ms for a mask of 375 x 500, a hundredth of a training step.
        ids = torch.where((mask >= 0) & (mask < classes), mask.long(), classes)
        self.occurs.index_fill_(0, ids.flatten(), True)
        self.crops += len(mask) * trainer.world_size

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:  # noqa: ANN401
        if self.occurs is not None and self.crops >= CROPS:
            self.judge(trainer, f"the first {self.crops:,} training crops", enough=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.occurs is not None and self.crops:
            whole = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
            self.judge(trainer, f"the {self.crops:,} training crops", enough=whole)

    def judge(self, trainer: Trainer, where: str, enough: bool) -> None:
        """End the run if no class occurs; else name those that do not, if there were crops enough to tell.

        Raises:
            NothingToLearnError: No pixel of any class was trained on.
        """
        assert self.occurs is not None
        occurs = [number > 0 for number in trainer.strategy.reduce(self.occurs.float(), reduce_op="sum").tolist()[:-1]]
        self.occurs = None
        task, data = cast(Any, trainer.lightning_module), getattr(trainer, "datamodule", None)
        if not any(occurs):
            raise NothingToLearnError(
                f"none of {where} has a pixel of any class, so nothing was learnt: every mask value is the ignored one "
                f"({task.ignore_index}); correct the masks, or what the dataset ignores"
            )
        absent = [k for k, there in enumerate(occurs) if not there]
        counted = getattr(data, "train_split", None) in getattr(data, "label_counts", ())
        if absent and enough and trainer.is_global_zero and not counted:
            names = format_classes(absent, task.classes)
            print(f"warning: none of {where} has a pixel of {names}, which cannot be learnt", file=sys.stderr)
