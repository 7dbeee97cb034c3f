"""Saved results are read as runs are: the same figures on a page, without weights, images and paths of the machine."""

import numpy as np
import pytest

from dilated_seg.__main__ import main
from dilated_seg.errors import UserError
from dilated_seg.report.claims import Claim
from dilated_seg.report.results import find_results
from dilated_seg.report.saved import COMPARISON, SavedComparison
from dilated_seg.runs import Run
from tests.report.test_report import evaluated, noisy, without_cars


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The directory of an ablation: a network that starts from an earlier stage, and one that has weights and a checksum."""
    folder = tmp_path_factory.mktemp("study")
    first, second, other = (folder / path for path in ("staged/seed0/stage1", "staged/seed0/stage2", "blind/seed0"))
    evaluated(first, noisy(1))
    evaluated(second, noisy(0), fields=True)
    evaluated(other, without_cars())
    Run(first).mark_finished(9)
    config = Run(second).config_file
    data = "data: {class_path: dilated_seg.data.Folder, init_args: {root: /home/me/photos}}"
    text = config.read_text().replace("weights: null", f"weights: {first}")
    config.write_text(text.replace("data: {class_path: dilated_seg.data.Shapes}", data))
    (other / "checkpoints").mkdir()
    (other / "checkpoints/last.ckpt").write_bytes(b"weights")
    (other / "checkpoints/last.ckpt.sha256").write_text("0123  last.ckpt\n")
    results = find_results([second, other], names=["staged, all", "blind"])
    claims = [Claim("details are kept", "staged, all", "blind", objects=16), Claim("patience pays", "late", "blind")]
    command = f"dilated-seg ablate x.yaml --out {folder} --jobs 2"
    SavedComparison("Comparison: x", command, results, claims, ["late, seed 0"]).write(folder)
    return folder


@pytest.fixture(scope="module")
def saved(study, tmp_path_factory):
    """What `report --save` writes: a directory of results and a page."""
    folder = tmp_path_factory.mktemp("saved")
    assert main(["report", str(study), "--save", str(folder / "x"), "--out", str(folder / "page")]) == 0
    return folder


def test_saved_results_hold_every_figure_and_no_weights_images_and_paths(study, saved):
    files = sorted(str(path.relative_to(saved / "x")) for path in (saved / "x").rglob("*") if path.is_file())
    run, names = "staged/seed0/stage2", ("json", "parquet", "strata.parquet")
    assert files == sorted([
        COMPARISON, "blind/seed0/checkpoints/last.ckpt.sha256",
        *(f"{path}/{name}" for path in ("blind/seed0", run, "staged/seed0/stage1") for name in ("config.yaml", "metrics.csv")),
        "staged/seed0/stage1/finished", *(f"{run}/receptive_fields/test-last.{end}" for end in ("json", "npz")),
        *(f"{path}/evaluations/test-last.{name}" for path in ("blind/seed0", run) for name in names),
    ])  # fmt: skip
    texts = [path.read_text() for path in (saved / "x").rglob("*") if path.suffix in (".json", ".yaml")]
    assert not any(str(study) in text or "/home" in text for text in texts)
    before, after = Run(study / run), Run(saved / "x" / run)
    assert after.config.data.init_args == {"root": "photos"}
    assert after.config.weights == str(saved / "x/staged/seed0/stage1")  # so the page counts the steps of both stages
    for read in (lambda one: one.images[1], lambda one: one.strata.boundary_iou()):
        assert np.array_equal(*(read(one.evaluation("test-last")) for one in (before, after)))


def test_the_page_of_saved_results_has_names_claims_and_a_sentence_in_place_of_images(saved):
    text = (saved / "page/report.md").read_text()
    assert text.startswith("# Comparison: x") and "Not in this comparison: late, seed 0" in text
    assert "staged, all minus blind" in text and "## Receptive fields" in text
    assert "**patience pays: not measured.** Late is not in this comparison." in text
    assert "Images are not shown: these are saved results, without images and weights." in text
    assert f"    dilated-seg ablate x.yaml --jobs 2\n    dilated-seg report {saved / 'x'} --out" in text


def test_saving_replaces_only_saved_results(study, saved, tmp_path):
    comparison = SavedComparison.find([saved / "x"])
    assert [one.name for one in comparison.save(tmp_path / "again").results] == ["staged, all", "blind"]
    comparison.save(tmp_path / "again")
    for directory, sentence in ((study, "holds these runs"), (tmp_path, "has other files"), (study / "blind", "other files")):
        with pytest.raises(UserError, match=sentence):
            SavedComparison.find([study]).save(directory)


def test_a_damaged_comparison_is_one_sentence(tmp_path):
    (tmp_path / COMPARISON).write_text("{}")
    with pytest.raises(UserError, match=r"comparison\.json cannot be read as a comparison"):
        SavedComparison.find([tmp_path])
