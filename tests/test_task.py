"""Loss, optimiser and training of the task."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from lightning import Callback, Trainer
from safetensors.torch import save_file
from torch import nn

from dilated_seg.crf import DenseCRF
from dilated_seg.data import Shapes
from dilated_seg.data.collate import pad
from dilated_seg.errors import UserError
from dilated_seg.inference.strategies import FullImage, Tiles
from dilated_seg.metrics.confusion import compute_metrics
from dilated_seg.models import FCN, DilatedNet, SegNet
from dilated_seg.task import SegmentationTask
from dilated_seg.training import Freeze, SeedEveryStep
from dilated_seg.training.schedules import SequentialLR


def tiny(**options):
    return SegmentationTask(DilatedNet(8, None, width=1 / 32, dropout=0.0), 8, **options)


def trainer(**options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", devices=1, num_sanity_val_steps=0, **quiet, **options)


def test_ignored_pixels_give_no_gradient_and_no_loss():
    task, mask = tiny(), torch.randint(0, 8, (1, 6, 7))
    logits = torch.randn(1, 8, 6, 7, requires_grad=True)
    mask[0, :3] = 255
    total, valid = task.loss_sum(logits, mask)
    total.backward()
    assert valid == 21
    assert not logits.grad[:, :, :3].any()
    assert logits.grad[:, :, 3:].any()
    assert total.item() == pytest.approx(F.cross_entropy(logits[:, :, 3:], mask[:, 3:], reduction="sum").item(), rel=1e-5)


def test_an_image_without_valid_pixels_has_loss_zero_not_nan():
    total, valid = tiny().loss_sum(torch.randn(1, 8, 4, 4), torch.full((1, 4, 4), 255))
    assert (total / valid.clamp(min=1)).item() == 0


def test_class_weights_divide_by_the_number_of_pixels_not_by_the_weights():
    weights = [float(k + 1) for k in range(8)]
    logits, mask = torch.randn(1, 8, 5, 5), torch.randint(0, 8, (1, 5, 5))
    total, valid = tiny(class_weights=weights).loss_sum(logits, mask)
    by_hand = (F.cross_entropy(logits, mask, reduction="none") * torch.tensor(weights)[mask]).sum()
    torch.testing.assert_close(total, by_hand)
    assert valid == 25


def test_class_weights_of_another_number_are_refused():
    with pytest.raises(UserError, match="has 3 values, but there are"):
        tiny(class_weights=[1, 2, 3])


@pytest.mark.parametrize("weight", [math.inf, math.nan, -5.0, 1e39])
def test_class_weights_that_nothing_can_be_learnt_with_are_refused_by_the_name_of_the_class(weight):
    names = [f"class {k}" for k in range(8)]
    with pytest.raises(
        UserError, match=f"model.class_weights: the weight {weight:g} of class class 6 is not".replace("+", r"\+")
    ):
        tiny(class_weights=[1.0] * 6 + [weight, 1.0], classes=names)


def test_a_class_may_be_left_out_of_the_loss_but_not_all():
    logits, mask = torch.randn(1, 8, 4, 4), torch.full((1, 4, 4), 7)
    assert tiny(class_weights=[1.0] * 7 + [0.0]).loss_sum(logits, mask)[0] == 0
    with pytest.raises(UserError, match="class_weights are all 0"):
        tiny(class_weights=[0.0] * 8)


@pytest.mark.parametrize(
    "wrong", [{"lr_factors": {"net.front_end": -1.0}}, {"lr_factors": {"net": math.nan}}, {"std": (1.0, 0.0, 1.0)},
              {"mean": (1.0, math.inf, 1.0)}],
)  # fmt: skip
def test_other_numbers_that_nothing_can_be_learnt_with_are_refused_too(wrong):
    with pytest.raises(UserError, match=f"model.{next(iter(wrong))}"):
        tiny(**wrong)


def test_biases_learn_at_twice_the_rate_and_do_not_decay():
    task = tiny(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=5e-4))
    weights, biases = task.configure_optimizers()["optimizer"].param_groups
    assert (weights["lr"], weights["weight_decay"]) == (0.1, 5e-4)
    assert (biases["lr"], biases["weight_decay"]) == (0.2, 0.0)
    assert {parameter.ndim for parameter in biases["params"]} == {1}
    assert sum(len(group["params"]) for group in (weights, biases)) == len(list(task.parameters()))


def test_biases_learn_and_decay_by_the_factors_of_the_task():
    task = tiny(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1, weight_decay=5e-4), bias_lr=1.0, bias_decay=0.5)
    weights, biases = task.configure_optimizers()["optimizer"].param_groups
    assert (weights["lr"], weights["weight_decay"], biases["lr"], biases["weight_decay"]) == (0.1, 5e-4, 0.1, 2.5e-4)
    with pytest.raises(UserError, match=r"model\.bias_decay -1 is not a finite number of at least 0"):
        tiny(bias_decay=-1.0)


def test_a_factor_multiplies_the_rate_of_the_parameters_it_names():
    task = tiny(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1), lr_factors={"net.front_end.final": 10.0})
    rates = {id(p): group["lr"] for group in task.configure_optimizers()["optimizer"].param_groups for p in group["params"]}
    final = task.model.net.front_end.final
    assert (rates[id(final.weight)], rates[id(final.bias)]) == pytest.approx((1.0, 2.0))
    assert rates[id(task.model.net.front_end.encoder.stages[0][0].weight)] == pytest.approx(0.1)
    with pytest.raises(UserError, match="nothing"):
        tiny(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1), lr_factors={"net.nothing": 2.0}).configure_optimizers()


def test_the_poly_schedule_steps_once_an_iteration():
    task = tiny(
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1),
        lr_scheduler=lambda o: torch.optim.lr_scheduler.PolynomialLR(o, total_iters=4, power=0.9),
    )
    rates = []
    task.on_train_batch_start = lambda *_: rates.append(task.optimizers().param_groups[0]["lr"])
    trainer(max_steps=4, limit_val_batches=0).fit(task, Shapes((16, 16), images=(8, 1, 1), batch_size=2))
    assert rates == pytest.approx([0.1 * (1 - step / 4) ** 0.9 for step in range(4)])


def warm_up(steps, total):
    """A linear warm-up from a tenth, then poly."""
    linear = partial(torch.optim.lr_scheduler.LinearLR, start_factor=0.1, total_iters=steps)
    return [linear, partial(torch.optim.lr_scheduler.PolynomialLR, total_iters=total - steps, power=0.9)]


def warmed_rates(steps, checkpoint=None, lr_factors=None):
    """The rates of weights in a training, step by step, and its trainer."""
    task = tiny(
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1),
        lr_scheduler=lambda optimizer: SequentialLR(optimizer, warm_up(3, 7), [3]),
        lr_factors=lr_factors,
    )
    rates = []
    task.on_train_batch_start = lambda *_: rates.append([group["lr"] for group in task.optimizers().param_groups])
    fit = trainer(max_steps=steps, limit_val_batches=0)
    fit.fit(task, Shapes((16, 16), images=(14, 1, 1), batch_size=2, num_workers=0), ckpt_path=checkpoint, weights_only=True)
    return torch.tensor(rates), fit


def test_a_schedule_warms_up_and_then_follows_poly_also_after_an_interruption(tmp_path):
    expected = [0.1 * (0.1 + 0.9 * step / 3) for step in range(3)] + [0.1 * (1 - step / 4) ** 0.9 for step in range(4)]
    rates, _ = warmed_rates(7)
    torch.testing.assert_close(rates, torch.tensor([[rate, 2 * rate] for rate in expected]))
    for stop in (2, 3, 4):
        first, fit = warmed_rates(stop)
        fit.save_checkpoint(tmp_path / "stop.ckpt")
        resumed, _ = warmed_rates(7, tmp_path / "stop.ckpt")
        assert torch.cat([first, resumed]).equal(rates)


@pytest.mark.parametrize(
    ("schedulers", "milestones", "message"),
    [
        (warm_up(3, 7), [], "2 schedulers and 0 milestones"),
        (warm_up(3, 7)[:1], [], "1 schedulers"),
        ([*warm_up(3, 7), warm_up(3, 7)[0]], [5, 5], "do not ascend"),
        ([warm_up(3, 7)[0], torch.optim.lr_scheduler.ReduceLROnPlateau], [3], "ReduceLROnPlateau follows a metric"),
    ],
)
def test_schedules_that_cannot_follow_each_other_are_refused(schedulers, milestones, message):
    optimizer = torch.optim.SGD(tiny().parameters(), lr=0.1)
    with pytest.raises(UserError, match=message):
        SequentialLR(optimizer, schedulers, milestones)


def test_training_overfits_four_pictures():
    data = Shapes((32, 64), images=(4, 1, 1), batch_size=4, augmentation=None)
    task = SegmentationTask(DilatedNet(8, None, width=1 / 16, dropout=0.0), 8, optimizer=lambda g: torch.optim.Adam(g, lr=3e-3))
    batch = next(iter(data.train_dataloader()))
    fit = trainer(max_steps=80, limit_val_batches=0, gradient_clip_val=1.0)  # after 60: 0.17 to 0.25, by seed
    with torch.no_grad():
        before, _ = task.loss_sum(task(batch["image"]), batch["mask"])
    fit.fit(task, data)
    with torch.no_grad():
        after, _ = task.eval().loss_sum(task(batch["image"]), batch["mask"])
    assert after < 0.3 * before


def test_weights_that_are_not_finite_end_the_run_in_one_sentence():
    task = tiny(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1))
    nn.init.constant_(task.model.net.front_end.final.bias, torch.nan)
    with pytest.raises(UserError, match="learning rate"):
        trainer(max_steps=2, limit_val_batches=0).fit(task, Shapes((16, 16), images=(4, 1, 1), batch_size=2))


def test_a_gradient_that_is_not_finite_ends_the_run_before_the_step_and_names_the_images():
    data = Shapes((16, 16), images=(4, 1, 1), batch_size=2)
    task = tiny(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1))
    loss, before = task.loss_sum, {name: p.clone() for name, p in task.named_parameters()}
    task.loss_sum = lambda *args: (loss(*args)[0] * torch.inf, loss(*args)[1])
    fit = trainer(max_steps=2, limit_val_batches=0)
    with pytest.raises(UserError, match=r"not finite at step 1, images train\d{6}, train\d{6}: lower"):
        fit.fit(task, data)
    assert all(torch.equal(p, before[name]) for name, p in task.named_parameters())


def test_the_norm_of_the_gradient_is_logged():
    task = tiny(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1))
    fit = trainer(max_steps=1, limit_val_batches=0)
    fit.fit(task, Shapes((16, 16), images=(4, 1, 1), batch_size=2))
    expected = torch.cat([p.grad.flatten() for p in task.parameters() if p.grad is not None]).norm()
    assert fit.callback_metrics["train/gradient_norm"] == pytest.approx(expected.item(), rel=1e-4)


def test_validation_logs_scores_by_class_name():
    data = Shapes((32, 64), images=(1, 3, 1))
    task = tiny(classes=data.classes)
    logged = trainer().validate(task, data, verbose=False)[0]
    assert {"val/mean_iou", "val/pixel_accuracy", "val/mean_accuracy", "val/frequency_weighted_iou", "val/loss"} <= set(logged)
    assert "val/iou/night hill" in logged
    assert not any("crf" in name for name in logged)
    task.evaluation_crf = DenseCRF(1)
    refined = trainer().validate(task, data, verbose=False)[0]
    expected = compute_metrics(task.crf_metrics.matrix)
    assert refined["val/crf/mean_iou"] == pytest.approx(float(expected["mean_iou"]))
    assert refined["val/mean_iou"] == logged["val/mean_iou"]


def test_an_image_is_normalised_by_mean_and_deviation_of_the_network():
    task = SegmentationTask(nn.Identity(), 3, mean=(1.0, 2.0, 3.0), std=(2.0, 2.0, 4.0))
    pixel = torch.tensor([5, 4, 11], dtype=torch.uint8).view(1, 3, 1, 1)
    assert task(pixel).flatten().tolist() == [2.0, 1.0, 2.0]


def test_a_task_built_in_python_trains_batch_norm_and_reports():
    task = SegmentationTask(SegNet(8, width=1 / 16), 8, optimizer=lambda g: torch.optim.SGD(g, lr=0.01))
    trainer(max_steps=2, limit_val_batches=2).fit(task, Shapes((24, 40), images=(4, 2, 2), batch_size=2))
    assert task.trained_steps == 2


def segnet(weights=None, **options):
    return SegmentationTask(
        SegNet(8, width=0.05), 8, weights=weights, optimizer=lambda p: torch.optim.SGD(p, lr=0.01), **options
    )


@pytest.fixture
def start(tmp_path):
    """Weights of a SegNet's encoder, with a mean of their own."""
    state = {
        f"encoder.{key}": value.contiguous()
        for key, value in SegNet(8, width=0.05).encoder.state_dict().items()
        if "_bn" not in key
    }
    save_file(state, tmp_path / "start.safetensors", {"mean": "1.0 2.0 3.0", "std": "4.0 5.0 6.0"})
    return tmp_path / "start.safetensors"


