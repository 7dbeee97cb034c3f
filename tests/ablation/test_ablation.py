"""Many runs from one file: what is finished stays, what was interrupted continues, the numbers are the same."""

import os
import shlex
import signal
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from dilated_seg import ablation
from dilated_seg.ablation.check import check_ablation
from dilated_seg.errors import UserError
from dilated_seg.report.blocks import ReportTable, walk_blocks
from dilated_seg.report.compare import compare
from dilated_seg.report.comparison import Comparison
from dilated_seg.report.results import (
    Result,
    describe_shared_protocol,
    find_results,
    name_run,
    predict_majority,
    read_results,
    require_same_split,
)
from dilated_seg.report.sections.protocol import build_protocol_section
from dilated_seg.runs.find import newest_checkpoint
from dilated_seg.runs.run import Run
from dilated_seg.training import checkpoint_io
from tests.support.commands import KILL, ROOT, fails_in_one_sentence, run_command, run_process

FILE = """
experiments: {front end: EXPERIMENTS/shapes/frontend.yaml, SegNet: EXPERIMENTS/shapes/segnet.yaml}
seeds: [0, 1]
common:
  data: {init_args: {images: [8, 2, 3], size: [24, 48], batch_size: 2}}
  model: {net: {init_args: {width: 0.02}}, lr_scheduler: {init_args: {total_iters: 6}}}
  trainer: {max_steps: 6, val_check_interval: 2}
evaluate: test
probe: 8
claims: [{says: unpooling helps, better: SegNet, worse: front end, boundary: 3}]
"""
COLUMNS = ("mean_iou", "pixel_accuracy", "iou/star")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """An ablation that ran through."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.yaml").write_text(FILE.replace("EXPERIMENTS", str(ROOT / "experiments")))
    result = run_command("ablate", folder / "study.yaml", "--out", folder / "out")
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def results(out):
    table = pq.read_table(out / "results.parquet").to_pandas()
    return table.set_index(["network", "seed"]).sort_index()[list(COLUMNS)]


def test_an_ablation_ends_with_a_table_a_report_and_images(study):
    folder, printed = study
    assert {"front end", "SegNet"} <= {name for name, _ in results(folder / "out").index}
    for text in ("front end", "SegNet", "(background everywhere)", "each seed", "split: test", "images: 3"):
        assert text in printed
    markdown = (folder / "out" / "report.md").read_text()
    pictures = (
        "mean_iou",
        "class_iou",
        "boundaries",
        "difficulty",
        "context",
        "curve_mean_iou",
        "predictions",
    )
    for picture in pictures:
        assert f"({picture}.png)" in markdown
        assert (folder / "out" / f"{picture}.png").stat().st_size > 5000
    assert "**unpooling helps: " in markdown and f"dilated-seg ablate {folder}/study.yaml" in markdown


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)])
def test_an_interrupted_ablation_continues_to_the_same_table(study, tmp_path, kind, code):
    folder, _ = study
    # every run passes step 3; the first one is finished and the second is killed there
    stop = KILL.replace(
        "if self.global_step == {step}", "if self.global_step == {step} and 'seed1' in str(self.trainer.default_root_dir)"
    )
    command = ["ablate", folder / "study.yaml", "--out", tmp_path / "out"]
    stopped = run_process(*command, code=stop.format(step=3, signal=int(kind)))
    assert stopped.returncode == code, stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert not (tmp_path / "out" / "report.md").exists()
    finished = tmp_path / "out" / "front_end" / "seed0" / "checkpoints" / "last.ckpt"
    written = finished.stat().st_mtime_ns
    again = run_command("ablate", folder / "study.yaml", "--out", tmp_path / "out")
    assert again.returncode == 0, again.stderr
    assert finished.stat().st_mtime_ns == written
    assert results(tmp_path / "out").equals(results(folder / "out"))


@pytest.mark.slow
def test_a_finished_ablation_only_writes_its_report_again(study):
    folder, _ = study
    weights = list((folder / "out").glob("*/*/checkpoints/last.ckpt"))
    before = [path.stat().st_mtime_ns for path in weights]
    assert run_command("ablate", folder / "study.yaml", "--out", folder / "out").returncode == 0
    assert [path.stat().st_mtime_ns for path in weights] == before


def test_dry_run_prints_the_commands_and_status_the_state_of_each_run(study, tmp_path):
    folder, _ = study
    file = folder / "study.yaml"
    printed = run_command("ablate", file, "--out", tmp_path / "out", "--dry_run")
    assert printed.returncode == 0, printed.stderr
    commands = [shlex.split(line) for line in printed.stdout.splitlines()]
    assert len(commands) == 4 and all(command[:2] == ["dilated-seg", "fit"] for command in commands)
    first = run_command(*commands[0][1:])
    assert first.returncode == 0, first.stderr
    status = run_command("ablate", file, "--out", tmp_path / "out", "--status").stdout.splitlines()
    assert [" ".join(line.split()[:4]) for line in status[1:3]] == ["front end 0 finished", "front end 1 not"]
    assert run_command("ablate", file, "--out", folder / "out", "--status").stdout.count(" finished ") == 4


@pytest.mark.slow
def test_a_rehearsal_trains_every_run_for_a_few_steps_in_its_own_directory(study, tmp_path):
    folder, _ = study
    expanded = ablation.read(folder / "study.yaml", max_steps=2)
    assert all(str(one.directory).startswith("runs/study-rehearsal/") for one in expanded.runs)
    result = run_command("ablate", folder / "study.yaml", "--max_steps=2", "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert {(run / "finished").read_text() for run in (tmp_path / "out").glob("*/seed*")} == {"after step 2\n"}
    assert fails_in_one_sentence(run_command("ablate", folder / "study.yaml", "--max_steps=0"), "at least one step")


STAGED = """
experiments:
  DilatedNet: [EXPERIMENTS/shapes/frontend.yaml, EXPERIMENTS/shapes/dilatednet.yaml]
  front end: EXPERIMENTS/shapes/frontend.yaml
