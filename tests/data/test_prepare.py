"""Every dataset through every path: its folders, shards mapped, shards streamed, a raw store; and all that can go wrong."""

import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dilated_seg.__main__ import main
from dilated_seg.data import VOC, CamVid, Cityscapes, Folder, manifest, prepare
from dilated_seg.data.checks import warn_of_shared_images
from dilated_seg.data.prepare import archives, write
from dilated_seg.data.transforms import ScaleAndCrop
from dilated_seg.errors import UserError
from tests.support import fake_datasets

COUNTS = ["--other_counts"]


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Shards of a few images and groups of one or two, and a cache of this test's own."""
    monkeypatch.setattr(write, "SHARD_BYTES", 4000)
    monkeypatch.setattr(write, "GROUP_BYTES", 1500)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for variable in ("DILATED_SEG_VOC", "DILATED_SEG_SBD", "DILATED_SEG_CITYSCAPES", "DILATED_SEG_CAMVID"):
        monkeypatch.delenv(variable, raising=False)


def run(*args):
    return main(["prepare", *map(str, args)])


def sources(tmp_path):
    """Every dataset's verb, class, tree and options."""
    root = tmp_path / "trees"
    return {
        "voc": (VOC, fake_datasets.voc(root / "voc"), {"sbd": str(root / "voc/sbd")}),
        "cityscapes": (Cityscapes, fake_datasets.cityscapes(root / "cityscapes"), {}),
        "camvid": (CamVid, fake_datasets.camvid(root / "camvid"), {}),
        "camvid32": (CamVid, fake_datasets.camvid32(root / "camvid32"), {}),
        "folder": (Folder, fake_datasets.folder(root / "folder"), {}),
    }


def samples(data, split):
    found = data.open_split(split)
    return {found[i]["id"]: found[i] for i in range(len(found))}


@pytest.mark.parametrize("name", ["voc", "cityscapes", "camvid", "camvid32", "folder"])
def test_shards_streams_and_raw_stores_equal_the_directories(name, tmp_path):
    dataset, root, options = sources(tmp_path)[name]
    given = [f"--{option}={value}" for option, value in options.items()]
    for store in ("files", "raw"):
        verb = name.removesuffix("32")
        assert run(verb, f"--root={root}", f"--out={tmp_path / store}", f"--store={store}", *given, *COUNTS) == 0
    shutil.copytree(root, tmp_path / "read")
    folders = dataset(root=str(tmp_path / "read"), **options)
    for split in folders.list_splits():
        expected = samples(folders, split)
        for place, streaming in (("files", False), ("files", True), ("raw", False)):
            read = samples(dataset(root=str(tmp_path / place), streaming=streaming), split)
            assert list(read) == list(expected)
            for key, sample in read.items():
                assert torch.equal(sample["image"], expected[key]["image"])
                assert torch.equal(sample["mask"], expected[key]["mask"])


def test_trainaug_and_trainval_share_the_shards_of_train(tmp_path):
    _, root, options = sources(tmp_path)["voc"]
    run("voc", f"--root={root}", f"--sbd={options['sbd']}", f"--out={tmp_path / 'out'}", *COUNTS)
    facts = manifest.read(str(tmp_path / "out"))
    assert facts["splits"]["trainaug"]["parts"] == ["train", "trainaug-more"]
    assert facts["splits"]["trainval"]["parts"] == ["train", "val"]
    stored = [shard for part in facts["shards"].values() for shard in part]
    assert sum(shard["rows"] for shard in stored) == 7 == sum(sum(shard["groups"]) for shard in stored)
    assert {p.name for p in (tmp_path / "out").glob("*.parquet")} == {shard["file"] for shard in stored}
    assert len(stored) == 4 and stored[0]["groups"] == [1, 1]


def test_the_bytes_are_the_publishers(tmp_path):
    _, root, _ = sources(tmp_path)["voc"]
    run("voc", f"--root={root}", f"--out={tmp_path / 'out'}", *COUNTS)
    row = pq.read_table(tmp_path / "out/val-00000.parquet").to_pylist()[0]
    base = root / "VOCdevkit/VOC2012"
    assert row["image"] == {"bytes": (base / f"JPEGImages/{row['id']}.jpg").read_bytes(), "path": f"{row['id']}.jpg"}
    assert row["label"]["bytes"] == (base / f"SegmentationClass/{row['id']}.png").read_bytes()


