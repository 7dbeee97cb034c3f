"""Fixed seeds, no network, small real files made by code, and the trained runs that several files need, once a session.

One thread a test process, or DILATED_SEG_TEST_THREADS of them. W&B is as users without a key have it: on, and offline.
"disabled" would hide what it does to the process and its workers.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from tests.support.commands import ROOT as ROOT
from tests.support.commands import THREADS, TINY, run_command

os.environ["WANDB_MODE"] = "offline"
os.environ.pop("DILATED_SEG_RUN_DIR", None)
torch.set_num_threads(int(THREADS))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def build_once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], None]) -> Path:
    """Return a directory that is built once a session, also if several processes run the tests; nobody changes it."""
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # which the processes share
    folder, built = base / name, base / f"{name}.built"
    with FileLock(base / f"{name}.lock"):
        if not built.exists():
            folder.mkdir()
            build(folder)
            built.touch()
    return folder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """A run of twelve steps that has finished. A test that writes into its run takes ``run``."""

    def train(folder: Path) -> None:
        result = run_command("fit", *TINY, "--run_dir", folder / "run")
        assert result.returncode == 0, result.stderr

    return build_once(tmp_path_factory, "finished", train) / "run"


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory) -> Path:
    """A copy of the finished run, for the tests of a file."""
    return shutil.copytree(finished_run, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    """A folder in the layout of SegNet's release: 6 training and 3 validation frames of 48 x 64."""
    root = tmp_path / "camvid"
    rng = np.random.default_rng(0)
    for split, frames in (("train", 6), ("val", 3)):
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True)
        for frame in range(frames):
            label = rng.integers(0, 12, (6, 8), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            image = (label[..., None] * np.array([20, 9, 15])).astype(np.uint8)
            suffix = "jpg" if frame % 2 else "png"
            Image.fromarray(image).save(root / split / f"{split}_{frame}.{suffix}")
            Image.fromarray(label).save(root / f"{split}annot" / f"{split}_{frame}.png")
    return root
