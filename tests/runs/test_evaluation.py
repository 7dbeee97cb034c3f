"""What evaluations are called, which weights they are of, and what replaces what."""

import contextlib
import io
import json
import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dilated_seg.__main__ import main
from dilated_seg.cli import CLI
from dilated_seg.report.sections.cost import format_throughput
from dilated_seg.runs import Run
from dilated_seg.runs.find import find_common_evaluation
from dilated_seg.training.cost import Cost
from dilated_seg.training.loggers import finish
from tests.conftest import ROOT

# of a run that was copied, from Lightning's callback
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")

TINY = [
    "--config", str(ROOT / "experiments/shapes/frontend.yaml"),
    "--data.init_args.images=[8,3,3]", "--data.init_args.size=[16,24]", "--data.init_args.batch_size=2",
    "--data.init_args.eval_batch_size=1", "--model.net.init_args.width=0.02", "--trainer.accelerator=cpu",
    "--trainer.max_steps=4", "--trainer.val_check_interval=2", "--trainer.log_every_n_steps=1",
]  # fmt: skip
ODD = "a [b=1] $c 'd'"  # a run directory as a user may call it


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run, W&B offline as it is for a user without a key; and what it printed."""
    folder, printed = tmp_path_factory.mktemp("runs") / ODD, io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("WANDB_MODE", "offline")
        assert main(["fit", *TINY, "--run_dir", str(folder)]) == 0
        finish()
    return folder, printed.getvalue()


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it without evaluations."""
    folder = tmp_path / ODD
    shutil.copytree(trained[0], folder, ignore=shutil.ignore_patterns("wandb", "evaluations", "gallery"))
    return folder


def evaluations(folder):
    return {path.stem: json.loads(path.read_text()) for path in sorted((folder / "evaluations").glob("*.json"))}


def files(folder):
    return {path.name: path.read_bytes() for path in (folder / "evaluations").iterdir()}


def predicted(folder):
    return json.loads((folder / "protocol.json").read_text())["images"]


def test_a_partial_evaluation_has_its_own_name_and_replaces_nothing(run, capsys):
    arguments = ["validate", "--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints/best.ckpt")]
    assert main(arguments) == 0
    whole = files(run)
    assert sorted(whole) == ["val-best.json", "val-best.parquet", "val-best.strata.parquet"]
    capsys.readouterr()
    assert main([*arguments, "--trainer.limit_val_batches=2"]) == 0
    assert "partial: 2 of 3 images" in capsys.readouterr().out
    assert {name: content for name, content in files(run).items() if name in whole} == whole
    assert sorted(evaluations(run)) == ["val-best", "val-best-2of3"]
    part, whole_split = Run(run).evaluation("val-best-2of3").protocol, Run(run).evaluation("val-best").protocol
    assert (part.images, part.available, part.partial) == (2, 3, "partial: 2 of 3 images")
    assert "; images: 2 of 3, partial; " in str(part)
    assert (whole_split.images, whole_split.available, whole_split.partial) == (3, 3, "")
    assert sorted(path.name for path in (run / "gallery").iterdir()) == ["val-best", "val-best-2of3"]
    assert find_common_evaluation([Run(run)]) == "val-best"
    for way in ("--trainer.limit_val_batches=0.4", "--trainer.fast_dev_run=1"):  # neighbours: a share, Lightning's rehearsal
        assert main([*arguments, way]) == 0
    assert {name: content for name, content in files(run).items() if name in whole} == whole
    assert sorted(evaluations(run)) == ["val-best", "val-best-1of3", "val-best-2of3"]


