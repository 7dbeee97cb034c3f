"""Class weights that are counted in the training masks, and crops that favor rare classes."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torchvision import tv_tensors

from dilated_seg.__main__ import main
from dilated_seg.data import CamVid, Folder, Shapes
from dilated_seg.data.class_weights import compute_class_weights, count_class_weights, count_frequencies
from dilated_seg.data.samplers import fix_seed
from dilated_seg.data.transforms import RandomScaledCrop, ScaleAndCrop
from dilated_seg.errors import UserError
from dilated_seg.models import FCN
from dilated_seg.runs import Run
from dilated_seg.task import SegmentationTask
from tests.conftest import ROOT
from tests.data.test_folder import FIT, make, save_mask

CAMVID = Path(os.environ.get("DILATED_SEG_CAMVID", ROOT.parent / "shared" / "data" / "camvid"))
# README.md of the data, "w1": median frequency as of Eigen and Fergus.
CAMVID_WEIGHTS = [0.2793, 0.2017, 4.7865, 0.1490, 1.0, 0.4217, 3.8467, 1.9736, 0.7889, 6.3747, 8.8587]


@pytest.mark.skipif(not CAMVID.is_dir(), reason="real CamVid is not here: DILATED_SEG_CAMVID names its directory")
def test_median_frequencies_of_camvid_are_those_of_its_readme():
    weights = count_class_weights(CamVid(root=str(CAMVID)), "median_frequency")
    assert [round(weight, 4) for weight in weights] == CAMVID_WEIGHTS


# 100 pixels of class 0 and 20 of class 1 in one image of 150, 10 of class 2 and 90 of class 0 in one of 100.
PIXELS, IMAGE_PIXELS = [190, 20, 10], [250, 150, 100]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("median_frequency", [(20 / 150) / (190 / 250), 1, (20 / 150) / (10 / 100)]),
        ("sqrt_median_frequency", [math.sqrt((20 / 150) / (190 / 250)), 1, math.sqrt((20 / 150) / (10 / 100))]),
        ("enet", [1 / math.log(1.02 + n / 220) for n in PIXELS]),
        ("inverse", [220 / (3 * n) for n in PIXELS]),
    ],
)
def test_weights_follow_the_formula_of_their_paper(method, expected):
    assert compute_class_weights(PIXELS, IMAGE_PIXELS, method) == pytest.approx(expected, rel=1e-5)
    more = compute_class_weights([*PIXELS, 0], [*IMAGE_PIXELS, 0], method)
    assert more == [*compute_class_weights(PIXELS, IMAGE_PIXELS, method), 0.0]  # a class without a pixel changes no other


def test_another_method_is_refused():
    with pytest.raises(UserError, match="is median: give a weight for each class, or one of median_frequency, "):
        compute_class_weights(PIXELS, IMAGE_PIXELS, "median")
    with pytest.raises(UserError, match="enet is counted by fit: in Python"):
        SegmentationTask(FCN(2, width=1 / 64), 2, class_weights="enet")


@pytest.fixture
def photos(tmp_path):
    """Masks of which one has no polyp."""
    make(tmp_path / "data", "{split}/images/{n}.png", "{split}/masks/{n}.png")
    save_mask(tmp_path / "data/train/masks/0.png", np.full((4, 6), 0, np.uint8))
    save_mask(tmp_path / "data/train/masks/1.png", np.array([[1, 255, 0, 0, 0, 0]] * 4, np.uint8))
    return tmp_path


def test_frequencies_are_equal_from_directory_and_shards(photos):
    expected = [24 + 16 + 12, 4 + 12], [72, 48]
    frequencies = count_frequencies(Folder(root=str(photos / "data")).open_split("train"))
    assert tuple(counts[:2] for counts in frequencies) == expected
    for store in ("files", "raw"):
        out = str(photos / store)
        assert main(["prepare", "folder", "--root", str(photos / "data"), "--out", out, "--store", store]) == 0
        assert count_frequencies(Folder(root=out).open_split("train")) == frequencies
    file = photos / "files/manifest.json"
    record = json.loads(file.read_text())
    for shard in record["shards"]["train"]:
        del shard["image_pixels"]
    file.write_text(json.dumps(record))
    with pytest.raises(UserError, match="prepare the dataset again"):
        count_class_weights(Folder(root=str(photos / "files")), "enet")


def test_generated_masks_are_counted():
    data = Shapes(images=(6, 2, 2))
    split = data.open_split("train")
    masks = torch.stack([split[i]["mask"] for i in range(6)])
    pixels, image_pixels = count_frequencies(split)
    assert pixels == torch.bincount(masks.flatten(), minlength=256).tolist()
    assert image_pixels[1] == sum(mask.numel() for mask in masks if (mask == 1).any())


def test_a_run_has_the_weights_as_numbers_and_continues_with_them(photos, capsys):
    call = ["fit", *FIT, f"--data.root={photos}/data", f"--run_dir={photos}/run", "--model.class_weights=median_frequency"]
    assert main(call) == 0
    said = capsys.readouterr().err
    expected = compute_class_weights([52, 16], [72, 48], "median_frequency")
    assert f"class weights (median_frequency, masks of train): background {expected[0]:g}, polyp {expected[1]:g}" in said
    assert yaml.safe_load(Run(photos / "run").config_file.read_text())["model"]["class_weights"] == expected
    assert main(call) == 0 and main(["validate", str(photos / "run")]) == 0
    capsys.readouterr()
    assert main([*call[:-1], "--model.class_weights=median"]) == 2
    assert "median_frequency" in capsys.readouterr().err


# Crops


def draw_crops(crop, mask, number=200):
    """Masks of crops with the seeds 0, 1, ..."""
    image, crops = tv_tensors.Image(torch.zeros(3, *mask.shape, dtype=torch.uint8)), []
    for seed in range(number):
        with fix_seed(seed):
            crops.append(crop(image, tv_tensors.Mask(mask))[1])
    return crops


MASK = torch.zeros(64, 64, dtype=torch.uint8)
MASK[:, 32:] = 1
MASK[60, 3] = 2


def test_crops_with_rare_classes_have_one_of_their_pixels():
    plain = RandomScaledCrop((0.5, 1.5), (16, 16), 255)
    rare = RandomScaledCrop((0.5, 1.5), (16, 16), 255, rare_classes=(2, 7), rare_share=1.0)
    shares = [np.mean([(crop == 2).any() for crop in draw_crops(each, MASK)]) for each in (plain, rare)]
    assert shares[0] < 0.2 and shares[1] > 0.6  # resized by half, a single pixel may vanish
    full = RandomScaledCrop((1.0, 1.0), (16, 16), 255, rare_classes=(2,), rare_share=1.0)
    assert all((crop == 2).any() for crop in draw_crops(full, MASK))
    half = np.mean([(crop == 2).any() for crop in draw_crops(RandomScaledCrop((1.0, 1.0), (16, 16), 255, 1.0, (2,)), MASK)])
    assert 0.4 < half < 0.65


def test_crops_of_one_class_are_drawn_again():
    plain, mixed = (RandomScaledCrop((1.0, 1.0), (16, 16), 255, ratio) for ratio in (1.0, 0.75))

    def count_uniform(crop):
        return sum(mask.flatten().bincount().max() >= 0.75 * mask.numel() for mask in draw_crops(crop, MASK))

    assert count_uniform(plain) > 100 and count_uniform(mixed) < 60  # expected: 167 and 34
    assert len(draw_crops(mixed, torch.zeros_like(MASK), 3)) == 3  # and then the last one is taken


def test_chosen_crops_are_a_function_of_the_seed_and_others_are_as_before():
    augmentation = ScaleAndCrop((16, 16), (0.5, 1.5), cat_max_ratio=0.75, rare_classes=[2])
    assert all(map(torch.equal, draw_crops(augmentation, MASK, 20), draw_crops(augmentation, MASK, 20)))
    plain = ScaleAndCrop((16, 16), (0.5, 1.5))
    unused = ScaleAndCrop((16, 16), (0.5, 1.5), rare_share=0.3)
    assert all(map(torch.equal, draw_crops(plain, MASK, 20), draw_crops(unused, MASK, 20)))
    assert "rare_classes=(2,)" in repr(augmentation) and "cat_max_ratio=0.75" in repr(augmentation)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"cat_max_ratio": 0.0, "crop_size": (8, 8)}, r"cat_max_ratio is 0: give a number above 0"),
        ({"rare_share": 2.0, "crop_size": (8, 8)}, r"rare_share is 2: give a number above 0"),
        ({"rare_classes": [1]}, "so set crop_size too"),
    ],
)
def test_wrong_choices_of_crops_are_one_sentence(options, sentence):
    with pytest.raises(UserError, match=sentence):
        ScaleAndCrop(**options)
