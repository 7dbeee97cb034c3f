"""Exported networks, run in fresh processes that do not know this package, give the labels that torch gives."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dilated_seg import models
from dilated_seg.__main__ import main
from dilated_seg.errors import UserError
from dilated_seg.export import agreement, hub
from dilated_seg.export import program as exporting
from dilated_seg.inference import load
from dilated_seg.models import DilatedNet, SegNet
from dilated_seg.models.segmenter import Segmenter
from tests.support.commands import ROOT, run_process

CLASSES = ["sky", "road", "tree", "car"]
NETWORKS = {
    "segnet": lambda: SegNet(4, width=1 / 16),  # unpooling: sizes and places from the way down
    "reflected": lambda: DilatedNet(4, padding="reflect", width=1 / 16),  # indices computed from the size
}
EXPORTS = [("segnet", "onnx"), ("segnet", "pt2")]
if torch.__version__ < "2.12":  # its programs of SegNet are of one size
    EXPORTS.remove(("segnet", "pt2"))
MORE = [("reflected", "onnx"), ("fixed", "onnx")]  # the latter is segnet for one size
SIZES = [(1, 3, 33, 47), (2, 3, 40, 64), (1, 3, 1, 1)]

# In each, the package cannot be imported.
RUN_ONNX = """
import sys; sys.modules["dilated_seg"] = None
import json, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
for file in sys.argv[2:]:
    numpy.save(file + ".labels", session.run(None, {"image": numpy.load(file)})[0].argmax(1))
print(json.dumps(session.get_modelmeta().custom_metadata_map), [i.shape for i in session.get_inputs()], "torch" in sys.modules)
"""
RUN_PT2 = """
import sys; sys.modules["dilated_seg"] = None
import numpy, torch
extra = {"segmenter.json": ""}
network = torch.export.load(sys.argv[1], extra_files=extra).module()
for file in sys.argv[2:]:
    with torch.no_grad():
        numpy.save(file + ".labels", network(torch.from_numpy(numpy.load(file))).argmax(1).numpy())
print(extra["segmenter.json"])
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Each network as a folder that `export.hub.save` wrote."""
    torch.manual_seed(0)
    made = {}
    for name, build in NETWORKS.items():
        net = build()
        if name == "reflected":
            nn.init.normal_(net.front_end.final.weight)  # as it starts, it says next to the same everywhere
        arguments = {"num_classes": 4, "width": 1 / 16} | ({"padding": "reflect"} if name == "reflected" else {})
        built = (type(net).__name__, arguments)
        facts = {"checkpoint": "last.ckpt", "sha256": "0" * 64, "step": 7, "evaluations": []}
        segmenter = Segmenter(net, CLASSES, (120.0, 110.0, 100.0), (60.0, 60.0, 60.0), built=built, facts=facts, dataset="VOC")
        made[name] = tmp_path_factory.mktemp("saved") / name
        hub.save(segmenter, made[name])
    return made


def export_all(folders, exports):
    """Export each network in each format by one process; the tests' own checks of shapes would be traced along."""
    made, calls = {}, []
    for name, form in exports:
        source = folders["segnet" if name == "fixed" else name]
        made[name, form] = source.with_name(f"{name}.{form}")
        size = ["--size", "33", "47"] if name == "fixed" else []
        calls.append(["export", str(source), "--format", form, "--out", str(made[name, form]), *size])
    code = "import sys, json; from dilated_seg.__main__ import main; sys.exit(max(map(main, json.loads(sys.argv[1]))))"
    result = run_process(json.dumps(calls), code=code)
    assert result.returncode == 0, result.stderr
    checked = "checked on 33 x 47, 219 x 195, 204 x 220, 188 x 252: the labels are torch's"
    assert result.stdout.count(checked) == len([name for name, _ in exports if name != "fixed"])
    assert not result.stderr
    return made, result.stdout


@pytest.fixture(scope="module")
def files(folders):
    """One network in each format."""
    return export_all(folders, EXPORTS)[0]


@pytest.fixture(scope="module")
def more_files(folders):
    """A network whose indices depend on the size, and one for a single size."""
    files, printed = export_all(folders, MORE)
    assert "image: uint8 RGB (B, 3, 33, 47); logits: float32 (B, 4, 33, 47)" in printed
    return files


@pytest.mark.slow
def test_indices_that_depend_on_the_size_are_exported_too(more_files, folders, tmp_path):
    check_labels(more_files, folders, tmp_path, "reflected", "onnx")


