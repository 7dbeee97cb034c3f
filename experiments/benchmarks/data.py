"""Images per second from files to training crops: ours from directories, shards, streams and raw stores, and the usual way.

For images of the sizes of VOC, CamVid and Cityscapes, made here, each with its label: scaled by 0.5 to 2, cropped, mirrored.
"Decoding" is the limit: opening image and label with Pillow and nothing else, in one process. "Usual" is what most code does:
Pillow images through torchvision's transforms, one after the other, to a normalised float tensor. All ways take turns, so
that a machine that is busy for a while is so for all; ratios are of one run.

run:    python experiments/benchmarks/data.py [voc] [camvid] [cityscapes]
"""

import argparse
import os
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from dilated_seg.data import Folder
from dilated_seg.data.prepare import prepare
from dilated_seg.data.transforms import ScaleAndCrop

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Height and width, kind of file, crop, batch, images for a measurement.
SIZES = {
    "voc": ((375, 500), "jpg", (480, 480), 8, 240),
    "camvid": ((360, 480), "png", (256, 320), 4, 120),
    "cityscapes": ((1024, 2048), "png", (628, 628), 4, 48),
}


def draw_image(rng, size):
    """Return an image that compresses like one from a camera (smooth areas, edges, a little noise), and its mask."""
    height, width = size
    coarse = rng.integers(0, 19, (height // 40 + 1, width // 40 + 1), np.uint8)
    label = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST))
    colours = rng.integers(0, 256, (19, 3))
    shade = np.array(Image.fromarray(rng.integers(0, 80, (9, 9), np.uint8)).resize((width, height), Image.Resampling.BICUBIC))
    noise = rng.normal(0, 2.5, (height, width, 3))
    image = colours[label] * 0.7 + shade[..., None] + noise
    return image.clip(0, 255).astype(np.uint8), label


def make(root, size, suffix, count):
    """Write images and masks for `Folder`."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for i in range(count):
        image, label = draw_image(rng, size)
        Image.fromarray(image).save(root / f"images/{i:04d}.{suffix}", **({"quality": 92} if suffix == "jpg" else {}))
        Image.fromarray(label).save(root / f"masks/{i:04d}.png")
    (root / "classes.yaml").write_text(f"classes: {[f'class {k}' for k in range(19)]}\n")
    (root / "train.txt").write_text("".join(f"{i:04d}\n" for i in range(count)))
    (root / "val.txt").write_text("0000\n")


def decode(pairs):
    """Decode each image and its mask and drop them: the limit of every way."""
    for _, image, label in pairs:
        np.asarray(Image.open(image))
        np.asarray(Image.open(label))


class Usual(Dataset):
    """Pillow images and torchvision's transforms on them; the label as a mask, or it would be resized bilinearly."""

    def __init__(self, pairs, crop):
        self.pairs, self.crop = pairs, crop
        self.after = v2.Compose(
            [
                v2.RandomCrop(crop, pad_if_needed=True, fill={Image.Image: 124, tv_tensors.Mask: 255}),
                v2.RandomHorizontalFlip(),
                v2.ToImage(),
                v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        _, path, label = self.pairs[index]
        image = Image.open(path).convert("RGB")
        mask = tv_tensors.Mask(np.array(Image.open(label)))
        factor = 0.5 + 1.5 * torch.rand(()).item()
        size = [round(image.height * factor), round(image.width * factor)]
        image, mask = v2.functional.resize(image, size), v2.functional.resize(mask, size)
        return self.after(image, mask)


def measure_rate(loader):
    """Return the images per second of an epoch, after one that starts the workers."""
    for _ in loader:
        pass
    start = time.perf_counter()
    seen = sum(len(batch["image"] if isinstance(batch, dict) else batch[0]) for batch in loader)
    return seen / (time.perf_counter() - start)


def build_loader(root, crop, batch, workers, streaming=False):
    data = Folder(
        root=str(root), augmentation=ScaleAndCrop(crop, (0.5, 2.0)), batch_size=batch, num_workers=workers, streaming=streaming,
    )  # fmt: skip
    return data.train_dataloader()


def measure(name, directory, repeats, images):
    size, suffix, crop, batch, count = SIZES[name]
    count = images or count
    root = directory / name
    make(root, size, suffix, count)
    places = {"files": directory / f"{name}-files", "raw": directory / f"{name}-raw"}
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        for store, out in places.items():
            prepare("Folder", str(root), out, store, ["train"])
    pairs = Folder(root=str(root)).split("train").pairs
    ways = {"usual": lambda n: DataLoader(Usual(pairs, crop), batch, shuffle=True, num_workers=n, persistent_workers=n > 0)}
    ways["ours, files"] = lambda n: build_loader(root, crop, batch, n)
    ways["ours, shards mapped"] = lambda n: build_loader(places["files"], crop, batch, n)
    ways["ours, shards streamed"] = lambda n: build_loader(places["files"], crop, batch, n, True)
    ways["ours, raw store"] = lambda n: build_loader(places["raw"], crop, batch, n)
    found = {(way, n): [] for way in ways for n in (0, 1, 2)}
    limit = []
    for _ in range(repeats):
        start = time.perf_counter()
        decode(pairs)
        limit.append(count / (time.perf_counter() - start))
        for (way, n), rates in found.items():
            rates.append(measure_rate(ways[way](n)))
    decoded = median(limit)
    print(f"\n{name}: {size[0]} x {size[1]} {suffix}, crop {crop[0]} x {crop[1]}; decoding {decoded:.0f} images per second")
    print(f"{'':24}{'no worker':>10}{'1 worker':>10}{'2 workers':>11}{'of decoding':>13}{'against usual':>15}")
    for way in ways:
        alone, one, two = (median(found[way, n]) for n in (0, 1, 2))
        usual = median(found["usual", 0])
        print(f"{way:24}{alone:10.0f}{one:10.0f}{two:11.0f}{100 * alone / decoded:11.0f} %{alone / usual:13.1f} x")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="*", metavar="SIZE", help=f"{', '.join(SIZES)}; all if not given")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, help="of a measurement, in place of the usual number")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        os.environ["HF_DATASETS_CACHE"] = f"{directory}/cache"
        for name in options.sizes or SIZES:
            measure(name, Path(directory), options.repeats, options.images)


if __name__ == "__main__":
    sys.exit(main())
