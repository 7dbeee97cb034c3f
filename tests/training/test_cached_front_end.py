"""The context stage on the front end's scores, computed once: the same training as with the front end, without its time."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dilated_seg.cli import CLI
from dilated_seg.data import Folder, Shapes
from dilated_seg.data.decode import Stored, read_image
from dilated_seg.data.transforms import ScaleAndCrop
from dilated_seg.errors import UserError
from dilated_seg.models import DilatedNet, FrontEnd
from dilated_seg.training.feature_key import READING, describe_images, hash_code
from dilated_seg.training.stored_features import StoredFeatures
from tests.support import fake_datasets, tolerance
from tests.support.commands import ROOT, run_process

STEPS = 10
LOSS = tolerance.SUM**0.5 * tolerance.SINGLE  # a mean over the pixels of a batch: 1e-5 of it
forward = FrontEnd.forward
STAGE = [
    "fit", "--config", str(ROOT / "experiments/shapes/dilatednet.yaml"), "--model.net.init_args.width=0.03",
    "--model.optimizer=SGD", "--model.optimizer.lr=0.05",  # Adam would make steps of what is rounding: see tolerance.py
    "--model.lr_factors={}", "--model.mean=[120,120,120]", "--model.std=[60,60,60]",
    "--data.init_args.images=[20,2,2]", "--data.init_args.size=[32,48]", "--data.init_args.batch_size=4",
    f"--trainer.max_steps={STEPS}", "--trainer.val_check_interval=5",
    "--trainer.log_every_n_steps=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
]  # fmt: skip
FROZEN = "--trainer.callbacks+={class_path: dilated_seg.training.Freeze, init_args: {layers: [net.front_end]}}"


def cached(folder, variants=2):
    options = f"{{folder: {folder}, variants: {variants}}}"
    return f"--trainer.callbacks+={{class_path: dilated_seg.training.CachedFrontEnd, init_args: {options}}}"


def losses(run):
    with (run / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def weights(run):
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def front_end(tmp_path_factory):
    """A file of weights whose scores differ between classes, as those of a trained front end do."""
    torch.manual_seed(1)
    net = DilatedNet(8, width=0.03, dropout=0.0)
    torch.nn.init.normal_(net.front_end.final.weight, std=0.3)
    path = tmp_path_factory.mktemp("weights") / "front_end.safetensors"
    save_file(net.state_dict(), path)
    return f"--model.weights={path}"


@pytest.fixture(scope="module")
def stages(tmp_path_factory, front_end):
    """The same stage through the front end, and on its scores."""
    folder = tmp_path_factory.mktemp("stages")
    CLI([*STAGE, front_end, FROZEN, "--run_dir", str(folder / "through")])
    CLI([*STAGE, front_end, cached(folder / "scores"), "--run_dir", str(folder / "cached")])
    return folder


def first(stages):
    """The folder of the scores that the fixture's stage made."""
    return min((stages / "scores").iterdir(), key=lambda folder: (folder / "key.json").stat().st_mtime_ns)


def test_training_on_cached_features_equals_training_through_the_front_end(stages):
    through, stored = losses(stages / "through"), losses(stages / "cached")
    assert len(through) == len(stored) == STEPS
    assert len(set(through)) == STEPS  # they are losses of something
    assert stored == pytest.approx(through, rel=LOSS)
    expected, ours = weights(stages / "through"), weights(stages / "cached")
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=tolerance.training(STEPS, 0.05, eps=tolerance.SINGLE))
    moved = [name for name, value in ours.items() if "ctx_" in name and value.ndim == 4]
    start = torch.eye(8)[:, :, None, None]
    assert any((ours[name][:, :, 1:2, 1:2] - start).abs().max() > 1e-3 for name in moved if ours[name].shape[-1] == 3)