def test_a_partial_test_and_a_partial_validation_during_training_are_called_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal: rich draws its bar, above which the lines stand
    folder = tmp_path / "run"
    limits = ["--trainer.limit_val_batches=2", "--trainer.limit_test_batches=2"]
    assert main(["fit", *TINY, *limits, "--run_dir", str(folder)]) == 0
    assert list(evaluations(folder)) == ["val-2of3"]
    printed = capsys.readouterr().out
    assert len(re.findall(LINE, printed)) == printed.count("), partial: 2 of 3 images") == 2
    assert "Training, epoch 0" in printed
    assert main(["test", "--config", str(folder / "config.yaml"), "--ckpt_path", str(folder / "checkpoints/last.ckpt")]) == 0
    assert list(evaluations(folder)) == ["test-last-2of3", "val-2of3"]
    capsys.readouterr()
    assert main(["report", str(folder), "--out", str(tmp_path / "report")]) == 2
    assert "only partial evaluations in common (test-last-2of3, val-2of3)" in capsys.readouterr().err
    assert main(["report", str(folder), "--out", str(tmp_path / "report"), "--evaluation", "val-2of3"]) == 0
    assert "partial: 2 of 3 images" in capsys.readouterr().out
    for page in ("report.md", "report.html"):
        assert "This is partial: 2 of 3 images, not the whole split." in (tmp_path / "report" / page).read_text()


def test_partial_predictions_have_their_own_directory_and_incomplete_ones_are_marked(run, monkeypatch):
    arguments = ["predict", "--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints/best.ckpt")]
    assert main(arguments) == 0
    assert main([*arguments, "--trainer.limit_predict_batches=2"]) == 0
    assert len(list((run / "predictions").glob("*.png"))) == 3
    assert len(list((run / "predictions-2of3").glob("*.png"))) == 2
    images = {
        name: json.loads((run / name / "protocol.json").read_text())["images"] for name in ("predictions", "predictions-2of3")
    }
    assert images == {"predictions": 3, "predictions-2of3": "2 of 3, partial"}

    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("dilated_seg.training.gallery.paint_mask", fail)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        CLI(arguments)
    assert predicted(run / "predictions") == "3, not finished"


