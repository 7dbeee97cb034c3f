"""A run that ends by an error or by Ctrl-C loses no whole step, and says how to continue."""

import os
import shlex
import signal

import numpy as np
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from PIL import Image

from dilated_seg.__main__ import main as command
from dilated_seg.data.workers import initialize_worker
from dilated_seg.runs import Checkpoint
from dilated_seg.task import SegmentationTask
from dilated_seg.training import StopOnSignal, loggers
from dilated_seg.training.checkpoint_io import LAST, SafeCheckpointIO
from tests.conftest import ROOT
from tests.support import fake_datasets
from tests.support.interrupted import same, state
from tests.training.test_distributed import TWO, launch

SMALL = [
    "--trainer.max_steps=8", "--trainer.val_check_interval=3", "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu",
]  # fmt: skip
RUN = [
    "fit", "--config", str(ROOT / "experiments/shapes/segnet.yaml"), "--model.net.init_args.width=0.03",
    "--data.init_args.images=[10,3,2]", "--data.init_args.size=[32,64]", "--data.init_args.batch_size=2", *SMALL,
]  # fmt: skip
AVERAGE = "--trainer.callbacks+={class_path: EMAWeightAveraging, init_args: {decay: 0.9}}"


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def main(arguments):
    """Carry out a command as a process of its own would, at whose end W&B ends as well; it leaves no signal handler behind."""
    handlers = [signal.getsignal(number) for number in SIGNALS]
    try:
        return command(arguments)
    finally:
        loggers.finish()
        assert [signal.getsignal(number) for number in SIGNALS] == handlers


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")  # as most users have it