DATA = {"images": (8, 2, 1), "size": (32, 48), "batch_size": 2, "num_workers": 0}


def test_weights_bring_their_own_mean_and_a_checkpoint_keeps_it(start, tmp_path, capsys):
    task, fitter = segnet(str(start)), trainer(max_steps=1, limit_val_batches=0)
    fitter.fit(task, Shapes(**DATA))
    assert "26 tensors loaded, 0 unexpected, 126 missing" in capsys.readouterr().out
    assert (task.model.mean.flatten().tolist(), task.model.std.flatten().tolist()) == ([1, 2, 3], [4, 5, 6])
    fitter.save_checkpoint(tmp_path / "a.ckpt")
    start.unlink()  # from here on nobody needs it
    again = segnet()
    trainer().validate(again, Shapes(**DATA), ckpt_path=tmp_path / "a.ckpt", weights_only=True, verbose=False)
    assert again.model.mean.flatten().tolist() == [1, 2, 3]
    assert torch.equal(again.model.net.conv1_1_D.weight, task.model.net.conv1_1_D.weight)


def test_a_mean_that_is_given_stands_over_that_of_the_weights(start):
    task = segnet(str(start), mean=(7.0, 8.0, 9.0))
    trainer(max_steps=1, limit_val_batches=0).fit(task, Shapes(**DATA))
    assert (task.model.mean.flatten().tolist(), task.model.std.flatten().tolist()) == ([7, 8, 9], [4, 5, 6])


