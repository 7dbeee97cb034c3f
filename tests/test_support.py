"""The tests' own helpers: a command in this process gives what one of its own gives, and leaves nothing behind."""

import os
import signal
import sys
from pathlib import Path

import wandb

from tests.conftest import build_once
from tests.support.commands import TINY, fails_in_one_sentence, keep_process_state, run_command, run_process


def test_a_command_in_this_process_gives_what_a_process_of_its_own_gives():
    for arguments in (["--version"], ["fti"], ["describe", "NoNet"]):
        here, there = run_command(*arguments), run_process(*arguments)
        assert (here.returncode, here.stdout, here.stderr) == (there.returncode, there.stdout, there.stderr)
    assert fails_in_one_sentence(run_command("fti"), "fit")


def test_an_error_of_the_program_is_a_traceback_and_status_1(monkeypatch):
    monkeypatch.setattr("tests.support.commands.main", lambda args: 1 / 0)
    result = run_command("fit")
    assert result.returncode == 1 and "ZeroDivisionError" in result.stderr


def test_a_training_in_this_process_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ), Path.cwd(), sys.path.copy(), signal.getsignal(signal.SIGTERM)
    once = ["--trainer.max_steps=1", "--trainer.limit_val_batches=0"]
    result = run_command("fit", *TINY, *once, "--run_dir", tmp_path / "run", WANDB_RUN_GROUP="a group", WANDB_API_KEY=None)
    assert result.returncode == 0, result.stderr
    assert list(tmp_path.glob("run/wandb/offline-run-*")) and wandb.run is None
    assert before == (dict(os.environ), Path.cwd(), sys.path.copy(), signal.getsignal(signal.SIGTERM))


def test_what_a_command_changes_is_undone_also_after_an_error(tmp_path):
    try:
        with keep_process_state():
            os.chdir(tmp_path)
            os.environ["DILATED_SEG_SOMETHING"] = "1"
            raise RuntimeError("a crash")
    except RuntimeError:
        assert "DILATED_SEG_SOMETHING" not in os.environ and Path.cwd() != tmp_path


def test_a_directory_that_tests_share_is_built_once(tmp_path_factory):
    built, name = [], f"shared-{os.getpid()}"
    for _ in range(2):
        folder = build_once(tmp_path_factory, name, lambda folder: built.append((folder / "a").write_text("a")))
    assert built == [1] and (folder / "a").is_file()
