"""Workers that read images while W&B is on: what they import first, however they start, and what their errors say."""

import errno
import json
import multiprocessing
import resource
import subprocess
import sys
import tarfile
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
import wandb
from torch.utils.data import DataLoader, Dataset
from wandb.sdk.lib.asyncio_manager import ForkedError

from dilated_seg.__main__ import main
from dilated_seg.cli import CLI
from dilated_seg.data import CamVid, Folder
from dilated_seg.data.collate import Images
from dilated_seg.data.decode import read_image
from dilated_seg.data.prepare import archives, write
from dilated_seg.data.split import Split
from dilated_seg.data.transforms import ScaleAndCrop
from dilated_seg.data.workers import remove_import_hooks
from dilated_seg.errors import ResourceError, UserError
from dilated_seg.training.loggers import SafeWandbLogger, finish
from dilated_seg.weights import read
from tests.conftest import ROOT
from tests.data.test_prepare import Ranges
from tests.support import fake_datasets

HOOKED = "sentence_transformers"  # one of the packages whose first import W&B reports; here it is an empty file

USER_DATASET = """
from torch.utils.data import DataLoader

from dilated_seg.data import Shapes
from dilated_seg.data.collate import pad
from dilated_seg.data.split import Split


class Importing(Split):
    def __init__(self, split):
        self.split = split

    def __len__(self):
        return len(self.split)

    def __getitem__(self, index):
        import {hooked}

        return self.split[index]


class Mine(Shapes):
    def split(self, name):
        return Importing(super().split(name))


class OwnLoader(Mine):
    def _loader(self, images, order, collate):
        return DataLoader(images, batch_sampler=order, num_workers=1, collate_fn=collate)
"""


