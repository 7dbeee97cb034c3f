"""What only a device shows, on one GPU or several: `python experiments/gpu.py` runs these tests there.

DILATED_SEG_TEST_DEVICE=cpu rehearses them without a GPU, which `make test` leaves out: its other tests are of the CPU.
"""

import importlib.util
import os

import numpy as np
import pytest
import torch

from dilated_seg.crf import DenseCRF
from dilated_seg.metrics import SegmentationMetrics
from dilated_seg.models import DilatedNet, SegNet
from dilated_seg.runs import Run
from tests.support.commands import TINY, run_command, run_process

DEVICE = os.environ.get("DILATED_SEG_TEST_DEVICE", "cuda" if torch.cuda.is_available() else "")
ACCELERATOR = ("--trainer.accelerator", "gpu" if DEVICE == "cuda" else "cpu")
pytestmark = pytest.mark.skipif(not DEVICE, reason="no GPU")
one_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")


def fit(directory, *options, run=run_command):
    """Train a small network for some steps, evaluate it, and return its run."""
    result = run("fit", *TINY, *ACCELERATOR, "--evaluate", "val", "--run_dir", directory, *options)
    assert result.returncode == 0, result.stderr[-3000:]
    return Run(directory)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that was trained and evaluated on the device."""
    return fit(tmp_path_factory.mktemp("gpu") / "run")


def test_evaluations_repeat_and_their_counts_add_up(trained):
    first = trained.evaluation("val-last")
    assert (first.strata.matrices() == first.images[1]).all()  # read before they are replaced
    result = run_command("validate", trained.path, "--checkpoint", "last", *ACCELERATOR, "--data.eval_batch_size", "2")
    assert result.returncode == 0, result.stderr[-3000:]
    again = trained.evaluation("val-last")
    assert (again.images[1].sum((1, 2)) == first.images[1].sum((1, 2))).all()
    assert np.abs(again.matrix - first.matrix).sum() <= 2e-3 * first.matrix.sum()  # other batches may choose other kernels


def test_the_forward_pass_and_the_confusion_matrix_repeat_bit_for_bit():
    net, image = DilatedNet(5, width=0.05).to(DEVICE).eval(), torch.rand(2, 3, 64, 96, device=DEVICE)
    mask = torch.randint(0, 5, (2, 64, 96), device=DEVICE)
    with torch.inference_mode():
        logits = [net(image) for _ in range(3)]
    assert all(torch.equal(logits[0], other) for other in logits)
    metrics = [SegmentationMetrics(5).to(place) for place in (DEVICE, "cpu")]
    for metric in metrics:
        metric.update(logits[0].to(metric.matrix.device), mask.to(metric.matrix.device))
    assert torch.equal(metrics[0].matrix.cpu(), metrics[1].matrix)


@one_gpu  # a CPU compiles for minutes
def test_a_compiled_network_gives_the_logits_of_the_plain_one():
    net, image = SegNet(5, width=0.05).to(DEVICE).eval(), torch.rand(1, 3, 64, 96, device=DEVICE)
    with torch.inference_mode():
        plain, compiled = net(image), torch.compile(net)(image)
    assert (plain.argmax(1) == compiled.argmax(1)).float().mean() > 0.99


def test_the_crf_gives_the_labels_of_the_cpu():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 5, 6, 8, generator=generator)
    probabilities = torch.nn.functional.interpolate(3 * coarse, (60, 80), mode="bilinear").softmax(1)
    image = torch.randint(0, 256, (1, 3, 60, 80), generator=generator, dtype=torch.uint8)
    labels = [DenseCRF()(probabilities.to(place), image.to(place)).argmax(1).cpu() for place in (DEVICE, "cpu")]
    assert (labels[0] == labels[1]).float().mean() > 0.999


def test_receptive_fields_are_measured_on_the_device(trained):
    result = run_command(
        "probe", trained.path, "--evaluation", "val-last", "--device", DEVICE, "--images", "2", "--pixels", "8"
    )
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="onnxruntime is not installed")
def test_a_network_trained_on_the_device_is_exported_to_onnx(trained, tmp_path):
    result = run_command("export", trained.path, "--format", "onnx", "--out", tmp_path / "net.onnx")
    assert result.returncode == 0, result.stderr[-3000:]


@one_gpu
def test_a_run_in_bfloat16_and_compiled_trains(tmp_path):
    run = fit(tmp_path / "run", "--trainer.precision", "bf16-mixed", "--model.compile", "true")
    assert all(np.isfinite(value) for _, value in run.history()["train/loss"])


@one_gpu
def test_fsdp_trains(tmp_path):
    run = fit(tmp_path / "run", "--trainer.strategy", "fsdp", "--trainer.devices", "1", run=run_process)
    assert all(np.isfinite(value) for _, value in run.history()["train/loss"])


@two_gpus
@pytest.mark.parametrize("network", ["DilatedNet", "SegNet"])  # the second has batch norm, which processes synchronize
def test_two_processes_over_nccl_have_the_loss_of_one(network, tmp_path):
    options = ["--model.net", f"dilated_seg.models.{network}", "--model.net.width", "0.03", "--data.global_batch_size", "2"]
    losses = [
        fit(tmp_path / devices, *options, "--trainer.devices", devices, "--trainer.strategy", "ddp", run=run_process).history()
        for devices in ("1", "2")
    ]  # fmt: skip
    first, second = (dict(one["train/loss"]) for one in losses)
    assert first.keys() == second.keys() and abs(first[min(first)] - second[min(first)]) < 1e-3
