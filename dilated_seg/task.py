"""The task: a network, its loss, its metrics and its optimiser, on any dataset."""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning import Callback, LightningModule
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MeanMetric

from dilated_seg.crf import DenseCRF
from dilated_seg.data.classes import first_difference
from dilated_seg.errors import UserError
from dilated_seg.inference import strategies
from dilated_seg.inference.strategies import Inference, Whole, whole
from dilated_seg.metrics import SegmentationMetrics
from dilated_seg.metrics.confusion import scores
from dilated_seg.models.layers import promote
from dilated_seg.models.segmenter import followed, normalised
from dilated_seg.runs.checkpoint import of_run
from dilated_seg.runs.trust import local_file, read_checkpoint, refuse_foreign
from dilated_seg.tensors import Image, Logits, Mask, predict
from dilated_seg.training.checkpoint_io import SafeCheckpointIO
from dilated_seg.training.labels import RequireLabels
from dilated_seg.training.monitors import check_monitor
from dilated_seg.weights import Report, imagenet, load, local, summary
from dilated_seg.weights.fill import refuse_misfit
from dilated_seg.weights.published import IMAGENET_STD, RGB, VGG_MEAN
from dilated_seg.weights.readers import names_in, without

# The Caffe solvers of all these papers: a bias learns twice as fast as a weight, and does not decay.
BIAS_RATE = 2.0

# Gradients that are accumulated over several batches are of the summed loss over this number, until all have been counted.
SCALE = 2.0**16