def test_training_on_cached_features_does_not_change_the_front_end(stages, front_end, tmp_path, monkeypatch):
    """Scores of one image are exchanged on the disk: the steps before it stay, the step that takes it has another loss."""
    copy = tmp_path / "scores"
    shutil.copytree(stages / "scores", copy)
    folder = copy / first(stages).name
    (shard,) = folder.glob("0-0-*.safetensors")
    scores = StoredFeatures(folder, 20, 2)
    assert not scores.find_missing()
    rows = [scores[0, index] for index in scores.rows(0)]
    order = list(Shapes(images=(20, 2, 2), size=(32, 48), batch_size=4).make_training_order(0, int))
    rows[order[2][0][1] if order[2][0][1] < 16 else order[2][1][1]]["features"][:] = 0
    shard.unlink()
    scores.write(0, 0, rows)
    called = []
    monkeypatch.setattr(FrontEnd, "forward", lambda self, image: called.append(1) or forward(self, image))
    CLI([*STAGE, front_end, cached(copy), "--trainer.limit_val_batches=0", "--run_dir", str(tmp_path / "run")])
    assert not called
    assert losses(tmp_path / "run")[:2] == losses(stages / "cached")[:2]
    assert losses(tmp_path / "run")[2] != losses(stages / "cached")[2]


@pytest.mark.slow
def test_only_the_features_that_a_short_run_reads_are_computed(tmp_path, front_end, capsys):
    two = ["--trainer.max_steps=2", "--data.init_args.images=[2000,2,2]"]
    CLI([*STAGE, front_end, cached(tmp_path / "scores"), *two, "--run_dir", str(tmp_path / "run")])
    shards = list((tmp_path / "scores").glob("*/*.safetensors"))
    assert 2 <= len(shards) <= 8  # of 250
    assert f"{len(shards)} shards to compute" in capsys.readouterr().out
    CLI([*STAGE, front_end, cached(tmp_path / "scores"), *two, "--run_dir", str(tmp_path / "run")])
    assert "to compute" not in capsys.readouterr().out


def test_validation_with_cached_features_uses_the_whole_network(stages):
    through, stored = (json.loads((stages / run / "evaluations/val.json").read_text()) for run in ("through", "cached"))
    differ = np.abs(np.array(through["matrix"]) - stored["matrix"]).sum() / 2
    assert differ <= 0.001 * np.sum(stored["matrix"])  # pixels whose best classes tie but for rounding


def test_stored_variants_equal_the_augmented_images_of_training(stages, monkeypatch):
    scores = StoredFeatures(first(stages), 20, 2)
    assert not scores.find_missing()
    data = Shapes(images=(20, 2, 2), size=(32, 48))
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    images = data.open_training_images()
    for epoch in range(5):
        for index in (0, 7, 19):
            ours, theirs = scores[epoch, index], images[epoch % 2, index]
            assert ours["id"] == theirs["id"]
            assert torch.equal(ours["mask"], theirs["mask"])
            assert ours["features"].shape == (8, 4, 6)
    assert not torch.equal(scores[0, 0]["features"], scores[0, 1]["features"])
    assert any(not torch.equal(scores[0, i]["features"], scores[1, i]["features"]) for i in range(20))  # mirrored or not


