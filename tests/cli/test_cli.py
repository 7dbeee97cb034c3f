"""The command as a user calls it."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from dilated_seg.__main__ import main
from dilated_seg.crf import DenseCRF
from dilated_seg.metrics.confusion import compute_metrics
from dilated_seg.models import DilatedNet
from dilated_seg.runs import EvaluationProtocol, Run
from dilated_seg.runs.strata import read_strata
from dilated_seg.task import SegmentationTask
from tests.support.commands import ROOT, TINY, fails_in_one_sentence, run_command, run_process


def test_a_run_directory_contains_configuration_checkpoints_metrics_and_evaluation(run):
    for name in ("config.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "metrics.csv", "evaluations/val.json"):
        assert (run / name).is_file(), name
    assert not (run / "evaluations/val.strata.parquet").exists()  # these cost time: only after training
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["trainer"]["max_steps"] == 12
    assert len(list((run / "gallery/val").glob("*.prediction.png"))) == 3


def test_the_per_image_matrices_add_up_to_the_split(run):
    record = json.loads((run / "evaluations/val.json").read_text())
    table = pq.read_table(run / "evaluations/val.parquet")
    matrices = torch.tensor(table["matrix"].to_pylist()).view(3, 8, 8)
    assert table["id"].to_pylist() == ["val000000", "val000001", "val000002"]
    assert torch.equal(matrices.sum(0), torch.tensor(record["matrix"]))
    protocol = EvaluationProtocol.from_json(record["protocol"])
    assert (protocol.checkpoint, protocol.step, protocol.images, protocol.available) == ("last", 12, 3, 3)


def test_validate_prints_one_table_with_classes_mean_and_protocol(run):
    result = run_command("validate", "--config", run / "config.yaml", "--ckpt_path", run / "checkpoints/best.ckpt")
    assert result.returncode == 0, result.stderr
    record = json.loads((run / "evaluations/val-best.json").read_text())
    mean = 100 * compute_metrics(torch.tensor(record["matrix"]))["mean_iou"]
    for text in ("night hill", "IoU %", f"{mean:.1f}", "images: 3", "whole image", "checkpoint: best"):
        assert text in result.stdout
    assert (run / "metrics.csv").is_file()


def test_test_and_predict_write_into_the_run_of_their_checkpoint(run):
    for verb in ("test", "predict"):
        result = run_command(verb, "--config", run / "config.yaml", "--ckpt_path", run / "checkpoints/last.ckpt")
        assert result.returncode == 0, result.stderr
    assert (run / "evaluations/test-last.json").is_file()
    assert len(list((run / "predictions").glob("*.png"))) == 3


def test_a_run_is_evaluated_by_its_directory_alone(run, tmp_path, capsys):
    crf = f"val-last-{DenseCRF().name}"
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("evaluations", "wandb"))
    assert main(["validate", str(copy)]) == 0
    assert main(["test", str(copy), "--checkpoint", "last"]) == 0
    assert main(["validate", str(copy), f"--checkpoint={copy}/checkpoints/last.ckpt", "--crf"]) == 0
    assert {path.stem for path in (copy / "evaluations").glob("*.json")} == {"val-best", "test-last", "val-last", crf}
    assert main(["predict", str(copy), "--checkpoint=last"]) == 0
    assert len(list((copy / "predictions").glob("**/*.png"))) == 3
    capsys.readouterr()
    for args, sentence in (
        ([f"{copy}/checkpoints"], f"{copy}/checkpoints is not a run directory"),
        ([str(copy), "--checkpoint", "first"], "there is no checkpoint first"),
        ([*TINY, "--checkpoint", "best"], "--checkpoint best needs a run"),
    ):
        assert main(["validate", *args]) == 2
        assert sentence in capsys.readouterr().err


def test_a_checkpoint_file_and_an_exported_directory_name_a_network_too(run, tmp_path, capsys):
    copy, exported = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("wandb")), tmp_path / "exported"
    assert main(["validate", f"{copy}/checkpoints/last.ckpt"]) == 0
    assert main(["export", str(copy), "--format", "hub", "--out", str(exported)]) == 0
    evaluate = ["validate", str(exported), "--run_dir", str(tmp_path / "evaluated")]
    assert main([*evaluate, "--data=Shapes(images=[16, 3, 2], size=[32, 64])"]) == 0
    by_file, by_export = Run(copy).evaluation("val-last"), Run(tmp_path / "evaluated").evaluation("val-model")
    assert np.array_equal(by_file.matrix, by_export.matrix) and by_file.parameters == by_export.parameters
    capsys.readouterr()
    for args, sentence in (
        (evaluate, "a network and a dataset are required"),
        (["test", str(exported / "model.safetensors")], "is in no run directory: pass --config"),
        (["predict", "nowhere"], "there is no nowhere: name a run's directory"),
    ):
        assert main(args) == 2
        assert sentence in capsys.readouterr().err


def test_predictions_with_another_inference_strategy_have_their_own_directory_and_protocol(run, tmp_path):
    arguments = ["--config", run / "config.yaml", "--ckpt_path", run / "checkpoints/last.ckpt", "--run_dir", tmp_path]
    protocol = ["--inference=MultiScale", "--inference.scales=[0.5,1.0]", "--crf.iterations=2"]
    result = run_command("predict", *arguments, *protocol)
    assert result.returncode == 0, result.stderr
    (folder,) = tmp_path.glob("predictions*")
    assert folder.name == "predictions-scales-0.5-1-flip-crf-iterations_2"
    assert len(list(folder.glob("*.png"))) == 3
    facts = json.loads((folder / "protocol.json").read_text())
    assert "scales 0.5, 1" in facts["inference"]
    assert "dense CRF (iterations 2" in facts["inference"]
    assert facts["checkpoint"] == "last, step 12"


def test_a_checkpoint_rebuilds_its_network_without_further_arguments(run):
    task = SegmentationTask.load_from_checkpoint(run / "checkpoints/last.ckpt", map_location="cpu")
    assert task.num_classes == 8
    assert task.classes[6] == "day hill"
    assert task.trained_steps == 12
    with torch.no_grad():
        assert task(torch.zeros(1, 3, 20, 30, dtype=torch.uint8)).shape == (1, 8, 20, 30)


def test_a_protocol_and_a_crf_are_scored_beside_and_named_in_the_number_and_the_files(run, tmp_path):
    tiles = ["--inference", "Tiles", "--inference.size", "[64,64]", "--inference.overlap", "32", "--crf"]
    arguments = ["--config", run / "config.yaml", "--ckpt_path", run / "checkpoints/last.ckpt", "--run_dir", tmp_path]
    result = run_command("validate", *arguments, *tiles)
    assert result.returncode == 0, result.stderr
    for text in ("IoU %, CRF", "tiles of 64 x 64, 32 pixels of overlap blended", "w1 10, theta_alpha 80"):
        assert text in result.stdout
    names = {path.name for path in (tmp_path / "evaluations").iterdir()}
    stems = ("val-last-tiles-64x64-32", "val-last-tiles-64x64-32-crf")
    assert names == {f"{stem}.{suffix}" for stem in stems for suffix in ("json", "parquet", "strata.parquet")}
    plain, refined = (Run(tmp_path).evaluation(stem) for stem in stems)
    assert plain.protocol.inference == "tiles of 64 x 64, 32 pixels of overlap blended"
    assert str(refined.protocol).startswith(str(plain.protocol).partition("; absent")[0] + ", then ")
    assert plain.protocol.pixels == refined.protocol.pixels
    for stem, evaluation in zip(stems, (plain, refined), strict=True):
        strata = read_strata(tmp_path / f"evaluations/{stem}.strata.parquet")
        assert np.array_equal(strata.matrices().sum(0), evaluation.matrix) and strata.protocol == evaluation.protocol
        assert f"{100 * evaluation.mean_iou:.1f}" in result.stdout


def test_an_inference_strategy_that_does_not_fit_the_network_is_a_user_error(run, tmp_path):
    arguments = ["--config", run / "config.yaml", "--ckpt_path", run / "checkpoints/last.ckpt", "--run_dir", tmp_path]
    assert fails_in_one_sentence(run_command("validate", *arguments, "--inference=ReflectedTiles"), "padding: reflect")
    assert fails_in_one_sentence(run_command("validate", *arguments, "--inference=Tilse"), "Tilse")
    assert fails_in_one_sentence(run_command("validate", *arguments, "--crf.w3=1"), "w3")


def test_batch_size_and_workers_change_no_integer(run):
    records = []
    for flags in (
        ["--data.init_args.eval_batch_size=1"],
        ["--data.init_args.eval_batch_size=2", "--data.init_args.num_workers=2"],
    ):
        args = ["--config", run / "config.yaml", "--ckpt_path", run / "checkpoints/last.ckpt", *flags]
        assert run_command("validate", *args).returncode == 0
        records.append(json.loads((run / "evaluations/val-last.json").read_text()))
    assert records[0]["matrix"] == records[1]["matrix"] == json.loads((run / "evaluations/val.json").read_text())["matrix"]


@pytest.mark.slow
def test_two_processes_count_the_same_integers_as_one(run):
    args = ["--config", run / "config.yaml", "--ckpt_path", run / "checkpoints/last.ckpt"]
    assert run_command("validate", *args).returncode == 0
    one = json.loads((run / "evaluations/val-last.json").read_text())
    two_processes = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]
    result = run_process("validate", *args, *two_processes)
    assert result.returncode == 0, result.stderr
    two = json.loads((run / "evaluations/val-last.json").read_text())
    assert two["matrix"] == one["matrix"]
    assert pq.read_table(run / "evaluations/val-last.parquet")["id"].to_pylist() == ["val000000", "val000001", "val000002"]
    assert two["protocol"]["images"] == 3


@pytest.mark.parametrize(
    "flag", ["--trainer.fast_dev_run=true", "--trainer.num_sanity_val_steps=1", "--trainer.limit_val_batches=1",
             "--trainer.enable_progress_bar=false", "--trainer.logger=false"],
)  # fmt: skip
def test_lightnings_own_flags_work(tmp_path, flag):
    short = ["--trainer.max_steps=2", "--trainer.val_check_interval=2"]
    result = run_command("fit", *TINY, *short, flag, "--run_dir", tmp_path / "run")
    assert result.returncode == 0, result.stderr


def test_a_checkpoint_of_another_network_is_refused(run):
    last = run / "checkpoints/last.ckpt"
    result = run_command("validate", "--config", run / "config.yaml", "--model.net.init_args.width=0.05", "--ckpt_path", last)
    assert fails_in_one_sentence(result, "does not fit the network")


def test_a_run_directory_of_another_configuration_is_an_error(run):
    result = run_command("fit", *TINY, "--trainer.max_steps=8", "--run_dir", run)
    assert fails_in_one_sentence(result, "another configuration")


def test_help_and_our_verbs_do_not_import_torch():
    for args in (["--help"], ["ablate", "--help"], ["report", "--help"]):
        code = f"import sys; from dilated_seg.__main__ import main\ntry: main({args})\nexcept SystemExit: pass\n"
        code += "sys.exit(any(name in sys.modules for name in ('torch', 'lightning', 'matplotlib', 'wandb')))"
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["fti"], ["fti", "fit"]),
        (["ablate", "experiments/nothing.yaml"], ["nothing.yaml"]),
        (["report", "nothing"], ["nothing"]),
        (["fit", "--config", "experiments/nothing.yaml"], ["nothing.yaml"]),
        ([*("fit", *TINY), "--model.net.init_args.contxt=basic"], ["contxt"]),
        ([*("fit", *TINY), "--trainer.max_stps=3"], ["max_stps"]),
        ([*("fit", *TINY), "--model.class_weights=[1,2]"], ["class_weights", "8 classes"]),
        (["validate", *TINY, "--ckpt_path", "nothing.ckpt"], ["nothing.ckpt"]),
        ([*("fit", *TINY), "--ckpt_path=nothing.ckpt"], ["nothing.ckpt"]),
        (["validate", *TINY, "--ckpt_path", "README.md"], ["README.md", "cannot be loaded"]),
        ([*("fit", *TINY), "--data.init_args.batch_size=0"], ["batch_size", "at least 1"]),
        ([*("fit", *TINY), "--trainer.accelerator=cuda"], ["CUDAAccelerator"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_a_mistake_on_the_command_line_is_one_sentence(args, words, tmp_path):
    if args[0] == "fit":
        args = [*args, "--run_dir", tmp_path / "run"]
    assert fails_in_one_sentence(run_command(*args), *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_in_the_data_is_one_sentence(camvid, tmp_path, workers):
    experiment = ["--config", "experiments/camvid/dilatednet_narrow.yaml", "--run_dir", tmp_path / "run"]
    small = ["--data.init_args.batch_size=2", f"--data.init_args.num_workers={workers}", "--trainer.max_steps=4"]
    result = run_command("fit", *experiment, *small, DILATED_SEG_CAMVID=str(camvid / "nowhere"))
    assert fails_in_one_sentence(result, "nowhere")
    assert not (tmp_path / "run").exists()
    label = camvid / "trainannot" / "train_0.png"
    label.write_bytes(b"no picture")
    assert fails_in_one_sentence(run_command("fit", *experiment, *small, DILATED_SEG_CAMVID=str(camvid)), str(label))
    assert not (tmp_path / "run").exists()
    Image.fromarray(np.full((48, 64), 77, np.uint8)).save(label)  # found when the classes are counted; later: test_lost_work.py
    result = run_command("fit", *experiment, *small, DILATED_SEG_CAMVID=str(camvid))
    assert fails_in_one_sentence(result, str(label), "77")
    assert not (tmp_path / "run").exists()


def test_weights_start_a_run_and_frozen_layers_thaw(tmp_path):
    state = {key: value.contiguous() for key, value in DilatedNet(8, None, width=0.02).state_dict().items() if "encoder" in key}
    save_file(state, tmp_path / "start.safetensors", {"mean": "100 110 120", "std": "50 50 50"})
    overlay = tmp_path / "overlay.yaml"
    freeze = {"class_path": "dilated_seg.training.Freeze", "init_args": {"layers": ["net.front_end.encoder"], "until": 100}}
    overlay.write_text(
        yaml.safe_dump({"trainer": {"callbacks+": [freeze]}, "model": {"weights": str(tmp_path / "start.safetensors")}})
    )
    result = run_command("fit", *TINY, "--config", overlay, "--run_dir", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert "26 tensors loaded, 0 unexpected, 6 missing" in result.stdout
    assert (tmp_path / "run/checkpoints/best.ckpt").is_file()
    trained = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(trained[f"model.net.{key}"], value) for key, value in state.items())
    assert trained["model.mean"].flatten().tolist() == [100, 110, 120]
    # the run goes on, and is evaluated, without the file
    (tmp_path / "start.safetensors").unlink()
    evaluated = run_command(
        "validate", "--config", tmp_path / "run/config.yaml", "--ckpt_path", tmp_path / "run/checkpoints/last.ckpt"
    )
    assert evaluated.returncode == 0, evaluated.stderr


def test_ported_weights_are_evaluated_without_a_checkpoint(tmp_path):
    state = {key: value.contiguous() for key, value in DilatedNet(8, None, width=0.02).state_dict().items()}
    save_file(state, tmp_path / "published.safetensors", {"mean": "0 0 0", "std": "255 255 255"})
    folder = tmp_path / "run"
    result = run_command("validate", *TINY, "--model.weights", tmp_path / "published.safetensors", "--run_dir", folder)
    assert result.returncode == 0, result.stderr
    assert "checkpoint: published" in result.stdout
    assert (folder / "evaluations/val-published.json").is_file()


def test_imagenet_weights_that_cannot_be_had_are_one_sentence_and_no_run(tmp_path):
    result = run_command(
        "fit", *TINY, "--model.weights=imagenet", "--run_dir", tmp_path / "run",
        TORCH_HOME=str(tmp_path / "torch"), https_proxy="http://127.0.0.1:9",
    )  # fmt: skip
    assert fails_in_one_sentence(result, "vgg16-397923af.pth", "put it into", "or name a file")
    assert not (tmp_path / "run").exists()


def test_weights_that_do_not_fit_are_one_sentence_and_no_run(tmp_path):
    (tmp_path / "a.caffemodel").write_bytes(b"no model")
    result = run_command("fit", *TINY, "--model.weights", tmp_path / "a.caffemodel", "--run_dir", tmp_path / "run")
    assert fails_in_one_sentence(result, "a.caffemodel is damaged or no")
    assert not (tmp_path / "run").exists()


def test_our_verbs_answer_help_without_heavy_imports():
    code = "import sys; from dilated_seg.__main__ import main\n"
    for verb in ("describe", "port", "ablate", "report"):
        check = (
            code
            + f"try: main(['{verb}', '--help'])\nexcept SystemExit as end: sys.exit(bool(end.code) or 'torch' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True).returncode == 0, verb


OWN_TASK = """
import torch
from dilated_seg.task import SegmentationTask