@pytest.mark.parametrize(("name", "form"), EXPORTS)
def test_a_process_without_the_package_finds_the_same_labels_at_any_size(files, folders, tmp_path, name, form):
    check_labels(files, folders, tmp_path, name, form)


def check_labels(files, folders, tmp_path, name, form):
    """Check that a process without the package finds the labels that torch finds, at several sizes."""
    images = [torch.randint(0, 256, size, dtype=torch.uint8) for size in SIZES]
    inputs = [str(tmp_path / f"{i}.npy") for i in range(len(SIZES))]
    for image, file in zip(images, inputs, strict=True):
        np.save(file, image.numpy())
    command = [sys.executable, "-c", RUN_ONNX if form == "onnx" else RUN_PT2, str(files[name, form]), *inputs]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    segmenter = load(folders[name])
    for image, file in zip(images, inputs, strict=True):
        with torch.no_grad():
            logits = segmenter(image)
        assert logits.argmax(1).unique().numel() > 1 or image.shape[-1] == 1
        other = torch.from_numpy(np.load(file + ".labels.npy")) != logits.argmax(1)
        best, second = logits.topk(2, 1).values.unbind(1)
        assert other.double().mean() <= agreement.MOVED  # two programs round differently: classes may tie, maxima move
        if name != "segnet":  # it has no unpooling
            assert ((best - second)[other] <= agreement.TIE * logits.abs().max()).all()
    assert "sky" in result.stdout and "0" * 64 in result.stdout and '"commit"' in result.stdout
    if form == "onnx":
        assert result.stdout.endswith("[['batch', 3, 'height', 'width']] False\n")


@pytest.mark.slow
def test_a_fixed_size_is_the_only_one_that_a_file_takes(more_files):
    run = exporting.read_onnx(more_files["fixed", "onnx"])
    assert run(torch.zeros(2, 3, 33, 47, dtype=torch.uint8)).shape == (2, 4, 33, 47)
    with pytest.raises(Exception, match="Got invalid dimensions"):
        run(torch.zeros(1, 3, 40, 47, dtype=torch.uint8))


def test_a_program_with_other_labels_is_refused(folders):
    plain = exporting.Plain(load(folders["reflected"]))
    assert agreement.compare(plain, plain, agreement.CHECKED).endswith("the labels are torch's")
    with pytest.raises(UserError, match=r"labels .* pixels differently from torch: it is not kept"):
        agreement.compare(plain, lambda image: plain(image).roll(1, 1), agreement.CHECKED)
    with pytest.raises(UserError, match=r"gives .* where torch gives"):
        agreement.compare(plain, lambda image: plain(image)[..., 1:], agreement.CHECKED)
    with pytest.raises(UserError, match="does not run on 33 x 47"):
        agreement.compare(plain, lambda image: plain.nothing(image), agreement.CHECKED)


class Tied(nn.Module):
    """Two classes that score the same everywhere, to the last bit but ``more``."""

    def __init__(self, more=0.0):
        super().__init__()
        self.scores = torch.tensor([1.0, 1.0 + more]).view(2, 1, 1)

    def forward(self, image):
        return self.scores + torch.zeros(len(image), 1, *image.shape[-2:])


def test_classes_that_tie_may_be_told_apart_otherwise_and_are_counted():
    assert agreement.compare(Tied(), Tied(1e-6), ((1, 9, 9),)).endswith("torch's, but for 81 where two classes tie")
    with pytest.raises(UserError, match="labels 81 of 81 pixels differently"):
        agreement.compare(Tied(-1e-3), Tied(1e-6), ((1, 9, 9),))


class Branching(nn.Module):
    """A network that does something else with wide images."""

    def __init__(self):
        super().__init__()
        self.score = nn.Conv2d(3, 2, 1)

    def forward(self, image):
        return self.score(image) if image.shape[-1] > 100 else -self.score(image)


def test_a_network_that_branches_on_the_size_is_exported_for_one_size(tmp_path):
    plain = exporting.Plain(Segmenter(Branching(), ["a", "b"], (0,) * 3, (1,) * 3).eval())
    with pytest.raises(UserError, match=r"does not run on 33 x 47 .*Guard failed.* try --size"):
        exporting.write(plain, {}, "pt2", tmp_path / "x.pt2")
    assert exporting.write(plain, {}, "pt2", tmp_path / "x.pt2", (33, 47)).startswith("checked on 33 x 47: the labels")


