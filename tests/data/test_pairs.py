"""Every file that lies in a dataset's directories is used, or it is said why not, with what was expected and what is there."""

import shutil

import numpy as np
import pytest
from PIL import Image

from dilated_seg.data import VOC, CamVid, Cityscapes, Folder, workers
from dilated_seg.data.prepare import prepare
from dilated_seg.errors import UserError
from tests.support import fake_datasets


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(workers, "PRINTED", set())


@pytest.fixture
def listed(tmp_path):
    return fake_datasets.folder(tmp_path / "listed")


@pytest.fixture
def mine(tmp_path):
    """train/ and val/ of four images each, with masks."""
    root = tmp_path / "mine"
    for split in ("train", "val"):
        for directory in ("images", "masks"):
            (root / split / directory).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (8, 6), (40 * i, 9, 9)).save(root / split / f"images/{split}{i}.png")
            Image.fromarray(np.full((6, 8), i % 3, np.uint8)).save(root / split / f"masks/{split}{i}.png")
    (root / "classes.yaml").write_text("classes: [a, b, c]\n")
    return root


def convert(path, suffix):
    """Give a file another format."""
    with Image.open(path) as opened:
        opened.save(path.with_suffix(suffix))
    path.unlink()


def refused(root, split, dataset=Folder, **options):
    """Return the sentence that a split is refused with."""
    with pytest.raises(UserError) as caught:
        data = dataset(root=str(root), **options)
        data.val_dataloader() if split == "val" else data.open_split(split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".ppm", ".gif"])
def test_images_of_another_format_are_refused_not_left_out(mine, suffix):
    for i in range(2):
        convert(mine / f"train/images/train{i}.png", suffix)
    said = refused(mine, "train")
    assert f"train/images holds 2 files that are read and 2 that are not (train0{suffix}, train1{suffix})" in said
    assert "images are .png, .jpg, .jpeg, .tif, .tiff, .bmp, .webp" in said and "convert" in said
    for i in range(2, 4):
        convert(mine / f"train/images/train{i}.png", suffix)
    said = refused(mine, "train")
    assert "holds 0 files that are read and 4 that are not" in said
    assert f"train0{suffix}, train1{suffix}, train2{suffix}, ..." in said


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_files_without_a_partner_are_refused_not_left_out(mine, kind):
    (mine / f"val/{kind}/val2.png").unlink()
    other = {"images": "masks/val2.png has no image", "masks": "images/val2.png has no mask"}[kind]
    assert other in refused(mine, "val")


@pytest.mark.parametrize("kind", ["", "annot"])
def test_frames_of_camvid_are_refused_not_left_out(tmp_path, kind):
    root = fake_datasets.camvid(tmp_path / "camvid")
    convert(root / f"train{kind}/train_00001.png", ".webp")
    assert f"train{kind} holds 4 files that are read and 1 that are not (train_00001.webp)" in refused(root, "train", CamVid)
    (root / "valannot/val_00000.png").unlink()
    assert "val_00000.png has no mask" in refused(root, "val", CamVid)


def test_cityscapes_names_frames_that_are_not_named_as_the_release(tmp_path):
    root = fake_datasets.cityscapes(tmp_path / "cityscapes")
    city = root / "leftImg8bit/val/lindau"
    convert(city / "lindau_000003_000019_leftImg8bit.png", ".jpg")
    assert "holds 1 images that are read and 1 that are not (lindau_000003_000019_leftImg8bit.jpg)" in refused(
        root, "val", Cityscapes
    )
    shutil.move(city / "lindau_000003_000019_leftImg8bit.jpg", root / "leftImg8bit/val/x.PNG")  # not in a city
    assert "(x.PNG): only CITY/NAME_leftImg8bit.png" in refused(root, "val", Cityscapes)


def test_images_in_directories_below_need_masks_too(mine):
    (mine / "train/images/more/deep").mkdir(parents=True)
    shutil.copy(mine / "val/images/val0.png", mine / "train/images/more/deep/x.png")
    assert "train/images/more/deep/x.png has no mask in" in refused(mine, "train")