def test_weights_can_be_evaluated_without_training(start, tmp_path):
    full = segnet()
    save_file({key: value.contiguous() for key, value in full.model.net.state_dict().items()}, tmp_path / "full.safetensors")
    with pytest.raises(UserError, match=r"input normalization .* is unknown: set model\.mean and model\.std"):
        trainer().validate(segnet(str(tmp_path / "full.safetensors")), Shapes(**DATA), verbose=False)
    task = segnet(str(tmp_path / "full.safetensors"), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    trainer().validate(task, Shapes(**DATA), verbose=False)
    assert all(torch.equal(value, full.model.net.state_dict()[key]) for key, value in task.model.net.state_dict().items())


def test_frozen_layers_stay_until_their_step_and_learn_after_it(start):
    before = {key: value.clone() for key, value in segnet(str(start)).model.net.state_dict().items()}
    states = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, task, *args):
            states.append({key: value.clone() for key, value in task.model.net.state_dict().items()})

        def on_train_start(self, trainer, task):
            before.update({key: value.clone() for key, value in task.model.net.state_dict().items()})

    task = segnet(str(start))
    trainer(max_steps=6, limit_val_batches=0, callbacks=[Freeze(["net.encoder"], until=3), Watch()]).fit(task, Shapes(**DATA))
    encoder = [key for key in before if key.startswith("encoder") and "tracked" not in key]
    decoder = [key for key in before if key.startswith("decoder") and key.endswith("weight")]
    assert all(torch.equal(states[2][key], before[key]) for key in encoder)
    assert any(not torch.equal(states[0][key], before[key]) for key in decoder)
    assert all(not torch.equal(states[5][key], before[key]) for key in encoder if "bias" not in key)


