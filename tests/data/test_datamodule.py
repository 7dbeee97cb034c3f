"""Datasets and their batches."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import tv_tensors

from dilated_seg.data import VOC, CamVid, Folder, Shapes
from dilated_seg.data.checks import warn_of_shared_images
from dilated_seg.data.collate import Images, stack
from dilated_seg.data.decode import read_image
from dilated_seg.data.samplers import CACHED_GROUPS, EvaluationOrder, TrainingOrder, order_by_row_groups
from dilated_seg.data.shapes import DAY, LAND, MOON, NIGHT, SKY, SUN
from dilated_seg.data.transforms import GREY, RandomScaledCrop, ScaleAndCrop
from dilated_seg.errors import UserError
from tests.conftest import ROOT
from tests.support import fake_datasets


def test_an_image_of_shapes_is_a_function_of_its_index():
    first, second = Shapes().split("val"), Shapes().split("val")
    for i in (0, 5):
        assert torch.equal(first[i]["image"], second[i]["image"])
        assert torch.equal(first[i]["mask"], second[i]["mask"])
    assert not torch.equal(first[0]["image"], first[1]["image"])
    assert not torch.equal(first[0]["image"], Shapes().split("test")[0]["image"])
    assert not torch.equal(first[0]["image"], Shapes(world=1).split("val")[0]["image"])


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (300, 5), (32, 48), (256, 256)])
@pytest.mark.parametrize("num_classes", [2, 5, 8, 21])
def test_shapes_come_in_any_size_and_number_of_classes(size, num_classes):
    data = Shapes(size=size, num_classes=num_classes, images=(3, 1, 1))
    seen = set()
    for i in range(3):
        sample = data.split("train")[i]
        assert sample["image"].shape == (3, *size)
        assert sample["mask"].shape == size
        seen |= set(sample["mask"].unique().tolist())
    assert seen <= {*range(num_classes), 255}
    assert data.num_classes == len(data.classes) == len(set(data.classes)) == len(data.palette)


def test_every_class_of_shapes_occurs_and_objects_have_an_ignored_band():
    masks = torch.stack([Shapes().split("train")[i]["mask"] for i in range(60)])
    counts = torch.bincount(masks.flatten().long(), minlength=256)
    assert (counts[:8] > 0).all()
    assert 0.01 < counts[255] / masks.numel() < 0.15
    for k in (SUN, MOON):  # nothing is drawn over sun and moon: only the band touches them
        for mask in masks:
            inside = mask == k
            around = torch.nn.functional.max_pool2d(inside[None, None].float(), 3, 1, 1)[0, 0].bool() & ~inside
            assert set(mask[around].tolist()) <= {255}


def test_a_hill_is_farther_from_sun_and_moon_than_a_front_end_can_see():
    split = Shapes().split("train")
    for i in range(200):
        mask = split[i]["mask"]
        hill = ((mask == DAY) | (mask == NIGHT)).any(0).nonzero()
        beacon = ((mask == SUN) | (mask == MOON)).any(0).nonzero()
        gap = (hill[:, None, 0] - beacon[None, :, 0]).abs().min()
        assert gap > 190 + 8  # half the receptive field, and a cell of the upsampling
        assert (mask == DAY).any() == (mask == SUN).any()
    assert round((LAND - SKY) * 320) > 198


def test_day_and_night_hills_look_the_same():
    colours = {DAY: [], NIGHT: []}
    split = Shapes().split("train")
    for i in range(400):
        sample = split[i]
        for k, found in colours.items():
            if (sample["mask"] == k).sum() > 50:
                found.append(sample["image"][:, sample["mask"] == k].float().mean(1))
    day, night = (torch.stack(found) for found in colours.values())
    error = (day.var(0) / len(day) + night.var(0) / len(night)).sqrt()
    assert ((day.mean(0) - night.mean(0)).abs() < 4 * error).all()


def test_camvid_reads_both_suffixes_and_ignores_eleven(camvid):
    data = CamVid(root=str(camvid))
    split = data.split("train")
    assert [split[i]["id"] for i in range(6)] == [f"train_{i}" for i in range(6)]
    for i in range(6):
        raw = torch.from_numpy(np.array(Image.open(camvid / "trainannot" / f"train_{i}.png")))
        mask = split[i]["mask"]
        assert torch.equal(mask == 255, raw == 11)
        assert torch.equal(mask[raw != 11], raw[raw != 11])
        assert split[i]["image"].shape == (3, 48, 64)


def test_camvid_reads_its_directory_from_the_environment(camvid, monkeypatch):
    monkeypatch.setenv("DILATED_SEG_CAMVID", str(camvid))
    assert len(CamVid().split("val")) == 3
    monkeypatch.delenv("DILATED_SEG_CAMVID")
    with pytest.raises(UserError, match="DILATED_SEG_CAMVID"):
        CamVid().split("val")


REAL = Path(os.environ.get("DILATED_SEG_CAMVID", ROOT.parent / "shared" / "data" / "camvid"))


@pytest.mark.skipif(not REAL.is_dir(), reason="real CamVid is not here: DILATED_SEG_CAMVID names its folder")
def test_real_camvid_has_the_counts_of_its_release():
    train, val = (CamVid(root=str(REAL)).split(name) for name in ("train", "val"))
    assert (len(train), len(val)) == (367, 101)
    counts = sum(torch.bincount(val[i]["mask"].flatten().long(), minlength=256) for i in range(len(val)))
    assert counts[:11].all()
    assert counts.sum() == 101 * 360 * 480
    assert round(100 * counts[255].item() / counts.sum().item(), 2) == 1.70


def damage_missing_folder(root):
    (root / "train").rename(root / "elsewhere")


def damage_missing_label(root):
    (root / "trainannot" / "train_2.png").unlink()


def damage_missing_image(root):
    (root / "train" / "train_2.png").unlink()


def damage_size(root):
    Image.fromarray(np.zeros((48, 60), np.uint8)).save(root / "trainannot" / "train_2.png")


def damage_value(root):
    Image.fromarray(np.full((48, 64), 99, np.uint8)).save(root / "trainannot" / "train_2.png")


def damage_colours(root):
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(root / "trainannot" / "train_2.png")


def damage_bytes(root):
    (root / "train" / "train_2.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (damage_missing_folder, "train is not a directory"),
        (damage_missing_label, r"train_2\.png has no mask"),
        (damage_missing_image, r"train_2\.png has no image"),
        (damage_size, "48 x 64 and its mask .* is 48 x 60"),
        (damage_value, "holds the value 99"),
        (damage_colours, "^[^ ]*train_2.png has mode RGB"),
        (damage_bytes, "cannot be read"),
    ],
)
def test_a_damaged_camvid_is_named_in_one_sentence(camvid, damage, sentence):
    damage(camvid)
    with pytest.raises(UserError, match=sentence) as caught:
        [CamVid(root=str(camvid)).split("train")[i] for i in range(6)]
    assert "\n" not in str(caught.value)


def test_a_mask_with_a_palette_is_read_as_indices(camvid):
    path = camvid / "trainannot" / "train_0.png"
    raw = np.array(Image.open(path))
    coloured = Image.fromarray(raw, mode="P")
    coloured.putpalette([7, 99, 200] * 256)
    coloured.save(path)
    assert torch.equal(CamVid(root=str(camvid)).split("train")[0]["mask"] == 3, torch.from_numpy(raw == 3))


def test_an_image_is_turned_upright_by_its_exif(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (3, 30, 20)


def test_a_turned_image_and_its_upright_mask_belong_together(camvid):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (48, 64)).save(camvid / "train" / "train_1.jpg", exif=exif)  # turned, it is 48 high and 64 wide
    sample = CamVid(root=str(camvid)).split("train")[1]
    assert sample["image"].shape[1:] == sample["mask"].shape == (48, 64)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_stored_as_its_turned_image_is_turned_with_it(camvid, orientation):
    label = np.random.default_rng(0).integers(0, 11, (64, 48), np.uint8)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.stack([label * 20] * 3, 2)).save(camvid / "train" / "train_2.png", exif=exif)
    Image.fromarray(label).save(camvid / "trainannot" / "train_2.png")
    sample = CamVid(root=str(camvid)).split("train")[2]
    assert sample["mask"].shape == (48, 64)
    assert torch.equal(sample["mask"] * 20, sample["image"][0])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_an_image_of_any_mode_becomes_rgb(mode, tmp_path):
    suffix = "jpg" if mode in ("CMYK", "YCbCr") else "png"
    Image.new(mode, (5, 4)).save(tmp_path / f"a.{suffix}")
    assert read_image(tmp_path / f"a.{suffix}").shape == (3, 4, 5)


def test_an_image_of_too_many_pixels_is_refused(tmp_path, monkeypatch):
    Image.new("L", (300, 200)).save(tmp_path / "a.png")
    monkeypatch.setenv("DILATED_SEG_MAX_PIXELS", "59999")
    with pytest.raises(UserError, match=r"200 x 300 pixels, more than the limit.*DILATED_SEG_MAX_PIXELS"):
        read_image(tmp_path / "a.png")
    monkeypatch.setenv("DILATED_SEG_MAX_PIXELS", "60000")
    assert read_image(tmp_path / "a.png").shape == (3, 200, 300)
    monkeypatch.setenv("DILATED_SEG_MAX_PIXELS", "many")
    with pytest.raises(UserError, match="set it to a number"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_damaged_images_are_named_or_read_and_never_crash(suffix, tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / f"a.{suffix}"
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(path)
    good, refused = path.read_bytes(), 0
    for trial in range(200):
        content = bytearray(good)
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(content if trial % 2 else content[: rng.integers(len(content))])
        try:
            read_image(path)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 50


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"eval_batch_size": 0}, {"num_workers": -1}])
def test_impossible_loader_options_are_refused(options):
    with pytest.raises(UserError, match="give at least"):
        Shapes(**options)


def test_augmentation_moves_image_and_mask_together_and_adds_no_class():
    mask = torch.randint(0, 4, (40, 60), dtype=torch.uint8) * 60
    image = mask.expand(3, -1, -1).clone()
    augment = ScaleAndCrop((64, 48), (0.5, 2.0))
    for seed in range(20):
        torch.manual_seed(seed)
        moved, labels = augment(tv_tensors.Image(image), tv_tensors.Mask(mask))
        assert moved.shape == (3, 64, 48)
        assert set(labels.unique().tolist()) <= {0, 60, 120, 180, 255}
        assert (moved[:, labels == 255] == torch.tensor(GREY)[:, None]).all()
    torch.manual_seed(0)
    moved, labels = ScaleAndCrop((30, 30))(tv_tensors.Image(image), tv_tensors.Mask(mask))
    assert torch.equal(moved[0], labels)


@pytest.mark.parametrize("scale", [0.5, 0.6, 0.9, 1.1, 1.4, 2.0])
def test_a_scaled_mask_stays_under_its_image(scale):
    """Pixel i of the image is 4 i bright: processors round grey levels that tie differently, a quarter of a pixel at most."""
    ramp = torch.arange(64, dtype=torch.uint8).expand(8, 64)
    image, mask = ScaleAndCrop(None, (scale, scale), flip=False)(
        tv_tensors.Image((4 * ramp).expand(3, -1, -1)), tv_tensors.Mask(ramp)
    )
    shift = (image[0].float() / 4 - mask.float())[:, 10:-10]
    assert shift.abs().max() <= 0.5  # pixels of the source; torchvision's nearest neighbour gives up to 0.83 on average
    if scale != 0.5:  # there the centre of every pixel lies between two of the source
        assert shift.mean().abs() < 0.06


def test_batches_depend_on_seed_and_number_alone():
    def order(done=0, **options):
        return list(TrainingOrder(23, 4, seed=5, done=lambda: done, **options))

    assert order() == order()
    assert order(2) == order()[2:]  # a resumed run starts where it stands
    assert order(5)[0][0][0] == 1  # the second epoch
    assert [key for batch in order(5) for _, key in batch] != [key for batch in order() for _, key in batch]
    assert list(TrainingOrder(23, 4, seed=6)) != order()


def test_processes_share_a_permutation_without_repeating_an_image():
    batches = [batch for rank in range(3) for batch in TrainingOrder(23, 2, seed=5, rank=rank, world=3)]
    images = [index for batch in batches for _, index in batch]
    assert len(images) == len(set(images)) == 18


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 30])
def test_evaluation_sees_every_image_once_in_equal_steps(world, batch_size):
    orders = [list(EvaluationOrder(10, batch_size, rank, world)) for rank in range(world)]
    assert len({len(order) for order in orders}) == 1
    seen = [index for order in orders for batch in order for index in batch if index is not None]
    assert sorted(seen) == list(range(10))


def test_augmentation_does_not_depend_on_the_process_or_the_order():
    images = Images(Shapes(images=(8, 1, 1)).split("train"), ScaleAndCrop((32, 64), (0.8, 1.2), jitter=0.2), seed=3)
    first = images[(1, 5)]["image"]
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(images[(1, 5)]["image"], first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(images[(2, 5)]["image"], first)


def test_a_padding_image_is_void():
    sample = Images(Shapes().split("val"))[None]
    assert (sample["mask"] == 255).all()
    assert sample["id"] == ""


def test_unequal_sizes_in_a_batch_are_refused_with_the_remedy():
    samples = [Shapes(size=size).split("val")[0] for size in ((8, 8), (8, 9))]
    with pytest.raises(UserError, match=r"set data\.augmentation.crop_size, or data\.batch_size=1"):
        stack(samples)


def test_a_split_smaller_than_a_batch_is_refused():
    with pytest.raises(UserError, match="3 images"):
        TrainingOrder(3, 4, 0)


@settings(deadline=None, max_examples=150)
@given(
    st.tuples(st.integers(1, 50), st.integers(1, 50)), st.none() | st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.floats(0.1, 3.0), st.floats(0.1, 3.0)).map(sorted), st.booleans(), st.sampled_from([0.0, 0.4]),
    st.sampled_from([0.0, 30.0, 180.0]), st.integers(0, 2**31),
)  # fmt: skip
def test_no_transform_adds_a_class(size, crop, scale, flip, jitter, rotate, seed):
    """And none leaves the crop's size, or labels what lies outside the image."""
    torch.manual_seed(seed)
    values = torch.tensor([3, 7, 250], dtype=torch.uint8)
    mask = values[torch.randint(0, 3, size)]
    augment = ScaleAndCrop(crop, tuple(scale), flip, rotate, jitter)
    image, labels = augment(tv_tensors.Image(torch.full((3, *size), 77, dtype=torch.uint8)), tv_tensors.Mask(mask))
    assert set(labels.unique().tolist()) <= {*mask.unique().tolist(), 255}
    assert labels.dtype == image.dtype == torch.uint8 and image.shape[1:] == labels.shape
    if crop is not None:
        assert labels.shape == crop
    if crop is None and not rotate:
        assert 255 not in labels


