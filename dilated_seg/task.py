"""The task: a network, its loss, its metrics and its optimizer, on any dataset."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning import Callback, LightningModule
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric

from dilated_seg.crf import DenseCRF
from dilated_seg.errors import UserError
from dilated_seg.inference import strategies
from dilated_seg.inference.strategies import FullImage, Inference, predict_logits
from dilated_seg.metrics import SegmentationMetrics
from dilated_seg.metrics.confusion import compute_metrics
from dilated_seg.models.release import RGB, VGG_MEAN
from dilated_seg.models.segmenter import Segmenter
from dilated_seg.tensors import Logits, Mask, predict
from dilated_seg.training.checkpoint_io import SafeCheckpointIO, describe_dataset, open_checkpoint
from dilated_seg.training.checks import check_class_weights, check_gradient, check_parameters, check_values
from dilated_seg.training.initial_weights import check_classes_of_checkpoint, fetch_initial_weights, load_initial_weights
from dilated_seg.training.labels import RequireLabels
from dilated_seg.training.param_groups import build_optimizer, schedule, step_on_plateau
from dilated_seg.weights.check import check_shapes
from dilated_seg.weights.normalization import IMAGENET_STD

# A step's loss is the sum over the valid pixels of all its batches, divided by their number N, which is known only
# after the last batch. So each batch is divided by SCALE, which keeps it in the range of 16-bit floats, and before the
# optimizer's update the accumulated gradient is corrected:
#   gradient = SCALE / N * sum over batches b of d(loss_sum_b / SCALE)
SCALE = 2.0**16


class SegmentationTask(LightningModule):
    """Semantic segmentation with one network: image in, one class a pixel out.

    ``model`` is the Segmenter that is trained: normalization, network, and the CRF if there is one.

    Args:
        net: Takes normalized RGB (B, 3, H, W), gives logits (B, C, H, W).
        num_classes: C, not counting the ignored label.
        ignore_index: The mask value that neither loss nor metrics see.
        classes: Names for the logged IoU of each class; their class ids if None.
        optimizer: Takes the weights as it says, and the biases at twice the learning rate and without decay.
        lr_scheduler: Steps once an iteration, as the papers' poly and step schedules do; a constant rate if None.
        lr_factors: Multiplies the rate of the parameters whose names start with the key, such as ``net.fc8: 10`` for DeepLab.
        class_weights: Factor of each class in the loss. The sum is divided by the number of valid pixels, as SegNet did,
            not by the sum of their weights.
        weights: To start from: a file (.safetensors as `port` writes it, .caffemodel, .npz, a torch state dict, a checkpoint),
            or the address of one with its checksum, https://...#sha256=...; or "imagenet", torchvision's for the network's
            encoder; or the directory of a finished run, or of several runs, the newest of which is taken: the stage before
            this one. Layers that it does not have start as they do without.
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
        # Objects are no hyperparameters: a checkpoint that held them could only be loaded by executing a pickle. The command
        # line saves the YAML that they were built from.
        self.save_hyperparameters(ignore=["net", "optimizer", "lr_scheduler", "crf"])
        self.classes = list(classes) if classes else [str(k) for k in range(num_classes)]
        self.num_classes, self.ignore_index = num_classes, ignore_index
        if class_weights is not None:
            check_class_weights(class_weights, self.classes)
        check_values(lr_factors or {}, mean, std)
        if crf and crf.learnable and crf.num_classes is None:
            crf.add_parameters(num_classes)
        mean_std = mean or VGG_MEAN, std or IMAGENET_STD
        self.model = Segmenter(net, self.classes, *mean_std, ignore_index=ignore_index, crf=crf)
        if compile:
            net.compile()  # in place: the names in a checkpoint stay as they are
        self.fixed = {name for name, parameter in self.model.named_parameters() if not parameter.requires_grad}
        self.optimizer, self.lr_scheduler, self.lr_factors = optimizer, lr_scheduler, lr_factors or {}
        factors = torch.tensor(class_weights, dtype=torch.float32) if class_weights is not None else None
        self.register_buffer("class_weights", factors, persistent=False)
        self.weights, self.weights_without, self.normalization = weights, weights_without, (mean, std)
        self.started = False  # whether the initial weights are loaded, or a checkpoint's are
        self.trained_steps = 0
        self.seen: list[str] = []  # the images of the batch
        self.accumulated = [0.0, 0.0]  # the loss and the valid pixels behind the gradients that are being accumulated
        self.accumulating = False  # whether there are gradients that wait for the step's other batches
        self.updating = False  # whether the optimizer's update of a step has begun and the step has not ended
        self.metrics = SegmentationMetrics(num_classes, ignore_index)
        self.refined_metrics = SegmentationMetrics(num_classes, ignore_index)
        self.mean_loss = MeanMetric()
        self.inference: Inference = FullImage()  # the inference strategy of evaluation
        self.refine: DenseCRF | None = None  # the CRF of --crf, which evaluation applies to the logits

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as Lightning's
        """Return the task that was saved, from a local or an open file, without executing or importing what it names.

        Raises:
            UserError: The file is missing or damaged, is a URL, or would have to be executed.
        """
        if kwargs.get("hparams_file") is not None:
            raise UserError(f"{kwargs['hparams_file']} is not read: give load_from_checkpoint the arguments by their names")
        with open_checkpoint(checkpoint_path) as file:
            return super().load_from_checkpoint(file, *args, **kwargs | {"weights_only": True})

    def configure_callbacks(self) -> list[Callback]:
        """Return what every training has, one that is started in Python too."""
        return [RequireLabels()]

    def prepare_data(self) -> None:
        """Download the initial weights, on one process of each machine."""
        if not self.started:
            fetch_initial_weights(self)

    def setup(self, stage: str) -> None:
        """Load the initial weights: once, and not over what a checkpoint brought or training learned."""
        self.accumulated = [0.0, 0.0]
        if self.trainer.precision == "64-true":  # Lightning converts later, after a checkpoint was rounded to float32
            self.double()
        if type(self.trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # of a Trainer built in Python: it executes pickles
            self.trainer.strategy.checkpoint_io = SafeCheckpointIO()
        if self.weights and not self.started:
            self.started = True
            load_initial_weights(self, stage)

    def forward(self, image: Tensor) -> Logits:
        """Return logits (B, C, H, W) of plain RGB (B, 3, H, W), 0 to 255, of any number type."""
        return self.model(image)

    def loss_sum(self, logits: Logits, mask: Mask) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy summed over valid pixels, and the number of valid pixels."""
        total = F.cross_entropy(logits, mask.long(), weight=self.class_weights, ignore_index=self.ignore_index, reduction="sum")
        return total, (mask != self.ignore_index).sum()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.seen, self.accumulating = batch["id"], True
        total, valid = self.loss_sum(self(batch["image"]), batch["mask"])
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
        """Log the norm of the gradient before it is clipped, and end the run before a step that would break the weights."""
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        if self.trainer.accumulate_grad_batches > 1:  # now the valid pixels of all its batches are known
            for gradient in gradients:
                gradient.mul_(SCALE / max(self.accumulated[1], 1.0))
            self.accumulated = [0.0, 0.0]
        self.accumulating = False
        norm = torch.nn.utils.get_total_norm(gradients)
        self.log("train/gradient_norm", norm)
        if self.trainer.precision != "16-mixed":  # whose scaler leaves out steps with such gradients
            check_gradient(norm, self.global_step + 1, self.seen)
        self.updating = True

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ANN401
        self.trained_steps = self.global_step

    def on_train_end(self) -> None:
        check_parameters(self.model, self.global_step)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Count a batch; return its ``matrices`` of confusion (B, C, C) and ``prediction`` (B, H, W).

        With ``refine``, return ``refined_matrices`` and ``refined_prediction`` too.
        """
        mask = batch["mask"]
        prediction, refined = torch.zeros_like(mask, dtype=torch.long), torch.zeros_like(mask, dtype=torch.long)
        for images, image in split_by_size(batch):
            bands = []
            for rows, logits in self.inference(self.model, image):
                place = images, rows, slice(image.shape[-1])
                total, valid = self.loss_sum(logits, mask[place])
                self.mean_loss.update(total / valid.clamp(min=1), weight=valid)
                prediction[place] = predict(logits)
                bands += [logits] if self.refine else []
            if self.refine:
                probabilities = self.refine(torch.cat(bands, 2).softmax(1), image)
                refined[images, : image.shape[-2], : image.shape[-1]] = predict(probabilities)
        self.metrics.update(prediction, mask)
        outputs = {"matrices": self.metrics.images, "prediction": prediction}
        if self.refine:
            self.refined_metrics.update(refined, mask)
            outputs |= {"refined_matrices": self.refined_metrics.images, "refined_prediction": refined}
        return outputs

    def on_validation_epoch_start(self) -> None:
        check_parameters(self.model, self.global_step)
        self.metrics.reset()
        self.refined_metrics.reset()
        self.mean_loss.reset()

    def on_validation_epoch_end(self) -> None:
        self.log_metrics("val")
        step_on_plateau(self)

    test_step = validation_step
    on_test_epoch_start = on_validation_epoch_start

    def on_test_epoch_end(self) -> None:
        self.log_metrics("test")

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return class ids (B, H, W), uint8."""
        prediction = torch.zeros_like(batch["mask"], dtype=torch.uint8)
        for images, image in split_by_size(batch):
            height, width = image.shape[-2:]
            if self.refine:
                logits = predict_logits(self.inference, self.model, image)
                ids = predict(self.refine(logits.softmax(1), image)).to(torch.uint8)
            else:
                ids = strategies.predict(self.inference, self.model, image)
            prediction[images, :height, :width] = ids
        return prediction

    def log_metrics(self, split: str) -> None:
        """Log the loss and the metrics of a split, also those with ``refine``."""
        self.log(f"{split}/loss", self.mean_loss.compute())
        for metrics, name in ((self.metrics, split), (self.refined_metrics, f"{split}/crf")):
            if metrics is self.metrics or self.refine:
                values = metrics.compute()
                named = {key: value for key, value in values.items() if value.ndim == 0}
                named |= {f"iou/{key}": value for key, value in zip(self.classes, values["iou"], strict=True)}
                self.log_dict({f"{name}/{key}": value for key, value in named.items()})

    def metric_names(self, split: str) -> list[str]:
        """Return the names of the metrics that an evaluation of this split logs."""
        values = [name for name, value in compute_metrics(self.metrics.matrix).items() if value.ndim == 0]
        return [f"{split}/{name}" for name in ("loss", *values, *(f"iou/{name}" for name in self.classes))]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["accumulated"] = self.accumulated
        if crf := self.model.crf:
            checkpoint["crf"] = {"init_args": crf.start | {"learnable": crf.learnable}}
        checkpoint |= describe_dataset(getattr(self.trainer, "datamodule", None))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other classes or of another network, by the first parameters that do not fit."""
        check_classes_of_checkpoint(self, checkpoint)
        state = {name.removeprefix("model."): tensor for name, tensor in checkpoint["state_dict"].items()}
        check_shapes(state, self.model.state_dict(), "the checkpoint")
        self.trained_steps, self.started = checkpoint["global_step"], True
        self.accumulated = checkpoint.get("accumulated", [0.0, 0.0])

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - Lightning's own union is no public name
        optimizer = build_optimizer(self.optimizer, self.model, self.lr_factors, self.fixed)
        if self.lr_scheduler is None:
            return {"optimizer": optimizer}
        return {"optimizer": optimizer, "lr_scheduler": schedule(self.lr_scheduler(optimizer), self.metric_names("val"))}


def split_by_size(batch: dict[str, Any]) -> Iterator[tuple[slice, Tensor]]:
    """Yield which images of a batch, and these without padding: all at once, or one by one if their sizes differ.

    The padding beside a smaller image of a batch must not change its logits.
    """
    sizes = [tuple(size) for size in batch.get("size") or [batch["mask"].shape[-2:]]]
    parts = [slice(None)] if len(set(sizes)) == 1 else [slice(i, i + 1) for i in range(len(sizes))]
    for images, (height, width) in zip(parts, sizes, strict=False):
        yield images, batch["image"][images, :, :height, :width]
