"""Each dataset in its official layout: names, splits, label values, and every way a copy of it can be broken."""

import errno
import os

import numpy as np
import pytest
import torch
from lightning import Trainer
from PIL import Image

from dilated_seg.data import VOC, CamVid, Cityscapes, Folder
from dilated_seg.data.cityscapes import LABEL_IDS
from dilated_seg.data.collate import pad
from dilated_seg.data.voc_objects import enlarge_range
from dilated_seg.errors import UserError
from dilated_seg.models import DilatedNet
from dilated_seg.task import SegmentationTask
from dilated_seg.training import PredictionWriter
from tests.support import fake_datasets


@pytest.fixture
def voc(tmp_path):
    return fake_datasets.voc(tmp_path)


@pytest.fixture
def cityscapes(tmp_path):
    return fake_datasets.cityscapes(tmp_path / "cityscapes")


@pytest.fixture
def folder(tmp_path):
    return fake_datasets.folder(tmp_path / "mine")


def ids(split):
    return [split[i]["id"] for i in range(len(split))]


@pytest.mark.parametrize("root", [".", "VOCdevkit", "VOCdevkit/VOC2012"])
@pytest.mark.parametrize(("split", "expected"), [("train", [0, 1]), ("val", [2, 3]), ("trainval", [0, 1, 2, 3]), ("test", [6])])
def test_voc_reads_its_lists(voc, root, split, expected):
    assert ids(VOC(root=str(voc / root)).split(split)) == [fake_datasets.voc_name(i) for i in expected]


def test_a_mask_of_voc_has_palette_indices_and_255_is_void(voc):
    split = VOC(root=str(voc)).split("val")
    for i, image in enumerate((2, 3)):
        assert torch.equal(split[i]["mask"], torch.from_numpy(fake_datasets.voc_label(image)))
        assert split[i]["image"].shape[1:] == split[i]["mask"].shape


def test_trainaug_is_train_and_sbd_without_val(voc):
    split = VOC(root=str(voc), sbd=str(voc / "sbd"), train_split="trainaug").split("trainaug")
    assert sorted(ids(split)) == [fake_datasets.voc_name(i) for i in (0, 1, 4, 5)]
    masks = {split[i]["id"]: split[i]["mask"] for i in range(len(split))}
    for i in (0, 1):  # VOC's own label, with its void band, also where SBD has one too
        assert torch.equal(masks[fake_datasets.voc_name(i)], torch.from_numpy(fake_datasets.voc_label(i)))
    for i in (4, 5):
        label = fake_datasets.voc_label(i)
        assert torch.equal(masks[fake_datasets.voc_name(i)], torch.from_numpy(np.where(label == 255, 0, label)))


def test_trainaug_reads_masks_converted_to_pngs(voc):
    aug = voc / "SegmentationClassAug"
    aug.mkdir()
    for i in range(6):
        label = fake_datasets.voc_label(i)
        Image.fromarray(np.where(label == 255, 0, label)).save(aug / f"{fake_datasets.voc_name(i)}.png")
    assert sorted(ids(VOC(root=str(voc), sbd=str(aug)).split("trainaug"))) == [fake_datasets.voc_name(i) for i in (0, 1, 4, 5)]


def test_an_object_is_cut_out_with_a_margin_and_all_else_is_background(voc):
    split = VOC(root=str(voc), sbd=str(voc / "sbd")).split("trainaug_objects")
    names = [fake_datasets.voc_name(i) for i in (0, 1, 4, 5)]
    assert ids(split) == [f"{name}_{number}" for name in names for number in (1, 2)]
    # Image 0: 20 x 30, void from 3 on, the object's left half in rows 5 to 14 and columns 5 to 14; a tenth of it on each side.
    first, second = split[0], split[1]
    assert first["image"].shape == (3, 250, 250) and first["mask"].shape == (250, 250)
    expected = np.full((12, 12), 255, np.uint8)
    expected[1:11, 1:11], expected[1:11, 11] = 1, 0
    assert torch.equal(first["mask"][10::21, 10::21], torch.from_numpy(expected))
    assert torch.equal(second["mask"], first["mask"].flip(1))
    assert split[4]["mask"].unique().tolist() == [0, 5]  # SBD's, without a void band


