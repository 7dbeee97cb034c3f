"""Every loss against its formula, written out pixel by pixel; ignored pixels; masks without any class; class weights."""

import math

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from torch import nn

from dilated_seg import losses
from dilated_seg.data import Shapes
from dilated_seg.errors import UserError
from dilated_seg.losses import (
    OHEM,
    BoundaryWeighted,
    CrossEntropy,
    Dice,
    Focal,
    Jaccard,
    Lovasz,
    Tversky,
    WeightedSum,
    prepare_loss,
)
from dilated_seg.models import DilatedNet
from dilated_seg.task import SegmentationTask

WEIGHTS = [0.5, 2.0, 1.0, 3.0]


def batch(ignored=(slice(None), slice(0, 2), slice(1, 4))):
    """Logits and masks of two images, with another number of ignored pixels in each; class 3 is in no mask."""
    logits, mask = torch.randn(2, 4, 6, 7, dtype=torch.float64, requires_grad=True), torch.randint(0, 3, (2, 6, 7))
    mask[ignored] = 255
    mask[0, 5] = 255
    return logits, mask


def pixels(logits, mask):
    """Image, row, column, class, and probabilities of every valid pixel."""
    for i, r, c in (mask != 255).nonzero().tolist():
        yield i, r, c, int(mask[i, r, c]), torch.exp(logits[i, :, r, c]) / torch.exp(logits[i, :, r, c]).sum()


def cross_entropy(logits, mask, smoothing=0.0):
    w = torch.tensor(WEIGHTS, dtype=torch.float64)
    return sum(-(1 - smoothing) * w[y] * p[y].log() - smoothing / 4 * (w * p.log()).sum() for *_, y, p in pixels(logits, mask))


def focal(logits, mask, gamma):
    return sum(-WEIGHTS[y] * (1 - p[y]) ** gamma * p[y].log() for *_, y, p in pixels(logits, mask))


def ohem(logits, mask, share):
    total = 0
    for image in range(2):
        values = sorted((-p[y].log() for i, _, _, y, p in pixels(logits, mask) if i == image), reverse=True)
        kept = values[: math.ceil(share * len(values))]
        total = total + sum(kept) / len(kept) * len(values)
    return total


def boundary(logits, mask, factor, distance):
    def near(i, r, c, y):
        window = mask[i, max(r - distance, 0) : r + distance + 1, max(c - distance, 0) : c + distance + 1]
        return bool(((window != 255) & (window != y)).any())

    return sum(-(factor if near(i, r, c, y) else 1.0) * p[y].log() for i, r, c, y, p in pixels(logits, mask))


def tversky(logits, mask, alpha, beta, groups=((0,), (1,))):
    total = 0
    for images in groups:
        values = [(y, p) for i, *_, y, p in pixels(logits, mask) if i in images]
        terms = []
        for k in {y for y, _ in values}:
            tp = sum(p[k] for y, p in values if y == k)
            fp = sum(p[k] for y, p in values if y != k)
            fn = sum(1 - p[k] for y, p in values if y == k)
            terms.append(1 - tp / (tp + alpha * fp + beta * fn))
        total = total + sum(terms) / len(terms) * len(values)
    return total


def lovasz(logits, mask):
    """Sum over the errors, from the largest, times what each adds to 1 - IoU of the pixels so far."""
    total = 0
    for image in range(2):
        values = [(y, p) for i, *_, y, p in pixels(logits, mask) if i == image]
        terms = []
        for k in {y for y, _ in values}:
            errors = sorted(((1 - p[k] if y == k else p[k], y == k) for y, p in values), key=lambda pair: -pair[0].item())
            labelled, before, term = sum(hit for _, hit in errors), 0.0, 0
            for n in range(1, len(errors) + 1):
                hits = sum(hit for _, hit in errors[:n])
                lost = 1 - (labelled - hits) / (labelled + n - hits)
                term, before = term + errors[n - 1][0] * (lost - before), lost
            terms.append(term)
        total = total + sum(terms) / len(terms) * len(values)
    return total