@pytest.mark.slow
def test_features_are_reused_by_a_second_run_and_recomputed_for_other_weights(stages, front_end, tmp_path, capsys):
    folder = first(stages)
    written = {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    run = [*STAGE, cached(stages / "scores"), "--trainer.max_steps=1", "--model.lr_scheduler.init_args.total_iters=20"]
    CLI([*run, front_end, "--run_dir", str(tmp_path / "again")])
    assert "to compute" not in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")} == written
    assert losses(tmp_path / "again") == losses(stages / "cached")[:1]
    for number, other in enumerate(
        (
            [],
            [front_end, "--data.init_args.augmentation=null"],
            [front_end, "--seed_everything=1"],
            [front_end, "--model.std=[50,50,50]"],
        )
    ):
        CLI([*run, *other, "--run_dir", str(tmp_path / f"other{number}")])
        assert "shards to compute" in capsys.readouterr().out
        assert len(list((stages / "scores").iterdir())) == 2 + number


@pytest.mark.slow
def test_a_damaged_shard_is_removed_and_computed_again(stages, front_end, tmp_path, capsys):
    copy = tmp_path / "scores"
    shutil.copytree(stages / "scores", copy)
    folder = copy / first(stages).name
    shard = next(folder.glob("1-1-*.safetensors"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    next(folder.glob("0-0-*.safetensors")).unlink()  # as if it had been interrupted
    (folder / ".1-ab.partial.safetensors").touch()
    CLI([*STAGE, front_end, cached(copy), "--run_dir", str(tmp_path / "run")])
    assert "2 shards to compute" in capsys.readouterr().out
    assert not list(folder.glob("*.partial*"))
    assert shard.read_bytes() == content  # under the same name: the same scores
    assert losses(tmp_path / "run") == losses(stages / "cached")


def test_changing_a_data_file_changes_the_key_of_the_features(tmp_path):
    before = describe_images(Folder(root=str(fake_datasets.folder(tmp_path))))
    assert describe_images(Folder(root=str(tmp_path))) == before
    for image in (tmp_path / "images").rglob("*.*"):
        os.utime(image, ns=(1, 1))
    assert describe_images(Folder(root=str(tmp_path))) != before
    crops = [Folder(root=str(tmp_path), augmentation=ScaleAndCrop((9, 9), (1.0, scale))) for scale in (2.0, 3.0)]
    assert len({describe_images(data)["augmentation"] for data in crops} | {before["augmentation"]}) == 3


@pytest.mark.parametrize("module", READING, ids=lambda module: module.__name__)
def test_changing_the_code_that_reads_images_changes_the_key_of_the_features(module, tmp_path, monkeypatch):
    before = hash_code(*READING)
    changed = tmp_path / "changed.py"
    changed.write_text(Path(module.__file__).read_text() + "\n")
    monkeypatch.setattr(module, "__file__", str(changed))
    assert hash_code(*READING) != before


def test_the_key_of_the_features_depends_on_the_image_decoder_and_the_augmentation():
    assert {read_image.__module__, ScaleAndCrop.__module__, Stored.__module__} <= {module.__name__ for module in READING}


@pytest.mark.slow
def test_two_processes_divide_the_computation_of_features_and_train_as_one(stages, front_end, tmp_path):
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.init_args.batch_size=2"]
    run = ["--run_dir", str(tmp_path / "run")]
    result = run_process(*STAGE, front_end, cached(tmp_path / "scores"), *two, *run)
    assert result.returncode == 0, result.stderr
    assert "4 shards to compute" in result.stdout
    (folder,) = (tmp_path / "scores").iterdir()
    assert folder.name == first(stages).name
    assert len(list(folder.glob("*.safetensors"))) == 4
    assert losses(tmp_path / "run") == pytest.approx(losses(stages / "cached"), rel=LOSS)


def test_zero_variants_of_cached_features_are_an_error(tmp_path):
    with pytest.raises(UserError, match=r"CachedFrontEnd\.variants is 0: it must be at least 1"):
        CLI([*STAGE, cached(tmp_path / "scores", variants=0), "--run_dir", str(tmp_path / "run")])


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--model.compile=true"], "set model.compile to false"),
        (["--model.net.init_args.context=null"], "DilatedNet with a context module"),
        (["--model.net.init_args.dropout=0.5"], "features without dropout"),
    ],
)
def test_networks_whose_front_end_cannot_be_cached_are_an_error(flags, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        CLI([*STAGE, *flags, cached(tmp_path / "scores"), "--run_dir", str(tmp_path / "run")])
    assert not (tmp_path / "scores").exists()


# Holds the lock of a folder, as a run that computes scores does, and puts them there a while later.
OTHER = """
import shutil, sys, time
from filelock import FileLock
with FileLock(f"{sys.argv[2]}/lock"):
    print("held", flush=True)
    time.sleep(5)
    shutil.copytree(sys.argv[1], sys.argv[2], dirs_exist_ok=True, ignore=shutil.ignore_patterns("lock"))
"""


@pytest.mark.slow
def test_a_run_waits_while_another_run_computes_the_same_features(tmp_path, front_end, capsys, stages):
    folder = tmp_path / "scores" / first(stages).name
    folder.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", OTHER, first(stages), folder], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        CLI([*STAGE, front_end, cached(tmp_path / "scores"), "--run_dir", str(tmp_path / "run")])
    said = capsys.readouterr().out
    assert "another run that computes them" in said
    assert "to compute" not in said
    assert losses(tmp_path / "run") == losses(stages / "cached")


def test_a_disk_too_small_for_the_features_is_an_error_after_the_first_shard(tmp_path, front_end, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(UserError, match="GB more for the front end's features"):
        CLI([*STAGE, front_end, cached(tmp_path / "scores"), "--run_dir", str(tmp_path / "run")])