@pytest.mark.parametrize("factor", [0.5, 0.75, 1.0, 1.6])
def test_a_crop_of_a_scaled_image_is_the_part_it_would_be_of_the_whole(factor):
    """Only the crop is resized; it shows what a crop of the resized whole shows, to within a pixel of place."""
    y, x = torch.meshgrid(torch.arange(80), torch.arange(120), indexing="ij")
    image = torch.stack([y * 3, x * 2, torch.zeros_like(x)]).to(torch.uint8)
    crop = RandomScaledCrop((factor, factor), (32, 40), 255)
    for seed in range(5):
        torch.manual_seed(seed)
        part, mask = crop(tv_tensors.Image(image), tv_tensors.Mask(image[0]))
        for channel, step in ((0, 3 / factor), (1, 2 / factor)):
            slope = part[channel].float().diff(dim=channel).mean().item()
            assert slope == pytest.approx(step, rel=0.05)
        assert (mask.float() - part[0].float()).abs().max() <= 3.5  # label and image show the same row


def test_small_images_are_anywhere_in_their_crop_and_the_padding_is_ignored():
    image, mask = torch.full((3, 6, 8), 200, dtype=torch.uint8), torch.zeros(6, 8, dtype=torch.uint8)
    places = set()
    for seed in range(30):
        torch.manual_seed(seed)
        moved, labels = RandomScaledCrop((1.0, 1.0), (10, 9), 255)(tv_tensors.Image(image), tv_tensors.Mask(mask))
        assert (labels == 0).sum() == 48 and (moved[:, labels == 0] == 200).all()
        assert (moved[:, labels == 255] == torch.tensor(GREY)[:, None]).all()
        places.add(tuple((labels == 0).nonzero()[0].tolist()))
    assert len(places) > 5


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=150), st.integers(1, 6), st.integers(1, 3), st.integers(0, 99),
)  # fmt: skip
def test_an_order_by_row_groups_has_every_image_once(sizes, batch_size, world, epoch):
    order = order_by_row_groups(sizes, 3, epoch, batch_size, world)
    assert sorted(order.tolist()) == list(range(sum(sizes)))
    assert np.array_equal(order, order_by_row_groups(sizes, 3, epoch, batch_size, world))
    if sum(sizes) > 20:
        assert not np.array_equal(order, order_by_row_groups(sizes, 3, epoch + 1, batch_size, world))