def test_a_file_that_fails_its_check_does_not_appear(folders, tmp_path, monkeypatch):
    def write(plain, facts, form, path, size):
        path.write_text("begun")
        raise UserError("labels otherwise")

    monkeypatch.setattr(exporting, "write", write)
    with pytest.raises(UserError, match="labels otherwise"):
        exporting.export_network(str(folders["segnet"]), "pt2", str(tmp_path / "x.pt2"))
    assert not list(tmp_path.iterdir())


def test_mistakes_are_one_sentence(folders, tmp_path, capsys):
    there = tmp_path / "there.onnx"
    there.write_text("mine")
    for sentence, form, out, *more in (
        ("exists: give another name, or replace it with --overwrite", "onnx", there),
        ("the file name must end in .pt2", "pt2", there),
        ("there is no directory", "onnx", tmp_path / "no/x.onnx"),
        ("--size takes a height and a width of at least 1", "onnx", tmp_path / "x.onnx", "--size", "0", "5"),
        ("--licence goes with --format hub", "onnx", tmp_path / "x.onnx", "--licence", "mit"),
        ("there is no /nowhere", "onnx", tmp_path / "x.onnx"),
    ):
        source = "/nowhere" if "nowhere" in sentence else str(folders["segnet"])
        assert main(["export", source, "--format", form, "--out", str(out), *more]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("dilated-seg: ") and sentence in line
    assert [p.name for p in tmp_path.iterdir()] == ["there.onnx"] and there.read_text() == "mine"


def test_a_missing_package_of_onnx_is_named(folders, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match="--format onnx needs onnxscript: pip install"):
        exporting.export_network(str(folders["segnet"]), "onnx", str(tmp_path / "x.onnx"))


def test_a_saved_directory_loads_as_the_segmenter(folders, tmp_path):
    segmenter = load(folders["reflected"])
    hub.save(segmenter, tmp_path / "again", licence="cc-by-nc-4.0")
    again = load(tmp_path / "again")
    image = torch.randint(0, 256, (1, 3, 20, 30), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(again(image), segmenter(image))
    for name in ("classes", "palette", "ignore_index", "submitted", "dataset", "built", "facts"):
        assert getattr(again, name) == getattr(segmenter, name)
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_a_model_card_states_recorded_values_only(tmp_path):
    record = {
        "evaluation": "val", "classes": CLASSES, "protocol": {"dataset": "VOC", "images": 3, "checkpoint": "last, step 7"},
        "matrix": [[8, 2, 0, 0], [0, 10, 0, 0], [0, 0, 5, 0], [0, 0, 0, 0]],
    }  # fmt: skip
    built = ("SegNet", {"num_classes": 4, "width": 1 / 64})
    facts = {"checkpoint": "last.ckpt", "sha256": "ab" * 32, "step": 7, "evaluations": [record]}
    segmenter = Segmenter(SegNet(4, width=1 / 64), CLASSES, (0,) * 3, (1,) * 3, built=built, facts=facts, dataset="VOC")
    card = hub.format_card(segmenter, "mine")
    assert "license" not in card and "Licence: not stated" in card
    assert "| 87.8 | 92.0 | 80.0 | 83.3 | 100.0 | - |" in card
    assert "dataset: VOC; images: 3; checkpoint: last, step 7; in percent." in card
    assert "pipeline_tag: image-segmentation" in card and "ab" * 32 in card and "| 1 | road | #800000 |" in card
    assert "type: mean_iou" in card and "value: 0.8778" in card  # for the Hub's lists
    assert "\nlicense: mit\n" in hub.format_card(segmenter, "mine", "mit")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"net": {"class": "os.system", "arguments": {"command": "touch hacked"}}},
            "there is no network os.system",
        ),
        ({"net": {"class": "tests.evil.Net", "arguments": {}}}, "neither of dilated_seg.models nor imported"),
        ({"net": {"class": "SegNet", "arguments": {"num_classes": 10**9}}}, "the network has 1000000000"),
        ({"net": {"class": "SegNet", "arguments": {"num_classes": 4, "width": 90}}}, "does not fit the network"),
        ({"net": {"class": "SegNet", "arguments": {"num_classes": "all"}}}, "the network has all"),
        ({"net": "SegNet"}, "is not the configuration of an exported network"),
        ({"classes": ["one"]}, "1 class names, but the network has 4 classes"),
        ({"classes": "abcd"}, "classes must be a list of names"),
        ({"facts": [1]}, "facts must be an object"),
        ({"palette": [[0, 0, 300]] * 4}, "from 0 to 255"),
        ({"crf": {"init_args": {"num_classes": 10**9, "learnable": True}}}, "other than 4 classes"),
        ({"crf": {"init_args": {"iterations": 10**9}}}, "from 1 to 1000"),
        ({"crf": {"init_args": {"learnable": True}}}, "its CRF does not fit"),
        ({"std": [0, 0, 0]}, "std above 0"),
    ],
)
def test_a_directory_of_unknown_origin_builds_our_networks_or_nothing(folders, tmp_path, change, sentence):
    hub.save(load(folders["segnet"]), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=sentence):
        load(tmp_path)
    assert not Path("hacked").exists() and "tests.evil" not in sys.modules