def test_an_object_at_the_edge_is_cut_where_the_image_ends():
    assert enlarge_range(torch.tensor([0, 99]), 105, 1.2) == slice(0, 105)
    assert enlarge_range(torch.tensor([40, 59]), 105, 1.2) == slice(38, 62)


def test_objects_need_the_directories_as_released(voc):
    (voc / "sbd/dataset/inst/2007_000004.mat").unlink()
    data = VOC(root=str(voc), sbd=str(voc / "sbd"))
    with pytest.raises(UserError, match=r"inst/2007_000004\.mat is missing: it should number the objects"):
        data.split("trainaug_objects")
    assert len(data.split("train_objects")) == 4
    Image.new("L", (30, 21), 1).save(voc / "VOCdevkit/VOC2012/SegmentationObject/2007_000000.png")
    with pytest.raises(UserError, match=r"2007_000000\.png has another size"):
        data.split("train_objects")[0]


def test_vocs_palette_is_the_official_one():
    assert VOC.palette[:6] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128))
    assert VOC.palette[20] == (0, 64, 128)
    assert fake_datasets.default_palette(256)[255] == (224, 224, 192)


def test_a_split_without_masks_can_be_predicted_and_not_scored(voc):
    data = VOC(root=str(voc), predict_split="test")
    assert (data.split("test")[0]["mask"] == 255).all()
    assert [batch["id"] for batch in data.predict_dataloader()] == [[fake_datasets.voc_name(6)]]
    with pytest.raises(UserError, match="no masks for its split 'test'"):
        data.test_dataloader()


def test_label_ids_of_cityscapes_become_train_ids(cityscapes):
    split = Cityscapes(root=str(cityscapes)).split("train")
    assert ids(split) == ["aachen_000000_000019", "aachen_000001_000019", "bochum_000000_000313"]
    row = split[0]["mask"][0]
    assert row[list(LABEL_IDS)].tolist() == list(range(19))
    assert set(row[[i for i in range(34) if i not in LABEL_IDS]].tolist()) == {255}


def forbid(monkeypatch, directory):
    """Let the system refuse to list a directory, as it does without permission (of which root has always enough)."""

    def refuse(listed):
        def list_directory(path="."):
            if os.fspath(path) == os.fspath(directory):
                raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
            return listed(path)

        return list_directory

    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, refuse(getattr(os, name)))


@pytest.mark.parametrize("directory", ["leftImg8bit/train/bochum", "gtFine/train/bochum"])
def test_a_city_that_cannot_be_listed_is_an_error_and_not_a_smaller_dataset(cityscapes, directory, monkeypatch):
    forbid(monkeypatch, cityscapes / directory)
    with pytest.raises(UserError, match=r"bochum cannot be opened \(Permission denied\): change its permissions"):
        Cityscapes(root=str(cityscapes)).split("train")


def test_a_directory_of_a_folder_that_cannot_be_listed_is_an_error(folder, monkeypatch):
    for name in ("images", "masks"):
        (folder / name / "day").mkdir()
        (folder / name / "photo 0.png").rename(folder / name / "day/photo 0.png")
    (folder / "train.txt").unlink()
    (folder / "val.txt").unlink()
    forbid(monkeypatch, folder / "images/day")
    with pytest.raises(UserError, match=r"day cannot be opened \(Permission denied\): change its permissions"):
        Folder(root=str(folder), val_fraction=0.3).split("train")


