"""The whole path in Python, as in a notebook: no YAML, no strings that name classes, a plain Trainer."""

from functools import partial

import pytest
import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from dilated_seg.analysis.summary import describe
from dilated_seg.data import Shapes
from dilated_seg.errors import UserError
from dilated_seg.models import FCN, DilatedNet
from dilated_seg.models.build import describe_network
from dilated_seg.report.compare import compare
from dilated_seg.report.results import find_results
from dilated_seg.runs import Run
from dilated_seg.task import SegmentationTask
from dilated_seg.training import EvaluationRecord, RunRecord
from tests.support.commands import run_command


def train(directory, net=None, **options):
    """Two steps on Shapes."""
    seed_everything(3)
    data = Shapes(size=(48, 64), num_classes=5, images=(8, 4, 4), batch_size=4, eval_batch_size=2)
    net = net or FCN(data.num_classes, stride=8, width=1 / 16)
    task = SegmentationTask(net=net, data=data, optimizer=partial(torch.optim.AdamW, lr=1e-3), **options)
    trainer = Trainer(
        max_steps=2,
        accelerator="cpu",
        default_root_dir=directory,
        callbacks=[EvaluationRecord(), RunRecord()],
        logger=CSVLogger(directory, name="", version=""),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, data)
    return trainer, task, data


@pytest.mark.slow
def test_a_notebook_trains_evaluates_and_reports_without_yaml(tmp_path):
    directory = Run.create(tmp_path).path
    trainer, task, data = train(directory, class_weights=[0.5, 1, 1, 1, 1])
    assert task.num_classes == 5 and task.classes == list(data.classes) and task.ignore_index == data.ignore_index
    trainer.test(task, data, ckpt_path="best", verbose=False)

    run = Run(directory)
    assert run.finished and run.seed == 3 and run.checkpoint("last").step == 2
    assert {"best", "last"} <= {checkpoint.name for checkpoint in run.checkpoints()}
    assert run.history()["val/mean_iou"][-1][1] == pytest.approx(run.evaluation("val").mean_iou)
    assert tuple(run.dataset().size) == (48, 64) and run.dataset().num_classes == 5

    image = torch.randint(0, 256, (1, 3, 48, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert run.model("last")(image).equal(task.eval()(image))  # built again: nothing in Python is needed

    measured = run.evaluation("test-best")
    result = run_command("test", directory)
    assert result.returncode == 0, result.stderr
    assert run.evaluation("test-best").matrix.tolist() == measured.matrix.tolist()
    page = compare(find_results([directory], "test-best"), tmp_path / "report")
    assert f"{100 * measured.mean_iou:.1f}" in page.read_text()
    assert run_command("report", directory, "--out", tmp_path / "again", "--evaluation", "test-best").returncode == 0
    with pytest.raises(UserError, match="has a finished run: give the Trainer another default_root_dir"):
        train(directory)


def test_a_network_of_the_users_own_is_evaluated_and_reported_too(tmp_path, capsys):
    net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1))
    trainer, task, data = train(tmp_path, net)
    assert "the arguments of Sequential are unknown" in capsys.readouterr().out
    trainer.validate(task, data, ckpt_path="best", verbose=False)
    assert Run(tmp_path).evaluation("val-best").protocol.available == 4
    image = torch.randint(0, 256, (1, 3, 48, 64), dtype=torch.uint8)
    with torch.no_grad():
        again = Run(tmp_path).model("last", net=nn.Sequential(nn.Conv2d(3, 5, 3, padding=1)))
        assert again(image).equal(task.eval()(image))
    assert run_command("report", tmp_path, "--out", tmp_path / "report", "--evaluation", "val-best").returncode == 0


def test_a_task_without_classes_or_with_others_than_its_data_is_refused():
    data, net = Shapes(num_classes=5), FCN(5, width=1 / 64)
    with pytest.raises(UserError, match=r"pass it the data module, SegmentationTask\(net=\.\.\., data="):
        SegmentationTask(net=net)
    with pytest.raises(UserError, match="num_classes is 4, but Shapes has 5: pass only data"):
        SegmentationTask(net=net, num_classes=4, data=data)


def test_networks_keep_the_arguments_that_built_them():
    class Mine(FCN):
        def __init__(self, width):
            super().__init__(3, width=width)

    built = describe_network(DilatedNet(3, "large", width=1 / 64))
    assert built["class_path"] == "dilated_seg.models.DilatedNet"
    assert {"num_classes": 3, "context": "large", "width": 1 / 64}.items() <= built["init_args"].items()
    assert describe_network(Mine(1 / 64)) is None and describe_network(nn.Conv2d(3, 2, 1)) is None


def test_describe_takes_a_module_and_leaves_it_as_it_was():
    net = FCN(5, stride=8, width=1 / 16)
    summary = describe(net, (48, 64))
    assert summary.network == "FCN(num_classes=5, stride=8, width=0.0625)" and summary.receptive_field == 404
    assert summary.parameters == sum(p.numel() for p in net.parameters())
    assert "receptive field:  404 pixels a side" in str(summary)
    assert net.training and net.score_fr.weight.device == torch.device("cpu")
    assert describe(nn.Sequential(nn.Conv2d(3, 2, 5, padding=2)), (8, 8)).receptive_field == 5


def test_data_modules_know_the_arguments_that_built_them():
    class Small(Shapes):
        def __init__(self, number):
            super().__init__(images=(number, 2, 2), batch_size=1)

    arguments = Shapes(num_classes=5, batch_size=2).arguments
    assert {"num_classes": 5, "batch_size": 2, "size": (64, 320), "num_workers": 0}.items() <= arguments.items()
    assert Small(4).arguments == {"number": 4}
