"""Staged training: parts of the network that stay as they are, for some steps or for good."""

import difflib
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning

from dilated_seg.errors import UserError

NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d, torch.nn.SyncBatchNorm)


class Freeze(BaseFinetuning):
    """Leaves parts of the task as they are for the first steps, so that new layers learn first, and then thaws them.

    A frozen batch norm normalises by its running statistics, as in evaluation, and keeps them. To train what has thawed at a
    lower rate, name it in ``model.lr_factors``. With ``until`` and several processes, gradients of frozen layers are computed
    and dropped before each step: DistributedDataParallel exchanges only gradients of what could learn when it started.

    Args:
        layers: Parts of the task by name, such as ``net.encoder``; no part of them may be frozen by another Freeze.
        until: The step at which they thaw; None for never.
    """

    def __init__(self, layers: list[str], until: int | None = None) -> None:
        super().__init__()
        if not layers:
            raise UserError("Freeze: name at least one of its layers, such as net.encoder")
        self.layers, self.until = layers, until
        self.frozen: list[torch.nn.Parameter] = []
        self.norms: dict[Any, bool] = {}  # and whether they track statistics
        self.drops_gradients = False

    @property
    def state_key(self) -> str:
        """Tells several of these callbacks apart."""
        return f"Freeze{(self.layers, self.until)}"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self.drops_gradients = trainer.world_size > 1 and self.until is not None
        super().setup(trainer, pl_module, stage)

    def parts(self, pl_module: Any) -> list[torch.nn.Module]:  # noqa: ANN401 - a SegmentationTask
        """The parts of the task that ``layers`` names."""
        found = dict(pl_module.model.named_modules())
        for name in self.layers:
            if name not in found:
                near = difflib.get_close_matches(name, found, 1)
                hint = f"did you mean {near[0]}?" if near else "name one such as net.encoder"
                raise UserError(f"Freeze: there is no {name} in the task: {hint}")
        return [found[name] for name in self.layers]

    def freeze_before_training(self, pl_module: Any) -> None:  # noqa: ANN401 - a SegmentationTask
        parts, fixed = self.parts(pl_module), pl_module.fixed
        inside = {id(parameter) for part in parts for parameter in part.parameters()}
        for name, parameter in pl_module.model.named_parameters():
            if id(parameter) in inside and not parameter.requires_grad and name not in fixed:
                raise UserError(f"Freeze: {name} is frozen by another Freeze already: name each layer once")
        self.frozen = [p for part in parts for p in part.parameters() if p.requires_grad]
        self.norms = {norm: norm.track_running_stats for norm in list_norms(parts)}
        self.freeze(parts, train_bn=False)
        if not any(p.requires_grad for p in pl_module.parameters()):
            raise UserError(f"Freeze: {', '.join(self.layers)} leave nothing to learn: name fewer layers")
        if self.drops_gradients:
            for parameter in self.frozen:
                parameter.requires_grad = True

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        """Lightning's hook for epochs: steps are what counts here."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the batch norms that training has: with several processes others have taken their places since.

        Lightning would put back the optimiser's groups as they were stored here: all of ours are there from the start.
        """
        self.norms = dict(zip(list_norms(self.parts(pl_module)), self.norms.values(), strict=True))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: ANN401
        if self.frozen and self.until is not None and trainer.global_step >= self.until:
            self.thaw()
        for norm in self.norms:  # Lightning puts the whole task into training mode again after each validation
            norm.eval()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer) -> None:
        """Drop the gradients of frozen layers, before their norm is taken: the optimizer then leaves the layers alone."""
        if self.drops_gradients:
            for parameter in self.frozen:
                parameter.grad = None

    def thaw(self) -> None:
        """Let the layers learn again."""
        for norm, tracks in self.norms.items():
            norm.track_running_stats = tracks
            norm.train()
        for parameter in self.frozen:
            parameter.requires_grad = True
        self.norms, self.frozen = {}, []

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing stays frozen beyond the fit it was asked for."""
        self.thaw()


def list_norms(parts: list[torch.nn.Module]) -> list[Any]:
    """Return the batch norms in some parts, in their order."""
    return [layer for part in parts for layer in part.modules() if isinstance(layer, NORMS)]
