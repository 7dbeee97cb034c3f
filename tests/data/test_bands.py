"""Images of other than three channels, from their files to training, evaluation, prediction and export."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torchvision import tv_tensors

from dilated_seg import models
from dilated_seg.__main__ import main
from dilated_seg.crf import DenseCRF
from dilated_seg.data import Folder
from dilated_seg.data.bands import read_bands, show_rgb
from dilated_seg.data.chain import Chain
from dilated_seg.data.decode import read_image
from dilated_seg.data.normalization import measure_normalization
from dilated_seg.data.transforms import Jitter, ScaleAndCrop
from dilated_seg.errors import UserError
from dilated_seg.export.program import Plain, describe_input, write
from dilated_seg.inference import load
from dilated_seg.inference.image import segment_image
from dilated_seg.models.segmenter import Segmenter
from dilated_seg.runs import Run
from dilated_seg.task import SegmentationTask
from dilated_seg.weights.match import map_tensors
from dilated_seg.weights.readers import Weights
from tests.models.test_contract import NETWORKS

SIZE = 24, 32
RANDOM = np.random.default_rng(0)
GRAY = RANDOM.integers(0, 256, SIZE, np.uint8)
DEEP = RANDOM.integers(0, 4096, SIZE, np.uint16)  # 12 bits in 16
FOUR = RANDOM.integers(0, 256, (*SIZE, 4), np.uint8)


def save_tiff(path, array, **options):
    pytest.importorskip("tifffile", reason="tifffile, of the extra 'tiff', is not installed").imwrite(path, array, **options)


def make(root, save, suffix, channels):
    """Three images a split, whose masks are where the first channel is bright."""
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for n in range(3):
            mask = np.random.default_rng(n).integers(0, 2, SIZE).astype(np.uint8)
            save(root / split / "images" / f"{n}{suffix}", mask)
            Image.fromarray(mask).save(root / split / "masks" / f"{n}.png")
    (root / "classes.yaml").write_text(f"classes: [dark, bright]\nchannels: {channels}\n")
    return root


def save_gray(path, mask):
    Image.fromarray(GRAY // 2 + 100 * mask).save(path)


def save_deep(path, mask):
    Image.fromarray(DEEP // 2 + 2000 * mask.astype(np.uint16)).save(path)


def save_rgba(path, mask):
    Image.fromarray(FOUR // 2 + 100 * mask[..., None], "RGBA").save(path)


def save_bands(path, mask):
    values = np.concatenate([FOUR, FOUR[..., :2]], -1).astype(np.uint16) * 20
    save_tiff(path, values + 2000 * mask[..., None].astype(np.uint16), photometric="minisblack", planarconfig="contig")


KINDS = {
    "gray8": (save_gray, ".png", 1, torch.uint8),
    "gray16": (save_deep, ".png", 1, torch.float32),
    "gray16_tiff": (save_deep, ".tif", 1, torch.float32),
    "rgba": (save_rgba, ".png", 4, torch.uint8),
    "six_bands": (save_bands, ".tif", 6, torch.float32),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_images_have_the_channels_and_the_depth_of_their_files(tmp_path, kind):
    save, suffix, channels, dtype = KINDS[kind]
    data = Folder(root=str(make(tmp_path, save, suffix, channels)), batch_size=3)
    batch = next(iter(data.train_dataloader()))
    assert data.in_channels == channels
    assert batch["image"].shape == (3, channels, *SIZE) and batch["image"].dtype == dtype
    assert batch["image"].min() >= 0 and batch["image"].max() <= 255


@pytest.mark.parametrize(
    ("kind", "net"),
    [
        ("gray8", "{class_path: UNet, init_args: {width: 0.1}}"),
        ("gray16", "{class_path: FCN, init_args: {stride: 8, width: 0.1}}"),
        ("six_bands", "{class_path: SegNetBasic, init_args: {width: 0.1}}"),
    ],
    ids=["gray8", "gray16", "six_bands"],
)
def test_two_steps_then_evaluation_segmentation_and_export(tmp_path, monkeypatch, capsys, kind, net):
    save, suffix, channels, _ = KINDS[kind]
    monkeypatch.chdir(tmp_path)
    root = make(tmp_path / "data", save, suffix, channels)
    augmentation = "{class_path: ScaleAndCrop, init_args: {crop_size: [40, 24], rotate: 10, jitter: 0.3}}"
    fit = ["fit", "--run_dir", "run", "--data", "Folder", "--data.root", str(root), f"--data.augmentation={augmentation}",
          "--model.net", net, "--data.batch_size", "2", "--model.optimizer", "SGD", "--model.optimizer.lr", "0.01",
           "--wandb", "false", "--trainer.max_steps", "2", "--trainer.accelerator", "cpu"]  # fmt: skip
    assert main(fit) == 0
    saved = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["model"]
    assert len(saved["mean"]) == len(saved["std"]) == channels
    if kind != "gray8":
        assert max(saved["mean"]) < 25  # 12 of 16 bits: neither saturated nor black after normalization
    assert main(["validate", "run"]) == 0
    assert Run("run").evaluation("val-last").protocol.images == 3
    image = root / f"val/images/0{suffix}"
    assert main(["segment", str(image), "--checkpoint", "run"]) == 0
    assert read_image(Path("segmented/overlays/0.jpg")).shape == (3, *SIZE)
    assert main(["export", "run", "--format", "hub", "--out", "hub"]) == 0
    assert f'read_bands(Path("image.tif"), {channels})' in (tmp_path / "hub/README.md").read_text()
    pixels = read_bands(image, channels)
    assert torch.equal(segment_image(load("hub"), pixels).ids, segment_image(load("run"), image).ids)
    with pytest.raises(UserError, match=r"an image must be uint8 or float32 \(\d, height, width\)"):
        segment_image(load("hub"), torch.zeros(3, 9, 9, dtype=torch.uint8))


def test_a_program_takes_images_of_the_trained_channels(tmp_path):
    segmenter = Segmenter(torch.nn.Conv2d(4, 2, 3, padding=1), ["a", "b"], [100.0] * 4, [50.0] * 4)
    assert describe_input(segmenter) == "image: float32 (B, 4, H, W)"
    assert "the labels are torch's" in write(Plain(segmenter).eval(), {}, "pt2", tmp_path / "net.pt2")


def test_16_bit_values_keep_their_precision(tmp_path):
    Image.fromarray(DEEP).save(tmp_path / "a.png")
    assert torch.equal((read_bands(tmp_path / "a.png", 1)[0] * 257).round(), torch.from_numpy(DEEP.astype(np.float32)))


@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "deflate", "lzw"])
def test_tiffs_of_several_bands_may_be_interleaved_or_not_and_compressed(tmp_path, planes, compression):
    array = FOUR if planes == "contig" else np.moveaxis(FOUR, -1, 0)
    save_tiff(tmp_path / "a.tif", array, photometric="minisblack", planarconfig=planes, compression=compression)
    assert torch.equal(read_bands(tmp_path / "a.tif", 4), torch.from_numpy(FOUR).permute(2, 0, 1))


def test_pages_of_a_tiff_are_its_bands(tmp_path):
    save_tiff(tmp_path / "a.tif", np.moveaxis(FOUR, -1, 0), photometric="minisblack")
    assert torch.equal(read_bands(tmp_path / "a.tif", 4)[2], torch.from_numpy(FOUR[..., 2]))


@pytest.mark.parametrize(
    ("array", "channels", "problem"),
    [
        (FOUR[..., :3], 1, "has 3 channels, not 1"),
        (GRAY, 4, "has 1 channels, not 4"),
        (FOUR, 2, "has 4 channels, not 2"),
        (DEEP.astype(np.float32), 1, r"has float32 values .*: convert it to 8 or 16 bits|holds|has mode"),
    ],
)
def test_files_of_other_channels_are_refused(tmp_path, array, channels, problem):
    path = tmp_path / ("a.tif" if array.dtype == np.float32 else "a.png")
    Image.fromarray(array).save(path)
    with pytest.raises(UserError, match=problem):
        read_bands(path, channels)


def test_gray_images_stored_as_rgb_are_gray(tmp_path):
    Image.fromarray(GRAY).convert("RGB").save(tmp_path / "a.png")
    assert torch.equal(read_bands(tmp_path / "a.png", 1)[0], torch.from_numpy(GRAY))


def test_a_damaged_tiff_is_one_sentence(tmp_path):
    save_tiff(tmp_path / "a.tif", FOUR, photometric="minisblack", compression="deflate")
    content = (tmp_path / "a.tif").read_bytes()
    for length in (10, 200, len(content) // 2):
        (tmp_path / "a.tif").write_bytes(content[:length])
        with pytest.raises(UserError, match=r"a\.tif "):
            read_bands(tmp_path / "a.tif", 4)


def test_channels_must_be_a_number(tmp_path):
    make(tmp_path, save_gray, ".png", "[1]")
    with pytest.raises(UserError, match="give the number of channels"):
        Folder(root=str(tmp_path))


def test_prepared_shards_keep_the_files(tmp_path, capsys):
    root = make(tmp_path / "data", save_deep, ".png", 1)
    main(["prepare", "folder", "--root", str(root), "--out", str(tmp_path / "shards")])
    for streaming in (False, True):
        prepared = Folder(root=str(tmp_path / "shards"), streaming=streaming).open_split("val")
        assert torch.equal(prepared[1]["image"], Folder(root=str(root)).open_split("val")[1]["image"])
    assert main(["prepare", "folder", "--root", str(root), "--out", str(tmp_path / "raw"), "--store", "raw"]) == 2
    assert "--store raw holds RGB, not 1 channels" in capsys.readouterr().err


def test_the_normalization_is_that_of_all_training_pixels(tmp_path, capsys):
    data = Folder(root=str(make(tmp_path, save_rgba, ".png", 4)))
    mean, std = measure_normalization(data)
    pixels = torch.cat([data.open_split("train")[k]["image"].flatten(1) for k in range(3)], 1).double()
    assert mean == pytest.approx(pixels.mean(1).tolist(), rel=1e-5)
    assert std == pytest.approx(pixels.std(1, correction=0).tolist(), rel=1e-5)
    assert "normalization (images of train" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"model\.mean and model\.std of 4 channels are measured by fit"):
        SegmentationTask(net=models.UNet(2, width=0.1, in_channels=4), data=data)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_augmentation_keeps_type_and_channels(channels, dtype):
    image = (torch.rand(channels, 20, 30) * 200).to(dtype)
    mask = tv_tensors.Mask(torch.zeros(20, 30, dtype=torch.uint8))
    augment = ScaleAndCrop((40, 40), (0.5, 1.5), rotate=20, jitter=0.5)
    for _ in range(5):
        new, _ = augment(tv_tensors.Image(image), mask)
        assert new.dtype == dtype and new.shape == (channels, 40, 40) and new.min() >= 0 and new.max() <= 255


def test_jitter_changes_all_channels_together():
    image = tv_tensors.Image(torch.rand(4, 8, 8) * 100 + 50)
    new = Jitter(brightness=0.2, contrast=0.2)(image)
    slopes = (new[:, 1:] - new[:, :-1]) / (image[:, 1:] - image[:, :-1])
    assert not torch.equal(new, image) and slopes.std() < 1e-2


def test_transforms_get_images_of_16_bits_as_0_to_1():
    seen = []

    def look(image, mask):
        seen.append(image.max().item())
        return image, mask

    image = tv_tensors.Image(torch.rand(1, 8, 8) * 255)
    new, _ = Chain(None, [look])(image, tv_tensors.Mask(torch.zeros(8, 8, dtype=torch.uint8)))
    assert 0.5 < seen[0] <= 1 and torch.allclose(new, image)


def test_images_are_shown_in_rgb():
    assert torch.equal(show_rgb(torch.from_numpy(FOUR).permute(2, 0, 1)), torch.from_numpy(FOUR[..., :3]).permute(2, 0, 1))
    deep = show_rgb(torch.from_numpy(DEEP / np.float32(257))[None])
    assert deep.shape == (3, *SIZE) and deep.dtype == torch.uint8 and deep.max() == 255


@pytest.mark.parametrize("build", list(NETWORKS.values()), ids=list(NETWORKS))
def test_every_network_takes_images_of_other_channels(build):
    for channels in (1, 5):
        net = build(3, width=1 / 16, in_channels=channels).eval()
        assert net(torch.randn(1, channels, 40, 56)).shape == (1, 3, 40, 56)
        assert net.arguments["in_channels"] == channels


def test_published_weights_leave_out_the_first_convolution_by_name():
    vgg = {name: tensor for name, tensor in models.FCN(2, width=1 / 16).state_dict().items() if name.startswith("encoder")}
    layers = {}
    for name, tensor in vgg.items():
        layers.setdefault(name.split(".")[-2], {})[name.rpartition(".")[2]] = tensor
    net = models.FCN(2, width=1 / 16, in_channels=4)
    file = Weights(Path("vgg.safetensors"), "safetensors", layers)
    with pytest.raises(
        UserError, match=r"conv1_1.* is 4 x 3 x 3 x 3 there and 4 x 4 x 3 x 3 here; .* name it in model\.weights_without"
    ):
        map_tensors(file, net)
    state, result = map_tensors(file, net, without=["conv1_1"])
    assert len(state) == 24 and not result.reads_image


def test_a_crf_needs_colors():
    with pytest.raises(UserError, match=r"compares colors \(RGB\), but images have 4 channels"):
        DenseCRF()(torch.full((1, 2, 8, 8), 0.5), torch.zeros(1, 4, 8, 8))


def test_images_of_other_channels_than_the_normalization_are_refused():
    segmenter = Segmenter(models.UNet(2, width=0.1), ["a", "b"], [1.0] * 3, [1.0] * 3)
    with pytest.raises(UserError, match=r"images have 1 channels, but the network's normalization .* has 3"):
        segmenter(torch.zeros(1, 1, 16, 16))