def test_a_thawed_run_that_was_interrupted_ends_with_the_same_weights(start, tmp_path):
    def run(steps, checkpoint=None):
        torch.manual_seed(0)
        task = segnet(str(start))
        callbacks = [Freeze(["net.encoder"], until=3), SeedEveryStep()]
        fitter = trainer(max_steps=steps, limit_val_batches=0, callbacks=callbacks)
        fitter.fit(task, Shapes(**DATA), ckpt_path=checkpoint, weights_only=True)
        return task, fitter

    whole, _ = run(7)
    for stop in (2, 5):
        _, fitter = run(stop)
        fitter.save_checkpoint(tmp_path / "stop.ckpt")
        resumed, _ = run(7, tmp_path / "stop.ckpt")
        assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())


def test_what_the_network_itself_holds_fixed_is_not_thawed():
    task = SegmentationTask(FCN(8, 32, "authors", 0.02), 8, optimizer=lambda p: torch.optim.SGD(p, lr=0.01))
    upscore = task.model.net.decoder.upscore.weight.clone()
    trainer(max_steps=3, limit_val_batches=0, callbacks=[Freeze(["net.encoder", "net.decoder"], until=1)]).fit(
        task, Shapes(**DATA)
    )
    assert torch.equal(task.model.net.decoder.upscore.weight, upscore)
    assert task.model.net.score_fr.weight.any()


