"""Seconds and memory of DenseCRF for an image of 375 x 500 and 10 iterations, and of pydensecrf if it can be imported.

The image is drawn (Shapes, 21 classes), its probabilities are its blurred mask and noise; with fewer classes, the first of
them. Ways take turns, so that a machine that is busy for a while is so for all; ratios are of one run. "CPU" is the time that
all threads worked, which a busy machine changes least; pydensecrf has one thread. Memory is the peak above what was there
before the first call, in a process of its own. Both must give the same labels on 99.9 % of pixels, which is checked.

pydensecrf is not a dependency; this fork compiles on most machines: pip install pydensecrf2==1.1

Threads wait for each other by spinning, which takes many times as long as the work itself where other processes use the cores:
OMP_WAIT_POLICY=PASSIVE lets them sleep.

run:    OMP_NUM_THREADS=1 python experiments/benchmarks/crf.py   (for as many threads as that says)
"""

import argparse
import os
import resource
import time
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F

from dilated_seg.crf import DenseCRF
from dilated_seg.crf.dense_crf import DEEPLAB
from dilated_seg.data.shapes import draw

try:
    from pydensecrf.densecrf import DenseCRF2D
    from pydensecrf.utils import unary_from_softmax
except ImportError:
    DenseCRF2D = None

CLASSES = 21
DEFAULT = {"w1": 10.0, "theta_alpha": 80.0, "theta_beta": 13.0, "w2": 3.0, "theta_gamma": 3.0}


def example(size):
    """An image (1, 3, H, W) and probabilities (1, C, H, W) as a network of stride 8 gives them."""
    image, mask = draw(size, CLASSES, np.random.default_rng(0))
    scores = F.one_hot(torch.from_numpy(mask).long() % 255, CLASSES).permute(2, 0, 1)[None].float()
    coarse = F.interpolate(scores, scale_factor=1 / 8, mode="area") * 4
    coarse += torch.randn(coarse.shape, generator=torch.Generator().manual_seed(0))
    logits = F.interpolate(coarse, size, mode="bilinear")
    return torch.from_numpy(image).permute(2, 0, 1)[None].contiguous(), logits.softmax(1)


def run_dense_crf(image, probabilities, numbers):
    return DenseCRF(**numbers)(probabilities, image)[0]


def pydensecrf(image, probabilities, numbers):
    _, classes, height, width = probabilities.shape
    crf = DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(probabilities[0].numpy())))
    crf.addPairwiseGaussian(sxy=numbers["theta_gamma"], compat=numbers["w2"])
    rgb = np.ascontiguousarray(image[0].permute(1, 2, 0).numpy())
    crf.addPairwiseBilateral(sxy=numbers["theta_alpha"], srgb=numbers["theta_beta"], rgbim=rgb, compat=numbers["w1"])
    return torch.from_numpy(np.array(crf.inference(10)).reshape(classes, height, width))


def training(image, probabilities, numbers):
    """CRF-RNN: 5 iterations, forward and backward."""
    crf = DenseCRF(5, **numbers, num_classes=probabilities.shape[1], learnable=True)
    crf(probabilities.clone().requires_grad_(), image).square().sum().backward()


def peak(way, *example):
    """Megabytes that a call adds at its peak, seen in a process of its own."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        way(*example)
        os.write(write, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before).encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    return 1024 * int(os.read(read, 100)) / 1e6


def time_call(way, *example):
    """Seconds of the clock and of all threads' work."""
    clock, work = time.perf_counter(), time.process_time()
    way(*example)
    return time.perf_counter() - clock, time.process_time() - work


def cases(size):
    """By title: the ways to compare, and their example."""
    image, everything = example(size)
    ways = {"DenseCRF": run_dense_crf} | ({"pydensecrf": pydensecrf} if DenseCRF2D else {})
    for title, numbers in (("default", DEFAULT), ("DeepLab", DEEPLAB)):
        for classes in (CLASSES, 12, 2):
            probabilities = everything[:, :classes] / everything[:, :classes].sum(1, keepdim=True)
            yield f"{title}, {classes} classes", ways, (image, probabilities, numbers)
    yield f"CRF-RNN, {CLASSES} classes", {"a training step": training}, (image, everything, DEFAULT)


def compare(title, ways, example, memory, rounds):
    if len(ways) == 2:
        labels = [way(*example).argmax(0) for way in ways.values()]
        assert (labels[0] == labels[1]).double().mean() >= 0.999, title
    found = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(time_call(way, *example))
    middle = {name: [median(times) for times in zip(*pairs, strict=True)] for name, pairs in found.items()}
    for name, (clock, work) in middle.items():
        line = f"{title:20}{name:16}{1000 * clock:6.0f} ms{1000 * work:6.0f} ms CPU{memory[name]:6.0f} MB more memory"
        if name == "DenseCRF" and "pydensecrf" in middle:
            line += f"   {middle['pydensecrf'][0] / clock:.2f} times as fast, {middle['pydensecrf'][1] / work:.2f} by CPU"
        print(line, flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, nargs=2, default=(375, 500))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)  # none is started before the processes that measure memory, nor is there memory to spare
    everything = list(cases(tuple(options.size)))
    threads = int(os.environ.get("OMP_NUM_THREADS", 1))
    torch.set_num_threads(threads)
    print(f"{threads} threads")
    memory = [{name: peak(way, *example) for name, way in ways.items()} for _, ways, example in everything]
    for (title, ways, example), extra in zip(everything, memory, strict=True):
        compare(title, ways, example, extra, options.rounds)


if __name__ == "__main__":
    main()
