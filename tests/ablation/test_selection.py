"""Candidates tried on one split and the best scored on another; protocols as rows of the same trained networks."""

import json
import shlex
import shutil
import signal

import pyarrow.parquet as pq
import pytest

from dilated_seg import ablation
from dilated_seg.ablation.check import check_ablation
from dilated_seg.errors import UserError
from dilated_seg.runs import Run
from tests.support.commands import KILL, ROOT, run_command, run_process

FILE = """
experiments: {front end: EXPERIMENTS/shapes/frontend.yaml, SegNet: EXPERIMENTS/shapes/segnet.yaml}
seeds: [0, 1]
common:
  data: {init_args: {images: [4, 2, 3], size: [24, 48], batch_size: 2}}
  model: {net: {init_args: {width: 0.02}}, lr_scheduler: {init_args: {total_iters: 3}}}
  trainer: {max_steps: 3, val_check_interval: 2}
protocols:
  "": {}
  CRF: {crf: {class_path: DenseCRF, init_args: {iterations: 2}}, experiments: [front end]}
select:
  over: {slow: {model: {optimizer: {init_args: {lr: 1.0e-4}}}}, fast: {model: {optimizer: {init_args: {lr: 1.0e-2}}}}}
claims: [{says: the CRF helps, better: "front end, CRF", worse: front end}]
"""
NETWORKS = ("front_end", "SegNet")


