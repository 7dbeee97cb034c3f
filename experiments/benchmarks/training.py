"""A training step of each network in float32, with channels last, in bfloat16 and compiled, as ratios in one run.

On a GPU: wall time, peak memory, and the share of the rate that the same GPU reaches on a large matrix product in bfloat16.
On a CPU: processor time on one thread, which other programs do not disturb.

run:    python experiments/benchmarks/training.py                                     (a GPU: full width, 8 crops of 320 x 320)
        python experiments/benchmarks/training.py --width 0.125 --size 192 240 --batch 4      (a CPU)
        ... --compile                                                                         (minutes more for each network)
"""

import argparse
import time
from contextlib import nullcontext
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from dilated_seg.commands.text import parse_network
from dilated_seg.task import SegmentationTask
from dilated_seg.training.processes import keep_memory

NETWORKS = ("FCN", "DeconvNet", "SegNet", "UNet", "FCDenseNet", "DeepLabV1", "DilatedNet")
WAYS = {
    "float32": (torch.contiguous_format, False, False),
    "channels last": (torch.channels_last, False, False),
    "bfloat16": (torch.channels_last, True, False),
    "compiled": (torch.channels_last, True, True),
}
REPEATS = 5


def clock(device):
    """Seconds on this device so far."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def step(net, memory_format, bfloat16, image, mask):
    """A training step as SegmentationTask takes it, but for logging."""
    net.to(memory_format=memory_format).train()
    image = image.contiguous(memory_format=memory_format)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    task = SegmentationTask(torch.nn.Identity(), 11)

    def train():
        with torch.autocast(image.device.type, torch.bfloat16) if bfloat16 else nullcontext():
            logits = net(image).float()
        total, valid = task.loss_sum(logits, mask)
        optimizer.zero_grad()
        (total / valid).backward()
        optimizer.step()

    return train


def seconds(work, device):
    """Median time of a call after two that warm up."""
    work()
    work()
    times = []
    for _ in range(REPEATS):
        start = clock(device)
        work()
        times.append(clock(device) - start)
    return median(times)


def matrix_rate(device):
    """Operations a second of a large product of matrices in bfloat16."""
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / seconds(lambda: a @ b, device)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--width", default="1")
    parser.add_argument("--size", type=int, nargs=2, default=(320, 320))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    keep_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    rate = matrix_rate(device) if device.type == "cuda" else 0.0
    image = torch.randn(options.batch, 3, *options.size, device=device)
    mask = torch.randint(0, 11, (options.batch, *options.size), device=device)
    height, width = options.size
    print(f"{options.batch} x {height} x {width}, width {options.width}, torch {torch.__version__}, {device.type}")
    for name in options.networks:
        first = None
        for way, (memory_format, bfloat16, compiled) in WAYS.items():
            if compiled and not options.compile:
                continue
            net = parse_network(f"{name}(11, width={options.width})", device.type)
            work = step(net, memory_format, bfloat16, image, mask)
            with FlopCounterMode(display=False) as counter:
                work()
            if compiled:
                net.compile()
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            each = seconds(work, device)
            first = first or each
            line = f"{name:12}{way:15}{options.batch / each:9.2f} images/s{first / each:7.2f} times float32"
            if rate:
                share = counter.get_total_flops() / each / rate
                line += f"{torch.cuda.max_memory_allocated() / 1e9:8.1f} GB{share:8.1%} of the matrix rate"
            print(line, flush=True)


if __name__ == "__main__":
    main()
