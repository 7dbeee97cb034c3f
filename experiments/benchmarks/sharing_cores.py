"""Training runs that share cores: one or two at once, of two threads or one, whose idle threads spin, sleep, or spin briefly.

A run repeats SegNet's step, on random images of the size that Shapes has. All settings are measured in turn, several rounds in
one call, and medians are printed. They mean something on an idle machine of two cores (pin a larger one with `taskset -c 0,1`).

libgomp, torch's OpenMP runtime, lets a thread without work spin about 300,000 times before it sleeps. OMP_WAIT_POLICY=PASSIVE
makes that 0, GOMP_SPINCOUNT any number. KMP_BLOCKTIME is of another runtime and changes nothing.

run:    python experiments/benchmarks/sharing_cores.py            (about 13 minutes; not measured on an idle machine yet)
        python experiments/benchmarks/sharing_cores.py --steps 4 --rounds 1
"""

import argparse
import os
import subprocess
import sys
import time
from statistics import median

import torch
import torch.nn.functional as F

from dilated_seg.models import SegNet
from dilated_seg.training.processes import keep_memory

SETTINGS = {  # what OpenMP reads when torch is imported
    "two threads, spinning": {"OMP_NUM_THREADS": "2"},
    "two threads, passive": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"},
    "two threads, brief spinning": {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "10000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
WARM_UP = 3  # steps


def work(steps, size, batch, width):
    """One run: print the seconds of a step, and those of processor time, once the other end says that all are ready."""
    keep_memory()
    torch.manual_seed(0)
    net = SegNet(8, width=width).to(memory_format=torch.channels_last)
    image = torch.rand(batch, 3, *size).contiguous(memory_format=torch.channels_last)
    mask = torch.randint(0, 8, (batch, *size))
    optimizer = torch.optim.AdamW(net.parameters())
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            print("ready", flush=True)
            sys.stdin.readline()
            start, cpu = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        F.cross_entropy(net(image), mask).backward()
        optimizer.step()
    print((time.perf_counter() - start) / steps, (time.process_time() - cpu) / steps, flush=True)


def measure(environment, runs, arguments):
    """The mean seconds of a step of runs at once, and of its processor time."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    command = [sys.executable, __file__, "--work", *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, env=clean | environment, **pipes) for _ in range(runs)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    times = [[float(word) for word in process.communicate()[0].split()] for process in processes]
    return [sum(column) / runs for column in zip(*times, strict=True)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, nargs=2, default=(64, 320))
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--width", type=float, default=0.125)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options.steps, options.size, options.batch, options.width)
    sizes = {"steps": [options.steps], "size": options.size, "batch": [options.batch], "width": [options.width]}
    arguments = [word for name, values in sizes.items() for word in (f"--{name}", *map(str, values))]
    rows = [(name, environment, runs) for runs in (1, 2) for name, environment in SETTINGS.items()]
    print(f"load of the machine before: {os.getloadavg()[0]:.1f}, on {len(os.sched_getaffinity(0))} cores\n")
    rounds = [[measure(environment, runs, arguments) for _, environment, runs in rows] for _ in range(options.rounds)]
    medians = [[median(values) for values in zip(*row, strict=True)] for row in zip(*rounds, strict=True)]
    best = medians[0][0]  # of one run with two spinning threads: what torch does by default
    print("| runs at once | each with | ms a step | processor ms a step | work, relative |\n|---:|---|---:|---:|---:|")
    for (name, _, runs), (seconds, cpu) in zip(rows, medians, strict=True):
        print(f"| {runs} | {name} | {1000 * seconds:.0f} | {1000 * cpu:.0f} | {runs * best / seconds:.2f} |")


if __name__ == "__main__":
    main()
