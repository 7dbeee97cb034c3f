"""Files that decode without an error, and what they hold: palettes in another order, values of another range."""

import random
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from dilated_seg.data import VOC, CamVid, Folder, workers
from dilated_seg.data.decode import read_image
from dilated_seg.data.masks import make_table, paint_mask, read_mask
from dilated_seg.data.prepare import prepare
from dilated_seg.errors import UserError
from dilated_seg.inference.image import open_image
from tests.support import fake_datasets

COLORS = ((0, 0, 0), (128, 64, 128), (0, 0, 142), (220, 20, 60))
CLASSES = make_table({k: k for k in range(4)} | {255: 255})


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(workers, "PRINTED", set())


def save(path, values, colors):
    """A file of mode P with a palette of these colors."""
    picture = Image.fromarray(np.asarray(values, np.uint8))
    picture.putpalette([v for color in colors for v in color])
    picture.save(path)
    return path


def renumbered(path, values, colors, order):
    """A file that shows the same, whose values are places in ``order``; what does not occur is left out."""
    place = {value: k for k, value in enumerate(order)}
    return save(path, np.vectorize(place.get)(values), [colors[value] for value in order])


def whole_palette(colors, void=(224, 224, 192)):
    """Return 256 colors: the given, then those that no class has, and one of ignored pixels."""
    return [*colors, *[(1, 2, 3)] * (255 - len(colors)), void]


