"""Images that EXIF turns and their masks: one convention for a whole dataset, in folders, shards and streams."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from dilated_seg.__main__ import main
from dilated_seg.data import Folder, workers
from dilated_seg.data.prepare import prepare
from dilated_seg.errors import UserError

SIDEWAYS = (5, 6, 7, 8)


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(workers, "PRINTED", set())


def add(root, split, name, way, size, convention, suffix="png"):
    """Write an image whose red channel is 40 times its mask's class, both as the file lies, and the mask upright if asked."""
    ids = np.random.default_rng(way).integers(0, 5, size, np.uint8)
    exif = Image.Exif()
    exif[274] = way
    for directory in ("images", "masks"):
        (root / split / directory).mkdir(parents=True, exist_ok=True)
    options = {"quality": 100, "subsampling": 0} if suffix == "jpg" else {}
    Image.fromarray(np.stack([ids * 40] * 3, 2)).save(root / split / f"images/{name}.{suffix}", exif=exif, **options)
    mask = Image.fromarray(ids)
    if convention == "upright":
        mask.getexif()[274] = way
        mask = ImageOps.exif_transpose(mask)
    mask.getexif().clear()
    mask.save(root / split / f"masks/{name}.png", exif=b"")


def dataset(root, convention, told=True, split="val"):
    """All eight orientations and squares of each; and, where the convention can be told, images that tell it."""
    for way in range(1, 9):
        add(root, split, f"square {way}", way, (6, 6), convention)
        if way not in SIDEWAYS or told:
            add(root, split, f"wide {way}", way, (5, 9), convention, ("png", "jpg")[way % 2])
    (root / "classes.yaml").write_text("classes: [a, b, c, d, e]\n")
    return root


def right(split):
    """Return the names of those samples whose mask lies under its image."""
    samples = [split[i] for i in range(len(split))]
    return {s["id"] for s in samples if torch.equal((s["image"][0].float() / 40).round().byte(), s["mask"])}


def everyone(split):
    return {split[i]["id"] for i in range(len(split))}


@pytest.mark.parametrize("convention", ["upright", "as_stored"])
def test_all_orientations_follow_the_convention_inferred_from_a_size(convention, tmp_path, capsys):
    split = Folder(root=str(dataset(tmp_path, convention))).open_split("val")
    assert len(split) == 16
    assert right(split) == everyone(split)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("store", ["files", "stream", "raw"])
@pytest.mark.parametrize("convention", ["upright", "as_stored"])
def test_shards_and_streams_keep_the_convention(convention, store, tmp_path):
    dataset(tmp_path / "mine", convention, told=False)
    add(tmp_path / "mine", "train", "tells", 6, (5, 9), convention)  # in another split
    prepare("Folder", str(tmp_path / "mine"), tmp_path / "out", "raw" if store == "raw" else "files", ["val"])
    split = Folder(root=str(tmp_path / "out"), streaming=store == "stream").open_split("val")
    assert right(split) == everyone(split)


@pytest.mark.parametrize("convention", ["upright", "as_stored"])
def test_the_convention_of_one_split_holds_for_the_others(convention, tmp_path):
    dataset(tmp_path, convention, told=False)
    add(tmp_path, "train", "tells", 8, (5, 9), convention, "jpg")
    split = Folder(root=str(tmp_path)).open_split("val")
    assert right(split) == everyone(split)


@pytest.mark.parametrize("convention", ["upright", "as_stored"])
def test_without_evidence_the_default_is_printed_once_and_the_option_decides(convention, tmp_path, capsys):
    dataset(tmp_path / "mine", convention, told=False)
    root = str(tmp_path / "mine")
    for _ in range(2):
        split = Folder(root=root).open_split("val")
    assert (right(split) == everyone(split)) == (convention == "upright")
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "EXIF turns 10 images" in said and "set data.mask_orientation to as_stored" in said
    split = Folder(root=root, mask_orientation=convention).open_split("val")
    assert right(split) == everyone(split)
    assert not capsys.readouterr().err
    options = ["--root", root, "--out", str(tmp_path / "out"), "--mask_orientation", convention]
    assert main(["prepare", "folder", *options]) == 0
    split = Folder(root=str(tmp_path / "out"), streaming=True).open_split("val")
    assert right(split) == everyone(split)
    other = {"upright": "as_stored", "as_stored": "upright"}[convention]
    with pytest.raises(UserError, match=f"prepared with masks {convention}, not {other}: prepare it again with --mask_or"):
        Folder(root=str(tmp_path / "out"), mask_orientation=other).open_split("val")


def test_masks_of_both_conventions_are_refused_with_two_files(tmp_path):
    dataset(tmp_path, "upright")
    add(tmp_path, "train", "lies", 6, (5, 9), "as_stored")
    for name in ("train", "val"):
        with pytest.raises(UserError, match=r"EXIF turns .*images/wide 5\.jpg, whose mask is upright, and .*images/lies\.png"):
            Folder(root=str(tmp_path)).open_split(name)
    with pytest.raises(UserError, match=r"lies\.png is 9 x 5 and its mask .* is 5 x 9: .*masks are upright"):
        Folder(root=str(tmp_path), mask_orientation="upright").open_split("train")


def test_images_that_cannot_be_read_or_have_damaged_exif_are_no_evidence(tmp_path, capsys):
    dataset(tmp_path, "as_stored", told=False)
    add(tmp_path, "train", "tells", 6, (5, 9), "as_stored")
    (tmp_path / "train/images/broken.png").write_bytes(b"no image")
    Image.new("L", (9, 5)).save(tmp_path / "train/masks/broken.png")
    Image.new("RGB", (9, 5)).save(
        tmp_path / "val/images/damaged.jpg", exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff" + bytes(9)
    )
    Image.new("L", (9, 5)).save(tmp_path / "val/masks/damaged.png")
    split = Folder(root=str(tmp_path), on_bad_image="skip").open_split("val")
    assert right(split) == everyone(split)
    assert not capsys.readouterr().err
    assert len(Folder(root=str(tmp_path), on_bad_image="skip").open_split("train")) == 2


def test_datasets_without_turned_images_have_no_convention(tmp_path, capsys):
    add(tmp_path, "val", "a", 1, (5, 9), "upright", "jpg")
    (tmp_path / "classes.yaml").write_text("classes: [a, b, c, d, e]\n")
    split = Folder(root=str(tmp_path)).open_split("val")
    assert split.as_stored is None and right(split) == {"a"}
    assert not capsys.readouterr().err


def test_xmp_and_png_have_the_orientation_too(tmp_path):
    """As Pillow turns an image by its XMP, where EXIF says nothing."""
    from PIL.PngImagePlugin import PngInfo

    add(tmp_path, "val", "a", 1, (5, 9), "upright")
    (tmp_path / "classes.yaml").write_text("classes: [a, b, c, d, e]\n")
    path = tmp_path / "val/images/a.png"
    with Image.open(path) as opened:
        pixels = opened.convert("RGB")
    notes = PngInfo()
    notes.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    pixels.save(path, pnginfo=notes)
    split = Folder(root=str(tmp_path)).open_split("val")  # the mask has the size of the file as it lies
    assert split.as_stored and split[0]["image"].shape == (3, 9, 5) and right(split) == {"a"}