def test_cityscapes_has_coarse_masks_and_no_masks_of_test(cityscapes):
    Image.new("L", (34, 16), 7).save(cityscapes / "gtCoarse/train/bochum/bochum_000000_000313_gtCoarse_labelIds.png")
    coarse = Cityscapes(root=str(cityscapes), labels="gtCoarse")
    assert not coarse.split("train")[2]["mask"].any()
    (cityscapes / "gtCoarse/val/lindau/lindau_000003_000019_gtCoarse_labelIds.png").unlink()
    assert len(coarse.split("val")) == 2  # validation is by the fine labels
    assert (Cityscapes(root=str(cityscapes)).split("test")[0]["mask"] == 255).all()


def test_camvids_32_colors_are_grouped_into_11_classes(tmp_path):
    data = CamVid(root=str(fake_datasets.camvid32(tmp_path)))
    assert ids(data.split("train")) == ["0001TP_006690", "0006R0_f00930"]
    expected = [CamVid.classes.index(name) if name else 255 for name in (
        "pedestrian", "building", "bicyclist", "building", "car", "road", "road", "pavement", "sky", "",
    )]  # fmt: skip
    assert data.split("val")[0]["mask"].tolist() == [expected] * 6


def test_a_color_that_is_no_class_is_named_with_its_position(tmp_path):
    root = fake_datasets.camvid32(tmp_path)
    path = root / "LabeledApproved_full/Seq05VD_f00000_L.png"
    label = np.array(Image.open(path))
    label[2, 3] = (1, 2, 3)
    Image.fromarray(label).save(path)
    with pytest.raises(UserError, match=r"has the color \(1, 2, 3\) at row 2, column 3"):
        CamVid(root=str(root)).split("val")[0]


def test_your_own_data_by_lists_and_by_directories(folder, tmp_path):
    data = Folder(root=str(folder))
    assert data.classes == ("background", "road", "car") and len(data.palette) == data.num_classes == 3
    assert ids(data.split("train")) == ["photo 0", "photo 1"]
    assert data.split("val")[0]["mask"].unique().tolist() == [0, 1, 2, 255]
    for name in ("images", "masks"):
        (folder / "test" / name).mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(folder / "test/images/x.png")
    Image.new("L", (4, 4)).save(folder / "test/masks/x.png")
    assert ids(data.split("test")) == ["x"]


def test_a_list_may_name_some_images_with_or_without_suffix_and_with_dots(folder):
    for name in ("a", "a.v2"):
        Image.new("RGB", (4, 4)).save(folder / f"images/{name}.png")
        Image.new("L", (4, 4), name == "a.v2").save(folder / f"masks/{name}.png")
    (folder / "val.txt").write_bytes(b"\xef\xbb\xbfa.v2\r\n\r\na.png\r\n")
    split = Folder(root=str(folder)).split("val")
    assert ids(split) == ["a.v2", "a"]
    assert split[0]["mask"].all() and not split[1]["mask"].any()


def test_images_without_masks_can_be_predicted(folder):
    for i in range(2):
        Image.new("RGB", (4, 4 + i)).save(folder / f"images/new {i}.png")
    (folder / "test.txt").write_text("new 0\nnew 1\n")
    data = Folder(root=str(folder), predict_split="test", eval_batch_size=2)
    assert [batch["id"] for batch in data.predict_dataloader()] == [["new 0", "new 1"]]
    with pytest.raises(UserError, match="no masks"):
        data.test_dataloader()
    (folder / "test.txt").write_text("new 0\nphoto 1\n")
    with pytest.raises(UserError, match=r"new 0\.png has no mask"):
        data.split("test")


def test_a_jpeg_is_no_mask(folder):
    Image.open(folder / "masks/photo 2.png").save(folder / "masks/photo 2.jpg")
    (folder / "masks/photo 2.png").unlink()
    with pytest.raises(UserError, match=r"photo 2\.jpg is not read as a mask: JPEG changes the values"):
        Folder(root=str(folder)).split("val")


def test_hidden_files_are_ignored(voc, cityscapes):
    (voc / "sbd/dataset/cls/._2007_000004.mat").write_bytes(b"x")
    assert len(VOC(root=str(voc), sbd=str(voc / "sbd")).split("trainaug")) == 4
    (cityscapes / "leftImg8bit/val/lindau/._lindau_000003_000019_leftImg8bit.png").write_bytes(b"x")
    assert len(Cityscapes(root=str(cityscapes)).split("val")) == 2