def test_a_layer_to_freeze_that_is_none_is_named():
    with pytest.raises(UserError, match=r"the task has no net\.encodr: did you mean net\.encoder\?"):
        trainer(max_steps=1, callbacks=[Freeze(["net.encodr"])]).fit(segnet(), Shapes(**DATA))


def test_freezing_everything_is_refused():
    with pytest.raises(UserError, match="leave no parameter to learn"):
        trainer(max_steps=1, callbacks=[Freeze(["net"])]).fit(segnet(), Shapes(**DATA))


def test_weights_are_not_loaded_again_over_what_was_learnt(start):
    task, fitter = segnet(str(start)), trainer(max_steps=2, limit_val_batches=0)
    fitter.fit(task, Shapes(**DATA))
    learnt = task.model.net.encoder.stages[0].conv1_1.weight.clone()
    trainer().validate(task, Shapes(**DATA), verbose=False)
    assert torch.equal(task.model.net.encoder.stages[0].conv1_1.weight, learnt)


def test_a_frozen_batch_norm_normalises_as_in_evaluation():
    outputs, task = [], segnet()
    norm = task.model.net.encoder.stages[0].conv1_1_bn
    norm.running_mean.fill_(5.0)
    norm.running_var.fill_(9.0)
    norm.register_forward_hook(
        lambda layer, args, out: outputs.append([x.detach().clone() for x in (args[0], out, layer.bias)])
    )
    freeze = Freeze(["net.encoder"], until=2)
    trainer(max_steps=4, limit_val_batches=0, callbacks=[freeze]).fit(task, Shapes(**DATA))
    for maps, out, _ in outputs[:2]:
        torch.testing.assert_close(out, ((maps - 5) / (9 + norm.eps) ** 0.5))
    assert all((out.mean() - bias.mean()).abs() < 1e-5 for _, out, bias in outputs[2:])  # the step changes the bias
    assert norm.running_mean.abs().max() < 5