class SegmentationTask(LightningModule):
    """Semantic segmentation with one network: image in, one class a pixel out.

    Args:
        net: Takes normalised RGB (B, 3, H, W), gives logits (B, C, H, W).
        num_classes: C, not counting the ignored label.
        ignore_index: The mask value that neither loss nor metrics see.
        classes: Names for the logged IoU of each class; their numbers if None.
        optimizer: Takes the weights as it says, and the biases at twice the rate and without decay.
        lr_scheduler: Steps once an iteration, as the papers' poly and step schedules do; a constant rate if None.
        lr_factors: Multiplies the rate of the parameters whose names start with the key, such as ``net.fc8: 10`` for DeepLab.
        class_weights: Factor of each class in the loss. The sum is divided by the number of valid pixels, as SegNet did,
            not by the sum of their weights.
        weights: To start from: a file (.safetensors as `port` writes it, .caffemodel, .npz, a torch state dict, a checkpoint),
            or the address of one with its checksum, https://...#sha256=...; or "imagenet", torchvision's for the network's
            encoder; or the folder of a finished run, or of several runs, the newest of which is taken: the stage before this
            one. Layers that it does not have start as they do without.
            On the command line a checkpoint that is evaluated or continued has its own weights instead.
        weights_without: Layers or parts of the network that ``weights`` is not to fill, such as the scores for other classes.
        compile: Let torch compile the network, which costs some time once for every size of image: for training on crops on a
            GPU. On a CPU it gains next to nothing.
        crf: Part of what is trained and evaluated, after the network: with ``learnable: true`` this is CRF-RNN. To refine a
            network that was trained without one, evaluate it with ``--crf``.
        mean: Of each channel (RGB, 0 to 255), subtracted from the image; that of ``weights`` if None, or else ImageNet's.
        std: The image is then divided by it; as ``mean``.
    """

    class_weights: Tensor | None
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        ignore_index: int = 255,
        classes: Sequence[str] | None = None,
        optimizer: OptimizerCallable = torch.optim.SGD,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_factors: dict[str, float] | None = None,
        class_weights: Sequence[float] | None = None,
        weights: str | None = None,
        weights_without: Sequence[str] = (),
        compile: bool = False,
        crf: DenseCRF | None = None,
        mean: RGB | None = None,
        std: RGB | None = None,
    ) -> None:
        super().__init__()
        # The command line gives YAML to save, from which load_from_checkpoint rebuilds everything. Objects built in Python
        # are no hyperparameters: a checkpoint that held them could only be loaded by executing a pickle.
        self.save_hyperparameters(ignore=None if _given_hyperparameters.get() else ["net", "optimizer", "lr_scheduler", "crf"])
        if class_weights is not None:
            check_class_weights(class_weights, classes or [str(k) for k in range(num_classes)])
        check_numbers(lr_factors or {}, mean, std)
        self.net = net.to(memory_format=torch.channels_last)  # up to 4 times as fast for narrow networks on a CPU
        if compile:
            self.net.compile()  # in place: the names in a checkpoint stay as they are
        self.crf = crf
        if crf and crf.learnable and crf.num_classes is None:
            crf.learn(num_classes)
        self.trained_steps = 0
        self.seen: list[str] = []  # the images of the batch
        self.accumulated = [0.0, 0.0]  # the loss and the valid pixels behind the gradients that are being accumulated
        self.updating = False  # whether the optimizer's update of a step has begun and the step has not ended
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.classes = list(classes) if classes else [str(k) for k in range(num_classes)]
        self.optimizer, self.lr_scheduler, self.lr_factors = optimizer, lr_scheduler, lr_factors or {}
        factors = torch.tensor(class_weights, dtype=torch.float32) if class_weights is not None else None
        self.register_buffer("class_weights", factors, persistent=False)
        self.weights, self.normalisation, self.started = weights, (mean, std), False
        self.weights_without = weights_without
        self.register_buffer("mean", torch.tensor(mean or VGG_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std or IMAGENET_STD).view(3, 1, 1))
        self.fixed = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        self.metrics = SegmentationMetrics(num_classes, ignore_index)
        self.refined_metrics = SegmentationMetrics(num_classes, ignore_index)
        self.inference: Inference = Whole()  # how evaluation looks at an image, and what refines its scores if anything does
        self.refine: DenseCRF | None = None
        self.mean_loss = MeanMetric()

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,  # noqa: ANN401
        map_location: Any = None,  # noqa: ANN401
        hparams_file: Any = None,  # noqa: ANN401
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401 - the Self of a class method is nothing that beartype checks
        """The task that was saved, as Lightning builds it, from a local file or one that is open.

        No pickle is executed, whatever ``weights_only`` and torch's environment variables say, and nothing is imported because
        a checkpoint names it.

        Raises:
            UserError: The file is missing or damaged, is an address, or would have to be executed.
        """
        if hparams_file is not None:
            raise UserError(f"{hparams_file} is not read: give load_from_checkpoint the arguments by their names")
        if isinstance(checkpoint_path, str | PathLike):
            with local_file(checkpoint_path).open("rb") as file:
                return cls.load_from_checkpoint(file, map_location, strict=strict, **kwargs)
        name = getattr(checkpoint_path, "name", "the checkpoint")
        refuse_foreign(read_checkpoint(checkpoint_path, name), name)
        checkpoint_path.seek(0)
        with without("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
            return super().load_from_checkpoint(checkpoint_path, map_location, strict=strict, weights_only=True, **kwargs)

    def configure_callbacks(self) -> list[Callback]:
        """Return what every training has, one that is started in Python too."""
        return [RequireLabels()]

    def differing_class(self, names: Sequence[str] | None, place: str) -> str | None:
        """Return a clause that names the first class in which weights and data differ, or None.

        Args:
            names: Of the weights' classes, None if they do not say.
            place: Where the weights are.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        ours = getattr(data, "classes", None) or self.hparams.get("classes")
        if not names or not ours:
            return None
        where = getattr(data, "names_source", None) or type(data or self).__name__
        return first_difference(names, [str(name) for name in ours], f"in {place}", f"in {where}")

    def require_classes_of(self, report: Report, file: str) -> None:
        """Refuse weights whose layers that score classes were taken, if these are other classes.

        Such a layer is one of as many channels as there are classes. If ``weights_without`` leaves out any, it is meant.

        Raises:
            UserError: The file says that its classes are others.
        """
        sizes = {name: tuple(tensor.shape[:1]) for name, tensor in self.net.state_dict().items()}
        scoring = [ours for _, _, ours, _ in report.taken if sizes[ours] == (self.num_classes,)]
        started = [name for name, _ in report.missing if sizes[name] == (self.num_classes,)]
        meant = any(not set(name.split(".")).isdisjoint(self.weights_without) for name in started)
        if scoring and not meant and (difference := self.differing_class(report.classes, file)):
            layer = scoring[-1].split(".")[-2]
            raise UserError(
                f"model.weights: {difference}: name {layer} in model.weights_without if its scores are to start anew for other "
                "classes, or give the data the names and the order of those weights"
            )

    def prepare_data(self) -> None:
        """On one process of each machine: have the weights at hand."""
        if self.weights == "imagenet" and not self.started:
            imagenet(self.net)
        elif self.weights and not self.started:
            local(self.weights)

    def setup(self, stage: str) -> None:
        """Start from ``weights``: once, and not over what a checkpoint brought or training learnt."""
        self.accumulated = [0.0, 0.0]
        if self.trainer.precision == "64-true":  # Lightning converts later, after a checkpoint was rounded to float32
            self.double()
        if type(self.trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # of a Trainer built in Python: it executes pickles
            self.trainer.strategy.checkpoint_io = SafeCheckpointIO()
        if not self.weights or self.started:
            return
        self.started = True
        file = of_run(Path(self.weights)) if Path(self.weights).is_dir() else self.weights
        report, mean, std = load(self.net, file, self.weights_without)
        self.require_classes_of(report, str(file))
        if report.missing and stage != "fit":
            raise UserError(
                f"model.weights {self.weights} leaves {len(report.missing)} tensors of the network untrained, such as "
                f"{report.missing[0][0]}: evaluate a trained checkpoint with --ckpt_path"
            )
        if report.on_the_image and None in (mean or self.normalisation[0], std or self.normalisation[1]):
            raise UserError(
                f"model.weights {self.weights}: nobody wrote down what these weights subtract from the image: "
                "say model.mean and model.std (RGB, 0 to 255), or port the file with --mean"
            )
        for ours, theirs, given in zip((self.mean, self.std), (mean, std), self.normalisation, strict=True):
            if theirs and not given:
                ours.copy_(torch.tensor(theirs).view(3, 1, 1))
        if self.trainer.is_global_zero:
            print(f"{file}: {summary(report)}", flush=True)
            mean, std = (tuple(round(n, 3) for n in numbers.flatten().tolist()) for numbers in (self.mean, self.std))
            print(f"input: RGB from 0 to 255, minus {mean}, over {std}", flush=True)

    def forward(self, image: Tensor) -> Logits:
        """Logits (B, C, H, W) of plain RGB (B, 3, H, W), 0 to 255, of any number type."""
        return followed(self.crf, promote(self.net(self.normalised(image))), image)

    def normalised(self, image: Tensor) -> Image:
        """What the network takes, of plain RGB (B, 3, H, W), 0 to 255."""
        return normalised(image, self.mean, self.std).contiguous(memory_format=torch.channels_last)

    def loss_sum(self, logits: Logits, mask: Mask) -> tuple[Tensor, Tensor]:
        """Cross-entropy summed over valid pixels, and how many these are."""
        total = F.cross_entropy(logits, mask.long(), weight=self.class_weights, ignore_index=self.ignore_index, reduction="sum")
        return total, (mask != self.ignore_index).sum()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.seen = batch["id"]
        if "scores" in batch:  # CachedFrontEnd has them from the image
            logits = promote(self.net.finish(batch["scores"], *batch["mask"].shape[-2:]))  # type: ignore[operator]
        else:
            logits = self(batch["image"])
        total, valid = self.loss_sum(logits, batch["mask"])
        everywhere = self.trainer.strategy.reduce(torch.stack([total.detach(), valid.float()]), reduce_op="sum")
        # Gradients are averaged over processes: times their number, the loss is the sum over all, over all valid pixels.
        total = total * self.trainer.world_size
        if self.trainer.accumulate_grad_batches == 1:
            self.log("train/loss", everywhere[0] / everywhere[1].clamp(min=1), prog_bar=True)
            return total / everywhere[1].clamp(min=1)
        self.accumulated = [before + now for before, now in zip(self.accumulated, everywhere.tolist(), strict=True)]
        self.log("train/loss", self.accumulated[0] / max(self.accumulated[1], 1.0), prog_bar=True)
        return total * self.trainer.accumulate_grad_batches / SCALE  # Lightning divides by their number

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the norm of the gradient before it is clipped, and end the run before a step that would break the weights.

        Raises:
            UserError: The gradient is infinite or NaN; with 16-bit floats, whose scaler leaves out such steps, never.
        """
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        if self.trainer.accumulate_grad_batches > 1:  # now the valid pixels of all its batches are known
            torch._foreach_mul_(gradients, SCALE / max(self.accumulated[1], 1.0))
            self.accumulated = [0.0, 0.0]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.log("train/gradient_norm", norm)
        if self.trainer.precision != "16-mixed" and not torch.isfinite(norm):
            raise UserError(
                f"the gradient is not finite at step {self.global_step + 1}, images {', '.join(self.seen)}: lower "
                "model.optimizer's learning rate or set trainer.gradient_clip_val; the checkpoints before it are whole"
            )
        self.updating = True

    def refuse_broken_weights(self) -> None:
        """End a run whose weights are no numbers any more, before anybody evaluates or saves them.

        Raises:
            UserError: A parameter is infinite or NaN.
        """
        for name, parameter in self.named_parameters():
            if not torch.isfinite(parameter).all():
                raise UserError(
                    f"{name} is not finite after step {self.global_step}: lower model.optimizer's learning rate "
                    "or set trainer.gradient_clip_val"
                )

    def each_size(self, batch: dict[str, Any]) -> Iterator[tuple[slice, Tensor]]:
        """Which images of a batch, and these without padding: all of them at once, or one by one if their sizes differ.

        What stands beside a smaller image in its batch must not change what the network says of it.
        """
        sizes = [tuple(size) for size in batch.get("size") or [batch["mask"].shape[-2:]]]
        groups = (
            [(slice(None), sizes[0])] if len(set(sizes)) == 1 else [(slice(i, i + 1), size) for i, size in enumerate(sizes)]
        )
        for some, (height, width) in groups:
            yield some, batch["image"][some, :, :height, :width]

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Count a batch; gives its ``matrices`` of confusion (B, C, C) and ``prediction`` (B, H, W).

        With a CRF to refine them, ``refined_matrices`` and ``refined_prediction`` too.
        """
        mask = batch["mask"]
        prediction, refined = torch.zeros_like(mask, dtype=torch.long), torch.zeros_like(mask, dtype=torch.long)
        for some, image in self.each_size(batch):
            scores = []
            for rows, logits in self.inference(self, image):
                here = some, rows, slice(image.shape[-1])
                total, valid = self.loss_sum(logits, mask[here])
                self.mean_loss.update(total / valid.clamp(min=1), weight=valid)
                prediction[here] = predict(logits)
                scores += [logits] if self.refine else []
            if self.refine:
                probabilities = self.refine(torch.cat(scores, 2).softmax(1), image)
                refined[some, : image.shape[-2], : image.shape[-1]] = predict(probabilities)
        self.metrics.update(prediction, mask)
        outputs = {"matrices": self.metrics.images, "prediction": prediction}
        if self.refine:
            self.refined_metrics.update(refined, mask)
            outputs |= {"refined_matrices": self.refined_metrics.images, "refined_prediction": refined}
        return outputs

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ANN401
        self.trained_steps = self.global_step

    def on_train_end(self) -> None:
        self.refuse_broken_weights()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["accumulated"] = self.accumulated
        if self.crf:
            checkpoint["crf"] = {"init_args": self.crf.start | {"learnable": self.crf.learnable}}
        data: Any = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "palette"):  # for those who use the network without it
            checkpoint["dataset"] = {
                "name": type(data).__name__, "classes": list(data.classes), "palette": [tuple(c) for c in data.palette],
                "ignore_index": data.ignore_index, "submitted": list(data.submitted) if data.submitted else None,
            }  # fmt: skip

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another network, by the first parameters that do not fit."""
        if self._trainer is not None:  # where there is none, there are no data
            place = str(self.trainer.ckpt_path or "the checkpoint")
            if difference := self.differing_class(names_in(checkpoint), place):
                raise UserError(
                    f"{difference}: give the data the names and the order of the checkpoint; for other classes, start from its "
                    "weights with model.weights, without the layers in model.weights_without that score classes"
                )
        refuse_misfit(checkpoint["state_dict"], self.state_dict(), "the checkpoint")
        self.trained_steps, self.started = checkpoint["global_step"], True
        self.accumulated = checkpoint.get("accumulated", [0.0, 0.0])

    def on_validation_epoch_start(self) -> None:
        self.refuse_broken_weights()
        self.metrics.reset()
        self.refined_metrics.reset()
        self.mean_loss.reset()

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")
        self.step_on_plateau()

    test_step = validation_step
    on_test_epoch_start = on_validation_epoch_start

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Class ids (B, H, W), uint8."""
        prediction = torch.zeros_like(batch["mask"], dtype=torch.uint8)
        for some, image in self.each_size(batch):
            height, width = image.shape[-2:]
            if self.refine:
                ids = predict(self.refine(whole(self.inference, self, image).softmax(1), image)).to(torch.uint8)
            else:
                ids = strategies.predict(self.inference, self, image)
            prediction[some, :height, :width] = ids
        return prediction

    def _log_scores(self, split: str) -> None:
        self.log(f"{split}/loss", self.mean_loss.compute())
        for metrics, name in ((self.metrics, split), (self.refined_metrics, f"{split}/crf")):
            if metrics is self.metrics or self.refine:
                values = metrics.compute()
                named = {key: value for key, value in values.items() if value.ndim == 0}
                named |= {f"iou/{key}": value for key, value in zip(self.classes, values["iou"], strict=True)}
                self.log_dict({f"{name}/{key}": value for key, value in named.items()})

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - Lightning's own union is no public name
        groups: dict[float, tuple[list[Tensor], list[Tensor]]] = {}
        for name, parameter in self.named_parameters():
            if name not in self.fixed:  # those that a callback has frozen for now are among them
                factors = [factor for prefix, factor in self.lr_factors.items() if name.startswith(prefix)]
                groups.setdefault(factors[0] if factors else 1.0, ([], []))[name.endswith("bias")].append(parameter)
        if unused := [p for p in self.lr_factors if not any(name.startswith(p) for name, _ in self.named_parameters())]:
            raise UserError(f"model.lr_factors names {unused[0]}, but no parameter of the network starts so")
        optimizer = self.optimizer(
            [
                group
                for weights, biases in groups.values()
                for group in ({"params": weights}, {"params": biases, "weight_decay": 0.0})
            ]
        )
        for group, factor in zip(optimizer.param_groups, (f * b for f in groups for b in (1.0, BIAS_RATE)), strict=True):
            group["lr"] *= factor
        if self.lr_scheduler is None:
            return {"optimizer": optimizer}
        scheduler = self.lr_scheduler(optimizer)
        scheme: dict[str, Any] = {"scheduler": scheduler, "interval": "step"}
        if isinstance(scheduler, ReduceLROnPlateau):  # steps by what a validation finds: step_on_plateau
            monitor = getattr(scheduler, "monitor", "val/loss")
            check_monitor("ReduceLROnPlateau", monitor, scheduler.mode, self.metric_names("val"))
            scheme |= {"monitor": monitor, "frequency": sys.maxsize}
        return {"optimizer": optimizer, "lr_scheduler": scheme}

    def step_on_plateau(self) -> None:
        """Let a scheduler that watches a metric see what the validation found, before a checkpoint is saved."""
        if self.trainer.state.fn != TrainerFn.FITTING or self.trainer.sanity_checking:
            return
        for scheme in self.trainer.lr_scheduler_configs:
            if scheme.reduce_on_plateau and scheme.monitor in self.trainer.callback_metrics:
                self.lr_scheduler_step(scheme.scheduler, self.trainer.callback_metrics[scheme.monitor])

    def metric_names(self, split: str) -> list[str]:
        """The metrics that an evaluation of this split logs."""
        values = [name for name, value in scores(self.metrics.matrix).items() if value.ndim == 0]
        return [f"{split}/{name}" for name in ("loss", *values, *(f"iou/{name}" for name in self.classes))]


def check_class_weights(weights: Sequence[float], classes: Sequence[str]) -> None:
    """Require one factor of the loss for each class: zero leaves a class out.

    Raises:
        UserError: There are more or fewer, one is negative or not finite in single precision, or all are zero.
    """
    if len(weights) != len(classes):
        raise UserError(f"model.class_weights has {len(weights)} numbers, but there are {len(classes)} classes")
    for name, weight in zip(classes, weights, strict=True):
        if not 0 <= weight <= torch.finfo(torch.float32).max:  # NaN neither
            raise UserError(
                f"model.class_weights: the weight {weight:g} of class {name} is not a finite number from 0 on: "
                "0 leaves a class out of the loss, such as one that no training mask holds"
            )
    if not any(weights):
        raise UserError("model.class_weights are all 0: no class would count in the loss, give at least one a number above 0")


def check_numbers(lr_factors: Mapping[str, float], mean: RGB | None, std: RGB | None) -> None:
    """Require numbers that can be trained with.

    Raises:
        UserError: A factor of the learning rate or a mean is not finite, or a factor negative, or a deviation not above 0.
    """
    for name, factor in lr_factors.items():
        if not 0 <= factor < math.inf:
            raise UserError(f"model.lr_factors: {name}: {factor:g} is not a finite number from 0 on")
    if mean and not all(math.isfinite(number) for number in mean):
        raise UserError(f"model.mean {list(mean)}: three finite numbers are needed (RGB, 0 to 255)")
    if std and not all(0 < number < math.inf for number in std):
        raise UserError(f"model.std {list(std)}: three finite numbers above 0 are needed (RGB, 0 to 255)")
