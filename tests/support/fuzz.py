"""Damaged Caffe models and what the reader makes of them: ``python -m tests.support.fuzz FILES SEED FOLDER``.

In a process of its own, where no types are checked, reading ten thousand takes seconds.
"""

import resource
import sys
import tracemalloc
import warnings
from pathlib import Path

import numpy as np

from dilated_seg.errors import CorruptError
from dilated_seg.weights import read
from dilated_seg.weights.caffemodel import read_layers
from tests.support.caffe_writer import caffemodel, chunk, integer, varint

ROOM = 1 << 30  # of addresses, beside what importing torch took

SMALL = {"conv1": [np.ones((2, 3, 3, 3)), np.ones(2)], "score": [np.ones((2, 2, 1, 1)), np.ones(2)]}
VALID = [
    caffemodel(SMALL, "v1"), caffemodel(SMALL), caffemodel(SMALL, packed=False), caffemodel(SMALL, "v1", False),
    chunk(100, chunk(1, b"double") + chunk(7, chunk(7, chunk(1, varint(6))) + chunk(8, np.ones(6).tobytes()))),
]  # fmt: skip


def nested(rng, depth):
    """A message in a message, and so on, of fields that mean something at one depth or another."""
    number = int(rng.choice([1, 2, 4, 5, 6, 7, 8, 100]))
    if depth == 0:
        return integer(number, int(rng.integers(2**62)) >> int(rng.integers(62)))
    return chunk(number, b"".join(nested(rng, depth - 1) for _ in range(rng.integers(1, 4))))


def repeated(rng):
    """A layer that says one small thing very often."""
    empty = [
        chunk(7, b""), chunk(7, chunk(5, b"")), chunk(5, b""), chunk(7, chunk(5, bytes(4))), chunk(1, "\U0001f600".encode()),
        integer(1, 300), chunk(7, integer(1, 2**40)), chunk(7, chunk(7, integer(1, 300) * 9)), chunk(8, bytes(8)),
    ]  # fmt: skip
    said = empty[rng.integers(len(empty))] * int(rng.integers(1, 10_000))
    inside = [said, chunk(7, said), chunk(1, said), chunk(7, chunk(7, said)), chunk(7, chunk(7, chunk(1, said)))]
    if rng.integers(3) == 0:  # many layers instead of one
        return b"".join(chunk(100, chunk(1, varint(n)) + chunk(7, b"")) for n in range(rng.integers(1, 4000)))
    return chunk(100, inside[rng.integers(len(inside))])


def damaged(rng, trial):
    """A file that a Caffe model became by a few of many kinds of damage."""
    content = bytearray(VALID[trial % len(VALID)])
    for _ in range(rng.integers(1, 3)):
        place, kind = int(rng.integers(len(content) + 1)), rng.integers(7)
        if kind == 0:  # flipped bits
            for at in rng.integers(len(content), size=rng.integers(1, 6)) if content else ():
                content[at] ^= 1 << rng.integers(8)
        elif kind == 1:  # cut short
            del content[place:]
        elif kind == 2:  # a length or size blown up
            content[place : place + 1] = varint(int(rng.integers(2**63)) >> int(rng.integers(63)))
        elif kind == 3:  # a number without an end
            content[place:place] = b"\xff" * int(rng.integers(1, 40))
        elif kind == 4:
            content[place:place] = nested(rng, rng.integers(1, 5))
        elif kind == 5:  # bytes taken out
            del content[place : place + int(rng.integers(1, 20))]
        else:  # sizes that lie
            lie = b"".join(integer(int(n), 2 ** int(rng.integers(63))) for n in rng.integers(1, 5, rng.integers(1, 5)))
            content += chunk(100, chunk(1, b"liar") + chunk(7, lie + chunk(5, bytes(4 * int(rng.integers(5))))))
    return bytes(content)


def fuzz_caffe(path, files, seed=0):
    """Reads that many files: how many were read and how many refused; each within 4 times its size and 1 MiB of memory."""
    rng, outcomes = np.random.default_rng(seed), {"read": 0, "refused": 0}
    path.write_bytes(VALID[0])
    read(path)  # what is imported or cached once
    tracemalloc.start()
    try:
        with path.open("w+b") as file:
            for trial in range(files):
                content = repeated(rng) if trial % 250 == 0 else damaged(rng, trial)
                file.seek(0)
                file.write(content)
                file.truncate()
                file.flush()
                tracemalloc.reset_peak()
                before = tracemalloc.get_traced_memory()[0]
                try:
                    layers = read_layers(file)
                    assert sum(tensor.nbytes for part in layers.values() for tensor in part.values()) <= len(content)
                    outcomes["read"] += 1
                except CorruptError as error:
                    assert len(str(error)) < 5000
                    outcomes["refused"] += 1
                peak = tracemalloc.get_traced_memory()[1] - before
                assert peak <= 4 * len(content) + (1 << 20), (trial, len(content), peak)
                layers = {}
    finally:
        tracemalloc.stop()
    return outcomes


if __name__ == "__main__":
    warnings.simplefilter("error")
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, taken + ROOM))
    print(fuzz_caffe(Path(sys.argv[3]) / "fuzzed.caffemodel", int(sys.argv[1]), int(sys.argv[2])))
