"""Mistakes in arguments and configuration files: one sentence that says where, what, and what may be meant."""

import os
import subprocess
import sys

import pytest
import torch
import yaml
from torch import nn

from dilated_seg.__main__ import main, wait_passively_if_shared
from dilated_seg.cli.explain import USAGE
from dilated_seg.cli.parser import build_parser, expand_arguments, parse
from dilated_seg.errors import UserError
from tests.support.commands import ROOT, THREADS

EXPERIMENT = ["--config", str(ROOT / "experiments/shapes/frontend.yaml")]
SMALL = [
    *EXPERIMENT, "--data.images=[8,2,2]", "--data.size=[16,24]", "--data.batch_size=2", "--model.net.width=0.02",
    "--trainer.max_steps=4", "--trainer.val_check_interval=1", "--trainer.enable_progress_bar=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def cli():
    """Parsers, made once."""
    return {verb: build_parser(verb) for verb in ("fit", "validate")}


def mistake(cli, *args, verb="fit"):
    """What is said of these arguments."""
    with pytest.raises(UserError) as caught:
        parse(cli[verb], expand_arguments(verb, args))
    return str(caught.value)


def chosen(cli, *args):
    """The configuration that these arguments give."""
    return parse(cli["fit"], expand_arguments("fit", [*EXPERIMENT, *args]))


@pytest.mark.parametrize("name", ["FCN", "SegNet", "UNet", "DilatedNet"])
def test_a_short_name_is_ours_whoever_else_has_a_class_of_it(cli, name):
    foreign = type(name, (nn.Module,), {"__module__": "tests.cli.test_arguments"})
    globals()[name] = foreign
    try:
        for args in (["--model.net", name], [f"--model.net={name}"], ["--model.net.class_path", name]):
            assert chosen(cli, *args).model.net.class_path == f"dilated_seg.models.{name}"
        other = f"tests.cli.test_arguments.{name}"
        assert chosen(cli, "--model.net", f'{{"class_path": "{other}"}}').model.net.class_path == other
    finally:
        del globals()[name]


def test_short_names_in_files_are_ours_at_any_depth(cli, tmp_path):
    (tmp_path / "net.yaml").write_text("class_path: FCN\ninit_args: {stride: 8}\n")
    for number, net in enumerate(("FCN", {"class_path": "FCN"}, "net.yaml")):
        overlay = tmp_path / f"{number}.yaml"
        overlay.write_text(yaml.safe_dump({"model": {"net": net}}))
        assert chosen(cli, "--config", str(overlay)).model.net.class_path == "dilated_seg.models.FCN"


def test_a_call_is_the_same_as_nested_options_on_the_command_line_and_in_files(cli, tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("model: {net: 'FCN(stride=16)', optimizer: 'SGD(lr=0.1, momentum=0.5)'}\n")
    sgd = ["--model.optimizer", "SGD(lr=0.1)", "--model.optimizer.momentum", "0.5"]
    ways = (
        ["--model.net=FCN(stride=16)", *sgd],
        ["--model.net", "FCN", "--model.net.stride", "16", *sgd],
        ["--config", str(overlay)],
    )
    for model in (chosen(cli, *args).model for args in ways):
        assert (model.net.class_path, model.net.init_args.stride) == ("dilated_seg.models.FCN", 16)
        assert (model.optimizer.init_args.lr, model.optimizer.init_args.momentum) == (0.1, 0.5)
    strategy = "MultiScale(scales=(0.5, 1), each=Tiles(size=(64, 96)))"
    config = parse(
        cli["validate"], expand_arguments("validate", [*EXPERIMENT, "--inference", strategy, "--crf", "DenseCRF(w1=5)"])
    )
    assert config.inference.init_args.each.init_args.size == (64, 96) and config.crf.init_args.w1 == 5


def test_a_name_that_is_no_class_stays_as_it_is(cli):
    assert chosen(cli, "--run_dir", "FCN").run_dir == "FCN"


def test_reduce_on_plateau_is_the_one_that_takes_a_monitor(cli):
    for name in ("ReduceLROnPlateau", "torch.optim.lr_scheduler.ReduceLROnPlateau"):
        for args in (
            ["--model.lr_scheduler", name, "--model.lr_scheduler.monitor", "val/loss"],
            ["--model.lr_scheduler", f'{{"class_path": "{name}", "init_args": {{"monitor": "val/loss"}}}}'],
        ):
            assert chosen(cli, *args).model.lr_scheduler.init_args.monitor == "val/loss"


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--model.net", "FCNN"], "--model.net FCNN: unknown class: did you mean FCN?"),
        (["--model.net=segnet"], "--model.net segnet: unknown class: did you mean SegNet?"),
        (["--data", "Shaps"], "--data Shaps: unknown class: did you mean Shapes?"),
        (["--model.optimizer", "Adamm"], "--model.optimizer Adamm: unknown class: did you mean Adam?"),
        (["--trainer.callbacks+", "EarlyStoping"], "EarlyStoping: unknown class: did you mean EarlyStopping?"),
        (["--model.net", "nowhere.MyNet"], "--model.net nowhere.MyNet: No module named 'nowhere'"),
        (["--model.net", "torch.nn.Foo"], "--model.net torch.nn.Foo: module 'torch.nn' has no attribute 'Foo'"),
        (["--model.net", "json.JSONDecoder"], "--model.net json.JSONDecoder: not a subclass of Module"),
        (["--model.lerning_rate", "0.1"], "--model.lerning_rate: unknown option: did you mean --model.optimizer.lr?"),
        (["--batch_size=3"], "--batch_size: unknown option: did you mean --data.batch_size?"),
        (["--trainer.max_stps=3"], "--trainer.max_stps: unknown option: did you mean --trainer.max_steps?"),
        (["--model.net.contxt", "basic"], "--model.net.contxt: DilatedNet has no argument contxt: did you mean context?"),
        (["--data.batchsize", "3"], "--data.batchsize: Shapes has no argument batchsize: did you mean batch_size?"),
        (["--model.crf.w3", "3"], "--model.crf.w3: DenseCRF has no argument w3: it has iterations, w1"),
        (["--model.optimizer.momentm", "3"], "--model.optimizer.momentm: AdamW has no argument momentm"),
        (["--model.net.resnet", "20"], "--model.net.resnet 20: expected one of 18, 34, 50, 101, 152"),
        (["--model.net.context", "huge"], "--model.net.context huge: expected one of 'basic', 'large'"),
        (["--trainer.max_steps", "abc"], "--trainer.max_steps abc: expected a whole number"),
        (["--trainer.max_steps", "1e5"], "--trainer.max_steps 1e5: expected a whole number"),
        (["--seed_everything", "abc"], "--seed_everything abc: expected true or false or a whole number"),
        (
            ["--data.augmentation=ScaleAndCrop", "--data.augmentation.crop_size", "[3]"],
            "--data.augmentation.crop_size [3]: expected a tuple with 2 elements",
        ),
        (["--model.lr_scheduler.power", "abc"], "--model.lr_scheduler.power abc: expected a number"),
        (["--data", "Folder"], "data requires root: set --data.root"),
        (["--trainer.callbacks+", "EarlyStopping"], "trainer.callbacks requires monitor: set --trainer.callbacks.monitor"),
        (["\u2013\u2013config", "x.yaml"], "\u2013\u2013config: unknown option: did you mean --config?"),
        (["-config", "x.yaml"], "-config: unknown option: did you mean --config?"),
        (["foo"], "foo belongs to no option"),
        (["--model.net", "FCN(8, 16)"], "FCN(8, 16): name the arguments in configurations and options"),
        (["--model.net", "FCN(stride=open('x'))"], "open('x'): name the arguments in configurations"),
        (["--model.net", "FCN(strid=16)"], "--model.net.strid: FCN has no argument strid: did you mean stride?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_wrong_argument_is_an_error_that_suggests_the_nearest_one(cli, args, sentence):
    assert sentence in mistake(cli, *EXPERIMENT, *args)


def test_a_network_and_a_dataset_are_asked_for_by_the_experiment_that_has_both(cli):
    assert "a network and a dataset are required: pass --config" in mistake(cli)


def test_an_unknown_inference_strategy_is_an_error_that_suggests_the_nearest_one(cli):
    assert "Tilse: unknown class: did you mean Tiles?" in mistake(cli, *EXPERIMENT, "--inference=Tilse", verb="validate")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("trainr: {max_steps: 3}", "trainr.max_steps: unknown key: did you mean trainer.max_steps?"),
        ("trainer: {max_stps: 3}", "trainer.max_stps: unknown key: did you mean trainer.max_steps?"),
        ("model: {net: {class_path: FCN, init_arg: {stride: 8}}}", "FCN has no argument init_arg: did you mean init_args?"),
        (
            "model: {optimizer: {class_path: SGD, init_args: {momentm: 1}}}",
            "SGD has no argument momentm: did you mean momentum?",
        ),
        ("data: {init_args: {batchsize: 1}}", "Shapes has no argument batchsize: did you mean batch_size?"),
        ("trainer: {max_steps: abc}", "trainer.max_steps abc: expected a whole number"),
        ("- a\n- b", "is a list, not a configuration"),
        ("", "is empty, not a configuration"),
        ("hello", "is a single value, not a configuration"),
        ("model:\n\tnet: 3", "line 2: found character '\\t' that cannot start any token: indent by spaces, not by tabs"),
        ("trainer: {max_steps: 3}\ntrainer: {max_steps: 5}", "line 2: the key 'trainer' occurs twice"),
        ("model: {net: [", "line 1: "),
        (b"\x80\x81\x82", "is not a text file"),
    ],
)
def test_an_invalid_configuration_file_is_named(cli, text, sentence, tmp_path):
    file = tmp_path / "wrong.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    said = mistake(cli, *EXPERIMENT, "--config", str(file))
    assert said.startswith(str(file)) and sentence in said


def test_a_missing_configuration_file_is_an_error_that_suggests_an_existing_one(cli, tmp_path):
    missing = str(ROOT / "experiments/shapes/fronted.yaml")
    assert mistake(cli, "--config", missing).startswith(f"there is no file {missing}: did you mean ")
    assert mistake(cli, "--config", missing).endswith("experiments/shapes/frontend.yaml?")
    (tmp_path / "config.yaml").write_text("{}")
    assert (
        mistake(cli, f"--config={tmp_path}")
        == f"{tmp_path} is a directory: --config takes a file, such as {tmp_path}/config.yaml"
    )
    assert mistake(cli, "--config", "").startswith("--config is empty")


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/miou"],
         "EarlyStopping: monitor val/miou is not a logged metric: did you mean val/mean_iou?"),
        (["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/mean_iou"],
         "EarlyStopping: val/mean_iou is better the higher it is, but mode is min: set mode max"),
        (["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=val/iou/wires"],
         "ModelCheckpoint: monitor val/iou/wires is not a logged metric: did you mean val/iou/wire?"),
        (["--model.lr_scheduler=ReduceLROnPlateau", "--model.lr_scheduler.monitor=val/los"],
         "ReduceLROnPlateau: monitor val/los is not a logged metric: did you mean val/loss?"),
        (["--model.net.resnet=50", "--model.net.padding=reflect"], "DilatedNet: padding='reflect' or 'valid' needs VGG-16"),
        (["--model.net.dropout=2"], "DilatedNet: dropout=2.0 is not a number from 0 to 1"),
        (["--model.optimizer.lr=-1"], "AdamW: Invalid learning rate: -1.0"),
        (["--model.lr_scheduler=OneCycleLR", "--model.lr_scheduler.max_lr=1", "--model.lr_scheduler.total_steps=-5"],
         "OneCycleLR: Expected positive integer total_steps, but got -5"),
        (["--model.class_weights=[1,1,1,1,1,1,1,.inf]"], "model.class_weights: the weight inf of class night hill"),
        (["--model.loss=Dice"], "model.class_weights: no part of Dice takes them"),
        (["--model.loss=OHEM(share=3)"], "OHEM: share=3 is not a number above 0 and up to 1"),
        (["--trainer.val_check_interval=0"], "trainer.val_check_interval is 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_arguments_that_a_constructor_rejects_are_an_error_before_the_first_step_and_leave_no_files(
    args, sentence, tmp_path, capsys
):
    assert main(["fit", *SMALL, *args, "--run_dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("dilated-seg: ") and error.count("\n") == 1 and sentence in error
    assert list(tmp_path.iterdir()) == []


def test_a_callback_needs_no_list_around_it_and_a_schedule_follows_what_validation_finds(tmp_path):
    callback = '{"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss", "patience": 9}}'
    schedule = {"monitor": "val/loss", "patience": 0, "factor": 0.5, "threshold": 100.0, "threshold_mode": "abs"}
    plateau = yaml.safe_dump({"class_path": "ReduceLROnPlateau", "init_args": schedule}, default_flow_style=True, width=1000)
    args = [*SMALL, "--trainer.callbacks", callback, "--model.lr_scheduler", plateau, "--trainer.val_check_interval=2"]
    assert main(["fit", *args, "--run_dir", str(tmp_path / "run")]) == 0
    saved = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    (state,) = saved["lr_schedulers"]
    assert state["last_epoch"] == 2  # validations, not steps
    assert [group["lr"] for group in saved["optimizer_states"][0]["param_groups"]] == [1e-3, 2e-3]  # halved once: no better


OWN = """
from torch import nn

class MyNet(nn.Module):
    def __init__(self, num_classes: int, kernel: int = 3):
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError("an odd kernel is needed")
        if kernel == 5:
            raise KeyError("a mistake of mine")
        self.score = nn.Conv2d(3, num_classes, kernel, padding=kernel // 2)

    def forward(self, image):
        return self.score(image)
"""


@pytest.mark.slow
def test_a_class_in_the_current_directory_is_found_and_hides_nothing_that_is_installed(tmp_path):
    """By the console's command, whose first place to look is not the current directory."""
    (tmp_path / "mynet.py").write_text(OWN)
    (tmp_path / "wandb.py").write_text("raise SystemExit('this hides an installed package')")
    command = "import sys; sys.path[:] = [p for p in sys.path if p not in ('', sys.path[0])]; sys.path.insert(0, '/usr/bin')\n"
    command += f"sys.path.append({str(ROOT)!r})\nfrom dilated_seg.__main__ import main\n"
    command += "for arg in (sys.argv[2:] or ['3']):\n    print(main(sys.argv[1:2] + ['mynet.MyNet(' + arg + ')']))\n"
    command += f"args = ['fit', *{SMALL[:-2]!r}, '--model.net=mynet.MyNet', '--trainer.max_steps=1', '--run_dir=run']\n"
    command = command.replace("--model.net.width=0.02", "--trainer.enable_progress_bar=false")
    command += "print(main(args)); print(main([*args, '--run_dir=other', '--model.net.kernel=4']))\n"
    command += "try: main([*args, '--run_dir=other', '--model.net.kernel=5'])\nexcept KeyError: print('traceback')"
    environment = {**os.environ, "OMP_NUM_THREADS": THREADS}
    result = subprocess.run(
        [sys.executable, "-c", command, "describe"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "MyNet" in result.stdout and result.stdout.splitlines()[-1] == "traceback"
    assert (tmp_path / "run/checkpoints/last.ckpt").is_file()
    assert "dilated-seg: MyNet: an odd kernel is needed (mynet.py, line 8)" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "unbuffered"),
    [("describe --json", ""), ("describe FCN", ""), ("--help", ""), ("--help", "1"), ("prepare --help", "")],
)
def test_a_reader_that_ends_early_ends_the_command_quietly(args, unbuffered):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "dilated_seg", *args.split()]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered, "OMP_NUM_THREADS": THREADS}
    result = subprocess.run(command, cwd=ROOT, env=environment, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (result.returncode, result.stderr) == (141, b"")


def test_the_help_of_fit_begins_with_ten_options_that_there_are_and_a_command_that_works(cli, capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    shown = capsys.readouterr().out
    first = [line.split()[0] for line in shown.splitlines() if line.startswith("  --")][:10]
    assert len([line for line in USAGE["fit"].splitlines() if line.startswith("  --")]) == 10
    assert shown.index("such as: dilated-seg fit --config") < 200 and shown.count("\n") > 1000
    example = next(line for line in shown.splitlines() if line.startswith("such as: ")).split()[4:]
    known = chosen(cli, *[str(ROOT / arg) if arg.startswith("experiments") else arg for arg in example])
    assert known.trainer.max_steps == 2000 and known.data.init_args.root == "data/camvid"
    assert all(f"{option.rpartition('.')[0]}" in shown or option in shown for option in first)


def test_evaluations_print_no_warnings_around_the_table(tmp_path, capsys, recwarn):
    assert main(["fit", *SMALL, "--trainer.precision=bf16", "--run_dir", str(tmp_path / "run")]) == 0
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    capsys.readouterr()
    evaluation = ["--config", str(moved / "config.yaml"), "--ckpt_path", str(moved / "checkpoints/best.ckpt")]
    assert main(["validate", *evaluation]) == 0
    assert capsys.readouterr().err == ""
    assert [str(warning.message) for warning in recwarn if "dirpath" in str(warning.message)] == []


@pytest.mark.parametrize(
    ("running", "threads", "policy"), [(3, "2", "PASSIVE"), (1, "2", None), (3, "1", None), (3, "", "PASSIVE")]
)
def test_threads_wait_passively_where_others_need_the_cores(tmp_path, monkeypatch, running, threads, policy):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    monkeypatch.setenv("OMP_WAIT_POLICY", "of the test")  # so that what is set below does not outlive it
    monkeypatch.delenv("OMP_WAIT_POLICY")
    (tmp_path / "loadavg").write_text(f"2.10 1.50 0.70 {running}/512 4321\n")
    wait_passively_if_shared(str(tmp_path / "loadavg"))
    assert os.environ.get("OMP_WAIT_POLICY") == policy


def test_where_linux_does_not_tell_the_load_threads_wait_as_they_do(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    wait_passively_if_shared(str(tmp_path / "missing"))
    assert "OMP_WAIT_POLICY" not in os.environ