@pytest.mark.parametrize("groups", [6, 60])
def test_an_order_by_row_groups_mixes_them(groups):
    order = order_by_row_groups([20] * groups, 0, 0, 5, 1) // 20
    assert np.mean([len(set(batch)) for batch in order.reshape(-1, 5)]) > 2


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
@pytest.mark.parametrize("world", [1, 3])
def test_streaming_reads_hardly_any_row_group_twice(workers, world):
    """Each worker of each process has a cache of few groups; the reads of all of them are counted."""
    sizes, batch_size = [20] * 400, 14
    order, starts, reads = order_by_row_groups(sizes, 0, 0, batch_size, world), np.cumsum([0, *sizes]), 0
    caches = {}
    for number in range(len(order) // batch_size):
        batch, rank = divmod(number, world)
        cache = caches.setdefault((rank, batch % workers), [])
        for image in order[number * batch_size : (number + 1) * batch_size]:
            group = int(np.searchsorted(starts, image, "right")) - 1
            reads += group not in cache
            cache[:] = [*(g for g in cache if g != group), group][-CACHED_GROUPS:]
    assert reads < 1.5 * len(sizes)


def test_a_bad_image_is_skipped_in_training_if_that_is_asked_for(tmp_path, capsys):
    root = fake_datasets.folder(tmp_path / "mine", images=8)
    (root / "images/photo 3.png").write_bytes(b"no image")
    options = {"root": str(root), "batch_size": 7, "augmentation": ScaleAndCrop((8, 8))}
    with pytest.raises(UserError, match=r"photo 3\.png cannot be read"):
        Folder(**options).train_dataloader()
    data = Folder(**options, on_bad_image="skip")
    (batch,) = data.train_dataloader()
    assert batch["image"].shape == (7, 3, 8, 8) and "photo 3" not in batch["id"] and batch["id"].count("photo 4") == 2
    assert "skipped" not in data.on_before_batch_transfer(batch, 0)
    for again in data.train_dataloader():
        data.on_before_batch_transfer(again, 0)
    data.teardown("fit")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "skipped: " in said[0] and "photo 3.png" in said[0]
    assert said[1] == "skipped 1 files, 2 times in all"
    (root / "val.txt").write_text("photo 3\n")
    with pytest.raises(UserError, match=r"photo 3\.png cannot be read"):
        Folder(**options, on_bad_image="skip").open_split("val")


def test_training_on_validation_images_is_reported(tmp_path, capsys):
    root = fake_datasets.voc(tmp_path)
    for split, said in (("train", False), ("trainval", True)):
        data = VOC(root=str(root), train_split=split)
        warn_of_shared_images(data)
        assert ("metrics of val are not those of new images" in capsys.readouterr().err) is said


def test_a_small_split_of_shapes_keeps_its_images_and_hands_out_copies(monkeypatch):
    split = Shapes(size=(16, 32), images=(3, 1, 1)).split("train")
    first = split[1]
    expected = first["image"].clone(), first["mask"].clone()
    first["image"].zero_(), first["mask"].zero_()
    monkeypatch.setattr("dilated_seg.data.shapes.draw", lambda *_: pytest.fail("drawn again"))
    again = split[1]
    assert torch.equal(again["image"], expected[0]) and torch.equal(again["mask"], expected[1])


def test_a_large_split_of_shapes_keeps_nothing():
    split = Shapes(size=(64, 320), images=(2000, 1, 1)).split("train")
    assert torch.equal(split[0]["image"], split[0]["image"])
    assert not split._drawn
