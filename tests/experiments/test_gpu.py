"""The script for a GPU, rehearsed on the CPU at small width."""

import csv
import json
import subprocess
import sys

import pytest
import yaml

from tests.support.commands import ROOT, process_environment

SMALL = ["--width", "0.03", "--size", "32", "48", "--batch", "2", "--device", "cpu"]


@pytest.mark.slow
def test_throughput_is_measured_without_the_packages_of_data_and_logging(tmp_path):
    """torch and jaxtyping are enough, so that any machine with a GPU can run it."""
    missing = [
        "datasets",
        "wandb",
        "jsonargparse",
        "lightning",
        "torchmetrics",
        "pyarrow",
        "scipy",
        "PIL",
        "matplotlib",
        "yaml",
    ]
    script = ROOT / "experiments/benchmarks/training.py"
    arguments = ["training.py", "FCN", "DilatedNet", *SMALL, "--out", str(tmp_path / "x.csv")]
    code = (
        f"import runpy, sys; sys.modules |= dict.fromkeys({missing}); sys.argv = {arguments}; "
        f"runpy.run_path({str(script)!r}, run_name='__main__')"
    )
    environment = process_environment(PYTHONPATH=str(ROOT))
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    with (tmp_path / "x.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["network"] for row in rows] == ["FCN", "DilatedNet"] * 3
    assert all(float(row["images/s"]) > 0 for row in rows) and rows[0]["times float32"] == "1.00"


@pytest.mark.slow
def test_all_parts_are_rehearsed_and_their_results_are_written(camvid, tmp_path, monkeypatch):
    monkeypatch.setenv("DILATED_SEG_CAMVID", str(camvid))
    content = yaml.safe_load((ROOT / "experiments/ablations/camvid_architectures.yaml").read_text())
    content["experiments"] = {name: content["experiments"][name] for name in ("FCN-8s", "DeepLab-LargeFOV")}
    content["claims"] = []
    content["common"]["model"] |= {"net": {"init_args": {"width": 0.03}}, "weights": None}
    content["common"]["data"]["init_args"]["augmentation"]["init_args"]["crop_size"] = [32, 32]
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    arguments = [*SMALL, "--budget", "30", "--out", tmp_path / "out", "--ablation", tmp_path / "small.yaml"]
    command = [sys.executable, "experiments/gpu.py", *map(str, arguments), "--runs", str(tmp_path / "runs")]
    result = subprocess.run(command, cwd=ROOT, env=process_environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]
    found = json.loads((tmp_path / "out/gpu.json").read_text())
    assert {name: part["status"] for name, part in found["parts"].items()} == dict.fromkeys(
        ("tests", "throughput", "evaluation", "camvid", "report"), 0
    )
    assert (
        " passed" in (tmp_path / "out/tests.log").read_text() and "VOC-sized" in (tmp_path / "out/evaluation.log").read_text()
    )
    assert len([*(tmp_path / "out/camvid").glob("*/seed0/evaluations/val-last.parquet")]) == 2


def test_without_a_gpu_the_call_says_how_to_rehearse_it():
    command = [sys.executable, "experiments/gpu.py"]
    environment = process_environment(CUDA_VISIBLE_DEVICES="")
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 2 and "there is no GPU: --device cpu --width 0.03 rehearses the call" in result.stderr
