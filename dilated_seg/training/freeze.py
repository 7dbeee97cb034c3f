"""Staged training: parts of the network that are frozen for the first steps, or for the whole training."""

import difflib
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning

from dilated_seg.errors import UserError

NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d, torch.nn.SyncBatchNorm)


class Freeze(BaseFinetuning):
    """Freezes submodules for the first ``until`` steps, so that new layers learn first, then unfreezes them.

    A frozen batch norm normalizes by its running statistics, as in evaluation, and keeps them. To train unfrozen layers at a
    lower rate, name them in ``model.lr_factors``. With ``until`` and several processes, gradients of frozen layers are computed
    and dropped before each step: DistributedDataParallel exchanges only gradients of parameters that could learn at its start.

    Args:
        layers: Names of submodules, such as ``net.encoder``; two Freeze callbacks must not share parameters.
        until: The step at which they are unfrozen; None for never.
    """

    def __init__(self, layers: list[str], until: int | None = None) -> None:
        super().__init__()
        if not layers:
            raise UserError("Freeze: name at least one of its layers, such as net.encoder")
        self.layers, self.until = layers, until
        self.frozen: list[torch.nn.Parameter] = []
        self.norms: dict[Any, bool] = {}  # batch norms, and whether they track statistics
        self.drops_gradients = False

    @property
    def state_key(self) -> str:
        """The key that distinguishes several of these callbacks in a checkpoint."""
        return f"Freeze{(self.layers, self.until)}"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self.drops_gradients = trainer.world_size > 1 and self.until is not None
        super().setup(trainer, pl_module, stage)

    def find_parts(self, pl_module: Any) -> list[torch.nn.Module]:  # noqa: ANN401 - a SegmentationTask
        """Return the submodules that ``layers`` names.

        Raises:
            UserError: The task has no submodule of that name.
        """
        modules = dict(pl_module.model.named_modules())
        for name in self.layers:
            if name not in modules:
                near = difflib.get_close_matches(name, modules, 1)
                hint = f"did you mean {near[0]}?" if near else "name one such as net.encoder"
                raise UserError(f"Freeze: the task has no {name}: {hint}")
        return [modules[name] for name in self.layers]

    def freeze_before_training(self, pl_module: Any) -> None:  # noqa: ANN401 - a SegmentationTask
        parts, fixed = self.find_parts(pl_module), pl_module.fixed
        inside = {id(parameter) for part in parts for parameter in part.parameters()}
        for name, parameter in pl_module.model.named_parameters():
            if id(parameter) in inside and not parameter.requires_grad and name not in fixed:
                raise UserError(f"Freeze: {name} is frozen by another Freeze: name each layer once")
        self.frozen = [p for part in parts for p in part.parameters() if p.requires_grad]
        self.norms = {norm: norm.track_running_stats for norm in list_norms(parts)}
        self.freeze(parts, train_bn=False)
        if not any(p.requires_grad for p in pl_module.parameters()):
            raise UserError(f"Freeze: {', '.join(self.layers)} leave no parameter to learn: name fewer layers")
        if self.drops_gradients:
            for parameter in self.frozen:
                parameter.requires_grad = True

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        """Do nothing: layers are unfrozen by steps, not by epochs."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the batch norms of training: with several processes, others have replaced them since ``setup``.

        Lightning's hook, which restores the optimizer's groups, is not needed: all of ours exist from the start.
        """
        self.norms = dict(zip(list_norms(self.find_parts(pl_module)), self.norms.values(), strict=True))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: ANN401
        if self.frozen and self.until is not None and trainer.global_step >= self.until:
            self.unfreeze()
        for norm in self.norms:  # Lightning sets the training mode of the whole task after each validation
            norm.eval()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer) -> None:
        """Drop the gradients of frozen layers before their norm is computed: the optimizer then skips these layers."""
        if self.drops_gradients:
            for parameter in self.frozen:
                parameter.grad = None

    def unfreeze(self) -> None:
        """Make the layers trainable again."""
        for norm, tracks in self.norms.items():
            norm.track_running_stats = tracks
            norm.train()
        for parameter in self.frozen:
            parameter.requires_grad = True
        self.norms, self.frozen = {}, []

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Unfreeze all layers at the end of the fit."""
        self.unfreeze()


def list_norms(parts: list[torch.nn.Module]) -> list[Any]:
    """Return the batch norms of submodules, in order."""
    return [layer for part in parts for layer in part.modules() if isinstance(layer, NORMS)]