def test_two_files_of_one_name_are_refused(folder):
    Image.new("RGB", (12, 18)).save(folder / "images/photo 2.png")
    with pytest.raises(UserError, match="have one name"):
        Folder(root=str(folder)).split("val")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"", "is empty"), ("photo 2".encode("utf-16"), "is not UTF-8"), (b"photo 2\nphoto 2\n", "names photo 2 twice")],
)
def test_a_wrong_list_is_one_sentence(folder, content, sentence):
    (folder / "val.txt").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        Folder(root=str(folder)).split("val")


def test_another_number_of_images_than_published_is_reported(voc, capsys):
    VOC(root=str(voc)).open_split("val")
    assert capsys.readouterr().err == "VOC: val has 2 images here, as published 1,449\n"


def test_a_split_is_checked_once(voc):
    data = VOC(root=str(voc))
    assert data.open_split("val") is data.open_split("val")


def test_values_that_your_masks_ignore_are_named_in_classes_yaml(folder):
    Image.fromarray(np.full((12, 18), 7, np.uint8)).save(folder / "masks/photo 2.png")
    with pytest.raises(UserError, match=r"photo 2.png holds the value 7"):
        Folder(root=str(folder)).split("val")[0]
    (folder / "classes.yaml").write_text("classes: [a, b, c]\nignore: [7, 255]\npalette: [[0,0,0],[1,2,3],[4,5,6]]\n")
    data = Folder(root=str(folder))
    assert (data.split("val")[0]["mask"] == 255).all()
    assert data.palette == ((0, 0, 0), (1, 2, 3), (4, 5, 6))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "should have the line classes"),
        ("classes: [a", "is not YAML"),
        ("[a, b]", "should have the line classes"),
        ("classes: [a]", "with 2 to 255"),
        ("classes: [a, a]", "names a class twice"),
        ("classes: [a, b]\ncolours: 3", "unknown key 'colours'"),
        ("classes: [a, b]\npalette: [[0, 0, 0]]", "for each of 2 classes"),
        ("classes: [a, b]\npalette: [[0, 0, 0], [0, 0, 256]]", "0 to 255"),
        ("classes: [a, b]\nignore: [1]", "the value 1, which is class 'b'"),
    ],
)
def test_a_wrong_classes_yaml_is_one_sentence(folder, content, sentence):
    (folder / "classes.yaml").unlink()
    if content is not None:
        (folder / "classes.yaml").write_text(content)
    with pytest.raises(UserError, match=sentence) as caught:
        Folder(root=str(folder))
    assert "\n" not in str(caught.value)


def remove(path):
    return lambda root: (root / path).unlink()


def write(path, content):
    return lambda root: (root / path).write_bytes(content)


def rename(path, other):
    return lambda root: (root / path).rename(root / other)


def save(path, image):
    return lambda root: image.save(root / path)