def test_a_second_call_does_nothing_and_at_once(tmp_path):
    root = fake_datasets.folder(tmp_path / "mine")
    command = [sys.executable, "-m", "dilated_seg", "prepare", "folder", f"--root={root}", f"--out={tmp_path / 'out'}"]
    assert run(*command[4:]) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    loaded = "import sys; from dilated_seg.__main__ import main; main(sys.argv[1:]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded, *command[3:]], capture_output=True, text=True, check=True)
    assert "nothing to do" in done.stdout
    assert not {"torch", "numpy", "pyarrow", "lightning"} & set(done.stdout.split())  # so it takes no time
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "out"]


@pytest.mark.parametrize("root", ["nothing", "empty", "file.txt"])
def test_a_root_that_holds_no_dataset_is_one_sentence(root, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("text")
    for dataset in ("voc", "cityscapes", "camvid", "folder"):
        assert run(dataset, f"--root={tmp_path / root}", f"--out={tmp_path / 'out'}") == 2
        said = capsys.readouterr().err
        assert said.startswith("dilated-seg: ") and str(tmp_path / root) in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "file.txt"]
    monkeypatch.chdir(tmp_path)
    assert run("camvid", f"--root={tmp_path / root}", "--out=.") == 2


def test_preparing_with_other_options_into_the_same_directory_is_an_error(tmp_path, capsys):
    root = fake_datasets.folder(tmp_path / "mine")
    assert run("folder", f"--root={root}", f"--out={tmp_path / 'out'}") == 0
    assert run("folder", f"--root={root}", f"--out={tmp_path / 'out'}", "--store=raw") == 2
    assert "prepared with other options" in capsys.readouterr().err
    assert run("folder", f"--root={root}", f"--out={root}") == 2
    assert "did not write" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", [1, 2, 4])
def test_a_killed_call_is_continued(kill_at, tmp_path):
    root = fake_datasets.folder(tmp_path / "mine", images=12)
    out = tmp_path / "out"
    code = f"""
import os, signal, sys
from dilated_seg.data.prepare import write
from dilated_seg.__main__ import main
write.SHARD_BYTES, wrote, original = 4000, [], write.storage.write_text
def write_text(path, text):
    wrote.append(path)
    if len(wrote) == {kill_at}:
        os.kill(os.getpid(), signal.SIGKILL)
    original(path, text)
write.storage.write_text = write_text
main(sys.argv[1:])
"""
    arguments = ["prepare", "folder", f"--root={root}", f"--out={out}"]
    killed = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True)
    assert killed.returncode == -signal.SIGKILL and not out.exists()
    noted = {path.name for path in tmp_path.glob("out.partial/*.json")}
    assert len(noted) == kill_at - 1
    times = {name: (tmp_path / "out.partial" / name.removesuffix(".json")).stat().st_mtime_ns for name in noted}
    assert run(*arguments[1:]) == 0
    assert times == {name: (out / name.removesuffix(".json")).stat().st_mtime_ns for name in noted}  # not written again
    assert not (tmp_path / "out.partial").exists()
    assert run("folder", f"--out={out}", "--verify") == 0
    assert len(Folder(root=str(out)).open_split("train")) == 11