TOGETHER = ((0, 1),)
CASES = {
    "cross-entropy": (CrossEntropy(WEIGHTS), cross_entropy),
    "smoothed": (CrossEntropy(WEIGHTS, label_smoothing=0.1), lambda *a: cross_entropy(*a, 0.1)),
    "focal": (Focal(2.0, WEIGHTS), lambda *a: focal(*a, 2.0)),
    "focal below 1": (Focal(0.5, WEIGHTS), lambda *a: focal(*a, 0.5)),
    "ohem": (OHEM(0.3), lambda *a: ohem(*a, 0.3)),
    "boundary": (BoundaryWeighted(4.0, 1), lambda *a: boundary(*a, 4.0, 1)),
    "dice": (Dice(), lambda *a: tversky(*a, 0.5, 0.5)),
    "dice of the batch": (Dice("batch"), lambda *a: tversky(*a, 0.5, 0.5, TOGETHER)),
    "jaccard": (Jaccard(), lambda *a: tversky(*a, 1.0, 1.0)),
    "tversky": (Tversky(0.2, 0.9), lambda *a: tversky(*a, 0.2, 0.9)),
    "lovasz": (Lovasz(), lovasz),
    "sum": (WeightedSum([Focal(1.0, WEIGHTS), Dice()], [2.0, 0.5]), lambda *a: 2 * focal(*a, 1) + tversky(*a, 0.5, 0.5) / 2),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_the_formula(name):
    loss, formula = CASES[name]
    logits, mask = batch()
    (found,) = torch.autograd.grad(total := loss.double().total(logits, mask), logits)
    (gradient,) = torch.autograd.grad(expected := formula(logits, mask), logits)
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(loss(logits, mask), expected / (mask != 255).sum())


@pytest.mark.parametrize("name", CASES)
def test_ignored_pixels_change_nothing_whatever_their_value(name):
    loss, _ = CASES[name]
    logits, mask = batch()
    total = loss.double().total(logits, mask)
    total.backward()
    assert not logits.grad.permute(0, 2, 3, 1)[mask == 255].any()
    other = torch.where((mask == 255)[:, None], 7 * torch.randn_like(logits), logits)
    torch.testing.assert_close(loss.total(other, mask), total, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("images", [(0,), (0, 1)])
def test_images_without_a_class_have_loss_zero_and_no_gradient(name, images):
    loss, _ = CASES[name]
    logits, mask = batch()
    mask[list(images)] = 255
    total = loss.double().total(logits, mask)
    total.backward()
    assert total.isfinite() and logits.grad.isfinite().all()
    assert not logits.grad[list(images)].any()
    assert len(images) == 1 or total == 0


@pytest.mark.parametrize("name", [name for name in CASES if "batch" not in name])
def test_the_total_of_images_is_the_sum_of_their_totals(name):
    loss, _ = CASES[name]
    logits, mask = batch()
    apart = sum(loss.double().total(logits[i : i + 1], mask[i : i + 1]) for i in range(2))
    torch.testing.assert_close(loss.total(logits, mask), apart, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_saturated_logits_have_a_finite_gradient(name):
    loss, _ = CASES[name]
    mask = torch.randint(0, 3, (2, 6, 7))
    logits = (200.0 * F.one_hot(mask, 4).permute(0, 3, 1, 2)).double().requires_grad_()
    loss.double().total(logits, mask).backward()
    assert logits.grad.isfinite().all()


def test_evaluation_computes_a_loss_of_the_batch_over_each_image():
    logits, mask = batch()
    torch.testing.assert_close(Dice("batch").eval().total(logits, mask), Dice().total(logits, mask))


def test_the_default_loss_is_to_the_bit_what_cross_entropy_was():
    task = SegmentationTask(DilatedNet(4, None, width=1 / 32), 4, class_weights=WEIGHTS)
    logits, mask = batch()
    single = logits.float()
    before = F.cross_entropy(single, mask, weight=torch.tensor(WEIGHTS), ignore_index=255, reduction="sum")
    assert task.loss_sum(single, mask)[0].equal(before)


def test_class_weights_of_the_task_are_those_of_losses_per_pixel_without_their_own():
    own = [1.0, 1.0, 1.0, 4.0]
    loss = prepare_loss(WeightedSum([CrossEntropy(), Focal(class_weights=own), Dice()]), 255, 4, WEIGHTS)
    assert [part.class_weights.tolist() for part in list(loss.losses)[:2]] == [WEIGHTS, own]


@pytest.mark.parametrize("loss", [Dice(), Focal(class_weights=WEIGHTS), nn.CrossEntropyLoss()])
def test_class_weights_that_no_part_of_a_loss_takes_are_refused(loss):
    with pytest.raises(UserError, match=f"no part of {type(loss).__name__} takes them"):
        prepare_loss(loss, 255, 4, WEIGHTS)


def test_every_part_of_a_loss_gets_the_ignore_index_of_the_data():
    logits, mask = batch()
    expected = CrossEntropy().total(logits, mask)
    loss = prepare_loss(WeightedSum([nn.CrossEntropyLoss(), CrossEntropy()], [1.0, 0.0]), 200, 4)
    torch.testing.assert_close(loss.total(logits, mask.masked_fill(mask == 255, 200)), expected)


def test_a_loss_of_torch_is_the_mean_over_valid_pixels_and_0_without_any():
    logits, mask = batch()
    loss = prepare_loss(nn.CrossEntropyLoss(), 255, 4)
    torch.testing.assert_close(loss.total(logits, mask), CrossEntropy().total(logits, mask))
    nothing = loss.total(logits, torch.full_like(mask, 255))
    nothing.backward()
    assert nothing == 0 and not logits.grad.any()


def test_losses_of_segmentation_models_pytorch_work():
    smp = pytest.importorskip("segmentation_models_pytorch.losses")
    logits, mask = batch()
    for loss in (smp.DiceLoss("multiclass"), smp.FocalLoss("multiclass"), smp.LovaszLoss("multiclass")):
        assert prepare_loss(loss, 255, 4).total(logits, mask) > 0


class WithoutIgnoreIndex(nn.Module):
    def forward(self, logits, mask):
        return logits.sum() + mask.sum()


def test_a_loss_that_cannot_leave_out_ignored_pixels_is_refused_if_there_are_any():
    loss = prepare_loss(WithoutIgnoreIndex(), 255, 4)
    logits, mask = batch()
    with pytest.raises(UserError, match=r"masks have unlabelled pixels \(255\), which WithoutIgnoreIndex cannot leave out"):
        loss.total(logits, mask)
    assert loss.total(logits, mask.clamp(max=3)).isfinite()


def test_a_loss_of_many_values_is_refused():
    with pytest.raises(UserError, match=r"CrossEntropyLoss returned a tensor of \(2, 6, 7\), and not one value"):
        prepare_loss(nn.CrossEntropyLoss(reduction="none"), 255, 4).total(*batch())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CrossEntropy(label_smoothing=1.5), "label_smoothing=1.5 is not a number from 0 to 1"),
        (lambda: Focal(-1.0), "gamma=-1 is not"),
        (lambda: OHEM(0.0), "share=0 is not a number above 0"),
        (lambda: BoundaryWeighted(distance=0), "distance=0 is not"),
        (lambda: BoundaryWeighted(math.nan), "factor=nan is not"),
        (lambda: Tversky(beta=0.0), "beta above 0"),
        (lambda: WeightedSum([Dice()], [1.0, 2.0]), "1 losses have 2 weights"),
        (lambda: WeightedSum([]), "0 losses"),
        (lambda: WeightedSum([Dice()], [math.inf]), "not finite"),
    ],
)
def test_arguments_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_loss_with_weights_of_other_classes_is_refused():
    with pytest.raises(UserError, match=r"model\.loss: class_weights has 4 values, but there are 5 classes"):
        prepare_loss(CrossEntropy(WEIGHTS), 255, 5)