common:
  data: {init_args: {images: [8, 2, 3], size: [24, 48], batch_size: 2}}
  model: {net: {init_args: {width: 0.02}}, lr_scheduler: {init_args: {total_iters: 4}}}
  trainer: {max_steps: 4, val_check_interval: 2}
"""


@pytest.mark.slow
def test_each_stage_starts_from_the_weights_of_the_last_and_a_chain_resumes_in_the_middle(tmp_path):
    (tmp_path / "study.yaml").write_text(STAGED.replace("EXPERIMENTS", str(ROOT / "experiments")))
    stop = KILL.replace("{step}", "{step} and 'stage2' in str(self.trainer.default_root_dir)")
    code = stop.format(step=3, signal=int(signal.SIGKILL))
    command = ["ablate", tmp_path / "study.yaml", "--out", tmp_path / "out"]
    killed = run_process(*command, code=code, OMP_NUM_THREADS="1")  # one thread: one run after another
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    first, second = (tmp_path / f"out/DilatedNet/seed0/stage{k}" for k in (1, 2))
    (said,) = (line for line in killed.stdout.splitlines() if line.startswith(f"{first}/checkpoints/last.ckpt: "))
    assert "0 unexpected, 16 missing" in said and "ctx_conv" in said  # all of the front end, nothing of the context
    written = (first / "checkpoints/last.ckpt").stat().st_mtime_ns
    again = run_process(*command, OMP_NUM_THREADS="1")
    assert again.returncode == 0, again.stderr
    assert "1 of 3: DilatedNet, seed 0, stage 1 of 2 is finished" in again.stdout
    assert f"continuing {second}" in again.stdout
    assert (first / "checkpoints/last.ckpt").stat().st_mtime_ns == written
    table = pq.read_table(tmp_path / "out/results.parquet").to_pandas()
    assert sorted(table["network"]) == ["DilatedNet", "front end"]


def test_adding_a_seed_trains_only_the_new_runs(tmp_path):
    (tmp_path / "a.yaml").write_text("{}")
    (tmp_path / "study.yaml").write_text("experiments: {A: a.yaml}\n")
    first = ablation.read(tmp_path / "study.yaml").runs
    (tmp_path / "study.yaml").write_text("experiments: {A: a.yaml, B/c: a.yaml}\nseeds: [0, 1]\n")
    later = ablation.read(tmp_path / "study.yaml").runs
    assert first[0].directory == later[0].directory
    assert [str(run.directory.relative_to("runs/study")) for run in later] == ["A/seed0", "A/seed1", "B_c/seed0", "B_c/seed1"]


@pytest.mark.parametrize("name", ["jobs", "dashboard", ".."])
def test_an_experiment_named_like_a_directory_of_the_ablation_is_an_error(tmp_path, name):
    (tmp_path / "a.yaml").write_text("{}")
    (tmp_path / "study.yaml").write_text(f'experiments: {{"{name}": a.yaml}}\n')
    with pytest.raises(UserError, match="rename it"):
        ablation.read(tmp_path / "study.yaml")


def test_missing_initial_weights_are_an_error_before_the_first_run(tmp_path):
    experiment = f"experiments: {{A: {ROOT}/experiments/shapes/frontend.yaml}}\n"
    (tmp_path / "study.yaml").write_text(experiment + "common: {model: {weights: runs/voc/fcn32s}}\n")
    with pytest.raises(UserError, match=r"first dilated-seg fit --config experiments/voc/fcn32s\.yaml"):
        check_ablation(ablation.read(tmp_path / "study.yaml", tmp_path / "out"))


def test_a_rehearsal_with_other_settings_replaces_the_earlier_rehearsal(tmp_path):
    (tmp_path / "study.yaml").write_text(f"experiments: {{A: {ROOT}/experiments/shapes/frontend.yaml}}\n")
    rehearsal, study = (ablation.read(tmp_path / "study.yaml", tmp_path / "out", steps) for steps in (3, None))
    folder = study.runs[0].directory
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("of another configuration")
    with pytest.raises(UserError, match="another configuration"):
        check_ablation(study)
    check_ablation(rehearsal)
    assert not folder.exists()


def test_initial_weights_from_a_directory_are_those_of_its_newest_finished_run(tmp_path):
    runs = {"20260101-000000": 1, "20260102-000000": 3, "20260103-000000": 0, "once": 2}  # when each was finished
    for name, finished in runs.items():
        run = tmp_path / name
        checkpoint_io.SafeCheckpointIO().save_checkpoint({"state_dict": {}}, run / "checkpoints/last.ckpt")
        (run / "config.yaml").write_text("")
        if finished:
            (run / "finished").write_text("")
            os.utime(run / "finished", ns=(1, finished))
    assert newest_checkpoint(tmp_path).path == tmp_path / "20260102-000000/checkpoints/last.ckpt"
    assert newest_checkpoint(tmp_path / "20260101-000000").path == tmp_path / "20260101-000000/checkpoints/last.ckpt"
    with pytest.raises(UserError, match="has no finished run"):
        newest_checkpoint(tmp_path / "20260103-000000")
    (tmp_path / "20260102-000000/checkpoints/last.ckpt").write_bytes(b"damaged")
    with pytest.raises(UserError, match="missing or damaged"):
        newest_checkpoint(tmp_path)


def test_a_changed_ablation_in_the_same_directory_is_an_error(study, tmp_path):
    folder, _ = study
    changed = (folder / "study.yaml").read_text().replace("width: 0.02", "width: 0.03")
    (tmp_path / "changed.yaml").write_text(changed)
    result = run_command("ablate", tmp_path / "changed.yaml", "--out", folder / "out")
    assert fails_in_one_sentence(result, "another configuration")


def test_report_compares_the_runs_in_its_directories(study, tmp_path, capsys):
    folder, _ = study
    compare(find_results([folder / "out"], "test-last"), tmp_path)
    table = pq.read_table(tmp_path / "results.parquet").to_pandas()
    assert sorted(zip(table["network"], table["seed"], strict=True)) == [
        ("SegNet", 0), ("SegNet", 1), ("front_end", 0), ("front_end", 1),
    ]  # fmt: skip
    assert "each seed" in capsys.readouterr().out


def test_runs_are_named_by_the_parts_of_their_paths_that_differ(tmp_path):
    a, b, c = (Run(tmp_path / name) for name in ("x/net/seed0", "y/net/seed0", "y/net/seed1"))
    assert [name_run(run, [a, b, c]) for run in (a, b, c)] == ["x/net", "y/net", "y/net"]
    assert name_run(a, [a]) == "net"


def segnet(folder, seed):
    """A finished run of the study."""
    return Run(folder / "out" / "SegNet" / f"seed{seed}")


def test_the_report_lists_what_differs_between_evaluation_protocols(study):
    folder, _ = study
    one, other = read_results([segnet(folder, 0), segnet(folder, 1)], "test-last", ["a", "a"])
    best = replace(other.evaluation, protocol=replace(other.evaluation.protocol, checkpoint="best", step=2))
    other = replace(other, evaluation=best)
    assert "checkpoint: differs" in describe_shared_protocol([one, other])
    blocks = build_protocol_section(Comparison([one, other]), []).blocks
    (table,) = (block for block in walk_blocks(blocks) if isinstance(block, ReportTable) and len(block.header) > 3)
    assert [row[:3] for row in table.rows] == [["a", "0", "last, step 6"], ["a", "1", "best, step 2"]]


def test_comparing_evaluations_of_different_splits_is_an_error(study, tmp_path):
    folder, _ = study
    run = segnet(folder, 0)
    with pytest.raises(UserError, match="same images"):
        require_same_split([Result("a", run, run.evaluation("test-last")), Result("b", run, run.evaluation("val"))])


def test_the_majority_baseline_is_computed_from_the_masks(study):
    folder, _ = study
    (result,) = read_results([segnet(folder, 0)], "test-last", ["a"])
    name, matrix = predict_majority([result])
    assert name == "background"
    assert int(matrix.sum()) == result.evaluation.protocol.pixels
    assert int((matrix > 0).any(0).sum()) == 1


def test_curves_contain_all_sessions_of_a_resumed_run(tmp_path):
    (tmp_path / "metrics-1.csv").write_text("step,val/mean_iou\n3,0.1\n6,0.2\n")
    (tmp_path / "metrics.csv").write_text("step,val/mean_iou\n6,0.2\n9,0.4\n")
    assert Run(tmp_path).history()["val/mean_iou"] == [(3, 0.1), (6, 0.2), (9, 0.4)]
