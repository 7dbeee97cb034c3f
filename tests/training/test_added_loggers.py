"""Loggers and callbacks that a user chooses leave metrics.csv and the checkpoints in the run; W&B is offline."""

import csv

import pytest
from lightning.pytorch.loggers import Logger

from tests.training.test_lost_work import RUN, act_once, continue_as_told, crash, last_step, main, offline  # noqa: F401


class Board(Logger):
    """Stands for TensorBoardLogger and others, which have a folder, a name and a version, and of which several may be used."""

    def __init__(self, save_dir: str = ".") -> None:
        super().__init__()
        self.places, self.steps = save_dir, []

    @property
    def save_dir(self):
        return self.places

    @property
    def name(self):
        return "lightning_logs"

    @property
    def version(self):
        return 0

    def log_hyperparams(self, params, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        (seen.setdefault(self.places, [])).append(step)


seen: dict[str, list[int]] = {}
BOARD = "tests.training.test_added_loggers.Board"
SAME = "--trainer.logger=[{class_path: CSVLogger, init_args: {save_dir: RUN, name: '', version: ''}}]"
ELSEWHERE = (
    "--trainer.callbacks=[{class_path: ModelCheckpoint, init_args: {dirpath: RUN/else, filename: a, every_n_train_steps: 1}}]"
)


def steps(file):
    with file.open() as lines:
        return [int(row["step"]) for row in csv.DictReader(lines) if row.get("train/loss")]


def left(run):
    return {str(path.relative_to(run)) for path in run.rglob("*.ckpt")}


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("flags", "wandb", "own"),
    [
        (["--trainer.logger", BOARD], True, None),
        (["--trainer.logger+", BOARD, "--wandb=false"], False, None),
        (["--trainer.logger", "CSVLogger", "--trainer.logger.name=mine", "--wandb=false"], False, "mine/version_0/metrics.csv"),
        ([SAME], True, "metrics.csv"),
        (["--trainer.logger=false"], False, None),
    ],
    ids=["one", "added", "csv", "csv in the same place", "none"],
)  # fmt: skip
def test_checkpoints_and_metrics_csv_are_in_the_run_directory_with_any_loggers(
    tmp_path, monkeypatch, capsys, flags, wandb, own
):
    seen.clear()
    run = tmp_path / "run"
    flags = [*RUN, *(flag.replace("RUN", str(run)) for flag in flags), "--trainer.max_steps=4", "--run_dir", str(run)]
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="a crash"):
        act_once(patch, "training_step", 3, crash)
        main(flags)
    assert left(run) == {f"checkpoints/{name}.ckpt" for name in ("best", "last", "previous")}
    assert continue_as_told(capsys.readouterr().err) == 0
    assert f"continuing {run}" in capsys.readouterr().out
    assert left(run) == {f"checkpoints/{name}.ckpt" for name in ("best", "last", "previous")}
    assert steps(run / "metrics-1.csv") == [0, 1, 2] and steps(run / "metrics.csv") == [3]
    assert (run / "wandb").is_dir() == wandb
    if own:
        assert steps(run / own)
    if BOARD in " ".join(flags):
        assert list(seen) == [str(run)]  # its files lie in the run
        assert {0, 1, 2, 3} <= set(seen[str(run)])


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        "--trainer.callbacks=[]",
        ELSEWHERE,
        "--trainer.enable_checkpointing=false",
    ],
    ids=["no callback", "a place of their own", "none while training"],
)
def test_last_ckpt_is_written_with_any_callbacks(tmp_path, monkeypatch, capsys, flags):
    run = tmp_path / "run"
    arguments = [*RUN, flags.replace("RUN", str(run)), "--trainer.max_steps=4", "--run_dir", str(run)]
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="a crash"):
        act_once(patch, "validation_step", 3, crash)
        main(arguments)
    assert last_step(run) == 3
    assert continue_as_told(capsys.readouterr().err) == 0
    assert {path.stem for path in (run / "checkpoints").glob("*.ckpt")} == {"last", "previous"}
    assert last_step(run) == 4
    assert (run / "else").exists() == (flags == ELSEWHERE)


def test_run_dir_sets_the_run_directory(tmp_path, capsys):
    assert main([*RUN, f"--trainer.default_root_dir={tmp_path}/a", "--run_dir", str(tmp_path / "b")]) == 2
    assert "use --run_dir instead" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
