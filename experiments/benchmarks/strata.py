"""Time per image of `Trainer.test` with and without the counts by object size and boundary distance, reading included.

Narrow networks after a few steps of training, so that they predict regions of all sizes: on Shapes (64 x 320), and on images
of random shapes in the sizes of VOC and Cityscapes (JPEG, masks as PNG). On one thread, or a GPU (--accelerator gpu).

run:    python experiments/benchmarks/strata.py
"""

import argparse
import os
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image, ImageDraw

from dilated_seg.cli import CLI
from dilated_seg.runs.experiments import EXPERIMENTS

# By name: an experiment on Shapes; or the number of generated images, their size, number of classes and of shapes in each.
SHAPES = {
    "DeepLab": "shapes/deeplab", "FCN-32s": "shapes/fcn32s", "SegNet": "shapes/segnet", "DilatedNet": "shapes/dilatednet"
}  # fmt: skip
GENERATED = {"VOC-sized": (24, (375, 500), 21, 30), "Cityscapes-sized": (4, (1024, 2048), 19, 150)}


def write_images(root, images, size, classes, shapes):
    """Draw noisy ellipses and rectangles in the colours of their classes, each with an unlabelled rim."""
    rng = np.random.default_rng(0)
    height, width = size
    colours = rng.integers(0, 256, (256, 3))
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for i in range(images):
        mask = Image.new("L", (width, height))
        draw = ImageDraw.Draw(mask)
        for _ in range(shapes):
            x, y = rng.integers(0, (width, height))
            w, h = (height * 0.5 * rng.random(2) ** 3).astype(int) + 2
            shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
            shape((x - w, y - h, x + w, y + h), int(rng.integers(classes)), 255, width=2)
        noisy = colours[np.asarray(mask)] + rng.normal(0, 40, (height, width, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(root / f"images/{i}.jpg")
        mask.save(root / f"masks/{i}.png")
    (root / "classes.yaml").write_text(f"classes: [{', '.join(f'class {k}' for k in range(classes))}]\n")
    for split in ("train", "val", "test"):
        (root / f"{split}.txt").write_text("".join(f"{i}\n" for i in range(images)))


def train(experiment, run, options, *flags):
    """Train an experiment for a few steps; return its CLI, which holds trainer, task and data module."""
    quiet = ["--trainer.logger=false", "--trainer.callbacks=null", "--trainer.enable_progress_bar=false"]
    steps = [
        f"--trainer.max_steps={options.steps}",
        "--trainer.limit_val_batches=0",
        f"--trainer.accelerator={options.accelerator}",
    ]
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing):
        return CLI(["fit", "--config", str(EXPERIMENTS / f"{experiment}.yaml"), *steps, *quiet, *flags, "--run_dir", str(run)])


def compare(name, cli, rounds):
    """Print the time per image with and without stratified counts, in turns, so that load on the machine slows both."""
    nothing = patch("dilated_seg.training.evaluation.count_batch", lambda batch, *_: [None] * len(batch["id"]))
    images = len(cli.datamodule.split("test"))
    found = {True: [], False: []}
    for _ in range(rounds + 1):
        for counting in found:
            if not counting:
                nothing.start()
            start = time.perf_counter()
            cli.trainer.test(cli.model, cli.datamodule, verbose=False)
            found[counting].append((time.perf_counter() - start) / images)
            if not counting:
                nothing.stop()
    within, without = (median(found[counting][1:]) for counting in (True, False))
    print(
        f"{name:28}{1000 * without:8.2f} ms an image,{1000 * within:8.2f} stratified:{within / without:6.2f} times", flush=True
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=[*SHAPES, *GENERATED], help=f"{', '.join([*SHAPES, *GENERATED])}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60, help="of training before")
    parser.add_argument("--accelerator", default="cpu")
    options = parser.parse_args()
    os.environ["WANDB_MODE"] = "disabled"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        for name in options.names:
            root = Path(place) / name
            if name in SHAPES:
                compare(f"Shapes, {name}", train(SHAPES[name], root, options), options.rounds)
                continue
            write_images(root / "data", *GENERATED[name])
            (root / "data.yaml").write_text(
                f"class_path: Folder\ninit_args: {{root: {root / 'data'}, batch_size: 4, "
                "augmentation: {class_path: ScaleAndCrop, init_args: {crop_size: [128, 128]}}}\n"
            )
            flags = [f"--data={root / 'data.yaml'}", "--model.class_weights=null"]
            compare(f"{name}, DilatedNet", train("shapes/dilatednet", root / "run", options, *flags), options.rounds)


if __name__ == "__main__":
    main()
