"""Users' own directories in the layouts, formats and values that they have."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dilated_seg.__main__ import main
from dilated_seg.data import Folder
from dilated_seg.data.class_file import read_classes
from dilated_seg.data.folder import draw_names
from dilated_seg.data.names import list_affixes
from dilated_seg.data.prepare.contact_sheet import LINE, SIDE
from dilated_seg.errors import UserError
from dilated_seg.runs import Run

IDS = np.arange(24, dtype=np.uint8).reshape(4, 6) % 2  # two classes
COLORS = np.array([[0, 0, 0], [255, 0, 0]], np.uint8)
CLASSES = "classes: [background, polyp]\n"


def save_image(path, number=0):
    """An image of 4 x 6."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (4, 6, 3), np.uint8)).save(path)


def save_mask(path, array=IDS, mode=None):
    """A mask of 4 x 6."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path)


def make(root, images, masks, classes=CLASSES, splits=("train", "val")):
    """Three images a split at paths with {split} and {n}, and their masks."""
    for split in splits:
        for n in range(3):
            save_image(root / images.format(split=split, n=n), n)
            save_mask(root / masks.format(split=split, n=n))
    (root / "classes.yaml").write_text(classes)
    return Folder(root=str(root))


def ids(split):
    return [split[i]["id"] for i in range(len(split))]


@pytest.mark.parametrize(
    ("images", "masks", "name"),
    [
        ("{split}/images/{n}.png", "{split}/masks/{n}.png", "0"),
        ("{split}/images/{n}.jpg", "{split}/labels/{n}.png", "0"),
        ("{split}/Images/{n}.webp", "{split}/Mask/{n}_mask.bmp", "0"),
        ("images/{split}/{n}.tif", "masks/{split}/{n}.tif", "0"),
        ("images/{split}/{n}.jpeg", "annotations/{split}/{n}_gt.png", "0"),
        ("{split}/{n}.jpg", "{split}/masks/mask-{n}.png", "0"),
        ("{split}/{n}.png", "{split}/{n}_mask.png", "0"),
        ("{split}/{n}.jpg", "{split}/{n}_segmentation.png", "0"),
        ("{split}/{n}.jpg", "{split}/{n}.png", "0"),
        ("{split}/city/{n}.jpg", "{split}/city/{n}_mask.png", "city/0"),
        ("{split}/images/city/{n}.bmp", "{split}/masks/city/{n}_manual.png", "city/0"),
    ],
)
def test_layouts_are_read_as_they_are(tmp_path, images, masks, name):
    data = make(tmp_path, images, masks)
    assert data.list_splits() == ["train", "val"]
    for split in ("train", "val"):
        assert ids(data.open_split(split))[0] == name and len(data.open_split(split)) == 3
        assert torch.equal(data.open_split(split)[2]["mask"], torch.from_numpy(IDS))


@pytest.mark.parametrize(("train", "val"), [("training", "valid"), ("Train", "Validation")])
@pytest.mark.parametrize("images", ["{split}/images/{n}.png", "images/{split}/{n}.png"])
def test_splits_may_have_their_other_names(tmp_path, train, val, images):
    make(tmp_path, images, images.replace("images", "masks"), splits=(train, val))
    data = Folder(root=str(tmp_path))
    assert data.list_splits() == ["train", "val"] and len(data.open_split("val")) == 3
    save_image(tmp_path / images.format(split="val" if val != "val" else "valid", n=9))
    with pytest.raises(UserError, match="since both are the split 'val'"):
        Folder(root=str(tmp_path)).split("val")


@pytest.mark.parametrize(("images", "masks"), [("images/{n}.jpg", "masks/{n}_mask.png"), ("{n}.png", "{n}_mask.png")])
def test_lists_may_name_images_without_split_directories(tmp_path, images, masks):
    make(tmp_path, images, masks)
    (tmp_path / "training.txt").write_text("0\n1.jpg\n" if "jpg" in images else "0\n1.png\n")
    (tmp_path / "valid.txt").write_text(images.format(n=2) + "\n")
    data = Folder(root=str(tmp_path))
    assert (ids(data.open_split("train")), ids(data.open_split("val"))) == (["0", "1"], ["2"])


def test_paths_of_other_layouts_are_stated(tmp_path):
    paths = "images: 'data/{split}/{name}_sat'\nmasks: 'data/{split}/{name}_truth'\n"
    data = make(tmp_path, "data/{split}/{n}_sat.jpg", "data/{split}/{n}_truth.png", CLASSES + paths)
    assert ids(data.open_split("val")) == ["0", "1", "2"] and data.open_split("val").labelled
    for wrong in ("/data/{name}", "data/../{name}", "{name}/images", "{name}{name}", "{other}/{name}", "3"):
        (tmp_path / "classes.yaml").write_text(CLASSES + f"images: '{wrong}'\nmasks: 'masks/{{name}}'\n")
        with pytest.raises(UserError, match=r"classes\.yaml: images is "):
            Folder(root=str(tmp_path))


def test_another_name_with_a_number_is_no_mask():
    images = dict.fromkeys(("photo", "city/a", "12"), Path())
    assert list_affixes("photo_mask", images) == [("photo", "_mask")]
    assert list_affixes("gt-12", images) == [("12", "gt-")]
    assert list_affixes("12mask", images) == [("12", "mask")]
    assert [list_affixes(name, images) for name in ("photo_1", "photos", "a_mask", "112")] == [[]] * 4


def test_an_image_with_two_masks_is_refused(tmp_path):
    make(tmp_path, "{split}/{n}.png", "{split}/{n}_mask.png")
    save_mask(tmp_path / "val/1_label.png")
    with pytest.raises(UserError, match=r"val/1\.png has two masks, 1_label\.png and 1_mask\.png"):
        Folder(root=str(tmp_path)).split("val")


def test_directories_that_link_to_each_other_are_read_once(tmp_path):
    data = make(tmp_path, "{split}/images/{n}.png", "{split}/masks/{n}.png")
    (tmp_path / "val/images/again").symlink_to(tmp_path / "val/images")
    assert len(data.open_split("val")) == 3


# Values and colors


def as_mode(mode, values):
    """The two classes as a file of one mode with these two values."""
    array = np.array(values, np.uint8)[IDS]
    if mode == "P":
        image = Image.fromarray(array, "L").convert("L")
        image.putpalette(np.arange(256).repeat(3).astype(np.uint8).tobytes())
        return image
    return Image.fromarray(array).convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_black_and_white_masks_of_any_mode_are_mapped(tmp_path, mode, suffix):
    if suffix == ".bmp" and mode in ("RGBA", "LA"):
        pytest.skip("BMP has no transparency")
    data = make(tmp_path, "{split}/images/{n}.png", "{split}/masks/{n}.png", CLASSES + "values: {0: background, 255: polyp}\n")
    (tmp_path / "val/masks/1.png").unlink()
    as_mode(mode, (0, 255)).save(tmp_path / f"val/masks/1{suffix}")
    for n in (0, 2):
        as_mode("L", (0, 255)).save(tmp_path / f"val/masks/{n}.png")
    assert torch.equal(data.open_split("val")[1]["mask"], torch.from_numpy(IDS))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_masks_in_colors_are_mapped(tmp_path, mode):
    colors = "colors: {background: [0, 0, 0], polyp: [[255, 0, 0], [250, 0, 0]]}\nignore: [[9, 9, 9]]\n"
    data = make(tmp_path, "{split}/images/{n}.png", "{split}/masks/{n}.png", CLASSES + colors)
    array = COLORS[IDS].copy()
    array[0, 1], array[0, 2] = (250, 0, 0), (9, 9, 9)
    image = Image.fromarray(array)
    (image.quantize(8) if mode == "P" else image.convert(mode)).save(tmp_path / "val/masks/0.png")
    mask = torch.from_numpy(IDS.copy())
    mask[0, 2] = 255
    assert torch.equal(data.split("val")[0]["mask"], mask)
    assert data.palette == ((0, 0, 0), (255, 0, 0))
    save_mask(tmp_path / "val/masks/0.png", np.full((4, 6, 3), 7, np.uint8))
    with pytest.raises(UserError, match=r"color \(7, 7, 7\) at row 0, column 0, .*: add it to colors or ignore in"):
        data.split("val")[0]


@pytest.mark.parametrize(
    ("lines", "value", "expected"),
    [
        ("values: 1-2\nignore: [0]", 0, 255),
        ("values: 1-2\nignore: [0]", 2, 1),
        ("values: {0: background, 1-200: polyp}\nignore: [201-255]", 200, 1),
        ("values: {0: background, 1-200: polyp}\nignore: [201-255]", 230, 255),
        ("values: {7: polyp, 3: background}", 7, 1),
        ("values: {7: polyp, 3: background}", 255, 255),
        ("values: {255: background, 254: polyp}", 255, 0),
    ],
)
def test_values_are_mapped_in_ranges_and_ignored(tmp_path, lines, value, expected):
    data = make(tmp_path, "{split}/images/{n}.png", "{split}/masks/{n}.png", CLASSES + lines)
    save_mask(tmp_path / "val/masks/0.png", np.full((4, 6), value, np.uint8))
    assert data.split("val")[0]["mask"].unique().tolist() == [expected]


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("values: {0: background}", "values has no entry for class 'polyp'"),
        ("values: {0: background, 1: polip}", "values names 'polip', which is not one of the classes background, polyp"),
        ("values: {0-5: background, 5: polyp}", "values has 5 for 'background' and for 'polyp'"),
        ("values: 1-3", "1-3 has 3 values, but there are 2 classes"),
        ("values: {0: background, 256: polyp}", "values has 256: give mask values from 0 to 255"),
        ("values: [0, 1]", "values should be a mapping"),
        ("ignore: [0]", "ignore has the value 0, which is class 'background': .* such as values: 1-2"),
        ("values: 0-1\ncolors: {background: [0, 0, 0], polyp: [1, 1, 1]}", "values and colors"),
        ("colors: {background: [0, 0], polyp: [1, 1, 1]}", r"colors has \[0, 0\]|colors has 0"),
        ("colors: {background: [0, 0, 0], polyp: [0, 0, 0]}", "for 'background' and for 'polyp'"),
        ("colors: {background: [0, 0, 0], polyp: [1, 1, 1]}\nignore: [[0, 0, 0]]", "which is class 'background'"),
    ],
)
def test_a_wrong_mapping_is_one_sentence(tmp_path, lines, sentence):
    (tmp_path / "classes.yaml").write_text(CLASSES + lines)
    with pytest.raises(UserError, match=sentence) as caught:
        Folder(root=str(tmp_path))
    assert "\n" not in str(caught.value) and "classes.yaml" in str(caught.value)


def test_values_that_are_not_mapped_name_the_mapping(tmp_path):
    data = make(tmp_path, "{split}/images/{n}.png", "{split}/masks/{n}.png", CLASSES + "ignore: []\n")
    save_mask(tmp_path / "val/masks/0.png", IDS * 255)
    with pytest.raises(UserError, match=r"holds the value 255 .*: map it in .*values: \{0: background, 255: polyp\}"):
        data.split("val")[0]
    save_mask(tmp_path / "val/masks/0.png", COLORS[IDS])
    with pytest.raises(UserError, match=r"has mode RGB.*map colors in classes\.yaml"):
        data.split("val")[0]


def test_255_classes_are_read(tmp_path):
    names = ", ".join(f"c{k}" for k in range(255))
    data = make(tmp_path, "{split}/images/{n}.png", "{split}/masks/{n}.png", f"classes: [{names}]\n")
    array = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.new("RGB", (16, 16)).save(tmp_path / "val/images/0.png")
    save_mask(tmp_path / "val/masks/0.png", array)
    assert torch.equal(data.split("val")[0]["mask"], torch.from_numpy(array)) and data.num_classes == 255
    (tmp_path / "classes.yaml").write_text(f"classes: [{names}]\nignore: []\n")
    with pytest.raises(UserError, match="holds the value 255"):
        Folder(root=str(tmp_path)).split("val")[0]


# A split that is drawn, or none


def test_a_part_of_the_images_is_drawn_as_val(tmp_path):
    names = [f"n{k}" for k in range(50)]
    drawn = draw_names(names, 0.2, 0)
    assert len(drawn) == 10 and drawn != draw_names(names, 0.2, 1)
    assert len(drawn - draw_names([*names, "new"], 0.2, 0)) <= 1
    make(tmp_path, "images/{n}.jpg", "masks/{n}.png")
    data = Folder(root=str(tmp_path), val_fraction=0.4)
    assert data.list_splits() == ["train", "val"]
    train, val = (ids(data.open_split(split)) for split in ("train", "val"))
    assert len(val) == 1 and sorted(train + val) == ["0", "1", "2"]
    make(tmp_path / "more", "{split}/images/{n}.jpg", "{split}/masks/{n}.png", splits=("train", "test"))
    data = Folder(root=str(tmp_path / "more"), val_fraction=0.4)
    assert data.list_splits() == ["train", "val", "test"] and len(data.open_split("test")) == 3
    make(tmp_path / "more", "{split}/images/{n}.jpg", "{split}/masks/{n}.png")
    with pytest.raises(UserError, match=r"has a split 'val': remove data\.val_fraction"):
        Folder(root=str(tmp_path / "more"), val_fraction=0.4).split("train")
    with pytest.raises(UserError, match=r"data\.val_fraction is 20"):
        Folder(root=str(tmp_path), val_fraction=20)


FIT = [
    "--data=Folder", "--data.batch_size=2", "--model.net=DilatedNet", "--model.net.init_args.width=0.02",
    "--model.net.init_args.context=null", "--model.optimizer=SGD", "--model.optimizer.init_args.lr=0.01",
    "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.max_steps=2", "--wandb=false",
    "--trainer.val_check_interval=1",
]  # fmt: skip


def test_a_run_keeps_the_names_that_were_drawn(tmp_path, capsys):
    make(tmp_path / "data", "images/{n}.png", "masks/{n}.png")
    call = [*FIT, f"--data.root={tmp_path}/data", "--data.val_fraction=0.3", f"--run_dir={tmp_path}/run"]
    assert main(["fit", *call]) == 0
    (name,) = Run(tmp_path / "run").path.joinpath("val.txt").read_text().split()
    assert "val_fraction: 0.3" in Run(tmp_path / "run").config_file.read_text()
    assert main(["validate", str(tmp_path / "run")]) == 0
    for kind in ("images", "masks"):
        (tmp_path / f"data/{kind}/{name}.png").rename(tmp_path / f"data/{kind}/{name}-renamed.png")
    capsys.readouterr()
    assert main(["validate", str(tmp_path / "run")]) == 2
    assert "draws other images than those in" in capsys.readouterr().err


def test_a_run_without_val_trains(tmp_path, capsys):
    make(tmp_path / "data", "{split}/images/{n}.png", "{split}/masks/{n}.png", splits=("train",))
    call = [*FIT, f"--data.root={tmp_path}/data", f"--run_dir={tmp_path}/run"]
    assert main(["fit", *call]) == 2
    said = capsys.readouterr().err
    assert "has no images of a split 'val'; it holds classes.yaml, train/" in said
    assert "data.val_fraction" in said and "--trainer.limit_val_batches 0" in said
    assert main(["fit", *call, "--trainer.limit_val_batches=0"]) == 0
    assert Run(tmp_path / "run").finished


# prepare


@pytest.mark.parametrize(
    "lines", ["values: {0: background, 255: polyp}", "colors: {background: [0, 0, 0], polyp: [255, 0, 0]}"]
)
def test_an_evaluation_is_equal_from_directory_shards_and_stream(tmp_path, lines):
    make(tmp_path / "data", "{split}/{n}.jpg", "{split}/{n}_mask.png", CLASSES + lines)
    for path in (tmp_path / "data").rglob("*_mask.png"):
        save_mask(path, IDS * 255 if "values" in lines else COLORS[IDS])
    for store in ("files", "raw"):
        out = str(tmp_path / store)
        assert main(["prepare", "folder", "--root", str(tmp_path / "data"), "--out", out, "--store", store]) == 0
    assert main(["fit", *FIT, f"--data.root={tmp_path}/data", f"--run_dir={tmp_path}/run"]) == 0
    counts = []
    for options in (
        [tmp_path / "data"],
        [tmp_path / "files"],
        [tmp_path / "raw"],
        [tmp_path / "files", "--data.streaming=true"],
    ):
        root, *more = options
        assert main(["validate", str(tmp_path / "run"), f"--data.init_args.root={root}", *more]) == 0
        counts.append(Run(tmp_path / "run").evaluation("val-best").matrix.tolist())
    assert np.sum(counts[0]) == 3 * 24 and np.sum(counts[0], 1).tolist() == [36, 36]
    assert counts[1:] == counts[:1] * 3


def test_a_drawn_split_is_prepared(tmp_path):
    make(tmp_path / "data", "images/{n}.jpg", "masks/{n}.png")
    call = ["prepare", "folder", "--root", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--val_fraction", "0.3"]
    assert main(call) == 0 and main(call) == 0
    drawn = ids(Folder(root=str(tmp_path / "data"), val_fraction=0.3).open_split("val"))
    assert ids(Folder(root=str(tmp_path / "out")).open_split("val")) == drawn
    assert ids(Folder(root=str(tmp_path / "out"), val_fraction=0.3).open_split("val")) == drawn
    with pytest.raises(UserError, match=r"was prepared with val_fraction 0\.3, not 0\.5"):
        Folder(root=str(tmp_path / "out"), val_fraction=0.5).open_split("train")


def test_a_dry_run_shows_files_and_values(tmp_path, capsys):
    make(tmp_path, "{split}/images/{n}.jpg", "{split}/masks/{n}.png")
    for path in tmp_path.rglob("masks/*.png"):
        save_mask(path, IDS * 255)
    (tmp_path / "classes.yaml").unlink()
    call = ["prepare", "folder", "--root", str(tmp_path), "--dry_run"]
    assert main(call) == 0
    said = capsys.readouterr().out
    assert "train: 3 images of 4 x 6 (3 .jpg), 3 masks (3 .png), such as" in said
    assert [line.split() for line in said.splitlines() if "%" in line] == [["0", "50.0", "%"], ["255", "50.0", "%"]] * 2
    (tmp_path / "classes.yaml").write_text(said.rpartition("such as\n")[2])
    assert read_classes(str(tmp_path)).values == {0: 0, 255: 1}
    assert main(call) == 0
    assert "50.0 %  class1" in capsys.readouterr().out
    save_mask(tmp_path / "val/masks/0.png", np.full((4, 6), 7, np.uint8))
    assert main(call) == 2
    assert "masks hold 7, which" in capsys.readouterr().err


def test_a_contact_sheet_shows_images_in_the_colors_of_their_classes(tmp_path, capsys):
    data = make(tmp_path, "{split}/images/{n}.png", "{split}/masks/{n}.png")
    call = ["prepare", "folder", "--root", str(tmp_path), "--dry_run", "--sheet"]
    assert main([*call, str(tmp_path / "sheet.png")]) == 0
    assert "sheet.png (6 images)" in capsys.readouterr().out
    assert main([*call[:4], "--sheet", str(tmp_path / "sheet.png")]) == 2
    assert "--sheet goes with --dry_run" in capsys.readouterr().err
    sheet = np.array(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * (SIDE + LINE) + LINE, 4 * SIDE, 3)  # six images in two rows, three entries of the legend in one
    image, mask = (data.open_split("train")[0][key].numpy() for key in ("image", "mask"))
    first, pixel = sheet[20, 20], image[:, 0, 0] / 2 + np.array(data.palette[mask[0, 0]]) / 2
    assert np.abs(first - pixel).max() <= 1
    assert (sheet[-LINE + 5, SIDE + 6] == data.palette[1]).all()
    for wrong in ("sheet.jpg", "nowhere/sheet.png"):
        assert main([*call, str(tmp_path / wrong)]) == 2
        assert "give the name of a .png in a directory that exists" in capsys.readouterr().err


def test_a_dry_run_shows_colors_and_images_without_splits(tmp_path, capsys):
    make(tmp_path, "images/{n}.jpg", "masks/{n}.png")
    for path in tmp_path.rglob("masks/*.png"):
        save_mask(path, COLORS[IDS])
    (tmp_path / "classes.yaml").unlink()
    assert main(["prepare", "folder", "--root", str(tmp_path), "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "all images: 3 images" in said and "--data.val_fraction 0.2" in said
    (tmp_path / "classes.yaml").write_text(said.rpartition("such as\n")[2])
    assert read_classes(str(tmp_path)).colors == {(0, 0, 0): 0, (255, 0, 0): 1}