def write(folder, *changes):
    """Write the study with changes, and return its file."""
    text = FILE.replace("EXPERIMENTS", str(ROOT / "experiments"))
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file = folder / "study.yaml"
    file.write_text(text)
    return file


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study that was killed after the selection, while its first selected network was trained with its second seed.

    What was trained by then, and what the call that continued printed.
    """
    folder = tmp_path_factory.mktemp("selection")
    code = KILL.replace("{step}", "{step} and 'seed1' in str(self.trainer.default_root_dir)")
    command = ["ablate", write(folder), "--out", folder / "out"]
    serial = {"OMP_NUM_THREADS": "1"}  # one thread: one run after another, in the process that is killed
    killed = run_process(*command, code=code.format(step=2, signal=int(signal.SIGKILL)), **serial)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    trained = {file: file.stat().st_mtime_ns for file in (folder / "out").glob("*/seed0/checkpoints/last.ckpt")}
    dry = run_command(*command, "--dry_run")
    result = run_process(*command, **serial)
    assert result.returncode == 0, result.stderr
    return folder, trained, dry.stdout, result.stdout


def selected(folder):
    """The selected candidate of each network, by what the runs of seed 0 scored on val."""
    scores = {
        (network, candidate): Run(folder / f"out/{network}_{candidate}/seed0").evaluation("val-last").mean_iou
        for network in NETWORKS
        for candidate in ("slow", "fast")
    }
    return {network: max(("slow", "fast"), key=lambda candidate: scores[network, candidate]) for network in NETWORKS}, scores


@pytest.mark.slow
def test_the_best_candidate_on_val_is_trained_with_all_seeds_and_evaluated_on_test(study):
    folder, trained, _, printed = study
    chosen, scores = selected(folder)
    table = pq.read_table(folder / "out/results.parquet").to_pandas()
    rows = {(network, seed): (run, mean) for network, seed, run, mean in table[["network", "seed", "run", "mean_iou"]].values}
    assert sorted(rows) == [(name, seed) for name in ("SegNet", "front end", "front end, CRF") for seed in (0, 1)]
    for (name, seed), (run, mean) in rows.items():
        network = name.partition(",")[0].replace(" ", "_")
        assert run == f"{folder}/out/{network}_{chosen[network]}/seed{seed}"
        evaluation = "test-last-crf-iterations_2" if name.endswith("CRF") else "test-last"
        assert Run(run).evaluation(evaluation).mean_iou == mean
    assert sorted(path.parent.name for path in (folder / "out").glob("*/seed1")) == sorted(map("_".join, chosen.items()))
    assert len(trained) == 4 and all(file.stat().st_mtime_ns == written for file, written in trained.items())
    for network, candidate in chosen.items():
        other = {"slow": "fast", "fast": "slow"}[candidate]
        assert not any(name.startswith("test") for name in Run(folder / f"out/{network}_{other}/seed0").evaluation_names())
    written = json.loads((folder / "out/selection.json").read_text())
    assert (written["by"], written["then"], written["seeds"]) == ("val", "test", [0])
    for network, (name, entry) in zip(NETWORKS, written["networks"].items(), strict=True):
        assert entry["selected"] == chosen[network]
        assert entry["mean_iou"] == {candidate: [scores[network, candidate]] for candidate in ("slow", "fast")}
        percent = {candidate: f"{100 * scores[network, candidate]:.1f}" for candidate in ("slow", "fast")}
        assert f"{name}: {chosen[network]} of slow {percent['slow']}, fast {percent['fast']}" in printed


@pytest.mark.slow
def test_an_interrupted_selection_continues_and_prints_the_remaining_runs(study):
    folder, _, dry, printed = study
    chosen, _ = selected(folder)
    commands = [shlex.split(line) for line in dry.splitlines()]
    assert [words[1] for words in commands].count("fit") == 6  # four trials and two more seeds
    assert [words[1:3] for words in commands if words[1] == "test" and words[-2] == "--checkpoint"] == [
        ["test", f"{folder}/out/{network}_{chosen[network]}/seed0"] for network in NETWORKS
    ]
    assert f"continuing {folder}/out/front_end_{chosen['front_end']}/seed1" in printed
    assert printed.count("run directory: ") == 1  # SegNet's second seed


@pytest.mark.slow
def test_the_report_shows_the_selection_and_a_claim_can_name_a_protocol(study):
    folder, _, _, _ = study
    markdown = (folder / "out/report.md").read_text()
    assert "**the CRF helps: " in markdown
    chosen, scores = selected(folder)
    percent = [f"{100 * scores['SegNet', candidate]:.1f}" for candidate in ("slow", "fast")]
    assert f"| SegNet | {percent[0]} | {percent[1]} | {chosen['SegNet']} |" in markdown
    assert "2 candidates were trained with seed 0; the one with the highest mean IoU on val" in markdown


@pytest.mark.slow
def test_adding_a_protocol_evaluates_without_training(study, tmp_path):
    folder, _, _, _ = study
    shutil.copytree(folder / "out", tmp_path / "out")
    scales = '"": {}\n  flip: {inference: {class_path: MultiScale, init_args: {scales: [1.0], flip: true}}}'
    command = ["ablate", write(tmp_path, ('"": {}', scales)), "--out", tmp_path / "out"]
    status = run_command(*command, "--status").stdout
    assert [status.count(f"trained, {n} of {n + 1} evaluations") for n in (1, 2, 3)] == [1, 2, 1]
    checkpoints = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("last.ckpt")}
    result = run_command(*command)
    assert result.returncode == 0, result.stderr
    assert {file: file.stat().st_mtime_ns for file in checkpoints} == checkpoints
    assert "Training" not in result.stdout
    names = {*pq.read_table(tmp_path / "out/results.parquet")["network"].to_pylist()}
    assert names == {"SegNet", "SegNet, flip", "front end", "front end, flip", "front end, CRF"}


@pytest.mark.slow
def test_a_diverged_candidate_is_not_selected_and_the_report_names_the_split(tmp_path):
    changes = [
        (f"front end: {ROOT}/experiments/shapes/frontend.yaml, ", ""),
        ("lr: 1.0e-2", "lr: 1.0e+30"), ("seeds: [0, 1]", "seeds: [0]\ncheckpoint: best"),
        ("select:\n", "select:\n  then: val\n"), (FILE[FILE.index("protocols:") : FILE.index("select:")], ""),
        (FILE[FILE.index("claims:") :], ""),
    ]  # fmt: skip
    command = ["ablate", write(tmp_path, *changes), "--out", tmp_path / "out"]
    result = run_command(*command)
    assert result.returncode == 0, result.stderr
    assert "SegNet: slow of slow " in result.stdout and "fast diverged" in result.stdout
    assert "networks were selected on val, their scores on it are optimistic" in result.stdout
    assert Run(tmp_path / "out/SegNet_slow/seed0").evaluation_names() == ["val", "val-best"]
    assert json.loads((tmp_path / "out/selection.json").read_text())["networks"]["SegNet"]["diverged"] == ["fast"]
    again = run_command(*command)
    assert again.returncode == 0 and "fast, seed 0" not in again.stdout + again.stderr


@pytest.mark.slow
def test_a_rehearsal_that_evaluates_the_best_checkpoint_validates(tmp_path):
    file = write(tmp_path, ("seeds: [0, 1]", "seeds: [0, 1]\ncheckpoint: best"))
    assert '"val_check_interval": 1' in ablation.read(file, max_steps=1).runs[0].configs[-1]
    never = write(tmp_path, ("seeds:", "checkpoint: best\nseeds:"), ("max_steps: 3", "max_steps: 1"))
    with pytest.raises(UserError, match="would have no best checkpoint: it ends after 1 steps"):
        check_ablation(ablation.read(never))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("by: val", "by: train"), "select.by train: choose val or test"),
        (("  over: {slow", "  over: {A: {}}\n# {slow"), "fewer than two candidates"),
        (("by: val", "evaluate: val"), "unknown key 'select.evaluate'"),
        (("by: val", "seeds: 3"), "select.seeds 3: give the number of seeds that try each candidate, 1 to 2"),
        (("seeds: [0, 1]", "seeds: [0, 1]\nevaluate: val"), "leave evaluate out"),
        (("seeds: [0, 1]", "seeds: [0, 1]\ncheckpoint: first"), "checkpoint first: choose last or best"),
        (("iterations: 2", "iteration: 2"), "DenseCRF has no argument iteration: did you mean iterations?"),
        (("iterations: 2", "iterations: 0"), "protocol 'CRF': DenseCRF: iterations is 0"),
        (("{crf:", "{crv:"), "protocol 'CRF' has the unknown key 'crv'"),
        (("[front end]", "[back end]"), "is for the unknown experiment 'back end': choose from front end, SegNet"),
        (('"": {}', '"": {experiments: [front end]}'), "has no protocol for SegNet"),
        (("worse: front end", "worse: \"SegNet, CRF\""), "a claim about the unknown network 'SegNet, CRF'"),
        (("seeds: [0, 1]", 'seeds: [0, 1]\noverlays: {"": {}, CRF: {}}'), "two rows 'front end, CRF'"),
    ],
)  # fmt: skip
def test_wrong_protocols_or_selections_are_a_user_error(tmp_path, change, sentence):
    by = ("select:\n", "select:\n  by: val\n")
    with pytest.raises(UserError, match=sentence.replace("?", r"\?").replace("[", r"\[")):
        ablation.read(write(tmp_path, by, change))