def test_files_that_are_no_images_are_printed_once_and_hidden_ones_never(mine, capsys):
    for name in ("._train0.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (mine / "train/images" / name).write_bytes(b"x")
    (mine / "train/images/__MACOSX").mkdir()
    assert len(Folder(root=str(mine)).open_split("train")) == 4
    assert not capsys.readouterr().err
    (mine / "train/masks/train0.json").write_text("{}")
    (mine / "train/masks/empty").mkdir()
    Image.new("L", (8, 6)).save(mine / "train/masks/train1.gif")  # next to train1.png, which is read
    for _ in range(2):
        assert len(Folder(root=str(mine)).open_split("train")) == 4
    said = capsys.readouterr().err
    assert said == f"{mine}/train/masks: 2 files are ignored (train0.json, train1.gif)\n"


def test_upper_case_suffixes_stems_with_dots_and_links_are_read(mine, tmp_path):
    (mine / "train/images/train0.png").rename(mine / "train/images/a.b.v2.PNG")
    (mine / "train/masks/train0.png").rename(mine / "train/masks/a.b.v2.Png")
    shutil.move(mine / "val", tmp_path / "elsewhere")
    (mine / "val").symlink_to(tmp_path / "elsewhere")
    data = Folder(root=str(mine))
    assert [data.open_split("train")[i]["id"] for i in range(4)] == ["a.b.v2", "train1", "train2", "train3"]
    assert len(data.open_split("val")) == 4


def test_masks_of_other_names_are_shown_with_the_names_expected(mine, listed):
    for i, path in enumerate(sorted((mine / "val/masks").iterdir())):
        path.rename(path.with_name(f"outline {i}.png"))
    said = refused(mine, "val")
    assert f"has a mask with its name in {mine}/val/masks (4: outline 0.png, outline 1.png, outline 2.png, ...)" in said
    assert "rename the masks" in said
    for root, path in ((mine, "val/masks/outline 0.png"), (listed, "masks/photo 2.png")):
        convert(root / path, ".jpg")
        said = refused(root, "val")
        assert f"{(root / path).stem}.jpg" in said and "JPEG changes the values of masks: export them again as .png" in said


def test_masks_of_other_images_do_not_label_images_to_predict(listed):
    Image.new("RGB", (4, 4)).save(listed / "images/photo.png")
    (listed / "test.txt").write_text("photo\n")
    Image.new("L", (4, 4)).save(listed / "masks/photo_77.png")  # whose image is gone, and no list names it
    assert not Folder(root=str(listed)).open_split("test").labelled  # masks/photo 0.png is that of another


def test_the_expected_path_of_masks_is_named(mine, listed):
    (mine / "val/masks").rename(mine / "val/outlines")
    assert "as in val/images/NAME.jpg with val/masks/NAME.png, but" in (said := refused(mine, "val"))
    assert "holds images/, outlines/" in said
    (listed / "masks").rename(listed / "outlines")
    assert "as in images/NAME.jpg with masks/NAME.png and the list val.txt, but" in refused(listed, "val")


@pytest.mark.parametrize("name", ["evaluation", "vall"])
def test_a_missing_split_is_shown_with_the_nearest_layouts(mine, listed, name):
    (mine / "val").rename(mine / name)
    said = refused(mine, "val")
    assert f"{mine} has no images of a split 'val'; it holds classes.yaml, " in said and f"{name}/" in said
    assert "val/images/NAME.jpg with val/masks/NAME.png" in said
    (listed / "val.txt").rename(listed / f"{name}.txt")
    assert "images/NAME.jpg with masks/NAME.png and the list val.txt" in refused(listed, "val")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"a.jpg a.png\n", "one name a line, not an image and its mask"),
        (b"images/a.jpg,masks/a.png\n", "one name a line, not an image and its mask"),
        (b"photo 2\nphoto 2.jpeg\n", "names photo 2 twice"),
        (b"PHOTO 2\n", "photo 2.jpeg is there, so convert or rename it"),
        (b"new\n", "new.gif is there, so convert or rename it"),
    ],
)
def test_lines_of_a_list_that_are_no_names_are_shown_with_the_remedy(listed, content, sentence):
    Image.new("RGB", (4, 4)).save(listed / "images/new.gif")
    (listed / "val.txt").write_bytes(content)
    assert sentence in refused(listed, "val")


def test_a_list_is_read_with_any_line_endings(listed):
    Image.new("RGB", (4, 4)).save(listed / "images/not listed.webp")
    (listed / "val.txt").write_bytes(b"\xef\xbb\xbf  photo 2 \t\r\n\r\n")
    assert len(Folder(root=str(listed)).open_split("val")) == 1


@pytest.mark.parametrize(
    "line", ["/JPEGImages/2007_000000.jpg /SegmentationClass/2007_000000.png", "2007_000000.jpg", "2007_000000 1"]
)
def test_a_list_of_voc_with_more_than_names_is_one_sentence(tmp_path, line):
    root = fake_datasets.voc(tmp_path)
    (root / "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt").write_text(f"{line}\n")
    assert f"has the line '{line}': it should have one name a line, such as 2007_000032" in refused(root, "train", VOC)


def test_files_of_voc_with_another_suffix_are_shown(tmp_path):
    root = fake_datasets.voc(tmp_path)
    base = root / "VOCdevkit/VOC2012"
    (base / "JPEGImages/2007_000000.jpg").rename(base / "JPEGImages/2007_000000.JPG")
    assert "2007_000000.jpg is missing (2007_000000.JPG is there, but only .jpg is read)" in refused(root, "train", VOC)
    convert(base / "SegmentationClass/2007_000002.png", ".bmp")
    assert "(2007_000002.bmp is there, but only .png is read)" in refused(root, "val", VOC)


def test_prepare_refuses_unread_images_too(mine):
    convert(mine / "train/images/train3.png", ".gif")
    with pytest.raises(UserError, match=r"1 that are not \(train3.gif\)"):
        prepare("Folder", str(mine), mine.parent / "out")
    assert not (mine.parent / "out").exists() and not (mine.parent / "out.partial").exists()


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("classes: [no, yes]", ("no", "yes")),
        ("classes: [on, off, ~]", ("on", "off", "~")),
        ("classes: [1, 1.50, 0x1f, 2020-01-02]", ("1", "1.50", "0x1f", "2020-01-02")),
        ("classes:\n- null\n- 'true'\n- \"a: b\"\n", ("null", "true", "a: b")),
    ],
)
def test_names_of_classes_are_as_they_are_written(listed, content, names):
    (listed / "classes.yaml").write_text(f"{content}\nignore: [255]\n")
    assert Folder(root=str(listed)).classes == names


@pytest.mark.parametrize("content", ["classes: [a, car: 1]", "classes: [a, [b]]", "classes:\n- a\n-\n", "classes: [a, ' ']"])
def test_a_class_whose_name_is_no_text_is_refused(listed, content):
    (listed / "classes.yaml").write_text(content)
    with pytest.raises(UserError, match=r"classes\.yaml: class 1 is .*, not a name: write a text"):
        Folder(root=str(listed))
