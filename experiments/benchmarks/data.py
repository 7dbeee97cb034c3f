"""Images per second from files to training crops: ours from directories, shards, streams and raw stores, and the usual way.

For images of the sizes of VOC, CamVid and Cityscapes, made here, each with its label: scaled by 0.5 to 2, cropped, mirrored.
"Decoding" is the limit: opening image and label with Pillow and nothing else, in one process. "Usual" is what most code does:
Pillow images through torchvision's transforms, one after the other, to a normalised float tensor. All ways take turns, so
that a machine that is busy for a while is so for all; ratios are of one run.

A second table compares decoders of the images in our way (from directories, in one process, masks by Pillow): processor time of
an image, with augmentation, and the largest difference of a pixel from Pillow's. A last line flips one bit of files and
counts, in a process of its own, what each decoder does with them. simplejpeg and opencv-python-headless are optional.

run:    python experiments/benchmarks/data.py [voc] [camvid] [cityscapes]
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from dilated_seg.data import Folder
from dilated_seg.data.decode import read_image
from dilated_seg.data.prepare import prepare
from dilated_seg.data.transforms import ScaleAndCrop

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Height and width, kind of file, crop, batch, images for a measurement.
SIZES = {
    "voc": ((375, 500), "jpg", (480, 480), 8, 240),
    "camvid": ((360, 480), "png", (256, 320), 4, 120),
    "cityscapes": ((1024, 2048), "png", (628, 628), 4, 48),
}
DAMAGED = 40  # files


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


def read_simplejpeg(path):
    import simplejpeg

    return torch.from_numpy(simplejpeg.decode_jpeg(path.read_bytes())).permute(2, 0, 1)


def read_opencv(path):
    import cv2

    bgr = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    return torch.from_numpy(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)).permute(2, 0, 1)


def list_decoders(suffix):
    """Return the decoders of a kind of file that are installed."""
    found = {"Pillow": read_image}
    found |= {"simplejpeg": read_simplejpeg} if suffix == "jpg" and find_spec("simplejpeg") else {}
    return found | ({"OpenCV": read_opencv} if find_spec("cv2") else {})


def compare_decoders(name, directory, repeats):
    """Print the processor time of an image in the whole pipeline, and the limit (decoding alone), for each decoder."""
    _, suffix, crop, batch, _ = SIZES[name]
    root = directory / name
    pairs, decoders = Folder(root=str(root)).split("train").pairs, list_decoders(suffix)
    times = {(decoder, what): [] for decoder in decoders for what in ("alone", "pipeline")}
    for _ in range(repeats + 1):  # the first one warms up
        for decoder, read in decoders.items():
            start = time.process_time()
            for _, image, _ in pairs:
                read(image)
            times[decoder, "alone"].append((time.process_time() - start) / len(pairs))
            loader = build_loader(root, crop, batch, 0)
            with patch("dilated_seg.data.pairs.read_image", read):
                start = time.process_time()
                seen = sum(len(batch["image"]) for batch in loader)
                times[decoder, "pipeline"].append((time.process_time() - start) / seen)
    print(f"\n{name}: processor time of an image, ms{'':6}{'alone':>10}{'pipeline':>10}{'gain':>8}{'largest difference':>20}")
    usual = median(times["Pillow", "pipeline"][1:])
    for decoder, read in decoders.items():
        alone, whole = (1000 * median(times[decoder, what][1:]) for what in ("alone", "pipeline"))
        difference = max(int((read(p[1]).int() - read_image(p[1]).int()).abs().max()) for p in pairs[:20])
        gain = 100 * (1 - whole / 1000 / usual)
        print(f"{decoder:40}{alone:10.2f}{whole:10.2f}{gain:6.0f} %{difference:20d}")
    for decoder in decoders:
        print(f"{decoder}, {DAMAGED} files with one wrong bit: {damage(decoder, pairs[0][1])}")


def damage(decoder, path):
    """Return what a decoder does with damaged copies of a file, in a process that it may end."""
    counts = multiprocessing.get_context("spawn").Array("i", 3)  # begun, decoded, error raised
    crashes = 0
    while counts[0] < DAMAGED:
        process = multiprocessing.get_context("spawn").Process(target=decode_damaged, args=(decoder, path, counts))
        process.start()
        process.join()
        crashes += process.exitcode != 0
    return f"{counts[1]} decoded, {counts[2]} errors, {crashes} crashes of the process"


def decode_damaged(decoder, path, counts):
    """Decode the damaged copies that remain; each is counted before it is decoded, so that a crash is not repeated."""
    content, read = path.read_bytes(), list_decoders(path.suffix[1:])[decoder]
    copy = path.with_name(f"damaged-{decoder}{path.suffix}")
    while counts[0] < DAMAGED:
        rng = np.random.default_rng(counts[0])
        counts[0] += 1
        broken = bytearray(content)
        broken[rng.integers(len(broken))] ^= 1 << int(rng.integers(8))
        copy.write_bytes(broken)
        try:
            read(copy)
            counts[1] += 1
        except Exception:
            counts[2] += 1
    copy.unlink()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="*", metavar="SIZE", help=f"{', '.join(SIZES)}; all if not given")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, help="of a measurement, in place of the usual number")
    parser.add_argument("--decoders", action="store_true", help="only the table of decoders")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        os.environ["HF_DATASETS_CACHE"] = f"{directory}/cache"
        for name in options.sizes or SIZES:
            if options.decoders:
                make(Path(directory) / name, *SIZES[name][:2], options.images or SIZES[name][4])
            else:
                measure(name, Path(directory), options.repeats, options.images)
            compare_decoders(name, Path(directory), options.repeats)


if __name__ == "__main__":
    sys.exit(main())