class Imports(Dataset):
    """Imports the package in the worker; gives whether W&B could still report that."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        __import__(HOOKED)
        return any(type(finder).__module__.startswith("wandb") for finder in sys.meta_path)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """W&B is on, without a server."""
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A stand-in for the package, imported nowhere yet."""
    (tmp_path / "packages").mkdir()
    (tmp_path / f"packages/{HOOKED}.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    assert HOOKED not in sys.modules
    yield tmp_path / "packages"
    sys.modules.pop(HOOKED, None)


@pytest.fixture
def run(tmp_path):
    """An offline run that somebody else began: W&B's hooks are in place."""
    remove_import_hooks()
    hooks = sys.modules["wandb.sdk.lib.import_hooks"]
    hooks._post_import_hooks_init = False  # W&B installs its hooks once a process, which earlier tests may have used up
    yield wandb.init(mode="offline", dir=tmp_path, project="workers")
    finish()
    remove_import_hooks()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Frames like CamVid's, as folders, shards and a raw store."""
    folder = tmp_path_factory.mktemp("data")
    root = fake_datasets.camvid(folder / "folder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "SHARD_BYTES", 2500)
        patch.setattr(write, "GROUP_BYTES", 900)
        for store in ("files", "raw"):
            arguments = ["camvid", f"--root={root}", f"--out={folder / store}", f"--store={store}", "--other_counts"]
            assert main(["prepare", *arguments]) == 0
    return folder


def fit(run_dir, *flags):
    narrow = ["--model.net=DilatedNet", "--model.net.context=null", "--model.net.width=0.02", "--model.optimizer=AdamW"]
    short = ["--trainer.max_steps=4", "--trainer.val_check_interval=2", "--trainer.enable_progress_bar=false"]
    CLI(["fit", *flags, *narrow, *short, "--trainer.log_every_n_steps=1", "--run_dir", str(run_dir)])


def camvid(root, workers, streaming=True):
    name = "--data.init_args"
    augmentation = "{class_path: ScaleAndCrop, init_args: {crop_size: [8, 12], scale: [0.8, 1.2], jitter: 0.3}}"
    small = [f"{name}.batch_size=2", f"{name}.augmentation={augmentation}"]
    place = [f"{name}.root={root}", f"{name}.num_workers={workers}", f"{name}.streaming={str(streaming).lower()}"]
    return ["--data=CamVid", *small, *place]


def weights(run_dir):
    return torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def evaluation(run_dir, name="val"):
    return json.loads((run_dir / f"evaluations/{name}.json").read_text())


@pytest.mark.parametrize("persistent", [False, True])
def test_data_workers_can_import_modules_that_wandb_hooks(package, run, persistent):
    loader = DataLoader(Imports(), num_workers=2, persistent_workers=persistent)
    for _ in range(2):
        assert not any(map(any, loader))
    assert run.offline and HOOKED not in sys.modules  # no worker was this process
    assert any(type(finder).__module__.startswith("wandb") for finder in sys.meta_path)  # nor did it lose the hooks


def test_pool_processes_can_import_modules_that_wandb_hooks(package, run):
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert not pool.apply(Imports().__getitem__, (0,))


@pytest.mark.parametrize("name", ["Mine", "OwnLoader"])
def test_a_users_dataset_can_import_modules_that_wandb_hooks_in_workers(package, tmp_path, name):
    (package / "mine.py").write_text(USER_DATASET.format(hooked=HOOKED))
    flags = [f"--data=mine.{name}", "--data.init_args.images=[4,2,2]", "--data.init_args.size=[16,24]"]
    fit(tmp_path / "run", *flags, "--data.init_args.num_workers=1", "--data.init_args.batch_size=2")
    assert weights(tmp_path / "run")
    assert list(tmp_path.glob("run/wandb/offline-run-*"))
    assert HOOKED not in sys.modules
    del sys.modules["mine"]


def test_our_logger_leaves_no_hooks_that_would_fail_once_wandbs_process_has_died(run, tmp_path):
    finish()
    logger = SafeWandbLogger(tmp_path, offline=True, project="workers")
    assert logger.experiment.offline
    assert not any(type(finder).__module__.startswith("wandb") for finder in sys.meta_path)
    logger.end()
    assert wandb.run is None


def test_workers_that_are_not_forked_stream_the_same_images(data, run):
    options = {"root": str(data / "files"), "streaming": True, "batch_size": 2, "augmentation": ScaleAndCrop((8, 12))}
    here, there = (CamVid(**options, num_workers=workers) for workers in (0, 1))
    expected = list(here.train_dataloader())
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)  # the default from Python 3.14 on
    try:
        found = list(there.train_dataloader())
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert len(found) == len(expected) == 2
    for one, other in zip(expected, found, strict=True):
        assert one["id"] == other["id"] and torch.equal(one["image"], other["image"])


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
def test_streaming_with_0_1_and_3_workers_gives_the_same_weights_and_integers(data, tmp_path):
    runs = [tmp_path / f"workers{n}" for n in (0, 1, 3)]
    for run_dir, workers in zip(runs, (0, 1, 3), strict=True):
        fit(run_dir, *camvid(data / "files", workers))
        assert len(list(run_dir.glob("wandb/offline-run-*"))) == 1
    first = runs[0]
    for other in runs[1:]:
        assert same(weights(other), weights(first))
        assert evaluation(other)["matrix"] == evaluation(first)["matrix"]
    best = first / "checkpoints/best.ckpt"
    for kind, workers, streaming in (("files", 3, True), ("folder", 1, False), ("raw", 3, False)):
        place = ["--config", str(first / "config.yaml"), "--ckpt_path", str(best), "--run_dir", str(tmp_path / kind)]
        CLI(["validate", *place, *camvid(data / kind, workers, streaming)[1:]])
    matrices = [evaluation(tmp_path / kind, "val-best")["matrix"] for kind in ("files", "folder", "raw")]
    assert matrices[0] == matrices[1] == matrices[2]
    assert sum(map(sum, matrices[0])) > 0


def raising(error):
    """A function that raises this error."""

    def fail(*args, **kwargs):
        raise error

    return fail


def broken(split, error):
    """A split whose shards raise this error, whatever they hold."""
    split.rows.read = raising(error)
    return split


@pytest.mark.parametrize("error", [ForkedError("not valid in a forked process"), ImportError("no module"), TypeError("a bug")])
def test_a_bug_is_not_reported_as_a_damaged_shard(data, error):
    split = broken(CamVid(root=str(data / "files"), streaming=True).open_split("train"), error)
    with pytest.raises(type(error), match=str(error)):
        split[0]


def test_a_shard_is_damaged_if_its_checksum_differs_whatever_the_error(data, tmp_path):
    dataset = CamVid(root=str(data / "files"), streaming=True)
    for error in (TypeError("an odd error"), OSError("Invalid page header")):
        split = broken(dataset.open_split("val"), error)
        place = Path(split.paths[0])
        content = place.read_bytes()
        place.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        try:
            with pytest.raises(UserError, match=rf"{place} cannot be read \({error}\): it is damaged, copy it again"):
                split[0]
        finally:
            place.write_bytes(content)
    with pytest.raises(UserError, match=r"matches its checksums, but pyarrow .* cannot read it \(Invalid page header\)"):
        split[0]


class NoMoreFiles:
    """In its body, this process may open no further files."""

    def __enter__(self):
        self.limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, self.limits[1]))

    def __exit__(self, *args):
        resource.setrlimit(resource.RLIMIT_NOFILE, self.limits)


@pytest.mark.parametrize("kind", ["streamed", "folder"])
def test_too_many_open_files_are_neither_damage_nor_skipped(data, kind):
    streaming = kind == "streamed"
    dataset = CamVid(root=str(data / ("files" if streaming else kind)), streaming=streaming, on_bad_image="skip")
    images = dataset.open_training_images()
    images[0, 0]  # everything is imported
    if streaming:
        images.split.rows.reset()
    with NoMoreFiles(), pytest.raises(ResourceError, match=r"too many files are open to read .*: lower data\.num_workers"):
        images[0, 0]
    assert "skipped" not in images[0, 0]