def test_the_hub_gets_the_directory_and_is_asked_for_two_files(folders, tmp_path, monkeypatch):
    sent, asked = {}, {}

    def upload(self, repo_id, folder_path):
        sent[repo_id] = {file.name for file in Path(folder_path).iterdir()}
        return f"address of {repo_id}"

    def download(repo_id, allow_patterns):
        asked[repo_id] = set(allow_patterns)
        return str(folders["segnet"])

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda self, repo_id, private, exist_ok: None)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert hub.push(load(folders["segnet"]), "me/mine") == "address of me/mine"
    assert sent == {"me/mine": {"README.md", "config.json", "model.safetensors"}}
    monkeypatch.chdir(tmp_path)
    assert load("me/mine").classes == CLASSES
    assert load("me/mine").built[0] == "SegNet"
    assert asked == {"me/mine": {"config.json", "model.safetensors"}}


def test_a_damaged_directory_is_refused(folders, tmp_path):
    hub.save(load(folders["segnet"]), tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-5])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"cannot read .*model\.safetensors"):
        load(tmp_path)


def test_a_directory_of_other_files_is_not_overwritten(folders, tmp_path, capsys):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/config.yaml").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/README.md").write_text("mine")
    for place in ("run", "mine"):
        out = str(tmp_path / place)
        assert main(["export", str(folders["segnet"]), "--format", "hub", "--out", out, "--overwrite"]) == 2
        assert "holds other files" in capsys.readouterr().err
    assert (tmp_path / "mine/README.md").read_text() == "mine"
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["README.md"]


@pytest.mark.parametrize("licence", ["mit\nevil: true", "x: [y", "mit\n---\n# Hi", ""])
def test_a_licence_is_a_short_name(licence, folders, tmp_path):
    with pytest.raises(UserError, match="short name"):
        hub.save(load(folders["segnet"]), tmp_path / "card", licence)
    assert not (tmp_path / "card").exists()


def test_names_in_a_model_card_are_literal_markdown(folders, tmp_path):
    segmenter = load(folders["segnet"])
    segmenter.classes = ["a|b", "x\ny", "<script>", "[c](http://d)"]
    segmenter.dataset = "Sh`apes\n---\n# title"
    hub.save(segmenter, tmp_path / "card")
    card = (tmp_path / "card/README.md").read_text("utf-8")
    for text in (r"a\|b", "x y", r"\<script\>", r"\[c\](http://d)", r"Sh\`apes --- \# title"):
        assert text in card
    assert card.count("\n---\n") == 1  # the header's end
    assert load(tmp_path / "card").classes == segmenter.classes


def test_places_where_nothing_can_be_written_are_one_sentence(folders, tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "folder.pt2").mkdir()
    source = str(folders["segnet"])
    for form, out in (
        ("hub", "file"), ("hub", "file/sub"), ("hub", "x" * 300), ("pt2", "x" * 300 + ".pt2"), ("pt2", "folder.pt2"),
    ):  # fmt: skip
        assert main(["export", source, "--format", form, "--out", str(tmp_path / out), "--overwrite"]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder.pt2"}


def test_a_network_that_was_built_in_python_has_no_directory(tmp_path):
    segmenter = Segmenter(nn.Conv2d(3, 2, 1), ["a", "b"], (0,) * 3, (1,) * 3)
    with pytest.raises(UserError, match="built in Python cannot be loaded again"):
        hub.save(segmenter, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_the_page_on_exports_has_a_row_for_every_network():
    page = (ROOT / "docs/export.md").read_text()
    for name in set(models.__all__) - {"FrontEnd", "ContextModule"}:
        assert f"| `{name}(" in page
