"""Files from elsewhere are never executed, fetched only by their checksum, and cost no more memory than their size allows."""

import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from lightning import Trainer

from dilated_seg import weights
from dilated_seg.__main__ import main
from dilated_seg.commands.objects import parse_network
from dilated_seg.data import Shapes
from dilated_seg.data.shards import map_arrow
from dilated_seg.errors import UserError
from dilated_seg.storage import digest
from dilated_seg.task import SegmentationTask
from dilated_seg.training.checkpoint_io import SafeCheckpointIO
from tests.conftest import ROOT

CLASSES = Shapes().num_classes
TINY = f"FCN({CLASSES}, width=1/64)"


class Harmful:
    """Leaves a folder behind where its pickle is executed."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.fixture(params=["default", "1", "true"])
def environment(request, monkeypatch):
    """torch's own, and the two ways to tell it to execute every pickle."""
    if request.param != "default":
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", request.param)


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder; of what lies below ``short`` or ``cut`` only half, ending the connection as if it were whole or not."""

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if path.parent.name not in ("short", "cut"):
            return super().do_GET()
        content = (path.parents[1] / path.name).read_bytes()
        self.send_response(200)
        if path.parent.name == "cut":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])

    def log_message(self, *_):
        """Nothing."""


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder, and the address under which it is served; torch's cache is beside it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "served").mkdir()
    web = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "served")))
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield tmp_path / "served", f"http://127.0.0.1:{web.server_port}"
    web.shutdown()
    web.server_close()


def task(**options):
    return SegmentationTask(parse_network(TINY, "cpu"), CLASSES, **options)


def checkpoint(**more):
    """What a checkpoint of our task holds, at the least."""
    return {"state_dict": task().state_dict(), "global_step": 0, "pytorch-lightning_version": "2.6.6"} | more


def trainer(folder, **options):
    return Trainer(
        default_root_dir=folder, logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        enable_checkpointing=False, **options,
    )  # fmt: skip


FORMS = {
    "zip": lambda content, path: torch.save(content, path),
    "old": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    "pickle": lambda content, path: path.write_bytes(pickle.dumps(content, 2)),
}
LOADS = {
    "weights": lambda file: weights.load(parse_network(TINY, "cpu"), str(file)),
    "port": lambda file: weights.port(str(file), parse_network(TINY), TINY, str(file) + ".safetensors"),
    "load_from_checkpoint": lambda file: SegmentationTask.load_from_checkpoint(str(file), net=parse_network(TINY, "cpu")),
    "told to execute": lambda file: SegmentationTask.load_from_checkpoint(
        file, net=parse_network(TINY, "cpu"), weights_only=False
    ),
    "a Trainer": lambda file: trainer(file.parent).validate(task(), Shapes(), ckpt_path=str(file), weights_only=False),
    "a Trainer that trains": lambda file: trainer(file.parent, max_steps=1).fit(task(), Shapes(), ckpt_path=str(file)),
    "the command line's": lambda file: SafeCheckpointIO().load_checkpoint(file, weights_only=False),
    "a dataset": lambda file: Shapes.load_from_checkpoint(file),
}


@pytest.mark.filterwarnings("ignore")  # Lightning's, on the way to the file
@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("load", list(LOADS))
def test_no_way_to_load_a_file_executes_it(load, form, tmp_path, environment):
    file, mark = tmp_path / "harmful.ckpt", tmp_path / "harm"
    FORMS[form](checkpoint(extra=Harmful(mark)), file)
    with pytest.raises(UserError, match=r"would have to be executed|holds no dataset"):
        LOADS[load](file)
    assert not mark.exists()
    torch.load(file, weights_only=False) if form != "pickle" else pickle.loads(file.read_bytes())
    assert mark.exists()  # so it is harmful


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scheme", ["http", "hf"])
@pytest.mark.parametrize("load", ["load_from_checkpoint", "a Trainer", "a Trainer that trains", "the command line's"])
def test_a_checkpoint_behind_a_url_is_not_loaded(load, scheme, tmp_path, server, environment):
    folder, address = server
    torch.save(checkpoint(extra=Harmful(tmp_path / "harm")), folder / "harmful.ckpt")
    loads = {
        "load_from_checkpoint": lambda url: SegmentationTask.load_from_checkpoint(url, net=parse_network(TINY, "cpu")),
        "a Trainer": lambda url: trainer(tmp_path).validate(task(), Shapes(), ckpt_path=url),
        "a Trainer that trains": lambda url: trainer(tmp_path, max_steps=1).fit(task(), Shapes(), ckpt_path=url),
        "the command line's": lambda url: SafeCheckpointIO().load_checkpoint(url),
    }
    url = f"{address}/harmful.ckpt" if scheme == "http" else "hf://owner/name/harmful.ckpt"
    with pytest.raises(UserError, match="is a URL: download the checkpoint"):
        loads[load](url)
    assert not (tmp_path / "harm").exists()
    assert not (tmp_path / "torch").exists()


@pytest.mark.filterwarnings("ignore")  # torch's of its variable, which as an error would come before the file is read
@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_the_command_line_executes_no_checkpoint(verb, tmp_path, server, environment, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder, address = server
    torch.save(checkpoint(extra=Harmful(tmp_path / "harm")), folder / "harmful.ckpt")
    tiny = ["--data=Shapes", "--model.net=dilated_seg.models.FCN", "--model.net.init_args.width=0.015625"]
    for file in (str(folder / "harmful.ckpt"), f"{address}/harmful.ckpt", "hf://owner/name/harmful.ckpt"):
        options = ["--trainer.accelerator=cpu", "--trainer.logger=false", "--run_dir", str(tmp_path / "run")]
        options += ["--trainer.max_epochs=1"]
        assert main([verb, *tiny, *options, "--ckpt_path", file]) == 2
        error = capsys.readouterr().err
        assert ("would have to be executed" if file.startswith("/") else "is a URL") in error
        assert len(error.splitlines()) == 1
    assert not (tmp_path / "harm").exists()


def named(**hyperparameters):
    own = {"_instantiator": "lightning.pytorch.cli.instantiate_module", "num_classes": CLASSES}
    return {"hyper_parameters": own | hyperparameters}


OURS = {"class_path": "dilated_seg.models.FCN", "init_args": {"num_classes": CLASSES, "width": 1 / 64}}


@pytest.mark.parametrize(
    "more",
    [
        named(net={"class_path": "harmful_module.Net"}),
        named(net="harmful_module.Net"),
        named(net={"class_path": "torch.hub.load", "init_args": {"repo_or_dir": ".", "model": "m", "source": "local"}}),
        named(net={"class_path": "torch.nn.Sequential", "init_args": {"args": [{"class_path": "harmful_module.Net"}]}}),
        named(net={"class_path": ["harmful_module.Net"]}),
        named(net=OURS, optimizer="os.system"),
        named(net=OURS, optimizer={"class_path": "os.system", "init_args": {"command": "mkdir harm"}}),
        named(net=OURS, optimizer={"class_path": "subprocess.Popen", "init_args": {"args": "mkdir harm"}}),
        named(net=OURS, lr_scheduler={"class_path": "harmful_module.Net"}),
        named(net=OURS, weights={"class_path": "dilated_seg.models.FCN"}),
        {"hparams": {"_instantiator": "harmful_module.Net"}},
        {"hyper_parameters": [1]},
    ],
)
def test_a_checkpoint_builds_only_known_networks_and_optimizers(more, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "harmful_module.py").write_text("import os, torch\nos.mkdir('harm')\nclass Net(torch.nn.Module): pass\n")
    (tmp_path / "hubconf.py").write_text("import os\nos.mkdir('harm')\n")
    torch.save(checkpoint(**more), tmp_path / "c.ckpt")
    with pytest.raises(UserError, match=r"c.ckpt(: model\.\w+ is .* imported| is not a checkpoint of a run)"):
        SegmentationTask.load_from_checkpoint(tmp_path / "c.ckpt")
    assert not (tmp_path / "harm").exists()


def test_a_checkpoint_of_known_classes_is_loaded_from_a_path_and_from_an_open_file(tmp_path, environment):
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
    saved = checkpoint(**named(net=OURS, optimizer=optimizer))
    torch.save(saved, tmp_path / "c.ckpt")
    with (tmp_path / "c.ckpt").open("rb") as file:
        for source in (tmp_path / "c.ckpt", str(tmp_path / "c.ckpt"), file):
            state = SegmentationTask.load_from_checkpoint(source, map_location="cpu").state_dict()
            assert all(torch.equal(value, state[key]) for key, value in saved["state_dict"].items())
    with pytest.raises(UserError, match=r"h.yaml is not read"):
        SegmentationTask.load_from_checkpoint(tmp_path / "c.ckpt", hparams_file="h.yaml")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"state_dict": {"a": 1}, "global_step": 0}, "is not a checkpoint of a run"),
        ({"state_dict": [1], "global_step": 0}, "is not a checkpoint of a run"),
        ([1], "is not a checkpoint of a run"),
        (None, "cannot be loaded: it is damaged"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(content, sentence, tmp_path):
    torch.save(content, tmp_path / "c.ckpt")
    if content is None:
        (tmp_path / "c.ckpt").write_bytes((tmp_path / "c.ckpt").read_bytes()[:-30])
    with pytest.raises(UserError, match=sentence):
        SafeCheckpointIO().load_checkpoint(tmp_path / "c.ckpt")


def test_a_checkpoint_of_another_network_is_refused_by_name():
    saved = checkpoint()
    state = saved["state_dict"]
    for name in [name for name in state if name.startswith("model.net.classifier")]:
        del state[name]
    state |= {"model.net.extra.weight": torch.zeros(1), "model.net.score_fr.weight": torch.zeros(3, 4)}
    with pytest.raises(UserError) as refused:
        task().on_load_checkpoint(saved)
    assert "it has no " in str(refused.value) and "and 1 more" in str(refused.value)
    assert "the network has no net.extra.weight" in str(refused.value)
    assert f"of another size is net.score_fr.weight (3 x 4, here {CLASSES} x 64 x 1 x 1)" in str(refused.value)


def test_a_trainer_of_python_continues_from_what_it_saved(tmp_path, environment):
    first = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    first.fit(task(), Shapes(batch_size=1))
    first.save_checkpoint(tmp_path / "own.ckpt")
    again = trainer(tmp_path, max_steps=2, limit_val_batches=0)
    again.fit(task(), Shapes(batch_size=1), ckpt_path=tmp_path / "own.ckpt")
    assert again.global_step == 2


# What lies behind an address


@pytest.fixture
def published(server):
    """Weights on a server: their folder, address with checksum, and where they are kept."""
    folder, address = server
    torch.save(parse_network(TINY, "cpu").state_dict(), folder / "w.pth")
    checksum = digest(folder / "w.pth")
    return folder, f"{address}/w.pth#sha256={checksum}", folder.parent / f"torch/hub/checkpoints/{checksum[:16]}-w.pth"


def test_weights_are_fetched_by_url_and_checksum_once(published, tmp_path):
    folder, source, kept = published
    result, _, _ = weights.load(parse_network(TINY, "cpu"), source)
    assert not result.missing and kept.read_bytes() == (folder / "w.pth").read_bytes()
    (folder / "w.pth").unlink()
    assert not weights.load(parse_network(TINY, "cpu"), source.replace("w.pth", "w.pth?x=1/w.pth"))[0].missing
    assert main(["port", source, "--net", TINY, "--out", str(tmp_path / "o.safetensors"), "--mean", "1", "2", "3"]) == 0
    kept.write_bytes(b"damaged")
    with pytest.raises(UserError, match=rf"{kept} is another file than http.*: remove it"):
        weights.load(parse_network(TINY, "cpu"), source)


def test_an_experiment_starts_from_a_url(published, tmp_path):
    _, source, kept = published
    first = task(weights=source, mean=(1.0, 2.0, 3.0), std=(1.0, 1.0, 1.0))
    trainer(tmp_path).validate(first, Shapes(), verbose=False)
    assert torch.equal(first.model.net.state_dict()["score_fr.bias"], torch.load(kept)["score_fr.bias"])


def test_the_hub_has_urls(published, monkeypatch):
    folder, source, _ = published
    address, checksum = source.split("/w.pth")
    for revision, written in (("main", ""), ("v1", "@v1")):
        (folder / f"owner/name/resolve/{revision}").mkdir(parents=True)
        shutil.copy(folder / "w.pth", folder / f"owner/name/resolve/{revision}/{revision}.pth")
        monkeypatch.setenv("HF_ENDPOINT", address)
        assert not weights.load(parse_network(TINY, "cpu"), f"hf://owner/name{written}/{revision}.pth{checksum}")[0].missing


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda url: url.partition("#")[0], "has no checksum of its file: append its SHA-256"),
        (lambda url: url[:-1], "has no checksum of its file"),
        (lambda url: url.partition("#")[0] + "#" + url[-64:], "has no checksum of its file"),
        (lambda url: url[:-64] + "0" * 64, "invalid hash value"),
        (lambda url: url.replace("w.pth", "missing.pth"), "HTTP Error 404"),
        (lambda url: url.replace("w.pth", "short/w.pth"), "invalid hash value"),
        (lambda url: url.replace("w.pth", "cut/w.pth"), "cannot download"),
        (lambda url: url.replace("http", "ftp"), "cannot be downloaded: give an https:// address"),
        (lambda url: url.replace("http", "file"), "cannot be downloaded: give an https:// address"),
        (lambda url: "http://127.0.0.1:9" + url[url.index("/w.pth") :], "refused"),
        (lambda url: "http://[" + url[url.index("/w.pth") :], "cannot download"),
    ],
)
def test_a_url_of_another_file_is_one_sentence_and_leaves_nothing(change, sentence, published, tmp_path, capsys):
    _, source, kept = published
    assert main(["port", change(source), "--net", TINY, "--out", str(tmp_path / "o.safetensors")]) == 2
    error = capsys.readouterr().err
    assert sentence in error and len([line for line in error.splitlines() if line.startswith("dilated-seg:")]) == 1
    assert not list(kept.parent.glob("*")) and not (tmp_path / "o.safetensors").exists()


def test_a_download_that_is_interrupted_leaves_nothing(published, monkeypatch):
    _, source, kept = published

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("torch.hub.tqdm.update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        weights.read(source)
    assert not list(kept.parent.iterdir())


def test_a_fetched_file_is_not_executed(server, tmp_path, environment):
    folder, address = server
    torch.save({"state_dict": Harmful(tmp_path / "harm")}, folder / "w.pth")
    with pytest.raises(UserError, match="would have to be executed"):
        weights.load(parse_network(TINY, "cpu"), f"{address}/w.pth#sha256={digest(folder / 'w.pth')}")
    assert not (tmp_path / "harm").exists()


# The Caffe reader


@pytest.mark.parametrize("files", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_caffe_models_are_read_or_refused_within_their_size(files, tmp_path):
    command = [sys.executable, "-m", "tests.support.fuzz", str(files), "0", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    read, refused = map(int, re.findall(r"\d+", done.stdout))
    assert read + refused == files and read > 0.03 * files


# Shards


def test_a_shard_that_brings_a_pickled_type_along_is_only_data(tmp_path):
    facts = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(Harmful(tmp_path / "harm")),
    }
    schema = pa.schema([pa.field("image", pa.binary(), metadata=facts)])
    with (tmp_path / "a.arrow").open("wb") as file, pa.ipc.new_stream(file, schema) as writer:
        writer.write_table(pa.table({"image": pa.array([b"x"], pa.binary())}, schema=schema))
    assert map_arrow([str(tmp_path / "a.arrow")], [{}])[0]["image"][0].as_py() == b"x"
    assert not (tmp_path / "harm").exists()
