"""Names that users write are shown as they are, wherever they are printed: no markup, formula, emoji or shell sees them."""

import dataclasses
import html
import json
import shlex
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image

from dilated_seg.__main__ import main
from dilated_seg.analysis import plots
from dilated_seg.analysis.intervals import Interval
from dilated_seg.analysis.summary import Summary
from dilated_seg.commands.describe import print_family
from dilated_seg.errors import format_command, open_console
from dilated_seg.report import markdown
from dilated_seg.report.blocks import ImageGrid, PageOnly, Plot, ReportTable, Section
from dilated_seg.report.markdown import render_markdown
from dilated_seg.report.render import draw_svg, render_page
from dilated_seg.report.terminal import show_evaluation
from dilated_seg.training.loggers import finish
from dilated_seg.training.wandb_tables import draw_confusion, tabulate_confusion
from dilated_seg.weights import LoadResult
from tests.conftest import ROOT
from tests.support import fake_datasets
from tests.support.evaluations import make_evaluation

# of a run that is evaluated where another logger keeps its checkpoints, from Lightning's callback
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")

# As the issue has them, and one of each kind that something on the way would interpret.
NAMES = [
    "car [/x]", "dilated [/1]", "c06 [a=1]", "[bold]x[/]", ":car:", "a|b", "_x_", "*y*", "**z**", "`k`", "$a_b$ and $\\frac$",
    "\\", "100%", "{x} %s", "<b>t</b> &amp;", "no/yes", "# head", "1. item", "~~gone~~", "[l](http://x)", "é ü", "a  b", "-",
    "_",
]  # fmt: skip
QUICK = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LATIN = st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f\xad\xa0", exclude_categories=["Cc"])
names = st.lists(st.text(LATIN, min_size=1, max_size=12).map(str.strip).filter(bool), min_size=3, max_size=3, unique=True)


class Contents(HTMLParser):
    """The text of a page, without that of its style."""

    def __init__(self, text):
        super().__init__()
        self.parts, self.inside = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.inside.append(tag)

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" not in self.inside:
            self.parts.append(data)

    @property
    def text(self):
        return "\n".join(self.parts)


def squeezed(text):
    return " ".join(text.split())


def evaluation(classes):
    return make_evaluation(classes, np.eye(len(classes)), dataset="Folder", split="val", checkpoint=classes[0])


def check_terminal(some, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    show_evaluation(evaluation(some), make_evaluation(some, np.eye(len(some)), inference=some[1]))
    shown = capsys.readouterr().out
    assert all(name in shown for name in some)
    assert f"checkpoint: {some[0]}" in shown and f"CRF: {some[1]}" in shown
    LoadResult([(some[0], (1, 2), some[1], some[2])], [(some[1], (3,))], [(some[2], (4,))]).print()
    shown = capsys.readouterr().out
    assert all(name in shown for name in some) and "unexpected" in shown


def test_the_terminal_shows_every_name(capsys, monkeypatch):
    for some in zip(*[iter(NAMES)] * 3, strict=True):
        check_terminal(some, capsys, monkeypatch)
    open_console().print("[x] :car: [/y]")
    assert capsys.readouterr().out == "[x] :car: [/y]\n"


@QUICK
@given(some=names)
def test_the_terminal_shows_any_name(some, capsys):
    with pytest.MonkeyPatch.context() as patch:
        check_terminal(some, capsys, patch)


def sections(some):
    """A report's page whose networks, classes and images have these names."""
    one, two, three = some
    figure, panel = plots.create_axes()
    panel.set_title(three)
    picture = np.zeros((4, 4, 3), np.uint8)
    sheet = Plot("sheet", f"Plot of {one}", figure)
    table = ReportTable("t", ["network", two], [[one, "12.3 [1.0, 2.0]"], [two, three]])
    rows = [(f"{three}: hardest", [(f"{one}, 12", picture), (two, picture)])]
    text = [f"**Best: {one}, 1.0; the others: {two} and {three}.**", f"{two} minus {one}: `code` of {three}."]
    blocks = [*text, table, sheet, PageOnly([ImageGrid(rows, [(two, (1, 2, 3))])], sheet)]
    return [Section("Result", [markdown.shield_names(block, some) if isinstance(block, str) else block for block in blocks])]


def check_pages(some):
    one, two, three = some
    sentences = [f"Best: {one}, 1.0; the others: {two} and {three}.", f"{two} minus {one}: code of {three}."]
    contents = Contents(render_page(one, sections(some)))
    text = squeezed(contents.text.replace("\n", ""))
    for sentence in sentences:
        assert squeezed(sentence).replace("code", "") in text.replace("code", "")
    for name in some:
        assert name in contents.parts
    assert f"{three}: hardest" in contents.parts and f"{one}, 12" in contents.parts
    rendered = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(render_markdown(one, sections(some)))
    contents = Contents(rendered)
    text = squeezed(contents.text.replace("\n", ""))
    for sentence in sentences:
        assert squeezed(sentence).replace("code", "").replace(" ", "") in text.replace("code", "").replace(" ", "")
    cells = [squeezed(part) for part in contents.parts]
    assert all(squeezed(name) in cells for name in some), (some, cells)


def test_the_report_shows_every_name():
    for some in zip(*[iter(NAMES)] * 3, strict=True):
        check_pages(some)


@QUICK
@given(some=names)
def test_the_report_shows_any_name(some):
    check_pages(some)


def test_a_name_on_several_lines_stays_in_its_cell():
    assert markdown.render_row(["a\nb", "c|d"]) == r"| a b | c\|d |"


def figures(some):
    """The drawings that have names of networks or classes in them."""
    interval = [Interval(0.5, 0.4, 0.6)] * 3
    intervals, numbers = dict(zip(some, interval, strict=True)), {name: k for k, name in enumerate(some)}
    series = {name: interval for name in some}
    yield plots.draw_means(intervals, {name: [0.5] for name in some}, [some], numbers)
    yield plots.draw_class_map(some, some, np.eye(3))
    yield plots.draw_curves([(name, {"k": [(1, 0.5), (2, 0.6)]}) for name in some], "k", "label", numbers, True)
    yield plots.draw_lines([1, 2, 3], series, numbers, "x", "y", {1: "1"})
    yield plots.draw_steps(["a", "b", "c"], series, numbers, "x", "y")


def check_plots(some):
    for figure in figures(some):
        drawn = draw_svg(Plot("name", "alt", figure))
        shown = [html.unescape(part) for part in Contents(drawn).parts]
        for name in some:
            assert any(name == part.strip("\u200b") for part in shown), (name, shown)


def test_drawings_show_every_name():
    for some in ([*NAMES[:3]], ["_x", "$a$", "$x^$ $"], ["#17191d", "DejaVu Sans, x", "a\\$b"]):
        check_plots(some)
        assert draw_confusion(np.eye(3, dtype=int), some).shape[2] == 3
        assert tabulate_confusion(np.eye(3, dtype=int), some) is not None


@settings(QUICK, max_examples=3)
@given(some=names)
def test_drawings_show_any_name(some):
    check_plots(some)


def test_describe_shows_a_network_as_it_was_called(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    facts = dict.fromkeys(field.name for field in dataclasses.fields(Summary)) | {"size": (8, 8), "layers": []}
    numbers = dict.fromkeys(("output_stride", "parameters", "learnt", "multiply_adds", "bytes", "receptive_field"), 1)
    print_family([Summary(**facts | numbers | {"network": "Net(['a'], [/b])", "paper": "", "output": (8, 8), "lost": ""})])
    assert "Net(['a'], [/b])" in capsys.readouterr().out


@QUICK
@given(words=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), max_size=4))
def test_a_printed_command_is_read_by_a_shell_word_by_word(words):
    assert shlex.split(format_command("dilated-seg", *words)) == ["dilated-seg", *words]


