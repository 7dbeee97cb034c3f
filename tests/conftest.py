"""Fixed seeds, one thread a test process, no network; small real files made on the fly.

W&B is as users without a key have it: on, and offline. "disabled" would hide what it does to the process and its workers.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

os.environ["WANDB_MODE"] = "offline"
os.environ.pop("DILATED_SEG_RUN_DIR", None)
torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


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
