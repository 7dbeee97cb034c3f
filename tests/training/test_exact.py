"""Evaluation and loss do not depend on processes, batches, workers, or where the images come from."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dilated_seg.__main__ import main
from dilated_seg.data import Folder
from dilated_seg.data.prepare import write
from dilated_seg.metrics.stratified import STRATA
from dilated_seg.models import DilatedNet
from tests.support import fake_datasets, tolerance
from tests.support.commands import ROOT, TINY, run_command, run_process
from tests.training.test_resume import EXPERIMENT, environment

# Processes, workers, batch size, and how the images are read; the first is what the others are compared with.
WAYS = [
    (1, 0, 1, "folder"), (2, 1, 2, "mapped"), (3, 3, 5, "streamed"), (2, 3, 1, "streamed"), (3, 0, 2, "mapped"),
    (1, 1, 5, "streamed"), (1, 3, 2, "raw"), (3, 1, 1, "folder"), (2, 0, 5, "raw"),
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Seven validation images of several sizes, one of which is void, as folders, shards and a raw store."""
    folder = tmp_path_factory.mktemp("data")
    root = fake_datasets.folder(folder / "folder", images=9)
    (root / "train.txt").write_text("photo 0\nphoto 1\n")
    (root / "val.txt").write_text("".join(f"photo {i}\n" for i in range(2, 9)))
    Image.fromarray(np.full((9, 20), 255, np.uint8)).save(root / "masks/photo 4.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "SHARD_BYTES", 4000)
        patch.setattr(write, "GROUP_BYTES", 1500)
        for store in ("files", "raw"):
            assert main(["prepare", "folder", f"--root={root}", f"--out={folder / store}", f"--store={store}"]) == 0
    return folder


def evaluated(data, tmp_path, options, all_ways):
    """What so many processes, workers and images at once count."""
    (tmp_path / "experiment.yaml").write_text(EXPERIMENT.format(root=data / "folder"))
    classes = Folder(root=str(data / "folder")).num_classes
    state = {key: value.contiguous() for key, value in DilatedNet(classes, None, width=0.02).state_dict().items()}
    save_file(state, tmp_path / "seed0.safetensors", {"mean": "120 115 105", "std": "58 57 57"})
    ways = []
    for world, workers, batch, kind in all_ways:
        root = data / {"mapped": "files", "streamed": "files"}.get(kind, kind)
        flags = {"root": root, "num_workers": workers, "eval_batch_size": batch, "streaming": str(kind == "streamed").lower()}
        arguments = ["validate", "--config", str(tmp_path / "experiment.yaml"), "--seed_everything=7", *options]
        arguments += ["--model.weights", str(tmp_path / "seed0.safetensors")]
        arguments += [f"--data.init_args.{name}={value}" for name, value in flags.items()]
        ways.append({"folder": str(tmp_path), "world": world, "arguments": arguments})
    command = [sys.executable, "-m", "tests.support.evaluated", json.dumps(ways)]
    done = subprocess.run(command, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_confusion_matrices_with_a_crf_are_equal_for_any_batch_size_storage_and_number_of_processes(data, tmp_path):
    options = ["--inference=Tiles", "--inference.size=[64,64]", "--inference.overlap=32", "--crf.iterations=3"]
    plain, refined, *others = evaluated(data, tmp_path, options, [(1, 0, 1, "folder"), (2, 0, 5, "mapped")])
    assert others == [plain, refined]
    assert plain["pixels"] == refined["pixels"]
    assert plain["matrix"] != refined["matrix"]
    for record in (plain, refined):
        assert [row["id"] for row in record["strata"]] == record["ids"]
        counts = [sum(row[f"{name}_counts"]) for name in STRATA for row in record["strata"]]
        assert counts == [sum(matrix) for matrix in record["matrices"]] * len(STRATA)


@pytest.mark.slow
def test_confusion_matrices_of_images_are_equal_for_any_batch_size_storage_and_number_of_processes(data, tmp_path):
    first, *others = evaluated(data, tmp_path, [], WAYS)
    masks = [sample["mask"] for sample in map(Folder(root=str(data / "folder")).split("val").__getitem__, range(7))]
    assert first["ids"] == [f"photo {i}" for i in range(2, 9)] and first["images"] == 7
    assert first["pixels"] == sum(int((mask != 255).sum()) for mask in masks)
    assert np.array_equal(np.sum(first["matrices"], 0), np.ravel(first["matrix"]))
    assert [sum(matrix) for matrix in first["matrices"]] == [int((mask != 255).sum()) for mask in masks]
    assert (np.sum(first["matrix"], 0) > 0).sum() > 1  # several classes are predicted
    for way, other in zip(WAYS[1:], others, strict=True):
        assert other == first, way


@pytest.mark.slow
def test_loss_and_gradient_of_two_processes_equal_those_of_one_process_on_both_batches(tmp_path):
    """Pictures have unequal numbers of valid pixels: the mean of two processes' means would be another number."""
    steps = [
        "--trainer.precision=64-true",
        "--trainer.max_steps=1",
        "--trainer.val_check_interval=1",
        "--model.net.init_args.dropout=0.0",
    ]
    plain = [
        "--model.optimizer=SGD",
        "--model.optimizer.lr=1.0",
        "--trainer.gradient_clip_val=null",
        "--model.class_weights=null",
        "--trainer.precision=64-true",
    ]
    plain += ["--model.lr_scheduler.init_args.total_iters=1000000"]
    ways = {
        "one": ["--data.init_args.batch_size=4"],
        "two": ["--data.init_args.batch_size=2", "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu"],
    }
    weights, losses = {}, {}
    for name, flags in ways.items():
        call = run_command if name == "one" else run_process
        result = call("fit", *TINY, *steps, *plain, *flags, "--run_dir", tmp_path / name)
        assert result.returncode == 0, result.stderr
        weights[name] = torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        with (tmp_path / name / "metrics.csv").open() as file:
            losses[name] = next(float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"])
    assert losses["two"] == pytest.approx(losses["one"], rel=tolerance.SINGLE)
    for name, one in weights["one"].items():  # a step of rate 1 from the same weights: they differ as the gradients do
        assert (one - weights["two"][name]).abs().max() < tolerance.training(1, rate=1.0), name
