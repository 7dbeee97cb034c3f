"""Small Parquet datasets, written by `datasets` itself, in the layouts of public ones."""

import io
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from dilated_seg.data import VOC
from dilated_seg.data.masks import paint_mask

VOC_SIZES = [(24, 32), (30, 20), (24, 32)]


def draw(seed: int, size: tuple[int, int], values: list[int]) -> tuple[bytes, np.ndarray]:
    """Return a noisy JPEG, which does not compress, and its mask of blocks of the values."""
    rng = np.random.default_rng(seed)
    height, width = size
    mask = rng.choice(np.array(values, np.uint8), (height // 2 + 1, width // 2 + 1)).repeat(2, 0).repeat(2, 1)[:height, :width]
    jpeg = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(jpeg, "jpeg", quality=95)
    return jpeg.getvalue(), mask


def png(image: Image.Image) -> bytes:
    """Return an image as a PNG file."""
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def write(path: Path, rows: list[dict], features: Features, group: int) -> None:
    """Write rows with ``group`` of them in a row group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{name: row[name] for name in features} for row in rows]
    Dataset.from_list(rows, features=features).to_parquet(path, batch_size=group)


def voc_row(number: int, kind: str = "palette", values: tuple[int, ...] = (*range(21), 255)) -> dict:
    """Return an image of VOC's classes with its mask as a palette, gray or RGB PNG."""
    jpeg, mask = draw(number, VOC_SIZES[number % 3], list(values))
    painted = paint_mask(mask, VOC.palette)
    stored = {"palette": painted, "gray": Image.fromarray(mask), "rgb": painted.convert("RGB")}[kind]
    return {"id": f"2007_{number:06d}", "image": {"bytes": jpeg, "path": f"2007_{number:06d}.jpg"},
            "mask": {"bytes": png(stored), "path": f"2007_{number:06d}.png"}}  # fmt: skip


def voc(root: Path, counts=((("train", 0), 8), (("train", 1), 7), (("val", 0), 5)), kind="palette", ids=False, group=2) -> Path:
    """data/SPLIT-00000-of-00002.parquet with the columns image and mask (jxie/pascal-voc-2012), or id too (shijli/voc2012)."""
    start = 0
    splits = [split for (split, _), _ in counts]
    for (split, part), count in counts:
        rows = [voc_row(start + i, kind) for i in range(count)]
        features = Features({"image": ImageFeature(), "mask": ImageFeature()})
        if ids:
            features = Features({"id": Value("string"), **features})
        write(root / f"data/{split}-{part:05d}-of-{splits.count(split):05d}.parquet", rows, features, group)
        start += count
    return root


def cityscapes(root: Path, label_ids: bool = True, group: int = 2) -> Path:
    """data/SPLIT-... with the columns image and semantic_segmentation, without file names, as Chris1/cityscapes."""
    values = list(range(34)) if label_ids else [*range(19), 255]
    features = Features({"image": ImageFeature(), "semantic_segmentation": ImageFeature()})
    for number, (split, count) in enumerate((("train", 6), ("validation", 3), ("test", 2))):
        rows = []
        for i in range(count):
            jpeg, mask = draw(100 * number + i, (16, 68), values)
            mask[0, :34] = np.resize(values, 34)
            rows.append(
                {"image": {"bytes": jpeg, "path": None}, "semantic_segmentation": {"bytes": png(Image.fromarray(mask))}}
            )
        write(root / f"data/{split}-00000-of-00001-abc.parquet", rows, features, group)
    return root


def voc_release(root: Path, train: range, val: range) -> Path:
    """VOC2012 with the same files as `voc` has in these rows."""
    directory = root / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (directory / name).mkdir(parents=True)
    for split, numbers in (("train", train), ("val", val)):
        rows = list(map(voc_row, numbers))
        for row in rows:
            (directory / "JPEGImages" / row["image"]["path"]).write_bytes(row["image"]["bytes"])
            (directory / "SegmentationClass" / row["mask"]["path"]).write_bytes(row["mask"]["bytes"])
        (directory / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"{row['id']}\n" for row in rows))
    return root
