"""Small datasets in the exact layouts of the official releases, written by code."""

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_matrix

from dilated_seg.models.segmenter import default_palette

VOC_SIZES = [(20, 30), (33, 17), (24, 24), (21, 40), (16, 16), (30, 20), (28, 19)]
VOC_LISTS = {"train": [0, 1], "val": [2, 3], "test": [6]}
SBD_LISTS = {"train": [1, 2, 4], "val": [3, 5]}  # cuts across VOC's own


def voc_name(i):
    return f"2007_{i:06d}"


def voc_label(i):
    """A label with an object of class 1 + i and a void band around it."""
    height, width = VOC_SIZES[i]
    label = np.zeros((height, width), np.uint8)
    label[3 : height - 3, 3 : width - 3] = 255
    label[5 : height - 5, 5 : width - 5] = 1 + i
    return label


def voc_instances(i):
    """The left half of the object of `voc_label` as object 1, the right half as object 2."""
    label = voc_label(i)
    numbers = np.where(np.arange(label.shape[1]) < label.shape[1] // 2, 1, 2).astype(np.uint8)
    return np.where(label % 255 == 0, label, numbers)


def voc(root: Path) -> Path:
    """VOCdevkit/VOC2012 with seven images, and SBD beside it."""
    base = root / "VOCdevkit/VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationObject", "ImageSets/Segmentation"):
        (base / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate(VOC_SIZES):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(base / f"JPEGImages/{voc_name(i)}.jpg")
    for i in VOC_LISTS["train"] + VOC_LISTS["val"]:
        for folder, label in (("SegmentationClass", voc_label(i)), ("SegmentationObject", voc_instances(i))):
            picture = Image.fromarray(label)  # with a palette its mode becomes P
            picture.putpalette([v for colour in default_palette(256) for v in colour])
            picture.save(base / f"{folder}/{voc_name(i)}.png")
    for name, images in (VOC_LISTS | {"trainval": VOC_LISTS["train"] + VOC_LISTS["val"]}).items():
        (base / f"ImageSets/Segmentation/{name}.txt").write_text("".join(f"{voc_name(i)}\n" for i in images))
    sbd = root / "sbd/dataset"
    for folder in ("img", "cls", "inst"):
        (sbd / folder).mkdir(parents=True)
    for name, images in SBD_LISTS.items():
        (sbd / f"{name}.txt").write_text("".join(f"{voc_name(i)}\n" for i in images))
        for i in images:
            label = np.where(voc_label(i) == 255, 0, voc_label(i))
            boundaries = np.empty((20, 1), object)
            for k in range(20):
                boundaries[k, 0] = csc_matrix(label.shape, dtype=np.uint8)
            facts = {"Segmentation": label, "Boundaries": boundaries, "CategoriesPresent": np.array([[1 + i]], np.uint8)}
            savemat(sbd / f"cls/{voc_name(i)}.mat", {"GTcls": facts}, do_compression=True)
            numbers = np.where(voc_label(i) == 255, 0, voc_instances(i))
            savemat(sbd / f"inst/{voc_name(i)}.mat", {"GTinst": {"Segmentation": numbers}}, do_compression=True)
    return root


CITIES = {
    "train": {"aachen": [("000000", "000019"), ("000001", "000019")], "bochum": [("000000", "000313")]},
    "val": {"frankfurt": [("000000", "000294")], "lindau": [("000003", "000019")]},
    "test": {"berlin": [("000005", "000019")]},
}


def cityscapes(root: Path) -> Path:
    """leftImg8bit, gtFine and gtCoarse with a few small frames; a label holds every label id from 0 to 33."""
    for split, cities in CITIES.items():
        for city, frames in cities.items():
            for folder in ("leftImg8bit", "gtFine", "gtCoarse"):
                (root / folder / split / city).mkdir(parents=True)
            for sequence, frame in frames:
                stem = f"{city}_{sequence}_{frame}"
                Image.fromarray(np.full((16, 34, 3), 90, np.uint8)).save(
                    root / f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png"
                )
                ids = np.tile(np.arange(34, dtype=np.uint8), (16, 1))
                for kind in ("gtFine", "gtCoarse"):
                    Image.fromarray(ids).save(root / f"{kind}/{split}/{city}/{stem}_{kind}_labelIds.png")
                    Image.fromarray(ids).save(root / f"{kind}/{split}/{city}/{stem}_{kind}_instanceIds.png")
                    (root / f"{kind}/{split}/{city}/{stem}_{kind}_polygons.json").write_text('{"objects": []}')
    (root / "leftImg8bit/train/.DS_Store").write_bytes(b"stray")
    return root


def folder(root: Path, classes=("background", "road", "car"), images=3) -> Path:
    """images/, masks/, lists and classes.yaml; the third image is val's."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, size in enumerate(([(12, 18), (9, 20), (12, 18)] * images)[:images]):
        suffix = ("png", "jpg", "jpeg")[i % 3]
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(root / f"images/photo {i}.{suffix}")
        mask = rng.integers(0, len(classes), size, np.uint8)
        mask[0] = 255
        Image.fromarray(mask).save(root / f"masks/photo {i}.png")
    (root / "classes.yaml").write_text(f"classes: [{', '.join(classes)}]\n")
    (root / "train.txt").write_text("photo 0\nphoto 1.jpg\n" + "".join(f"photo {i}\n" for i in range(3, images)))
    (root / "val.txt").write_text("photo 2\n")
    return root


CAMVID_COLOURS = {
    "Animal": (64, 128, 64), "Archway": (192, 0, 128), "Bicyclist": (0, 128, 192), "Building": (128, 0, 0), "Car": (64, 0, 128),
    "Road": (128, 64, 128), "LaneMkgsDriv": (128, 0, 192), "Sidewalk": (0, 0, 192), "Sky": (128, 128, 128), "Void": (0, 0, 0),
}  # fmt: skip


def camvid32(root: Path) -> Path:
    """The original release: colours, and lists of names."""
    stills, labels = root / "701_StillsRaw_full", root / "LabeledApproved_full"
    for made in (stills, labels):
        made.mkdir(parents=True)
    row = np.array([*CAMVID_COLOURS.values()], np.uint8)
    for name in ("0001TP_006690", "0006R0_f00930", "Seq05VD_f00000"):
        Image.fromarray(np.full((6, len(row), 3), 77, np.uint8)).save(stills / f"{name}.png")
        Image.fromarray(np.tile(row, (6, 1, 1))).save(labels / f"{name}_L.png")
    text = "".join(f"{r} {g} {b}\t\t{name}\n" for name, (r, g, b) in CAMVID_COLOURS.items())
    (root / "label_colors.txt").write_text(text)
    (root / "train.txt").write_text("0001TP_006690.png\n0006R0_f00930.png\n")
    (root / "val.txt").write_text("Seq05VD_f00000\n")
    return root


def camvid(root: Path) -> Path:
    """SegNet's release: frames and labels of one channel, 11 where unlabelled."""
    rng = np.random.default_rng(0)
    for split, frames in (("train", 5), ("val", 2), ("test", 3)):
        for name in (split, f"{split}annot"):
            (root / name).mkdir(parents=True)
        for i in range(frames):
            Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).save(root / split / f"{split}_{i:05d}.png")
            Image.fromarray(rng.integers(0, 12, (12, 16), np.uint8)).save(root / f"{split}annot" / f"{split}_{i:05d}.png")
    return root
