"""The task: a network, its loss, its metrics and its optimizer, on any dataset."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric

from dilated_seg.crf import DenseCRF
from dilated_seg.data.class_weights import Method
from dilated_seg.inference.batch import Place, segment_batch
from dilated_seg.inference.strategies import FullImage, Inference
from dilated_seg.losses import prepare_loss, weigh_heads
from dilated_seg.metrics import SegmentationMetrics
from dilated_seg.metrics.confusion import compute_metrics, name_metrics
from dilated_seg.models.segmenter import Segmenter
from dilated_seg.tensors import Logits, Mask
from dilated_seg.training.checkpoint_io import describe_task, open_checkpoint, read_safely
from dilated_seg.training.checks import check_arguments, check_gradient, check_parameters, read_classes, require_measured
from dilated_seg.training.initial_weights import check_checkpoint, fetch_initial_weights, load_initial_weights
from dilated_seg.training.labels import RequireLabels
from dilated_seg.training.param_groups import configure
from dilated_seg.training.schedules import step_on_plateau
from dilated_seg.weights.normalization import get_default_normalization

# A step's loss is the sum over the valid pixels of all its batches, divided by their number N, which is known only
# after the last batch. So each batch is divided by SCALE, which keeps it in the range of 16-bit floats, and before the
# optimizer's update the accumulated gradient is corrected:
#   gradient = SCALE / N * sum over batches b of d(loss_sum_b / SCALE)
SCALE = 2.0**16


class SegmentationTask(LightningModule):
    """Semantic segmentation with one network: image in, one class per pixel out.

    Args:
        net: Maps normalized RGB (B, 3, H, W) to logits (B, C, H, W), or to one of the forms of `models.outputs`.
        num_classes: C, not counting the ignore index; not needed with ``data``.
        ignore_index: The mask value of pixels that loss and metrics ignore.
        classes: Class names, under which the IoU of each class is logged; class ids if None.
        optimizer: Builds the optimizer. Its learning rate and weight decay apply to weights; for biases see below.
        lr_scheduler: Builds the schedule, which steps once per iteration; the learning rate is constant if None.
        bias_lr: Factor of the learning rate of biases, including those of batch norm; 2 in the papers' Caffe solvers.
        bias_decay: Factor of the weight decay of biases; 0 in those solvers.
        lr_factors: Factors of the learning rate, by a prefix of parameter names: ``{net.fc8: 10}``.
        loss: A loss of logits (B, C, H, W) and class ids (B, H, W), from `dilated_seg.losses` or another library; its
            ``ignore_index`` is set to that of the task. Cross-entropy if None.
        auxiliary_weights: Factors of the losses of auxiliary heads, such as {aux: 0.5}; 0.4 each (PSPNet) if None.
        class_weights: Factor of each class in losses per pixel without ``class_weights`` of their own. The loss is divided by
            the number of pixels, not by the sum of their weights. ``fit`` counts them in the training masks if this is the name
            of a method of `dilated_seg.data.class_weights`.
        weights: Initial weights: a file (.safetensors of `port`, .caffemodel, .npz, a torch state dict, a checkpoint); its URL
            with a checksum, https://...#sha256=...; "imagenet" for torchvision's weights of the encoder; or a directory of
            runs, of which the last one to finish is used. Ignored if a checkpoint is evaluated or training continues from one.
        weights_without: Layers that keep their random values, such as the last layer if the weights have other classes.
        compile: Whether to compile the network with torch, once per image size: faster on GPUs, not on CPUs.
        crf: A CRF that is trained with the network (CRF-RNN if ``learnable``). ``--crf`` is for networks without one.
        mean: Mean of each channel (RGB, 0 to 255). If None, that of ``weights``, else of an encoder of timm, else VGG-16's; of
            images that are not RGB, ``fit`` measures it in the training images.
        std: Standard deviation of each channel. If None, likewise, or else ImageNet's.
        data: Data module whose classes and ignore index the task takes; for Python, as YAML needs none.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int | None = None,
        ignore_index: int = 255,
        classes: Sequence[str] | None = None,
        optimizer: OptimizerCallable = torch.optim.SGD,
        lr_scheduler: LRSchedulerCallable | None = None,
        bias_lr: float = 2.0,
        bias_decay: float = 0.0,
        lr_factors: dict[str, float] | None = None,
        loss: nn.Module | None = None,
        auxiliary_weights: dict[str, float] | None = None,
        class_weights: Sequence[float] | Method | None = None,
        weights: str | None = None,
        weights_without: Sequence[str] = (),
        compile: bool = False,
        crf: DenseCRF | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        data: Any = None,  # noqa: ANN401 - a SegmentationDataModule, or any other with these attributes
    ) -> None:
        super().__init__()
        num_classes, ignore_index, classes = read_classes(data, num_classes, ignore_index, classes)
        # Not the objects: a checkpoint with them could only be loaded by executing a pickle.
        self.save_hyperparameters(ignore=["net", "loss", "optimizer", "lr_scheduler", "crf", "data"])
        self.classes = list(classes) if classes else [str(k) for k in range(num_classes)]
        self.num_classes, self.ignore_index = num_classes, ignore_index
        numbers = require_measured(data, class_weights, mean, std)
        check_arguments(self.classes, numbers, {"bias_lr": bias_lr, "bias_decay": bias_decay}, lr_factors or {}, mean, std)
        if crf and crf.learnable and crf.num_classes is None:
            crf.add_parameters(num_classes)
        default = get_default_normalization(net)
        self.model = Segmenter(net, self.classes, mean or default[0], std or default[1], ignore_index=ignore_index, crf=crf)
        if compile:
            net.compile()  # in place, so that the names in checkpoints stay the same
        self.fixed = {name for name, parameter in self.model.named_parameters() if not parameter.requires_grad}
        self.optimizer, self.lr_scheduler, self.lr_factors = optimizer, lr_scheduler, lr_factors or {}
        self.bias_factors = bias_lr, bias_decay
        self.loss, self.auxiliary_weights = prepare_loss(loss, ignore_index, num_classes, numbers), auxiliary_weights
        self.weights, self.weights_without, self.normalization = weights, weights_without, (mean, std)
        self.weights_loaded, self.trained_steps = False, 0  # loaded: initial weights or a checkpoint
        self.batch_ids: list[str] = []  # image ids of the last training batch
        self.accumulated = [0.0, 0.0]  # sums over the batches of the current step: loss, valid pixels
        self.accumulating = self.updating = False  # whether a step has gradients but no update; whether its update runs
        self.metrics, self.crf_metrics = (SegmentationMetrics(num_classes, ignore_index) for _ in range(2))
        self.mean_loss = MeanMetric()
        self.inference: Inference = FullImage()  # for evaluation and prediction
        self.evaluation_crf: DenseCRF | None = None  # --crf: evaluation applies it to the model's probabilities

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as Lightning's
        """Load a task from a path or an open file. Nothing is executed or imported.

        Raises:
            UserError: The file is missing, damaged, a URL, or needs code to be executed.
        """
        with open_checkpoint(checkpoint_path, **kwargs) as file:
            return super().load_from_checkpoint(file, *args, **kwargs | {"weights_only": True})

    def configure_callbacks(self) -> list[Callback]:
        """Return the callbacks that Lightning adds to every Trainer, also to one that is built in Python."""
        return [RequireLabels()]

    def prepare_data(self) -> None:
        """Download the initial weights, in one process per machine."""
        if not self.weights_loaded:
            fetch_initial_weights(self)

    def setup(self, stage: str) -> None:
        """Load the initial weights, unless they or those of a checkpoint are loaded already."""
        self.accumulated = [0.0, 0.0]
        if self.trainer.precision == "64-true":  # Lightning converts only after a checkpoint was loaded as float32
            self.double()
        read_safely(self.trainer)
        if self.weights and not self.weights_loaded:
            self.weights_loaded = True
            load_initial_weights(self, stage)

    def forward(self, image: Tensor) -> Logits:
        """Return logits (B, C, H, W) of RGB images (B, 3, H, W), 0 to 255, of any dtype."""
        return self.model(image)

    def loss_sum(self, logits: Logits, mask: Mask, heads: Mapping[str, Logits] | None = None) -> tuple[Tensor, Tensor]:
        """Return the loss summed over valid pixels, including that of auxiliary heads, and the number of valid pixels."""
        weighted = weigh_heads(heads, self.auxiliary_weights) if heads is not None else []
        total = sum((w * self.loss.total(head, mask) for w, head in weighted), self.loss.total(logits, mask))
        return total, (mask != self.ignore_index).sum()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.batch_ids, self.accumulating = batch["id"], True
        logits, heads = self.model(batch["image"], auxiliary=True)
        total, valid = self.loss_sum(logits, batch["mask"], heads)
        sums = self.trainer.strategy.reduce(torch.stack([total.detach(), valid.float()]), reduce_op="sum")
        # DDP averages gradients over processes, but the loss is a sum over all of them.
        total = total * self.trainer.world_size
        if self.trainer.accumulate_grad_batches == 1:
            self.log("train/loss", sums[0] / sums[1].clamp(min=1), prog_bar=True)
            return total / sums[1].clamp(min=1)
        self.accumulated = [before + now for before, now in zip(self.accumulated, sums.tolist(), strict=True)]
        self.log("train/loss", self.accumulated[0] / max(self.accumulated[1], 1.0), prog_bar=True)
        return total * self.trainer.accumulate_grad_batches / SCALE  # Lightning divides by the number of batches

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the norm of the gradient before clipping, and raise UserError if it is not finite."""
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        if self.trainer.accumulate_grad_batches > 1:  # the number of valid pixels of the step is known now
            for gradient in gradients:
                gradient.mul_(SCALE / max(self.accumulated[1], 1.0))
            self.accumulated = [0.0, 0.0]
        self.accumulating = False
        norm = torch.nn.utils.get_total_norm(gradients)
        self.log("train/gradient_norm", norm)
        if self.trainer.precision != "16-mixed":  # the gradient scaler skips such steps
            check_gradient(norm, self.global_step + 1, self.batch_ids)
        self.updating = True

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ANN401
        self.trained_steps = self.global_step

    def on_train_end(self) -> None:
        check_parameters(self.model, self.global_step)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Add a batch to the metrics; return its confusion matrices (B, C, C) and predicted class ids (B, H, W).

        The keys are ``matrices`` and ``prediction``, with ``evaluation_crf`` also ``crf_matrices`` and ``crf_prediction``.
        """

        def add_loss(logits: Logits, place: Place) -> None:
            total, valid = self.loss_sum(logits, batch["mask"][place])
            self.mean_loss.update(total / valid.clamp(min=1), weight=valid)

        prediction, crf_prediction = segment_batch(self.model, batch, self.inference, self.evaluation_crf, add_loss)
        self.metrics.update(prediction, batch["mask"])
        outputs = {"matrices": self.metrics.images, "prediction": prediction}
        if crf_prediction is not None:
            self.crf_metrics.update(crf_prediction, batch["mask"])
            outputs |= {"crf_matrices": self.crf_metrics.images, "crf_prediction": crf_prediction}
        return outputs

    def on_validation_epoch_start(self) -> None:
        check_parameters(self.model, self.global_step)
        for metric in (self.metrics, self.crf_metrics, self.mean_loss):
            metric.reset()

    def on_validation_epoch_end(self) -> None:
        self.log_metrics("val")
        step_on_plateau(self)

    test_step = validation_step
    on_test_epoch_start = on_validation_epoch_start

    def on_test_epoch_end(self) -> None:
        self.log_metrics("test")

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return predicted class ids (B, H, W), uint8."""
        prediction, crf_prediction = segment_batch(self.model, batch, self.inference, self.evaluation_crf)
        return (prediction if crf_prediction is None else crf_prediction).to(torch.uint8)

    def log_metrics(self, split: str) -> None:
        """Log the loss and the metrics of a split, with and without ``evaluation_crf``."""
        self.log(f"{split}/loss", self.mean_loss.compute())
        for metrics, name in ((self.metrics, split), (self.crf_metrics, f"{split}/crf")):
            if metrics is self.metrics or self.evaluation_crf:
                self.log_dict({f"{name}/{key}": value for key, value in name_metrics(metrics.compute(), self.classes).items()})

    def metric_names(self, split: str) -> list[str]:
        """Return the names of the metrics that an evaluation of a split logs."""
        values = name_metrics(compute_metrics(self.metrics.matrix), self.classes)
        return [f"{split}/{name}" for name in ("loss", *values)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint |= {"accumulated": self.accumulated, **describe_task(self)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint has the same classes and network."""
        check_checkpoint(self, checkpoint)
        self.trained_steps, self.weights_loaded = checkpoint["global_step"], True
        self.accumulated = checkpoint.get("accumulated", [0.0, 0.0])

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - Lightning's union type is not public
        return configure(self)