def test_verify_finds_altered_files(tmp_path, capsys):
    root = fake_datasets.folder(tmp_path / "mine")
    run("folder", f"--root={root}", f"--out={tmp_path / 'out'}")
    shard = next((tmp_path / "out").glob("train-*.parquet"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    (tmp_path / "out/classes.yaml").unlink()
    assert run("folder", f"--out={tmp_path / 'out'}", "--verify") == 2
    said = capsys.readouterr().err
    assert f"{shard} is altered" in said and "classes.yaml is missing" in said and "2 files of" in said


def test_an_unreadable_shard_is_named(tmp_path):
    root = fake_datasets.folder(tmp_path / "mine")
    run("folder", f"--root={root}", f"--out={tmp_path / 'out'}")
    shard = next((tmp_path / "out").glob("train-*.parquet"))
    size = shard.stat().st_size
    shard.write_bytes(bytes(size))
    for streaming in (False, True):
        with pytest.raises(UserError, match=rf"{shard.name} cannot be read") as caught:
            Folder(root=str(tmp_path / "out"), streaming=streaming).open_split("train")[0]
        assert "\n" not in str(caught.value)
    shard.write_bytes(bytes(size - 1))
    with pytest.raises(UserError, match=rf"has {size - 1:,} bytes, not {size:,}"):
        Folder(root=str(tmp_path / "out")).open_split("train")
    shard.unlink()
    with pytest.raises(UserError, match="is missing"):
        Folder(root=str(tmp_path / "out")).open_split("train")


def test_shards_that_were_prepared_again_are_not_read_from_the_cache(tmp_path):
    root = fake_datasets.folder(tmp_path / "mine")
    for colour in (10, 200):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        Image.new("RGB", (18, 12), (colour,) * 3).save(root / "images/photo 0.png")
        run("folder", f"--root={root}", f"--out={tmp_path / 'out'}")
        assert (samples(Folder(root=str(tmp_path / "out")), "train")["photo 0"]["image"] == colour).all()


def test_shards_are_streamed_from_a_url(tmp_path):
    root = fake_datasets.folder(tmp_path / "mine")
    run("folder", f"--root={root}", f"--out={tmp_path / 'out'}")
    memory = fsspec.filesystem("memory")
    for path in (tmp_path / "out").iterdir():
        memory.pipe(f"/bucket/data/{path.name}", path.read_bytes())
    data = Folder(root="memory://bucket/data", streaming=True)
    assert data.classes == ("background", "road", "car")
    expected = samples(Folder(root=str(root)), "train")
    for key, sample in samples(data, "train").items():
        assert torch.equal(sample["image"], expected[key]["image"])
    with pytest.raises(UserError, match=r"set data\.streaming"):
        Folder(root="memory://bucket/data").open_split("train")
    with pytest.raises(UserError, match="cannot read memory://bucket/nothing"):
        CamVid(root="memory://bucket/nothing", streaming=True).open_split("train")


class Ranges(SimpleHTTPRequestHandler):
    """A file server that gives parts of files, as object storage does."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content, asked = path.read_bytes(), re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        first, last = (int(asked[1]), int(asked[2] or len(content) - 1)) if asked else (0, len(content) - 1)
        part = content[first : last + 1]
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(part)

    do_HEAD = do_GET


@pytest.mark.parametrize("workers", [0, 2])
def test_training_streams_over_http_with_workers(tmp_path, workers):
    root = fake_datasets.folder(tmp_path / "mine", images=12)
    run("folder", f"--root={root}", f"--out={tmp_path / 'out'}")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=str(tmp_path)))
    Thread(target=server.serve_forever, daemon=True).start()
    options = {"streaming": True, "batch_size": 4, "augmentation": ScaleAndCrop((8, 8)), "num_workers": workers}
    local, remote = (
        list(Folder(root=place, **options).train_dataloader())
        for place in (str(tmp_path / "out"), f"http://127.0.0.1:{server.server_port}/out")
    )
    server.shutdown()
    server.server_close()
    assert len(local) == len(remote) == 2
    for ours, theirs in zip(local, remote, strict=True):
        assert ours["id"] == theirs["id"] and torch.equal(ours["image"], theirs["image"])


def test_streaming_a_dataset_that_is_not_prepared_is_an_error(tmp_path):
    with pytest.raises(UserError, match="dilated-seg prepare"):
        Folder(root=str(fake_datasets.folder(tmp_path)), streaming=True).open_split("train")


def test_shards_of_another_dataset_or_other_labels_are_refused(tmp_path):
    root = fake_datasets.cityscapes(tmp_path / "cityscapes")
    run("cityscapes", f"--root={root}", f"--out={tmp_path / 'out'}", "--labels=gtCoarse", *COUNTS)
    with pytest.raises(UserError, match="holds Cityscapes, not CamVid"):
        CamVid(root=str(tmp_path / "out")).open_split("train")
    with pytest.raises(UserError, match="prepared with labels gtCoarse, not gtFine"):
        Cityscapes(root=str(tmp_path / "out")).open_split("train")
    assert len(Cityscapes(root=str(tmp_path / "out"), labels="gtCoarse").open_split("train")) == 3
    with pytest.raises(UserError, match="no split 'train_extra', only train, val, test"):
        Cityscapes(root=str(tmp_path / "out"), labels="gtCoarse").open_split("train_extra")


def test_objects_need_directories_not_shards(tmp_path):
    root = fake_datasets.voc(tmp_path / "voc")
    run("voc", f"--root={root}", f"--out={tmp_path / 'out'}", *COUNTS)
    with pytest.raises(UserError, match="do not have the objects"):
        VOC(root=str(tmp_path / "out"), train_split="train_objects").open_split("train_objects")


def test_other_counts_than_published_need_an_option(tmp_path, capsys):
    root = fake_datasets.voc(tmp_path)
    assert run("voc", f"--root={root}", f"--out={tmp_path / 'out'}") == 2
    assert "train has 2 images, as published 1,464" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_images_that_are_trained_on_and_tested_on_are_refused(tmp_path, capsys):
    root = fake_datasets.folder(tmp_path / "mine")
    (root / "val.txt").write_text("photo 2\nphoto 0\n")
    assert run("folder", f"--root={root}", f"--out={tmp_path / 'out'}") == 2
    assert f"1 images are in train and in val, such as {root}/images/photo 0.png" in capsys.readouterr().err


def test_images_of_one_name_in_two_splits_are_two_images(tmp_path, capsys):
    root = fake_datasets.folder(tmp_path / "mine")
    for split in ("train", "val"):
        for name in ("images", "masks"):
            (root / split / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(root / split / "images/0000.png")
        Image.new("L", (4, 4)).save(root / split / "masks/0000.png")
    warn_of_shared_images(Folder(root=str(root)))
    assert not capsys.readouterr().err
    assert run("folder", f"--root={root}", f"--out={tmp_path / 'out'}") == 0
    assert [list(samples(Folder(root=str(tmp_path / "out")), split)) for split in ("train", "val")] == [["0000"], ["0000"]]


def test_the_order_of_splits_does_not_change_what_is_shared(tmp_path, capsys):
    root = fake_datasets.voc(tmp_path / "voc")
    assert run("voc", f"--root={root}", f"--out={tmp_path / 'out'}", "--splits", "trainval", "val", "train", *COUNTS) == 0
    assert run("voc", f"--root={root}", f"--out={tmp_path / 'out'}", "--splits", "train", "val", "trainval", *COUNTS) == 0
    assert manifest.read(str(tmp_path / "out"))["splits"]["trainval"]["parts"] == ["train", "val"]
    capsys.readouterr()
    warn_of_shared_images(VOC(root=str(tmp_path / "out"), train_split="trainval"))
    assert "metrics of val are not those of new images" in capsys.readouterr().err
    assert run("voc", f"--root={root}", f"--out={tmp_path / 'other'}", "--splits", "trainval", "everything", *COUNTS) == 2
    assert "--splits everything is not in" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["data[1]", "what? now*", "ä b"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_directory_may_have_any_name(tmp_path, name, streaming):
    root = fake_datasets.folder(tmp_path / "mine")
    assert run("folder", f"--root={root}", f"--out={tmp_path / name}") == 0
    assert len(samples(Folder(root=str(tmp_path / name), streaming=streaming), "train")) == 2


def test_a_split_whose_images_are_all_skipped_is_an_error(tmp_path, capfd):
    root = fake_datasets.folder(tmp_path / "mine")
    for path in (root / "images/photo 0.png", root / "images/photo 1.jpg"):
        path.write_bytes(b"no image")
    assert run("folder", f"--root={root}", f"--out={tmp_path / 'out'}", "--on_bad_image=skip") == 2
    assert "train has no image that can be used" in capfd.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine"]


def test_nothing_that_prepare_did_not_write_is_deleted(tmp_path, capsys):
    """Not even a dataset that lies in a folder of the name that archives are unpacked to."""
    root = fake_datasets.folder(tmp_path / "out.unpacked")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/thesis.tex").write_text("all of it")
    assert run("folder", f"--root={root}", f"--out={tmp_path / 'out'}") == 2
    assert "thesis.tex is in a directory for unfinished work, but not written by prepare" in capsys.readouterr().err
    assert (tmp_path / "out.partial/thesis.tex").read_text() == "all of it"
    shutil.rmtree(tmp_path / "out.partial")
    zipped(tmp_path / "packed.zip")
    assert run("folder", f"--root={tmp_path / 'packed.zip'}", f"--out={tmp_path / 'out'}") == 2
    assert "out.unpacked is needed for unpacking" in capsys.readouterr().err
    assert run("folder", f"--root={root}", f"--out={tmp_path / 'out'}") == 0
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_an_error_does_not_delete_the_work_of_an_interrupted_call(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/train-00000.parquet").write_bytes(b"hours of work")
    assert run("folder", f"--root={tmp_path / 'typo'}", f"--out={tmp_path / 'out'}") == 2
    assert (tmp_path / "out.partial/train-00000.parquet").read_bytes() == b"hours of work"


def test_one_call_at_a_time(tmp_path, capsys):
    root = fake_datasets.folder(tmp_path / "mine")
    with prepare.lock_directory(tmp_path / "out.partial"):
        assert run("folder", f"--root={root}", f"--out={tmp_path / 'out'}") == 2
        assert "is locked by another process" in capsys.readouterr().err
        assert (tmp_path / "out.partial").is_dir()
    assert run("folder", f"--root={root}", f"--out={tmp_path / 'out'}") == 0


@pytest.mark.parametrize("content", ["[]", "{}", "null", "no json", '{"entry": 1, "source": 2}', '{"entry": {"rows": 1}}'])
def test_a_damaged_note_or_manifest_is_not_used(tmp_path, capsys, content):
    root = fake_datasets.folder(tmp_path / "mine")
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/train-00000.parquet.json").write_text(content)
    assert run("folder", f"--root={root}", f"--out={tmp_path / 'out'}") == 0
    assert run("folder", f"--out={tmp_path / 'out'}", "--verify") == 0
    (tmp_path / "out/manifest.json").write_text(content)
    for arguments in ([f"--root={root}"], ["--verify"]):
        assert run("folder", f"--out={tmp_path / 'out'}", *arguments) == 2
        assert "manifest.json" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path, capsys):
    root = fake_datasets.folder(tmp_path / "mine")
    (tmp_path / "file").write_text("")
    (tmp_path / "out.partial").write_text("")
    for out in (tmp_path / "file/out", Path("/proc/out"), tmp_path / "out"):
        assert run("folder", f"--root={root}", f"--out={out}") == 2
        said = capsys.readouterr().err
        assert said.startswith("dilated-seg: ") and str(out) in said


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_the_same_command_continues(tmp_path):
    root = fake_datasets.folder(tmp_path / "mine", images=12)
    code = """
import resource, signal, sys
from dilated_seg.__main__ import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
sys.exit(main(sys.argv[1:]))
"""
    command = ["prepare", "folder", f"--root={root}", f"--out={tmp_path / 'out'}"]
    full = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    assert full.returncode == 2 and "Traceback" not in full.stderr
    assert "File too large; fix that, then the same command continues" in full.stderr
    assert run(*command[1:]) == 0


def test_bad_files_are_named_a_line_each_and_nothing_is_left(tmp_path, capfd):
    root = fake_datasets.folder(tmp_path / "mine", images=12)
    (root / "images/photo 3.png").write_bytes((root / "images/photo 3.png").read_bytes()[:60])
    Image.new("L", (5, 5)).save(root / "masks/photo 4.png")
    Image.fromarray(np.full((12, 18), 9, np.uint8)).save(root / "masks/photo 6.png")
    assert run("folder", f"--root={root}", f"--out={tmp_path / 'out'}") == 2
    said = capfd.readouterr().err.splitlines()
    for wrong in ("photo 3.png cannot be read", "they must have one size", "holds the value 9 at row 0, column 0"):
        assert sum(wrong in line for line in said) == 1
    assert "3 of 12 images cannot be used" in said[-1] and "--on_bad_image skip" in said[-1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine"]
    assert run("folder", f"--root={root}", f"--out={tmp_path / 'out'}", "--on_bad_image=skip") == 0
    assert len(Folder(root=str(tmp_path / "out")).open_split("train")) == 8
    assert "Left out because they cannot be read: 3." in (tmp_path / "out/README.md").read_text()
    (root / "images/photo 2.jpeg").write_bytes(b"no image")
    shutil.rmtree(tmp_path / "out")
    assert run("folder", f"--root={root}", f"--out={tmp_path / 'out'}", "--on_bad_image=skip") == 2  # an image of val


def test_missing_partners_are_named_a_line_each(tmp_path, capsys):
    root = fake_datasets.cityscapes(tmp_path / "cityscapes")
    for path in sorted((root / "gtFine/train").rglob("*_labelIds.png"))[:2]:
        path.unlink()
    assert run("cityscapes", f"--root={root}", f"--out={tmp_path / 'out'}", *COUNTS) == 2
    said = capsys.readouterr().err.splitlines()
    assert sum("has no mask" in line for line in said) == 2 and "1 more such problem" in said[-1]


def test_archives_are_unpacked_and_prepared(tmp_path):
    root = fake_datasets.voc(tmp_path / "tree")
    packed = tmp_path / "packed"
    packed.mkdir()
    with tarfile.open(packed / "VOCtrainval_11-May-2012.tar", "w") as tar:
        tar.add(root / "VOCdevkit", "VOCdevkit")
    with tarfile.open(packed / "benchmark.tgz", "w:gz") as tar:
        tar.add(root / "sbd/dataset", "benchmark_RELEASE/dataset")
    assert run("voc", f"--root={packed}", f"--sbd={packed}", f"--out={tmp_path / 'out'}", *COUNTS) == 0
    expected = samples(VOC(root=str(root), sbd=str(root / "sbd")), "trainaug")
    read = samples(VOC(root=str(tmp_path / "out")), "trainaug")
    assert list(read) == list(expected) and all(torch.equal(read[k]["mask"], expected[k]["mask"]) for k in read)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "out", "packed", "tree"]


def test_archives_without_directories_get_one_of_their_name(tmp_path):
    root = fake_datasets.camvid32(tmp_path / "tree")
    packed = tmp_path / "packed"
    packed.mkdir()
    for name in ("701_StillsRaw_full", "LabeledApproved_full"):
        with zipfile.ZipFile(packed / f"{name}.zip", "w") as zipped:
            for path in (root / name).iterdir():
                zipped.write(path, path.name)
    archives.unpack(packed / "LabeledApproved_full.zip", tmp_path / "into")
    assert (tmp_path / "into/LabeledApproved_full/0001TP_006690_L.png").is_file()


def test_archives_with_one_directory_at_the_top_are_found(tmp_path):
    root = fake_datasets.folder(tmp_path / "mine")
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as packed:
        for path in root.rglob("*"):
            packed.write(path, path.relative_to(tmp_path))
    assert run("folder", f"--root={tmp_path / 'mine.zip'}", f"--out={tmp_path / 'out'}") == 0
    assert len(samples(Folder(root=str(tmp_path / "out")), "train")) == 2


def test_an_archive_that_was_replaced_is_unpacked_again(tmp_path):
    root = fake_datasets.folder(tmp_path / "mine")
    for good in (False, True):
        with zipfile.ZipFile(tmp_path / "mine.zip", "w") as packed:
            for path in root.rglob("*.*"):
                bad = path.name == "photo 0.png" and not good
                packed.writestr(str(path.relative_to(root)), b"no image" if bad else path.read_bytes())
        assert run("folder", f"--root={tmp_path / 'mine.zip'}", f"--out={tmp_path / 'out'}") == (0 if good else 2)
        assert not (tmp_path / "out.unpacked").exists()


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_a_damaged_archive_is_an_error_or_unpacks_its_original_content(tmp_path, kind):
    """A plain tar has no checksum of its contents: there, only what its headers say is safe."""
    root, archive = fake_datasets.folder(tmp_path / "mine"), tmp_path / f"mine.{kind}"
    expected = {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    if kind == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, content in expected.items():
                packed.writestr(str(name), content)
    else:
        with tarfile.open(archive, "w:gz" if kind == "tar.gz" else "w") as packed:
            for name in expected:
                packed.add(root / name, str(name))
    content, rng, refused = archive.read_bytes(), np.random.default_rng(0), 0
    for trial in range(60):
        damaged = bytearray(content)
        damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        archive.write_bytes(damaged if trial % 2 else content[: rng.integers(len(content) - 1024)])
        try:
            archives.unpack(archive, tmp_path / f"into{trial}")
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            found = {p.relative_to(tmp_path / f"into{trial}") for p in (tmp_path / f"into{trial}").rglob("*") if p.is_file()}
            assert len(found) == len(expected)
            if kind != "tar":
                for name in found & expected.keys():
                    assert (tmp_path / f"into{trial}" / name).read_bytes() == expected[name]
    assert refused >= 30


def test_a_published_archive_is_known_by_its_checksum(tmp_path, capsys):
    (tmp_path / "benchmark.tgz").write_bytes(b"something else")
    with pytest.raises(UserError, match="is not the published file"):
        archives.check_published(tmp_path / "benchmark.tgz")


def zipped(path, name="a.png", content=b"x", link=False):
    with zipfile.ZipFile(path, "w") as file:
        info = zipfile.ZipInfo(name)
        info.external_attr = (0o120777 << 16) if link else 0
        file.writestr(info, content)


def tarred(path, **facts):
    with tarfile.open(path, "w") as file:
        info = tarfile.TarInfo()
        for fact, value in facts.items():
            setattr(info, fact, value)
        file.addfile(info)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda p: zipped(p / "a.zip", "../outside.png"), "a path outside"),
        (lambda p: zipped(p / "a.zip", "/etc/outside.png"), "a path outside"),
        (lambda p: zipped(p / "a.zip", "..\\outside.png"), "a path outside"),
        (lambda p: tarred(p / "a.tar", name="../outside.png"), "a path outside"),
        (
            lambda p: tarred(p / "a.tar", name="x", type=tarfile.SYMTYPE, linkname="/etc"),
            "cannot be unpacked .*link to",
        ),
        (lambda p: tarred(p / "a.tar", name="x", type=tarfile.CHRTYPE), "cannot be unpacked .*special file"),
        (lambda p: (p / "a.zip").write_bytes(b"PK no zip"), "cannot be unpacked"),
        (lambda p: tarfile.open(p / "a.tar", "w").close(), "holds no files"),
        (lambda p: (p / "a.tgz").write_bytes(b"\x1f\x8b nothing"), "cannot be unpacked"),
    ],
)
def test_an_invalid_or_unsafe_archive_is_an_error(make, sentence, tmp_path):
    make(tmp_path)
    with pytest.raises(UserError, match=sentence):
        archives.unpack(archives.list_archives(tmp_path)[0], tmp_path / "into")
    assert not [path for path in (tmp_path / "into").rglob("*") if path.is_file()]
    assert not (tmp_path / "outside.png").exists()


def test_a_link_in_a_zip_becomes_a_file(tmp_path):
    zipped(tmp_path / "a.zip", "link", b"/etc/passwd", link=True)
    archives.unpack(tmp_path / "a.zip", tmp_path / "into")
    assert (tmp_path / "into/a/link").read_bytes() == b"/etc/passwd" and not (tmp_path / "into/a/link").is_symlink()


def test_archives_have_limits(tmp_path, monkeypatch):
    zipped(tmp_path / "a.zip", content=bytes(5000))
    monkeypatch.setattr(archives, "MAX_BYTES", 4999)
    with pytest.raises(UserError, match="holds more than"):
        archives.unpack(tmp_path / "a.zip", tmp_path / "into")
    monkeypatch.setattr(archives, "MAX_BYTES", 5000)
    archives.unpack(tmp_path / "a.zip", tmp_path / "into")
    monkeypatch.setattr(archives, "MAX_MEMBERS", 0)
    with pytest.raises(UserError, match="holds more than"):
        archives.unpack(tmp_path / "a.zip", tmp_path / "elsewhere")


def test_downloads_are_checked_and_come_from_the_first_mirror_that_has_them(tmp_path):
    (tmp_path / "server").mkdir()
    (tmp_path / "server/a.tar").write_bytes(b"content")
    (tmp_path / "server/damaged.tar").write_bytes(b"c0ntent")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "server"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    urls = tuple(f"http://127.0.0.1:{server.server_port}/{name}.tar" for name in ("nothing", "damaged", "a"))
    checksum = hashlib.sha256(b"content").hexdigest()
    assert archives.fetch("a.tar", checksum, urls, tmp_path / "here").read_bytes() == b"content"
    assert [p.name for p in (tmp_path / "here").iterdir()] == ["a.tar"]
    archives.fetch("a.tar", checksum, (), tmp_path / "here")  # there already
    with pytest.raises(UserError, match=r"b.tar cannot be downloaded .*put it into"):
        archives.fetch("b.tar", checksum, urls[:2], tmp_path / "here")
    assert [p.name for p in (tmp_path / "here").iterdir()] == ["a.tar"]
    server.shutdown()
    server.server_close()


def test_the_manifest_is_plain_and_dated_by_nothing(tmp_path):
    root = fake_datasets.folder(tmp_path / "mine")
    texts = []
    for out in ("a", "b"):
        run("folder", f"--root={root}", f"--out={tmp_path / out}")
        texts.append((tmp_path / out / "manifest.json").read_text())
        time.sleep(0.01)
    assert texts[0] == texts[1] and json.loads(texts[0])["format"] == manifest.FORMAT
