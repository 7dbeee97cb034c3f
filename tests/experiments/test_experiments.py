"""Every YAML below experiments/ is read by the real command line, and trains."""

import re

import pytest
import torch
import yaml

from dilated_seg import ablation, data
from dilated_seg.cli import CLI
from dilated_seg.cli.resolve import resolve_experiment
from dilated_seg.crf.dense_crf import DEEPLAB
from dilated_seg.data import CamVid
from dilated_seg.errors import UserError
from tests.conftest import ROOT
from tests.support import fake_datasets

# Those of sweeps/: test_sweeps.py; in results/ are the configurations of runs.
FILES = sorted(f for f in (ROOT / "experiments").rglob("*.yaml") if not {"sweeps", "results"} & {*f.relative_to(ROOT).parts})
ABLATIONS = [f for f in FILES if "experiments" in (yaml.safe_load(f.read_text()) or {})]
ARCHITECTURES = [f for f in FILES if f.parent == ROOT / "experiments/architectures"]
PARTS = [f for f in FILES if f.parent.name in ("data", "crf") or f.name == "defaults.yaml" or f in ARCHITECTURES]
EXPERIMENTS = [f for f in FILES if f not in ABLATIONS and f not in PARTS]
CROP = "--data.init_args.augmentation={{class_path: ScaleAndCrop, init_args: {{crop_size: [{0}, {0}]}}}}"
SMALL = {
    "CamVid": [CROP.format(32)],
    "Cityscapes": [CROP.format(32)],  # of images of one color: smaller crops would leave batch norm nothing that varies
    "Shapes": ["--data.init_args.images=[4,1,1]", "--data.init_args.size=[32,48]"],
    "Folder": [CROP.format(16), "--data.init_args.root=kitti"],
}
CROPS = [CROP.format(16)]  # of every other dataset


def name(file):
    return str(file.relative_to(ROOT))


def network_class(file):
    return yaml.safe_load(file.read_text())["model"]["net"]["class_path"]


# One experiment of each network, on the dataset that is cheapest to make.
BY_COST = sorted(EXPERIMENTS, key=lambda file: (file.parent.name == "shapes", "full_size" not in file.stem))
FIRST = {network_class(file): file for file in BY_COST}


class Build(CLI):
    """Builds the task, the data and the trainer of ``fit``, and trains nothing."""

    def fit(self):
        pass


@pytest.fixture
def arguments(request, camvid, tmp_path, monkeypatch):
    """The arguments of ``fit`` for an experiment, whose dataset is a small copy and whose network is narrow."""
    file = request.param
    if "encoder:" in file.read_text():
        pytest.importorskip("timm", reason="timm, the extra 'timm', is not installed")
    monkeypatch.chdir(tmp_path)  # runs/ is made where one is
    fake_datasets.folder(tmp_path / "kitti", classes=CamVid.classes)
    content = yaml.safe_load(file.read_text())
    dataset = (
        content["data"] if isinstance(content["data"], dict) else yaml.safe_load((file.parent / content["data"]).read_text())
    )
    build = getattr(data, dataset["class_path"])
    if build.variable:  # a small copy of it, by the function of its name in fake_datasets.py
        root = camvid if build is CamVid else getattr(fake_datasets, build.__name__.lower())(tmp_path / "data")
        monkeypatch.setenv(build.variable, str(root))
    monkeypatch.setenv("DILATED_SEG_SBD", str(tmp_path / "data/sbd"))
    small = [
        *SMALL.get(build.__name__, CROPS), "--data.init_args.global_batch_size=2", "--data.init_args.num_workers=0",
        "--model.net.init_args.width=0.03", "--trainer.max_steps=2", "--trainer.val_check_interval=2",
        "--trainer.precision=32-true", "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1",
        "--model.weights=null", "--trainer.accumulate_grad_batches=1",
    ]  # fmt: skip
    if content["model"].get("lr_scheduler", {}).get("class_path") == "PolynomialLR":
        small.append("--model.lr_scheduler.init_args.total_iters=2")
    return ["fit", "--config", str(file), *small, "--run_dir", str(tmp_path / "run")]


@pytest.mark.parametrize("arguments", EXPERIMENTS, ids=name, indirect=True)
def test_every_experiment_parses_and_builds(arguments):
    cli = Build(arguments)
    assert (cli.trainer.max_steps, cli.trainer.global_step) == (2, 0)
    assert cli.model.num_classes == cli.datamodule.num_classes
    assert sum(parameter.numel() for parameter in cli.model.parameters()) > 100


@pytest.mark.parametrize(
    "arguments",
    [pytest.param(file, marks=[] if file in FIRST.values() else pytest.mark.slow) for file in EXPERIMENTS],
    ids=name,
    indirect=True,
)
def test_every_experiment_takes_two_steps(arguments, tmp_path):
    cli = CLI(arguments)
    assert cli.trainer.global_step == 2
    assert cli.model.num_classes == cli.datamodule.num_classes
    assert torch.isfinite(cli.trainer.callback_metrics["val/mean_iou"])
    assert (tmp_path / "run/evaluations/val.json").is_file()


@pytest.mark.parametrize("file", ARCHITECTURES, ids=name)
def test_an_architecture_is_a_network_and_its_start_for_any_dataset(file, tmp_path):
    assert [*yaml.safe_load(file.read_text())] == ["model"]
    assert f"# run:    dilated-seg fit --config {name(file)} --data " in file.read_text()
    cli = Build(["fit", "--config", str(file), "--data=Shapes", "--model.net.init_args.width=0.03", "--model.weights=null"])
    assert cli.model.num_classes == cli.datamodule.num_classes == 8