def test_a_palette_in_another_order_is_read_by_its_colors(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for trial in range(30):
        ids = rng.choice([*range(4), 255], (8, 9)).astype(np.uint8)
        ids[:2] = rng.integers(0, 4)
        order = [int(v) for v in np.unique(ids)]
        random.Random(trial).shuffle(order)
        path = renumbered(tmp_path / f"{trial}.png", ids, whole_palette(COLORS), order)
        assert torch.equal(read_mask(path, CLASSES, COLORS), torch.from_numpy(ids))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "are read by color" in said


def test_every_palette_of_the_datasets_own_order_is_read_by_value(tmp_path, capsys):
    rng = np.random.default_rng(0)
    ids = rng.choice([0, 1, 2, 3, 255], (8, 9)).astype(np.uint8)
    for name, colors in {
        "own": whole_palette(COLORS), "void": whole_palette(COLORS, (255, 255, 255)),
        "foreign": [(7, 99, 200)] * 256, "gray": [(v, v, v) for v in range(256)],
        "web": [(v, 255 - v, v // 2) for v in range(256)],
        "half": [*COLORS[:2], (5, 6, 7), (8, 9, 10), *[(11, 12, 13)] * 252],
    }.items():  # fmt: skip
        assert torch.equal(read_mask(save(tmp_path / f"{name}.png", ids, colors), CLASSES, COLORS), torch.from_numpy(ids)), name
    assert not capsys.readouterr().err


def test_a_palette_with_the_colors_of_only_some_classes_is_refused(tmp_path):
    path = save(tmp_path / "a.png", [[0, 1, 2]], [(0, 0, 0), (0, 0, 142), (1, 2, 3)])
    with pytest.raises(
        UserError, match=r"a\.png has a palette that contradicts.*value 1 has the color \(0, 0, 142\)"
    ) as caught:
        read_mask(path, CLASSES, COLORS)
    assert "but no class has the color of value 2 (1, 2, 3): save it" in str(caught.value) and "\n" not in str(caught.value)
    twins = (*COLORS[:3], (0, 0, 142))  # two classes of one color
    path = save(tmp_path / "b.png", [[0, 1]], [(0, 0, 0), (0, 0, 142)])
    with pytest.raises(UserError, match="contradicts"):
        read_mask(path, CLASSES, twins)
    path = save(tmp_path / "c.png", [[0, 2, 3]], twins)
    assert read_mask(path, CLASSES, twins).tolist() == [[0, 2, 3]]


def test_colors_of_values_that_do_not_occur_are_ignored(tmp_path, capsys):
    path = save(tmp_path / "a.png", [[0, 1, 1]], [*COLORS[:2], (220, 20, 60), (0, 0, 142)])
    assert read_mask(path, CLASSES, COLORS).tolist() == [[0, 1, 1]]
    assert not capsys.readouterr().err
    paint_mask(np.array([[0, 1, 40]]), COLORS).save(tmp_path / "b.png")  # 40 is black as padding is, and no class
    with pytest.raises(UserError, match="holds the value 40"):
        read_mask(tmp_path / "b.png", CLASSES, COLORS)


def test_a_ramp_of_grays_is_no_evidence_even_where_a_class_is_gray(tmp_path):
    grays = ((9, 9, 9), (0, 0, 0), (1, 1, 1), (2, 2, 2))
    path = save(tmp_path / "a.png", [[0, 1, 2, 3]], [(v, v, v) for v in range(256)])
    assert read_mask(path, CLASSES, grays).tolist() == [[0, 1, 2, 3]]
    path = save(tmp_path / "b.png", [[0, 0]], [(0, 0, 0)])  # one color alone is what a renumbering leaves
    assert read_mask(path, CLASSES, grays).tolist() == [[1, 1]]


@pytest.mark.parametrize("kind", ["transparent", "1-bit", "4-bit"])
def test_palettes_with_transparency_or_few_bits_are_compared_alike(kind, tmp_path):
    ids = np.array([[0, 2, 2], [2, 0, 0]], np.uint8)
    picture = Image.fromarray((ids == 0).astype(np.uint8))
    picture.putpalette([*COLORS[2], *COLORS[0]])
    options = {"transparent": {"transparency": b"\x00\xff"}, "1-bit": {"bits": 1}, "4-bit": {"bits": 4}}[kind]
    picture.save(tmp_path / "a.png", **options)
    assert torch.equal(read_mask(tmp_path / "a.png", CLASSES, COLORS), torch.from_numpy(ids))


def test_a_mask_of_one_bit_holds_classes_0_and_1(tmp_path):
    Image.fromarray(np.array([[True, False, True]])).save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png", CLASSES).tolist() == [[1, 0, 1]]


@pytest.mark.parametrize(
    ("picture", "sentence"),
    [
        (Image.new("RGB", (3, 2), (2, 2, 2)), r"channels are equal.*getchannel\(0\)"),
        (Image.new("RGB", (3, 2), (1, 2, 3)), "replace each color by its class id"),
        (Image.new("LA", (3, 2)), r"without transparency"),
        (Image.new("I;16", (3, 2), 2), "save it as 8-bit grayscale"),
    ],
)
def test_a_mask_of_another_mode_is_refused_with_the_remedy(picture, sentence, tmp_path):
    picture.save(tmp_path / "a.png")
    with pytest.raises(UserError, match=sentence):
        read_mask(tmp_path / "a.png", CLASSES)


def test_a_renumbered_mask_of_voc_and_of_camvid_is_read_by_its_colors(tmp_path):
    root = fake_datasets.voc(tmp_path)
    ids = fake_datasets.voc_label(0)
    colors = fake_datasets.default_palette(256)
    renumbered(root / "VOCdevkit/VOC2012/SegmentationClass/2007_000000.png", ids, colors, [255, 1, 0])
    assert torch.equal(VOC(root=str(root)).open_split("train")[0]["mask"], torch.from_numpy(ids))
    root = fake_datasets.camvid(tmp_path / "camvid")
    path = root / "valannot/val_00000.png"
    ids = read_mask(path, make_table({k: k % 11 for k in range(12)})).numpy()
    renumbered(path, ids, CamVid.palette, [int(v) for v in np.unique(ids)[::-1]])
    assert torch.equal(CamVid(root=str(root)).split("val")[0]["mask"], torch.from_numpy(ids))


@pytest.mark.parametrize("store", ["files", "raw", "stream"])
def test_shards_and_streams_read_palettes_as_directories_do(store, tmp_path):
    root = fake_datasets.folder(tmp_path / "mine")
    facts = f"classes: [a, b, c]\npalette: {[list(color) for color in COLORS[:3]]}\n"
    (root / "classes.yaml").write_text(facts)
    path = root / "masks/photo 2.png"
    ids = read_mask(path, make_table({k: k for k in (0, 1, 2, 255)})).numpy()
    renumbered(path, ids, whole_palette(COLORS[:3]), [255, 2, 0, 1])
    prepare("Folder", str(root), tmp_path / "out", "raw" if store == "raw" else "files")
    data = Folder(root=str(tmp_path / "out"), streaming=store == "stream")
    assert torch.equal(data.open_split("val")[0]["mask"], torch.from_numpy(ids))
    assert torch.equal(Folder(root=str(root)).open_split("val")[0]["mask"], torch.from_numpy(ids))
    (root / "classes.yaml").write_text("classes: [a, b, c, d]\n")  # colors made up for the classes say nothing of the masks
    assert Folder(root=str(root)).open_split("val")[0]["mask"].unique().tolist() == [0, 1, 2, 3]


RAMP = np.linspace(0, 1, 20 * 30).reshape(20, 30)


def png48(values):
    """A PNG of three channels of 16 bits, which Pillow cannot write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    content = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return content


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ((RAMP * 4095).astype(np.uint16), "mode I;16"),
        ((RAMP * 65535).astype(np.uint16), "mode I;16"),
        ((RAMP * 200).astype(np.int32), "mode I,"),
        ((RAMP * 1e5).astype(np.int32), "mode I,"),
        ((RAMP * 1e4).astype(np.float32), "mode F"),
        ((RAMP * 2 - 1).astype(np.float32), "mode F"),
        (RAMP.astype(np.float32), "mode F"),
        (np.where(RAMP > 0.5, np.inf, RAMP).astype(np.float32), "mode F"),
    ],
)
def test_values_of_more_than_8_bits_are_refused(values, sentence, tmp_path):
    path = tmp_path / ("a.png" if values.dtype == np.uint16 else "a.tif")
    Image.fromarray(values).save(path)
    with pytest.raises(UserError, match=sentence) as caught:
        read_image(path)
    assert str(caught.value).startswith(str(path)) and "8 bits" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"^the image (has|holds) "):
        open_image(Image.fromarray(values))


def test_colors_of_12_bits_in_a_file_of_16_are_refused(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png48(np.stack([RAMP * 4095] * 3, 2)))
    with pytest.raises(UserError, match=r"16-bit values up to about 3,840, which is nearly black: convert"):
        read_image(path)
    path.write_bytes(png48(np.stack([RAMP * 65535] * 3, 2)))
    assert read_image(path).max() == 255


def test_dark_images_of_8_bits_are_read_as_they_are(tmp_path):
    Image.fromarray((RAMP * 7).astype(np.uint8)).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif").max() == 7
