"""A training step of each network in float32, with channels last, in bfloat16 and compiled, as ratios in one run.

Peak memory, and the share of the rate that the same device reaches on a large matrix product: in bfloat16 on a GPU, in float32
on a CPU. On a GPU by wall time; on a CPU by processor time on one thread, which other programs disturb least, each network in
a process of its own. It needs torch and jaxtyping alone. With --others, networks of torchvision and segmentation_models_pytorch
too, where installed: they have other layers, so compare the share, not the images a second.

run:    python experiments/benchmarks/training.py                                     (a GPU: full width, 8 crops of 320 x 320)
        python experiments/benchmarks/training.py --width 0.125 --size 192 240 --batch 4      (a CPU)
        ... --compile                                                                         (minutes more for each network)
"""

import argparse
import csv
import importlib.util
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from dilated_seg import models

NETWORKS = ("FCN", "DeconvNet", "SegNet", "UNet", "FCDenseNet", "DeepLabV1", "DilatedNet")
OTHERS = {
    "torchvision.models.segmentation.fcn_resnet50": {"num_classes": 11, "weights": None, "weights_backbone": None},
    "torchvision.models.segmentation.deeplabv3_resnet50": {"num_classes": 11, "weights": None, "weights_backbone": None},
    "segmentation_models_pytorch.Unet": {"encoder_name": "vgg16", "encoder_weights": None, "classes": 11},
}
WAYS = {
    "float32": (torch.contiguous_format, False, False),
    "channels last": (torch.channels_last, False, False),
    "bfloat16": (torch.channels_last, True, False),
    "compiled": (torch.channels_last, True, True),
}
COLUMNS = ("network", "way", "images/s", "times float32", "memory, GB", "share of the matrix rate")
REPEATS = 5


def clock(device):
    """Return the time in seconds: of the clock once a GPU has finished, otherwise of this process's CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def step(net, memory_format, bfloat16, image, mask):
    """Return a function that takes a training step: the loss of `SegmentationTask`, its gradient, SGD."""
    net.to(memory_format=memory_format).train()
    image = image.contiguous(memory_format=memory_format)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)

    def train():
        with torch.autocast(image.device.type, torch.bfloat16) if bfloat16 else nullcontext():
            logits = net(image)
        logits = (logits["out"] if isinstance(logits, dict) else logits).float()  # torchvision's
        optimizer.zero_grad()
        F.cross_entropy(logits, mask, ignore_index=255).backward()
        optimizer.step()

    return train


def seconds(work, device):
    """Return the median time of a call after two that warm up."""
    work()
    work()
    times = []
    for _ in range(REPEATS):
        start = clock(device)
        work()
        times.append(clock(device) - start)
    return median(times)


def matrix_rate(device):
    """Return the operations a second of a large product of matrices: in bfloat16 on a GPU, in float32 on a CPU."""
    side, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / seconds(lambda: a @ b, device)


def build(name, width):
    """Build one of our networks, or one of another package by its import path, with 11 classes."""
    if name not in OTHERS:
        return getattr(models, name)(11, width=width)
    module, _, function = name.rpartition(".")
    return getattr(importlib.import_module(module), function)(**OTHERS[name])


def is_installed(name):
    """Return whether the package of a network can be imported."""
    return importlib.util.find_spec(name.partition(".")[0]) is not None


def measure(name, way, options, device, rate):
    """Return images a second, memory in GB, and the share of the matrix rate."""
    memory_format, bfloat16, compiled = WAYS[way]
    torch.manual_seed(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    image = torch.randn(options.batch, 3, *options.size, device=device)
    mask = torch.randint(0, 11, (options.batch, *options.size), device=device)
    with device:
        net = build(name, options.width)
    work = step(net, memory_format, bfloat16, image, mask)
    with FlopCounterMode(display=False) as counter:
        work()
    if compiled:
        net.compile()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    each = seconds(work, device)
    memory = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else memory
    return options.batch / each, memory / 1e9, counter.get_total_flops() / each / rate


def measure_apart(*arguments):
    """Call `measure` in a process of its own, whose peak memory is that of this network."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(measure, *arguments).result()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--size", type=int, nargs=2, default=(320, 320))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--others", action="store_true", help="networks of other packages too, at their own width")
    parser.add_argument("--compile", action="store_true", help="last of all, as it takes longest")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=1e9, help="after which no further measurement begins")
    parser.add_argument("--out", type=Path, help="a CSV file, written after every measurement")
    options = parser.parse_args()
    start = time.perf_counter()
    device = torch.device(options.device)
    torch.set_num_threads(1)
    rate = matrix_rate(device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, one thread"
    height, width = options.size
    print(
        f"{options.batch} x {height} x {width}, width {options.width:g}, torch {torch.__version__}, {where}, "
        f"matrix rate {rate / 1e12:.3g} TFLOP/s"
    )
    networks = [*options.networks, *(filter(is_installed, OTHERS) if options.others else ())]
    rows, first = [], {}
    for way, name in [(way, name) for way in WAYS for name in networks]:
        if way == "compiled" and not options.compile:
            continue
        if time.perf_counter() - start > options.seconds:
            print(f"not measured in {options.seconds:.0f} s: {name} {way}", flush=True)
            continue
        try:
            speed, memory, share = (measure if device.type == "cuda" else measure_apart)(name, way, options, device, rate)
        except torch.cuda.OutOfMemoryError:
            print(f"{name:20}{way:15}out of memory", flush=True)
            continue
        ratio = speed / first.setdefault(name, speed)
        rows.append(
            [name, way, f"{speed:.3g}", f"{ratio:.2f}", *("" if one is None else f"{one:.3f}" for one in (memory, share))]
        )
        more = "" if memory is None else f"{memory:8.1f} GB{share:8.1%} of the matrix rate"
        print(f"{name:12}{way:15}{speed:9.2f} images/s{ratio:7.2f} times float32{more}", flush=True)
        if options.out:
            with options.out.open("w", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main()