BASE = "VOCdevkit/VOC2012"
BROKEN = [
    (VOC, "trainaug", remove(f"{BASE}/JPEGImages/2007_000004.jpg"), "2007_000004.jpg is missing"),
    (VOC, "train", remove(f"{BASE}/SegmentationClass/2007_000001.png"), "2007_000001.jpg has no mask"),
    (VOC, "val", remove(f"{BASE}/ImageSets/Segmentation/val.txt"), "cannot read the list"),
    (VOC, "train", rename(f"{BASE}/JPEGImages", "elsewhere"), "has no JPEGImages"),
    (VOC, "trainaug", rename("sbd", "elsewhere"), "has no cls"),
    (VOC, "trainaug", write("sbd/dataset/cls/2007_000004.mat", b"MATLAB 5.0 MAT-file" + bytes(200)), "read as a mask of SBD"),
    (VOC, "train", save(f"{BASE}/SegmentationClass/2007_000000.png", Image.new("RGB", (30, 20))), "has mode RGB"),
    (VOC, "train", save(f"{BASE}/SegmentationClass/2007_000000.png", Image.new("L", (30, 20), 99)), "holds the value 99"),
    (VOC, "train", save(f"{BASE}/SegmentationClass/2007_000000.png", Image.new("L", (30, 21))), "they must have one size"),
    (VOC, "everything", lambda root: None, "has no split 'everything'"),
    (Cityscapes, "train", remove("gtFine/train/bochum/bochum_000000_000313_gtFine_labelIds.png"), "has no mask"),
    (Cityscapes, "train", remove("leftImg8bit/train/bochum/bochum_000000_000313_leftImg8bit.png"), "has no image"),
    (Cityscapes, "val", rename("gtFine", "elsewhere"), "is not a directory"),
    (
        Cityscapes, "val", save("leftImg8bit/val/lindau/frankfurt_000000_000294_leftImg8bit.png", Image.new("RGB", (34, 16))),
        "are of one frame",
    ),
    (
        Cityscapes, "val",
        save("gtFine/val/lindau/lindau_000003_000019_gtFine_labelIds.png", Image.new("L", (34, 16), 34)), "holds the value 34",
    ),
    (Cityscapes, "trainaug", lambda root: None, "has no split 'trainaug'"),
]  # fmt: skip


@pytest.mark.parametrize(("dataset", "split", "damage", "sentence"), BROKEN)
def test_a_broken_copy_is_named_in_one_sentence(dataset, split, damage, sentence, tmp_path):
    root = (fake_datasets.voc if dataset is VOC else fake_datasets.cityscapes)(tmp_path)
    damage(root)
    with pytest.raises(UserError, match=sentence) as caught:
        options = {"sbd": str(root / "sbd")} if dataset is VOC else {}
        found = dataset(root=str(root), **options).split(split)
        [found[i] for i in range(len(found))]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("dataset", "variable"), [(VOC, "DILATED_SEG_VOC"), (Cityscapes, "DILATED_SEG_CITYSCAPES"), (CamVid, "DILATED_SEG_CAMVID")]
)
def test_the_directory_may_be_an_environment_variable(dataset, variable, tmp_path, monkeypatch):
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(UserError, match=variable):
        dataset().split("val")
    if dataset is not CamVid:
        monkeypatch.setenv(variable, str((fake_datasets.voc if dataset is VOC else fake_datasets.cityscapes)(tmp_path)))
        assert len(dataset().split("val")) == 2


@pytest.mark.parametrize("dataset", [VOC, Cityscapes, CamVid])
def test_classes_and_palettes_are_complete(dataset):
    assert (
        len(dataset.palette)
        == len(dataset.classes)
        == len(set(dataset.classes))
        == {"VOC": 21, "Cityscapes": 19, "CamVid": 11}[dataset.__name__]
    )


def test_images_of_unequal_size_are_padded_and_keep_their_sizes(voc):
    split = VOC(root=str(voc)).split("val")
    batch = pad([split[0], split[1]])
    assert batch["image"].shape == (2, 3, 24, 40)
    assert batch["size"] == [(24, 24), (21, 40)]
    assert torch.equal(batch["mask"][0, :24, :24], split[0]["mask"])
    assert (batch["mask"][0, :, 24:] == 255).all() and (batch["mask"][1, 21:] == 255).all()


def test_predictions_for_cityscapes_server_are_label_ids(cityscapes, tmp_path):
    data = Cityscapes(root=str(cityscapes), predict_split="test")
    task = SegmentationTask(DilatedNet(19, None, width=1 / 32), 19)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", devices=1, default_root_dir=tmp_path, callbacks=[PredictionWriter()], **quiet)
    trainer.predict(task, data, return_predictions=False)
    name = "berlin_000005_000019.png"
    ids, submitted = (np.array(Image.open(tmp_path / folder / name)) for folder in ("predictions", "submission"))
    assert np.array_equal(submitted, np.array(LABEL_IDS)[ids]) and submitted.shape == (16, 34)
