"""The options of our own commands: files of options, objects, mistakes, examples in the help, completion."""

import shlex
import subprocess
from importlib import import_module

import pytest

from dilated_seg.__main__ import main
from dilated_seg.commands import COMMANDS, LIGHTNING
from dilated_seg.commands.completion import format_cases, list_options
from dilated_seg.commands.objects import parse_crf, parse_strategy
from dilated_seg.errors import UserError

OURS = [command for command in COMMANDS if command not in LIGHTNING]


def build_parser(command):
    return import_module(f"dilated_seg.commands.{command}").build_parser()


@pytest.mark.parametrize("command", OURS)
def test_the_help_of_every_command_shows_an_example_that_parses(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    shown = capsys.readouterr().out
    example = shown.partition(f"such as: dilated-seg {command} ")[2]
    assert end.value.code == 0 and example
    build_parser(command).parse_args(shlex.split(example.partition(" > ")[0]))


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (
            ["segment", "a.jpg", "--chekpoint", "x", "--checkpoint", "x"],
            "unknown option --chekpoint: did you mean --checkpoint?",
        ),
        (["tune", "run", "--image=3"], "unknown option --image=3: did you mean --images?"),
        (["report", "run", "--zzzzz"], "unknown option --zzzzz: see dilated-seg report --help"),
        (["export", "run", "--format", "onx", "--out", "x"], "invalid choice: 'onx'"),
        (["export", "run"], "the following arguments are required: --format, --out"),
        (["segment", "a.jpg", "--checkpoint", "x", "--inference.size", "[64,64]"], "name the class with --inference"),
        (["segment", "a.jpg", "--checkpoint", "x", "--inference", "Tilse"], "no inference strategy Tilse: did you mean Tiles?"),
        (["segment", "a.jpg", "--checkpoint", "x", "--crf.w3", "1"], "DenseCRF(w3=1): "),
        (["prepare", "vok", "--root", ".", "--out", "nowhere/at/all"], "unknown dataset 'vok': did you mean 'voc'?"),
        (["report", "run", "--config", "nowhere.yaml"], "--config nowhere.yaml cannot be read: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence_with_the_most_similar_option(args, sentence, capsys):
    assert main(args) == 2
    error = capsys.readouterr().err
    assert error.startswith("dilated-seg: ") and error.count("\n") == 1 and sentence in error


def test_an_object_is_the_same_as_a_call_as_nested_options_and_in_a_file(tmp_path):
    file = tmp_path / "options.yaml"
    tiles = "inference: {class_path: dilated_seg.inference.Tiles, init_args: {size: [64, 96], overlap: 32}}\n"
    file.write_text(
        f"checkpoint: runs/mine\noverwrite: true\ndevice: null\ncrf: {{class_path: DenseCRF, init_args: {{w1: 5}}}}\n{tiles}"
    )
    network = ["a.jpg", "--checkpoint", "runs/mine"]
    for args in (
        [*network, "--inference", "Tiles(size=(64, 96), overlap=32)", "--crf", "DenseCRF(w1=5)"],
        [*network, "--inference", "Tiles", "--inference.size", "[64, 96]", "--inference.overlap=32", "--crf.w1", "5"],
        [*network, "--crf", "--crf.w1=5", "--inference=Tiles(overlap=32)", "--inference.size=(64, 96)"],
        ["a.jpg", "--config", str(file)],
        [f"--config={file}", "--checkpoint=runs/mine", "a.jpg"],
    ):
        options = build_parser("segment").parse_args(args)
        strategy, crf = parse_strategy(options.inference), parse_crf(options.crf)
        assert (options.images, options.checkpoint) == (["a.jpg"], "runs/mine")
        assert (strategy.size, strategy.overlap, crf.w1) == ((64, 96), 32, 5)


def test_the_command_line_wins_over_a_file_and_a_file_has_only_options(tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text("out: there\nevaluation: val-best\n")
    assert build_parser("report").parse_args(["run", "--config", str(file), "--out", "here"]).out == "here"
    assert build_parser("report").parse_args(["run", "--config", str(file)]).evaluation == "val-best"
    for text, sentence in (("otu: there", f"{file}: unknown option otu: did you mean out?"), ("- a", "is not a mapping")):
        file.write_text(text)
        with pytest.raises(UserError) as caught:
            build_parser("report").parse_args(["run", "--config", str(file)])
        assert sentence in str(caught.value)


def test_the_options_of_the_experiment_are_completed_and_the_classes_of_an_option(capsys, monkeypatch):
    monkeypatch.setattr("dilated_seg.commands.completion.COMMANDS", dict.fromkeys([*OURS, "fit"]))
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert {"--help", "--checkpoint", "--inference", "--config"} <= {*list_options("segment")}
    assert format_cases({"--x": ["A", "B"]}).strip() == "--x) words='A B' ;;"

    def complete(*words):
        line = shlex.join(words)
        code = f"{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _dilated_seg; echo ${{COMPREPLY[*]}}"
        return subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert complete("dilated-seg", "seg") == ["segment"]
    assert complete("dilated-seg", "segment", "--che") == ["--checkpoint"]
    assert complete("dilated-seg", "segment", "a.jpg", "--inference", "Ti") == ["Tiles"]
    assert complete("dilated-seg", "fit", "--trainer.max_st") == ["--trainer.max_steps"]
    assert complete("dilated-seg", "fit", "--model.net", "Dee") == ["DeepLabV1"]