class Penalized(SegmentationTask):
    \"\"\"Adds the mean squared logit to the loss.

    Args:
        penalty: Its factor.
    \"\"\"

    def __init__(self, *args, penalty: float = 0.0, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.penalty = penalty

    def loss_sum(self, logits, mask, heads=None):
        total, valid = super().loss_sum(logits, mask, heads)
        return total + self.penalty * logits.square().mean(1).sum(), valid
"""


def test_a_task_of_the_users_own_trains_and_its_run_is_evaluated(tmp_path, monkeypatch):
    (tmp_path / "own_task.py").write_text(OWN_TASK)
    monkeypatch.syspath_prepend(tmp_path)
    task, penalty = "--task=own_task.Penalized", "--model.penalty={}"
    losses = []
    for value in (0.0, 100.0):
        options = [*TINY, task, penalty.format(value), "--trainer.max_steps=4", "--run_dir", tmp_path / f"{value:g}"]
        assert (result := run_command("fit", *options)).returncode == 0, result.stderr
        config = yaml.safe_load((tmp_path / f"{value:g}/config.yaml").read_text())
        assert (config["task"], config["model"]["penalty"]) == ("own_task.Penalized", value)
        losses.append(Run(tmp_path / f"{value:g}").history()["train/loss"][-1])
    assert losses[0] != losses[1]
    result = run_command("validate", tmp_path / "100")
    assert result.returncode == 0, result.stderr
    assert fails_in_one_sentence(run_command("fit", *TINY, "--task=own_task.Penalised"), "there is no task own_task.Penalised")
    assert fails_in_one_sentence(run_command("fit", *TINY, task, "--model.penaltie=1"), "--model.penaltie: unknown option")


SCHEDULE = """
model:
  bias_lr: 1.0
  lr_scheduler:
    class_path: SequentialLR
    init_args:
      schedulers:
      - {class_path: LinearLR, init_args: {start_factor: 0.1, total_iters: 4}}
      - {class_path: PolynomialLR, init_args: {total_iters: 8, power: 0.9}}
      milestones: [4]
"""


def test_a_warm_up_is_written_in_yaml_and_the_run_continues(tmp_path):
    (tmp_path / "warm_up.yaml").write_text(SCHEDULE)
    options = [*TINY, "--config", tmp_path / "warm_up.yaml"]
    start, rates = [], []
    for steps in (4, 12):
        run = tmp_path / f"run{steps}"
        result = run_command("fit", *options, "--run_dir", run, *start, f"--trainer.max_steps={steps}")
        assert result.returncode == 0, result.stderr
        start = ["--ckpt_path", run / "checkpoints/last.ckpt"]
        state = torch.load(start[1], weights_only=True)
        rates.append([group["lr"] for group in state["optimizer_states"][0]["param_groups"]])
    assert rates == [[2e-3, 2e-3], [0.0, 0.0]]  # the end of the warm-up, of poly
    other = run_command("fit", *options, "--run_dir", tmp_path / "other", *start, "--model.bias_lr=2", "--trainer.max_steps=13")
    assert fails_in_one_sentence(other, "was trained with model.bias_lr 1.0, and not 2.0")