def test_the_overlay_of_deeplabs_crf_holds_its_numbers():
    crf = yaml.safe_load((ROOT / "experiments/crf/deeplab.yaml").read_text())["crf"]
    assert crf == {"class_path": "DenseCRF", "init_args": DEEPLAB}


@pytest.mark.parametrize("file", EXPERIMENTS, ids=name)
def test_the_header_of_an_experiment_names_the_paper_our_number_the_cost_and_its_own_command(file):
    header = "".join(line for line in file.read_text().splitlines(keepends=True) if line.startswith("#"))
    for word in ("# paper:", "ours:", "cost:"):
        assert word in header
    assert re.search(r"# run: +(.*)", header).group(1) == f"dilated-seg fit --config {name(file)}"


@pytest.mark.parametrize("file", EXPERIMENTS, ids=name)
def test_what_an_experiment_starts_from_is_the_run_of_another_one(file):
    weights = yaml.safe_load(file.read_text())["model"].get("weights", "imagenet")
    assert weights == "imagenet" or (ROOT / "experiments" / f"{weights.removeprefix('runs/')}.yaml") in EXPERIMENTS


PARSED = set()  # each file, overlay and what is common: once is enough, over all ablations


@pytest.mark.parametrize("file", ABLATIONS, ids=name)
def test_every_ablation_expands_to_runs_that_parse(file):
    expanded = ablation.read(file)
    assert len({run.directory for run in expanded.runs}) == len(expanded.runs) >= 2
    for run in expanded.runs:
        if not PARSED.issuperset(run.configs):
            assert yaml.safe_load(resolve_experiment(run.arguments[1:]))["seed_everything"] == run.seed
            PARSED.update(run.configs)


STUDIES = ["architectures", "architectures_narrow", "voc_architectures", "cityscapes_architectures"]


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_architectures_are_compared_under_one_protocol(study):
    file = ROOT / f"experiments/ablations/{study}.yaml"
    content, compared = yaml.safe_load(file.read_text()), ablation.read(file)
    rates = content["select"]["over"].values()
    for rate in rates:
        assert rate == {"model": {"optimizer": {"init_args": {"lr": rate["model"]["optimizer"]["init_args"]["lr"]}}}}
    resolved = [yaml.safe_load(resolve_experiment(run.arguments[1:])) for run in compared.runs[:: len(rates)]]
    own = [{key: one["model"].pop(key) for key in ("net", "weights", "lr_factors")} for one in resolved]  # said to be unequal
    assert len({str(network["net"]) for network in own}) == len(own) == len(content["experiments"]) >= 7
    assert all(one == resolved[0] for one in resolved)  # data, optimiser, schedule, loss, trainer, callbacks, seed
    assert resolved[0]["trainer"]["max_steps"] == resolved[0]["model"]["lr_scheduler"]["init_args"]["total_iters"]
    assert {network["net"]["init_args"]["width"] for network in own} == {0.125 if "narrow" in study else 1.0}
    assert all([one.name for one in run.evaluations] == ["val-last"] and run.seed == 0 for run in compared.runs)
    rows = {evaluation.row: evaluation.name.partition("-crf")[0] for run in compared.planned for evaluation in run.evaluations}
    split = content["select"]["then"]
    assert rows == dict.fromkeys([*content["experiments"], "DeepLab-LargeFOV, CRF"], f"{split}-last")
    assert split == "test" or "the labels of test are not public" in file.read_text()


def test_names_may_be_numbers(tmp_path):
    (tmp_path / "a.yaml").write_text("{}")
    (tmp_path / "study.yaml").write_text("experiments: {32: a.yaml}\noverlays: {0: {}, 0.1: {model: {net: {}}}}\n")
    assert [run.name for run in ablation.read(tmp_path / "study.yaml").runs] == ["32, 0", "32, 0.1"]


def test_overlays_and_seeds_multiply_experiments(tmp_path):
    (tmp_path / "a.yaml").write_text("{}")
    file = tmp_path / "study.yaml"
    file.write_text("experiments: {A: a.yaml}\noverlays: {as it is: {}, wide: {model: {net: {}}}}\nseeds: [0, 1, 2]\n")
    runs = ablation.read(file, tmp_path / "out").runs
    assert [(run.name, run.seed) for run in runs] == [
        ("A, as it is", 0), ("A, as it is", 1), ("A, as it is", 2), ("A, wide", 0), ("A, wide", 1), ("A, wide", 2),
    ]  # fmt: skip
    assert runs[5].directory == tmp_path / "out" / "A_wide" / "seed2"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[]", "names no experiments"),
        ("experiments: {A: b.yaml}", "b.yaml"),
        ("experiments: {A: a.yaml}\nseed: 3", "unknown key 'seed'"),
        ("experiments: {A: a.yaml}\nevaluate: train", "choose val or test"),
        ("experiments: [a.yaml]", "write NAME: FILE"),
        ("experiments: {A: }", "write NAME: FILE"),
        ("experiments: {A: a.yaml}\nseeds: 3", "list of whole numbers"),
        ("experiments: {A: a.yaml}\nseeds: []", "list of whole numbers"),
        ("experiments: {a b: a.yaml, a_b: a.yaml}", "share the directory"),
        ("experiments: {A: a.yaml", "is not YAML"),
    ],
)
def test_a_mistake_in_an_ablation_file_is_one_sentence(tmp_path, content, sentence):
    (tmp_path / "a.yaml").write_text("{}")
    (tmp_path / "study.yaml").write_text(content)
    with pytest.raises(UserError, match=sentence):
        ablation.read(tmp_path / "study.yaml")