def test_prepare_leaves_no_image_out_for_errors_of_the_system(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dilated_seg.data.pairs.read_image", raising(ResourceError("no memory")))
    arguments = ["camvid", f"--root={data / 'folder'}", f"--out={tmp_path / 'out'}", "--other_counts", "--on_bad_image=skip"]
    assert main(["prepare", *arguments]) == 2
    assert "no memory; then the same command continues" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(["prepare", *arguments]) == 0
    assert len(CamVid(root=str(tmp_path / "out")).open_split("train")) == 5


def test_a_cache_that_cannot_be_written_is_not_a_damaged_shard(data, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "file/cache")
    with pytest.raises(UserError, match=rf"{tmp_path}/file.* cannot be read .*Not a directory") as caught:
        CamVid(root=str(data / "files")).open_split("train")
    assert "copy it again" not in str(caught.value)


def test_a_lost_connection_is_not_a_damaged_shard(tmp_path, monkeypatch):
    for name in ("STREAMING_READ_MAX_RETRIES", "STREAMING_OPEN_MAX_RETRIES"):
        monkeypatch.setattr(f"datasets.config.{name}", 0)
    fake_datasets.folder(tmp_path / "mine")
    assert main(["prepare", "folder", f"--root={tmp_path / 'mine'}", f"--out={tmp_path / 'out'}"]) == 0
    handler = lambda *args: Ranges(*args, directory=str(tmp_path))  # noqa: E731
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    dataset = Folder(root=f"http://127.0.0.1:{server.server_port}/out", streaming=True, on_bad_image="skip")
    images = dataset.open_training_images()
    server.shutdown()
    server.server_close()
    with pytest.raises(ResourceError, match=r"cannot read http://.*parquet \(.*\): check the address, the connection"):
        images[0, 0]


def test_errors_of_workers_arrive_as_the_sentence_that_they_are():
    class Short(Split):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            raise ResourceError("there is not enough memory to read a.png: free some")

    images = Images(Short(), skip_bad=True)
    with pytest.raises(ResourceError) as caught:
        list(DataLoader(images, batch_size=None, num_workers=1))
    assert str(caught.value) == "there is not enough memory to read a.png: free some"


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (ImportError("no codec"), ImportError, "no codec"),
        (RecursionError("too deep"), RecursionError, "too deep"),
        (ForkedError("forked"), ForkedError, "forked"),
        (OSError(errno.EIO, "Input/output error"), ResourceError, "check the disk or network drive that holds it"),
        (PermissionError(errno.EACCES, "Permission denied"), UserError, "Permission denied.*: change its permissions"),
        (MemoryError(), UserError, "cannot be decoded in the memory that is free"),
        (SyntaxError("broken PNG file"), UserError, r"cannot be read as an image \(broken PNG file\): replace the file"),
        (OSError("image file is truncated"), UserError, "image file is truncated.*: replace the file"),
    ],
)
def test_only_damage_is_a_reason_to_replace_an_image(camvid, monkeypatch, error, kind, said):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", raising(error))
    with pytest.raises(kind, match=said) as caught:
        read_image(camvid / "train/train_0.png")
    assert ("replace the file" in str(caught.value)) == ("replace" in said or isinstance(error, MemoryError))


def test_a_bug_in_reading_an_image_is_not_damage(camvid, monkeypatch):
    monkeypatch.setattr("dilated_seg.data.decode.make_tensor", None)
    with pytest.raises(TypeError, match="not callable"):
        read_image(camvid / "train/train_0.png")


@pytest.mark.parametrize(
    ("error", "said"), [(MemoryError(), "needs more memory than is free"), (OSError(errno.EIO, "Input/output"), "Input/output")]
)
def test_only_damaged_weights_are_called_damaged(tmp_path, monkeypatch, error, said):
    torch.save({"a.weight": torch.zeros(2)}, tmp_path / "weights.pth")
    monkeypatch.setattr(torch, "load", raising(error))
    with pytest.raises(UserError, match=said) as caught:
        read(tmp_path / "weights.pth")
    assert "is damaged" not in str(caught.value)


def test_a_full_disk_is_not_a_damaged_archive(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "a.txt", "a/a.txt")
    monkeypatch.setattr(tarfile, "copyfileobj", raising(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="No space left on device"):
        archives.unpack(tmp_path / "a.tar", tmp_path / "into")


LEFT = """
from torch.utils.data import DataLoader
from dilated_seg.data import Shapes
from dilated_seg.data.workers import initialize_worker
split = Shapes(images=[4, 1, 1], size=[16, 24]).split("train")
loader = DataLoader(split, batch_size=None, num_workers=1, persistent_workers=True, worker_init_fn=initialize_worker)
iterator = iter(loader)
next(iterator)
print("exits with a worker left")
"""


@pytest.mark.slow
def test_a_process_exits_though_a_worker_is_left():
    done = subprocess.run([sys.executable, "-c", LEFT], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "exits with a worker left\n"), done.stderr