def test_an_evaluation_of_other_data_or_another_checkpoint_of_this_name_replaces_nothing(run, tmp_path, capsys):
    arguments = ["validate", "--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints/best.ckpt")]
    assert main(arguments) == 0
    before = files(run)
    assert main(arguments) == 0
    assert sorted(files(run)) == sorted(before)  # the same again: replaced by itself
    capsys.readouterr()
    for _ in range(2):  # under one name, however often
        assert main([*arguments, "--data.init_args.images=[8,2,2]"]) == 0
        assert "other images or masks and is kept" in capsys.readouterr().out
        assert len(evaluations(run)) == 2
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(run / "checkpoints/last.ckpt", elsewhere / "best.ckpt")
    assert main([*arguments[:-1], str(elsewhere / "best.ckpt"), "--run_dir", str(run)]) == 0
    assert "another checkpoint and is kept" in capsys.readouterr().out
    assert len(evaluations(run)) == 3
    assert {name: content for name, content in files(run).items() if name == "val-best.parquet"}.items() <= before.items()
    assert all(re.fullmatch(r"val-best(-[0-9a-f]{8})?", name) for name in evaluations(run))


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_without_a_checkpoint_the_runs_best_is_evaluated_and_an_untrained_network_refused(
    verb, run, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main([verb, "--config", f"{ODD}/config.yaml"]) == 0
    assert f"no --ckpt_path: evaluating {ODD}/checkpoints/best.ckpt" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()  # it belongs to its run
    assert main([verb, *TINY]) == 2
    said = capsys.readouterr()
    assert "--ckpt_path" in said.err and len(said.err.splitlines()) == 1
    assert not list(tmp_path.glob("runs/**/*.json")) and not list(tmp_path.glob("runs/*/*/*"))  # nothing is left behind
    (run / "checkpoints/best.ckpt").unlink()
    assert main([verb, "--config", f"{ODD}/config.yaml"]) == 0  # neighbour: a run that was never validated
    assert f"evaluating {ODD}/checkpoints/last.ckpt" in capsys.readouterr().out


def test_published_weights_are_evaluated_if_they_fill_the_network(run, tmp_path, capsys):
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    weights = {
        name.removeprefix("model.net."): value.contiguous() for name, value in state.items() if name.startswith("model.net.")
    }
    save_file(weights, tmp_path / "published.safetensors", {"mean": "1 2 3", "std": "1 1 1"})
    start = ["--model.weights", str(tmp_path / "published.safetensors")]
    mean = ["--model.mean=[1,2,3]", "--model.std=[1,1,1]"]
    assert main(["validate", *TINY, *start, *mean, "--run_dir", str(tmp_path / "out")]) == 0
    assert list(evaluations(tmp_path / "out")) == ["val-published"]
    # the run's own configuration, but other weights are asked for: these are evaluated
    assert main(["validate", "--config", str(run / "config.yaml"), *start, *mean, "--run_dir", str(tmp_path / "out2")]) == 0
    assert list(evaluations(tmp_path / "out2")) == ["val-published"]
    capsys.readouterr()
    part = [f"--model.weights_without=[{list(weights)[-1].split('.')[-2]}]"]
    assert main(["validate", *TINY, *start, *mean, *part, "--run_dir", str(tmp_path / "out3")]) == 2
    assert "untrained" in capsys.readouterr().err
    assert main(["validate", *TINY, "--model.weights=imagenet", "--run_dir", str(tmp_path / "out4")]) == 2
    assert "no trained weights" in capsys.readouterr().err
    assert not (tmp_path / "out4").exists()


LINE = r"step (\d+): validation loss ([\d.]+), mean IoU ([\d.]+) % \((best so far ?[\d.]*)\)"


def commands(printed):
    """The commands that were printed, as a shell splits them."""
    return [shlex.split(line) for line in printed.splitlines() if line.startswith(("  dilated-seg ", "  wandb "))]


def test_fit_says_each_validation_the_best_checkpoint_and_commands_that_work(trained, capsys):
    folder, printed = trained
    logged = {step: value for step, (_, value) in zip((2, 4), Run(folder).history()["val/mean_iou"], strict=True)}
    lines = re.findall(LINE, printed)
    assert [int(step) for step, *_ in lines] == [2, 4]
    assert [float(value) for _, _, value, _ in lines] == [round(100 * value, 1) for value in logged.values()]
    best = max(logged, key=lambda step: logged[step])
    assert f"{folder}/checkpoints/best.ckpt, step {best}, validation mean IoU {100 * logged[best]:.1f} %" in printed
    assert lines[0][3] == "best so far" and lines[1][3] in ("best so far", f"best so far {lines[0][2]}")
    assert "Shapes val" in printed and "weighted by frequency" in printed and "checkpoint: last, step 4" in printed
    validate, segment, report, sync = commands(printed)
    assert [words[1] for words in (validate, segment, report, sync)] == ["validate", "segment", "report", "sync"]
    assert Path(sync[2]).is_dir() and Path(sync[2]).name.startswith("offline-run-")
    capsys.readouterr()
    for words in (validate, segment, report):  # as they would be pasted
        assert main(words[1:]) == 0, words
    assert sorted(evaluations(folder)) == ["val", "val-best"]
    assert list((folder / "segmented").glob("**/*.png")) and (folder / "report/report.html").is_file()
    page = (folder / "report/report.md").read_text()
    again = [shlex.split(line) for line in page.splitlines() if line.startswith("    dilated-seg ")]
    assert [words[1] for words in again] == ["report", "fit", "validate"]
    for words in again[1:]:
        assert main(words[1:]) == 0, words


def test_a_run_that_continues_remembers_its_best_and_one_without_validation_says_so(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["fit", *TINY, "--run_dir", str(folder)]) == 0
    first = re.findall(LINE, capsys.readouterr().out)
    assert len(first) == 2
    (folder / "finished").unlink()
    (folder / "checkpoints/last.ckpt").unlink()  # as if killed after the first validation
    for name in ("best", "previous"):
        file = folder / f"checkpoints/{name}.ckpt"
        if torch.load(file, weights_only=True)["global_step"] == 4:
            file.unlink()
    assert main(["fit", *TINY, "--run_dir", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert re.findall(LINE, printed) == first[1:]
    assert main(["fit", *TINY, "--run_dir", str(folder)]) == 0  # it is finished: what comes next is said again
    assert "best checkpoint: " in capsys.readouterr().out
    assert main(["fit", *TINY, "--trainer.limit_val_batches=0", "--run_dir", str(tmp_path / "none")]) == 0
    printed = capsys.readouterr().out
    assert not re.findall(LINE, printed)
    assert f"no validation, so no checkpoint is the best; the last one: {tmp_path}/none/checkpoints/last.ckpt" in printed
    assert [words[1] for words in commands(printed)] == ["validate", "sync"]  # W&B is offline
    assert main(commands(printed)[0][1:]) == 0


@pytest.mark.slow
def test_an_ablation_prints_a_line_for_each_validation_and_no_table_for_each_run(tmp_path, capsys):
    over = {"data": {"init_args": {"images": [4, 3, 2], "size": [16, 24], "batch_size": 2, "eval_batch_size": 1}}}
    over |= {"model": {"net": {"init_args": {"width": 0.02}}}, "trainer": {"accelerator": "cpu", "limit_val_batches": 2}}
    over["trainer"] |= {"max_steps": 2, "val_check_interval": 1, "log_every_n_steps": 1}
    experiment = str(ROOT / "experiments/shapes/frontend.yaml")
    (tmp_path / "small.yaml").write_text(json.dumps({"experiments": {"one [/x]": experiment}, "common": over}))
    assert main(["ablate", str(tmp_path / "small.yaml"), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert len(re.findall(LINE, printed)) == 2 and "partial: 2 of 3 images" in printed
    assert "next:" not in printed and "best checkpoint" not in printed and "one [/x]" in printed
    found = evaluations(next((tmp_path / "out").glob("*/seed0")))
    assert sorted(found) == ["val-2of3", "val-last"]  # what is compared is the whole split, whatever training looked at
    assert found["val-last"]["protocol"]["images"] == 3


def test_the_command_that_tune_prints_evaluates_the_tuned_run(run, capsys):
    assert main(["tune", str(run), "--images", "1"]) == 0
    (words,) = commands(capsys.readouterr().out)
    assert main(words[1:]) == 0
    records = evaluations(run)
    assert len(records) == 2 and all(name.startswith("val-last") for name in records)
    assert all((r["protocol"]["checkpoint"], r["protocol"]["step"]) == ("last", 4) for r in records.values())


class Parsed(CLI):
    """Parses the arguments of a command as it would be run, and runs nothing."""

    def build(self):
        """Build nothing."""
        self.trainer = SimpleNamespace(loggers=[])

    def evaluate(self, verb):
        """Run nothing."""


def test_commands_in_the_documentation_are_taken_and_name_weights_where_they_are_evaluated(run, monkeypatch):
    monkeypatch.chdir(ROOT)
    (run / "crf.yaml").write_text("crf: {class_path: dilated_seg.crf.DenseCRF, init_args: {w1: 5}}\n")
    for page in sorted((ROOT / "docs").glob("*.md")):
        for line in re.findall(r"^ {4}(dilated-seg (?:validate|test|predict) .*)", page.read_text(), re.MULTILINE):
            words = [word.replace("RUN", str(run)) for word in shlex.split(line, comments=True)]
            parsed = Parsed(words[1:]).config
            assert parsed.ckpt_path or parsed.model.weights, line


def test_the_cost_is_the_median_of_the_batches_after_the_first(monkeypatch):
    clock = iter([0.0, 9.0, 10.0, 10.5, 20.0, 21.0, 30.0, 30.1, 40.0, 42.0])  # begin and end of each batch
    monkeypatch.setattr("dilated_seg.training.cost.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    cost = Cost(torch.device("cpu"))
    for _ in range(5):
        cost.start()
        cost.stop({"id": ["a", "b", ""], "mask": torch.zeros(3, 4, 5)})
    found = cost.summarize(processes=2)
    rates = [2 * 2 / seconds for seconds in (0.5, 1.0, 0.1, 2.0)]
    assert found["images_per_second"] == pytest.approx(np.median(rates))
    assert found["quartiles"] == pytest.approx(np.quantile(rates, (0.25, 0.75)).tolist())
    assert (found["batches"], found["warm_up"], found["size"]) == (4, 1, (4, 5))


def test_the_report_shows_the_spread_and_few_timings():
    spread = {"images_per_second": 12.34, "quartiles": [11.0, 13.0]}
    assert format_throughput(spread | {"batches": 9}) == "12.3 [11, 13]"
    assert format_throughput(spread | {"batches": 4}) == "12.3 [11, 13], 4 batches"
    assert format_throughput(spread | {"batches": 1}) == "12.3, 1 batch"
    assert format_throughput({}) == "-"