def test_a_batch_norm_that_is_exchanged_for_one_over_all_processes_stays_frozen():
    """As several GPUs have it: Lightning converts the network after the callbacks have been set up."""
    task = SegmentationTask(SegNet(8, width=0.05), 8)
    freeze = Freeze(["net.encoder"])
    freeze.freeze_before_training(task)
    task.model.net = nn.SyncBatchNorm.convert_sync_batchnorm(task.model.net)
    freeze.on_fit_start(trainer(), task)
    task.train()
    freeze.on_train_batch_start(trainer(), task, None, 0)
    training = {name: part.training for name, part in task.named_modules() if isinstance(part, nn.SyncBatchNorm)}
    assert len(training) == 25
    assert all(mode != name.startswith("model.net.encoder") for name, mode in training.items())


def test_layers_thaw_one_after_the_other_and_the_run_resumes(tmp_path):
    thawed = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, task, *args):
            stages = task.model.net.encoder.stages
            thawed.append([stages[i].get_parameter(f"conv{i + 1}_1.weight").requires_grad for i in (0, 4)])

    def run(steps, checkpoint=None):
        torch.manual_seed(0)
        gradual = [Freeze(["net.encoder.stages.4"], 1), Freeze(["net.encoder.stages.0", "net.encoder.stages.1"], 3)]
        task, fitter = segnet(), trainer(max_steps=steps, limit_val_batches=0, callbacks=[*gradual, Watch(), SeedEveryStep()])
        fitter.fit(task, Shapes(**DATA), ckpt_path=checkpoint, weights_only=True)
        return task, fitter

    whole, _ = run(5)
    assert thawed == [[False, False], [False, True], [False, True], [True, True], [True, True]]
    _, fitter = run(2)
    fitter.save_checkpoint(tmp_path / "stop.ckpt")
    resumed, _ = run(5, tmp_path / "stop.ckpt")
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())


def test_a_layer_frozen_twice_is_refused():
    twice = [Freeze(["net.encoder"], 2), Freeze(["net.encoder.stages.0"])]
    with pytest.raises(UserError, match="is frozen by another Freeze"):
        trainer(max_steps=1, callbacks=twice).fit(segnet(), Shapes(**DATA))


def test_nothing_stays_frozen_after_the_fit_it_was_asked_for():
    task = segnet()
    trainer(max_steps=1, limit_val_batches=0, callbacks=[Freeze(["net.encoder"])]).fit(task, Shapes(**DATA))
    assert all(parameter.requires_grad for parameter in task.parameters())
    assert all(layer.track_running_stats for layer in task.modules() if isinstance(layer, nn.BatchNorm2d))


def test_freezing_no_layer_is_refused():
    with pytest.raises(UserError, match="at least one"):
        Freeze([])


def test_what_stands_beside_a_smaller_image_changes_nothing():
    torch.manual_seed(0)
    task = tiny().eval()
    nn.init.normal_(task.model.net.front_end.final.weight, std=0.5)
    sizes = [(24, 40), (37, 21), (24, 40), (9, 50)]
    samples = [
        {
            "image": torch.randint(0, 256, (3, *size), dtype=torch.uint8),
            "mask": torch.randint(0, 8, size, dtype=torch.uint8),
            "id": str(i),
        }
        for i, size in enumerate(sizes)
    ]
    with torch.no_grad():
        together = task.validation_step(pad(samples), 0)
        loss = task.mean_loss.compute()
        task.mean_loss.reset()
        alone = [task.validation_step(pad([sample]), 0) for sample in samples]
    assert torch.equal(together["matrices"], torch.cat([one["matrices"] for one in alone]))
    for one, prediction, (height, width) in zip(alone, together["prediction"], sizes, strict=True):
        assert torch.equal(prediction[:height, :width], one["prediction"][0])
    torch.testing.assert_close(loss, task.mean_loss.compute())
    assert int(together["matrices"].sum()) == sum(height * width for height, width in sizes)