def test_a_printed_command_is_read_by_sh_word_by_word():
    words = [*NAMES, "it's", 'a "b"', "$HOME", "`id`", "x\ny", "*", "~", "!!", "a;b", "é"]
    command = format_command("printf", "%s\\0", *words)
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.split("\0")[:-1] == words


def test_an_ablations_tables_show_the_names_of_its_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    (tmp_path / "one.yaml").write_text("{}")
    experiments = {name: "one.yaml" for name in ("dilated [/1]", "c06 [a=1]", ":car:")}
    (tmp_path / "file.yaml").write_text(json.dumps({"experiments": experiments}))
    assert main(["ablate", str(tmp_path / "file.yaml"), "--out", str(tmp_path / "out"), "--status"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in experiments)


@pytest.mark.slow
def test_classes_runs_and_directories_of_any_name_are_trained_evaluated_and_compared(tmp_path, capsys, monkeypatch):
    """The whole way, W&B offline as it is for a user without a key."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("COLUMNS", "400")
    classes = ["car [/x]", "$a$ _b_ |c|", "no/yes"]
    root = fake_datasets.folder(tmp_path / "data [1]", images=4)
    (root / "classes.yaml").write_text(json.dumps({"classes": classes}))
    labels = ["c06 [a=1]", "_d_ *e* [/1]"]  # the second is a directory in a directory
    runs = [tmp_path / label for label in labels]
    for run in runs:
        arguments = [
            "--config", str(ROOT / "experiments/shapes/frontend.yaml"), "--data=Folder",
            f"--data.init_args.root={root}", "--model.net.init_args.width=0.02", "--model.class_weights=null",
            "--trainer.accelerator=cpu", "--trainer.max_steps=1", "--trainer.val_check_interval=1",
            "--trainer.log_every_n_steps=1",
            "--data.init_args.augmentation={class_path: ScaleAndCrop, init_args: {crop_size: [8, 8]}}",
            "--data.init_args.batch_size=1", "--run_dir", str(run),
        ]  # fmt: skip
        for words in (["fit", *arguments], ["validate", "--config", str(run / "config.yaml")]):
            assert main(words) == 0
            finish()
        shown = capsys.readouterr().out
        assert all(shown.count(name) >= 2 for name in classes)
    assert main(["report", *map(str, runs), "--out", str(tmp_path / "report")]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in [*classes, *labels])
    parts = Contents((tmp_path / "report/report.html").read_text()).parts
    assert all(name in parts for name in [*classes, *labels])
    with Image.open(tmp_path / "report/mean_iou.png") as drawn:
        assert drawn.width > 100