class TwoHeads(nn.Module):
    """Returns a dictionary as torchvision's networks do."""

    def __init__(self):
        super().__init__()
        self.score, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1, stride=2)

    def forward(self, image):
        return {"out": self.score(image), "aux": self.second(image)}


@pytest.mark.parametrize(("weights", "factor"), [(None, 0.4), ({"aux": 0.25}, 0.25)])
def test_auxiliary_heads_are_trained_by_their_weight(weights, factor):
    task = SegmentationTask(TwoHeads(), 4, auxiliary_weights=weights)
    image, mask = torch.randint(0, 256, (2, 3, 6, 7), dtype=torch.uint8), batch()[1]
    logits, heads = task.model(image, auxiliary=True)
    assert logits.equal(task(image))
    resized = F.interpolate(task.model.net.second(task.model.normalize(image)), (6, 7), mode="bilinear", align_corners=False)
    total, _ = task.loss_sum(logits, mask, heads)
    torch.testing.assert_close(total, task.loss_sum(logits, mask)[0] + factor * task.loss_sum(resized, mask)[0])


def test_weights_of_heads_that_the_network_lacks_are_refused():
    task = SegmentationTask(TwoHeads(), 4, auxiliary_weights={"aux1": 0.4})
    logits, heads = task.model(torch.zeros(1, 3, 6, 7), auxiliary=True)
    with pytest.raises(UserError, match="auxiliary_weights has aux1: the network's auxiliary heads are aux"):
        task.loss_sum(logits, batch()[1][:1], heads)


class Learnt(nn.Module):
    """Cross-entropy with a learnt temperature, as of weights that are learnt with the network."""

    def __init__(self):
        super().__init__()
        self.ignore_index = -1
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, logits, mask):
        return F.cross_entropy(logits * self.log_scale.exp(), mask, ignore_index=self.ignore_index) + self.log_scale**2


def test_parameters_of_a_loss_are_learnt_and_saved_with_the_network(tmp_path):
    def train(steps, checkpoint=None):
        task = SegmentationTask(nn.Conv2d(3, 8, 1), 8, loss=Learnt(), optimizer=lambda groups: torch.optim.SGD(groups, lr=0.01))
        quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}
        fit = Trainer(accelerator="cpu", max_steps=steps, limit_val_batches=0, **quiet)
        fit.fit(task, Shapes((16, 16), images=(4, 1, 1), batch_size=2, num_workers=0), ckpt_path=checkpoint, weights_only=True)
        return task, fit

    task, fit = train(1)
    fit.save_checkpoint(tmp_path / "a.ckpt")
    assert task.loss.loss.log_scale != 0
    whole, resumed = train(2)[0], train(2, tmp_path / "a.ckpt")[0]
    assert whole.loss.loss.log_scale.isfinite() and resumed.loss.loss.log_scale != task.loss.loss.log_scale


def test_every_loss_of_the_package_is_compared_with_its_formula():
    assert {type(loss).__name__ for loss, _ in CASES.values()} == set(losses.__all__)