def noisy(sizes, classes=4):
    """A batch of pictures of these sizes, padded to the largest, and a task that says something else of every pixel."""
    task = SegmentationTask(torch.nn.Conv2d(3, classes, 3, padding=1), classes)
    height, width = (max(side) for side in zip(*sizes, strict=True))
    image = torch.randint(0, 256, (len(sizes), 3, height, width), dtype=torch.uint8)
    mask = torch.full((len(sizes), height, width), 255, dtype=torch.uint8)
    for i, (h, w) in enumerate(sizes):
        mask[i, :h, :w] = torch.randint(0, classes, (h, w))
    return task.eval(), {"image": image, "mask": mask, "size": sizes, "id": [str(i) for i in range(len(sizes))]}


@pytest.mark.parametrize("sizes", [[(20, 30), (20, 30)], [(20, 30), (9, 44), (1, 1)]])
def test_a_crf_refines_each_image_by_itself_and_both_are_counted(sizes):
    task, batch = noisy(sizes)
    task.evaluation_crf = DenseCRF(2)
    with torch.inference_mode():
        outputs = task.validation_step(batch, 0)
        predicted = task.predict_step(batch, 0)
        for i, (h, w) in enumerate(sizes):
            image = batch["image"][i : i + 1, :, :h, :w]
            expected = task.evaluation_crf(task(image).softmax(1), image).max(1).indices[0]
            assert outputs["crf_prediction"][i, :h, :w].equal(expected)
            assert outputs["prediction"][i, :h, :w].equal(task(image).max(1).indices[0])
            assert predicted[i, :h, :w].equal(expected.to(torch.uint8))
    assert not outputs["prediction"].equal(outputs["crf_prediction"])
    valid = sum(h * w for h, w in sizes)
    assert int(task.metrics.matrix.sum()) == int(task.crf_metrics.matrix.sum()) == valid


def test_tiles_count_the_loss_and_the_pixels_of_the_whole_image():
    task, batch = noisy([(90, 110), (70, 64)])
    task.double()  # tiles may be summed in another order than the image
    losses, matrices = [], []
    for inference in (FullImage(), Tiles((64, 64), 16, 4)):  # the network sees one pixel around each
        task.inference = inference
        task.metrics.reset()
        task.mean_loss.reset()
        with torch.inference_mode():
            task.validation_step(batch, 0)
        losses.append(float(task.mean_loss.compute()))
        matrices.append(task.metrics.matrix.clone())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # the mean over tiles is in float32
    assert matrices[0].equal(matrices[1])


def test_a_crf_of_the_task_learns_with_the_network_as_crf_rnn():
    task = SegmentationTask(torch.nn.Conv2d(3, 4, 1), 4, crf=DenseCRF(3, learnable=True))
    image = torch.randint(0, 256, (2, 3, 12, 17), dtype=torch.uint8)
    mask = torch.randint(0, 4, (2, 12, 17))
    logits = task(image)
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(2, 12, 17))
    total, _ = task.loss_sum(logits, mask)
    total.backward()
    for name in ("model.net.weight", "model.crf.w1", "model.crf.w2", "model.crf.compatibility"):
        assert task.get_parameter(name).grad.abs().max() > 0, name
    assert set(task.state_dict()) >= {"model.crf.w1", "model.crf.w2", "model.crf.compatibility"}


def test_a_compiled_network_has_the_same_names_and_logits():
    """Compiling itself takes a compiler and most of a minute: here torch is told to leave it."""
    torch.manual_seed(0)
    plain = SegmentationTask(DilatedNet(8, width=0.03, dropout=0.0), 8)
    compiled = SegmentationTask(DilatedNet(8, width=0.03, dropout=0.0), 8, compile=True)
    compiled.load_state_dict(plain.state_dict())
    assert compiled.model.net._compiled_call_impl is not None
    image = torch.randint(0, 256, (1, 3, 16, 24), dtype=torch.uint8)
    with torch.compiler.set_stance("force_eager"):
        assert torch.equal(compiled(image), plain(image))
