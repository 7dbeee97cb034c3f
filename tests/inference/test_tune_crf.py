"""The search for the CRF's numbers: it finds what is best, and what it writes is what validate takes."""

import json
import math

import pytest
import yaml

from dilated_seg.__main__ import main
from dilated_seg.inference.tune_crf import START, search
from tests.support.commands import run_command


def test_the_search_comes_within_a_fine_step_of_the_best():
    aim = {"w1": 3.3, "theta_alpha": 170.0, "theta_beta": 4.0}

    def score(numbers):
        return -sum(math.log(numbers[name] / aim[name]) ** 2 for name in aim)

    best, highest = search(score, START)
    assert highest == score(best)
    for name, value in best.items():
        assert abs(math.log(value / aim[name])) < math.log(1.4)


def test_the_search_tries_nothing_twice_and_does_not_run_after_chance():
    tried = []

    def score(numbers):
        tried.append(tuple(numbers.values()))
        return 0.5 + 1e-5 * numbers["w1"]

    assert search(score, START) == (START, score(START))
    assert len(tried[:-1]) == len(set(tried[:-1])) == 1 + 6 + 6


def test_tuned_parameters_are_written_as_an_overlay_for_validate(run, tmp_path, capsys):
    overlay = tmp_path / "crf.yaml"
    assert main(["tune", str(run / "checkpoints/last.ckpt"), "--images", "2", "--out", str(overlay)]) == 0
    said = capsys.readouterr().out
    written = yaml.safe_load(overlay.read_text())["crf"]
    assert written["class_path"] == "dilated_seg.crf.DenseCRF"
    best = ", ".join(f"{name} {value:g}" for name, value in written["init_args"].items())
    assert f"best: {best}" in said
    assert "2 images of Shapes's train" in overlay.read_text()
    checkpoint = ["--ckpt_path", str(run / "checkpoints/last.ckpt")]
    overlays = ["--config", str(run / "config.yaml"), "--config", str(overlay), "--run_dir", str(tmp_path / "evaluated")]
    evaluated = run_command("validate", *overlays, *checkpoint)
    assert evaluated.returncode == 0, evaluated.stderr
    record = json.loads(next((tmp_path / "evaluated/evaluations").glob("*crf*.json")).read_text())
    assert f"theta_alpha {written['init_args']['theta_alpha']:g}" in record["protocol"]["crf"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--images", "0"], "--images 0 must be between 1 and 16"),
        (["--images", "9999999"], "must be between 1 and 16"),
        (["--split", "nowhere"], "nowhere"),
        (["--checkpoint", "first"], "there is no first"),
    ],
)
def test_missing_images_are_a_user_error(options, sentence, run, tmp_path, capsys):
    assert main(["tune", str(run), *options, "--out", str(tmp_path / "crf.yaml")]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "crf.yaml").exists()


def test_an_existing_or_unwritable_overlay_is_an_error_before_the_search(run, tmp_path, capsys):
    (tmp_path / "crf.yaml").write_text("mine")
    for out in (tmp_path / "crf.yaml", tmp_path, tmp_path / "nowhere/crf.yaml", tmp_path / "crf.yaml/below.yaml"):
        assert main(["tune", str(run), "--images", "1", "--out", str(out)]) == 2
        said = capsys.readouterr()
        assert str(out) in said.err
        assert not said.out
    assert (tmp_path / "crf.yaml").read_text() == "mine"


def test_a_path_that_is_not_a_run_is_a_user_error(tmp_path, capsys):
    assert main(["tune", str(tmp_path)]) == 2
    assert "is not a run directory (no config.yaml)" in capsys.readouterr().err