@pytest.fixture(autouse=True)
def interruptible():
    """Ctrl-C interrupts, also after Lightning has been interrupted."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of eight steps, with validations after the third and the sixth, that nothing interrupts."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert main([*RUN, "--run_dir", str(run)]) == 0
    return run


def act_once(patch, hook, step, act, before=True):
    """Act once, before or after a hook of the task, when so many steps have been taken."""
    original, left = getattr(SegmentationTask, hook), [act]

    def hooked(self, *args, **kwargs):
        if before and self.global_step == step and left:
            left.pop()(self)
        result = original(self, *args, **kwargs)
        if not before and self.global_step == step and left:
            left.pop()(self)
        return result

    patch.setattr(SegmentationTask, hook, hooked)


def crash(task):
    raise RuntimeError("a crash")


def ctrl_c(task):
    os.kill(os.getpid(), signal.SIGINT)


def twice(task):
    ctrl_c(task)
    ctrl_c(task)


def last_step(run):
    path = run / "checkpoints" / LAST
    return torch.load(path, weights_only=True)["global_step"] if path.is_file() else None


def continue_as_told(printed):
    """Carry out the command that was printed."""
    (line,) = (line for line in printed.splitlines() if "continue with: dilated-seg " in line)
    return main(shlex.split(line.partition("dilated-seg ")[2]))


@pytest.mark.parametrize(
    ("hook", "step", "before", "saved"),
    [
        ("on_train_batch_start", 4, True, 4),
        ("training_step", 4, False, 4),  # batch norm has seen the batch
        ("on_before_optimizer_step", 4, False, 3),  # the update has begun: the validation before it saved step 3
        ("on_train_batch_end", 3, True, 3),  # before the validation of this step
        ("validation_step", 6, False, 6),
    ],
)
def test_an_error_anywhere_in_a_step_loses_no_completed_step(whole, tmp_path, monkeypatch, capsys, hook, step, before, saved):
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="a crash"):
        act_once(patch, hook, step, crash, before)
        main([*RUN, "--run_dir", str(tmp_path)])
    assert last_step(tmp_path) == saved
    printed = capsys.readouterr().err
    assert (f"step {saved} is saved" in printed) == (hook != "on_before_optimizer_step")
    assert continue_as_told(printed) == 0
    assert same(state(tmp_path), state(whole))
    evaluations = (path / "evaluations/val.json" for path in (tmp_path, whole))
    assert len({file.read_text().split('"protocol"')[1].split('"commit"')[0] for file in evaluations}) == 1


@pytest.mark.parametrize("hook", ["training_step", "validation_step"])
def test_ctrl_c_ends_the_step_saves_a_checkpoint_and_prints_how_to_continue(
    offline, whole, tmp_path, monkeypatch, capsys, hook
):
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        act_once(patch, hook, 3, ctrl_c)
        main([*RUN, "--run_dir", str(tmp_path)])
    assert end.value.code == 130
    assert last_step(tmp_path) == (3 if hook == "validation_step" else 4)
    assert continue_as_told(capsys.readouterr().err) == 0
    assert same(state(tmp_path), state(whole))


@pytest.mark.slow
@pytest.mark.parametrize(("hook", "before", "saved"), [("on_before_optimizer_step", False, 4), ("validation_step", True, 3)])
def test_a_second_ctrl_c_waits_only_for_the_update_of_the_weights(whole, tmp_path, monkeypatch, capsys, hook, before, saved):
    with monkeypatch.context() as patch:
        act_once(patch, hook, 3, twice, before)
        try:
            status = main([*RUN, "--run_dir", str(tmp_path)])
        except SystemExit as end:
            status = end.code
    assert status == 130
    assert last_step(tmp_path) == saved
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert continue_as_told(printed) == 0
    assert same(state(tmp_path), state(whole))


@pytest.mark.parametrize("error", [None, RuntimeError("a crash"), SystemExit(3)])
def test_the_sigterm_handler_from_before_training_is_restored_before_wandb_finishes(offline, tmp_path, monkeypatch, error):
    def fail(task):
        raise error

    received = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    monkeypatch.setattr(loggers.SafeWandbLogger, "end", lambda self: signal.raise_signal(signal.SIGTERM))
    if error:
        act_once(monkeypatch, "training_step", 1, fail)
    try:
        main([*RUN, "--trainer.max_steps=2", "--run_dir", str(tmp_path)])
    except (RuntimeError, SystemExit):
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]


def test_a_user_s_trainer_restores_the_signal_handlers(tmp_path):
    before = [signal.getsignal(number) for number in SIGNALS]
    trainer = Trainer(
        max_steps=1, callbacks=[StopOnSignal()], logger=False, default_root_dir=tmp_path, enable_progress_bar=False
    )
    trainer.fit(BoringModel())
    assert trainer.global_step == 1
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.slow
def test_after_an_error_during_gradient_accumulation_the_step_starts_again(tmp_path, monkeypatch, capsys):
    flags = [*RUN, "--trainer.accumulate_grad_batches=2", "--data.init_args.batch_size=1"]
    assert main([*flags, "--run_dir", str(tmp_path / "whole")]) == 0
    run, step = tmp_path / "run", SegmentationTask.training_step

    def second_batch(self, batch, batch_idx):
        result = step(self, batch, batch_idx)
        if self.global_step == 4 and batch_idx % 2:
            crash(self)
        return result

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="a crash"):
        patch.setattr(SegmentationTask, "training_step", second_batch)
        main([*flags, "--run_dir", str(run)])
    assert last_step(run) == 4
    assert continue_as_told(capsys.readouterr().err) == 0
    assert same(state(run), state(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_run_continues_without_lost_steps_after_a_damaged_mask_is_repaired(tmp_path, monkeypatch, capsys, split):
    """It becomes bad when training has begun, and is found by one of two workers, or in the first validation."""
    root = fake_datasets.folder(tmp_path / "mine", images=16)
    flags = [
        "fit", "--config", str(ROOT / "experiments/shapes/segnet.yaml"), "--data=Folder", f"--data.root={root}",
        "--data.init_args.batch_size=2",
        "--data.init_args.augmentation={class_path: ScaleAndCrop, init_args: {crop_size: [16, 16]}}",
        "--model.net.init_args.width=0.03",
        "--model.class_weights=null", "--data.init_args.num_workers=2", *SMALL, "--trainer.max_steps=7",
    ]  # fmt: skip
    assert main([*flags, "--run_dir", str(tmp_path / "whole")]) == 0
    names = [f"photo {i}" for i in range(16) if i != 2]
    name = names[np.random.default_rng([0, 0]).permutation(len(names))[-3]] if split == "train" else "photo 2"
    mask = root / f"masks/{name}.png"
    right = mask.read_bytes()
    wrong = np.full_like(np.asarray(Image.open(mask)), 77)
    run = tmp_path / "run"
    capsys.readouterr()
    with monkeypatch.context() as patch:
        act_once(patch, "training_step", 0, lambda task: Image.fromarray(wrong).save(mask))
        assert main([*flags, "--run_dir", str(run)]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert str(mask) in printed.splitlines()[-1] and "77" in printed.splitlines()[-1]
    assert last_step(run) == (3 if split == "val" else 6)
    mask.write_bytes(right)
    assert continue_as_told(printed) == 0
    assert same(state(run), state(tmp_path / "whole"))


def test_parameters_that_are_not_finite_never_replace_a_checkpoint(tmp_path, monkeypatch, capsys):
    def spoil(task):
        next(task.parameters()).data.fill_(float("nan"))

    with monkeypatch.context() as patch:
        act_once(patch, "on_train_batch_end", 5, spoil)
        act_once(patch, "on_train_batch_start", 5, crash)
        with pytest.raises(RuntimeError, match="a crash"):
            main([*RUN, "--run_dir", str(tmp_path / "weights")])
    assert last_step(tmp_path / "weights") == 3
    assert "is saved" not in capsys.readouterr().err
    with monkeypatch.context() as patch:
        act_once(
            patch, "training_step", 5, lambda task: task.model.net.register_forward_hook(lambda *args: args[-1] * float("nan"))
        )
        assert main([*RUN, "--run_dir", str(tmp_path / "gradient")]) == 2
    assert "the gradient is not finite at step 6" in capsys.readouterr().err
    checkpoint = torch.load(tmp_path / "gradient/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 5
    assert all(torch.isfinite(value).all() for value in checkpoint["state_dict"].values())


@pytest.mark.slow
def test_an_error_during_validation_does_not_save_averaged_weights_as_trained_weights(tmp_path, monkeypatch, capsys):
    flags = [*RUN, AVERAGE, "--run_dir"]
    assert main([*flags, str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="a crash"):
        act_once(patch, "validation_step", 6, crash)
        main([*flags, str(tmp_path / "run")])
    assert last_step(tmp_path / "run") == 3
    assert continue_as_told(capsys.readouterr().err) == 0
    assert same(state(tmp_path / "run"), state(tmp_path / "whole"))


def test_a_full_disk_while_saving_does_not_hide_the_first_error(tmp_path, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise OSError("no space left")

    def no_space(task):
        monkeypatch.setattr(SafeCheckpointIO, "save_checkpoint", full)
        crash(task)

    act_once(monkeypatch, "training_step", 4, no_space)
    with pytest.raises(RuntimeError, match="a crash"):
        main([*RUN, "--run_dir", str(tmp_path)])
    assert "step 4 cannot be saved (no space left)" in capsys.readouterr().err
    assert last_step(tmp_path) == 3
    assert Checkpoint(tmp_path / "checkpoints" / LAST).is_intact()


@pytest.mark.slow
def test_the_first_of_two_processes_saves_when_the_second_fails(tmp_path):
    script = tmp_path / "second_fails.py"
    script.write_text(
        "import sys\n"
        "from dilated_seg.__main__ import main\n"
        "from dilated_seg.task import SegmentationTask\n"
        "step = SegmentationTask.training_step\n"
        "def failing(self, *args):\n"
        "    if self.global_step == 4 and self.global_rank == 1 and '--fail' in sys.argv:\n"
        "        raise RuntimeError('a crash')\n"
        "    return step(self, *args)\n"
        "SegmentationTask.training_step = failing\n"
        "sys.exit(main([arg for arg in sys.argv[1:] if arg != '--fail']))\n"
    )
    flags = [*RUN, *TWO, "--data.init_args.global_batch_size=2", "--run_dir", tmp_path / "run"]
    process = launch(*flags, "--fail", script=script)
    _, error = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "step 4 is saved" in error and "a crash" in error
    assert last_step(tmp_path / "run") == 4
    assert Checkpoint(tmp_path / "run/checkpoints" / LAST).is_intact()


def test_data_loading_workers_ignore_ctrl_c():
    """A terminal sends it to all of them; a worker that ends would be an error in that process."""
    child = os.fork()
    if not child:
        initialize_worker(0)
        os.kill(os.getpid(), signal.SIGINT)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
