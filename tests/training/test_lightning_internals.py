"""Private names of other libraries: each is where we expect it, or a test says so before a run goes wrong."""

import datetime
import inspect
import warnings

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.demos.boring_classes import BoringModel

from dilated_seg.models import torch_internals
from dilated_seg.training import lightning_internals as internals


class Watch(Callback):
    """What the internals say after each training batch."""

    def __init__(self):
        self.due, self.steps, self.checkpoints = [], [], []

    def on_train_batch_end(self, trainer, *args):
        self.due.append(internals.is_validation_due(trainer))
        self.steps.append(internals.get_logged_step(trainer))
        self.checkpoints.append(internals.dump_checkpoint(trainer))


@pytest.fixture(scope="module")
def watched():
    watch = Watch()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", max_steps=4, val_check_interval=2, limit_val_batches=1, callbacks=[watch], **quiet)
    trainer.fit(BoringModel())
    return trainer, watch


@pytest.mark.filterwarnings("ignore")
def test_is_validation_due_follows_val_check_interval(watched):
    assert watched[1].due == [False, True, False, True]


@pytest.mark.filterwarnings("ignore")
def test_metrics_are_logged_at_the_step_of_set_logged_step(watched):
    trainer, watch = watched
    assert watch.steps == [0, 1, 2, 3]
    internals.set_logged_step(trainer, 7)
    assert (
        internals.get_logged_step(trainer)
        == 7
        == trainer.fit_loop.epoch_loop.state_dict()["state_dict"]["_batches_that_stepped"]
    )


@pytest.mark.filterwarnings("ignore")
def test_dump_checkpoint_equals_the_saved_checkpoint(watched, tmp_path):
    trainer, watch = watched
    assert {"state_dict", "loops", "callbacks", "optimizer_states", "lr_schedulers"} <= watch.checkpoints[-1].keys()
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    assert torch.load(tmp_path / "saved.ckpt", weights_only=True).keys() == internals.dump_checkpoint(trainer).keys()


def test_the_progress_bar_calls_the_method_that_epoch_progress_bar_overrides():
    assert "_get_train_description(" in inspect.getsource(RichProgressBar.on_train_epoch_start)
    assert internals.EpochProgressBar()._get_train_description(3) == "Training, epoch 3"


def test_a_wandb_workspace_has_a_specification_and_gets_its_name_from_the_server():
    with warnings.catch_warnings(action="ignore"):  # it is written for pydantic's first version
        import wandb_workspaces.workspaces as workspaces
    workspace = workspaces.Workspace(entity="somebody", project="something", name="a study")
    assert "a study" in internals.dump_wandb_view(workspace)
    internals.set_workspace_identity(workspace, "nw-abc-v", "number")
    assert internals.workspace_identity(workspace) == {"name": "nw-abc-v", "id": "number"}


def test_a_process_group_accepts_a_timeout(tmp_path):
    group = torch.distributed
    group.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        torch_internals.set_process_timeout(datetime.timedelta(seconds=5))
    finally:
        group.destroy_process_group()


def test_trace_with_free_sizes_treats_sizes_as_unknown():
    config = torch.fx.experimental._config
    with torch_internals.trace_with_free_sizes():
        assert config.backed_size_oblivious
    assert not config.backed_size_oblivious


def test_a_dispatch_mode_sees_every_operation():
    seen = []

    class Mode(torch_internals.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Mode():
        torch.ones(2) + 1
    assert torch.ops.aten.add.Tensor in seen
