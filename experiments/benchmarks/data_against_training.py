"""Is the data ever the bottleneck?  Time to draw or read an image against time to train on it, in one run, on one thread.

run:    python experiments/benchmarks/data_against_training.py
"""

import os
import time
from statistics import median

import torch

from dilated_seg.data import CamVid, Shapes
from dilated_seg.data.transforms import ScaleAndCrop
from dilated_seg.models import FCN, DeconvNet, DeepLabV1, DilatedNet, SegNet
from dilated_seg.task import SegmentationTask
from dilated_seg.training.processes import keep_memory

NETWORKS = {
    "FCN-32s, width 1/16": lambda: FCN(8, 32, width=1 / 16),
    "DeepLab, width 1/16": lambda: DeepLabV1(8, width=1 / 16),
    "DilatedNet, width 1/16": lambda: DilatedNet(8, width=1 / 16),
    "SegNet, width 1/8": lambda: SegNet(8, width=1 / 8),
    "DeconvNet, width 1/8": lambda: DeconvNet(8, width=1 / 8),
}


def seconds(work, repeats):
    """Median time of a call after one that warms up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times)


def step(net, batch):
    task = SegmentationTask(net, 8)
    optimizer = torch.optim.AdamW(net.parameters())

    def train():
        total, valid = task.loss_sum(task(batch["image"]), batch["mask"])
        optimizer.zero_grad()
        (total / valid).backward()
        optimizer.step()

    return train


def main():
    torch.set_num_threads(1)
    keep_memory()
    data = Shapes(batch_size=8)
    loader = iter(data.train_dataloader())
    batch = next(loader)
    image = seconds(lambda: next(loader), 20) / 8
    print(f"Shapes {data.size[0]} x {data.size[1]}, augmented: {1000 * image:.2f} ms an image")
    for name, build in NETWORKS.items():
        training = seconds(step(build(), batch), 5) / 8
        print(f"  {name:24}{1000 * training:7.2f} ms an image to train on: {training / image:5.1f} times the drawing")
    if os.environ.get("DILATED_SEG_CAMVID"):
        data = CamVid(batch_size=4, augmentation=ScaleAndCrop((256, 320), (0.6, 1.4), jitter=0.3))
        loader = iter(data.train_dataloader())
        print(f"CamVid, scaled, cropped, jittered: {1000 * seconds(lambda: next(loader), 10) / 4:.2f} ms an image")


if __name__ == "__main__":
    main()
