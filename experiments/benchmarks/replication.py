"""Check by replication that intervals hold: analyze three of ten seeds of each network, and compare with three others.

`NETWORKS` are trained with ten seeds on small images, one of them twice ("again"), with other seeds. Some seeds run in
`ENVIRONMENTS` with other kernels or another number of threads, which stand for other machines. Each of the 120 groups of three
seeds is analyzed as a report does, and compared with what each group of three of the other seeds measured: 4,200 ordered pairs
of groups. They overlap, so they hold the evidence of fifty trainings, not of thousands.

For each pair of networks the table has: the difference over all seeds; in percent, how often the difference of the other group
is in the interval of the training procedures ("interval") and in the one that predicts it ("repeat"; "foreign": of groups
without a common environment), how often the difference over all seven other seeds is in the former ("seven"), how often that
of two single other trainings is in the interval that predicts it ("new"), and how often that of one seed is in the interval
of another one ("one seed": these weights, other images); how often a group tells the networks apart ("apart"), and how often
two groups do so in opposite directions ("opposite").

run:    python experiments/benchmarks/replication.py train      what is missing in runs/replication; then writes RESULTS
        python experiments/benchmarks/replication.py compare    prints the tables from RESULTS, in seconds
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dilated_seg.analysis.bootstrap import Bootstrap
from dilated_seg.analysis.resampling import count_pixels, mean_iou
from dilated_seg.runs import Run
from dilated_seg.storage import atomic_path

RESULTS = Path(__file__).parents[1] / "results/replication.parquet"
SEEDS, GROUP = 10, 3
RESAMPLES = 2000  # of each bootstrap; with 500, the smallest p-value times ten pairs is hardly below 5 %
DRAWS = 200  # of two groups of the copies' twenty trainings
WORDS = ("interval", "repeat", "foreign", "seven", "new", "one seed", "apart", "opposite")
NETWORKS = {  # class, arguments, learning rate, steps
    "FC-DenseNet-56": ("FCDenseNet", {"depth": 56, "width": 0.25}, 1e-2, 80),
    "SegNet-Basic": ("SegNetBasic", {"width": 0.125}, 1e-2, 200),
    "FCN-8s": ("FCN", {"stride": 8, "width": 0.0625, "dropout": 0.0}, 4e-3, 200),
    "FCN-8s again": ("FCN", {"stride": 8, "width": 0.0625, "dropout": 0.0}, 4e-3, 200),
    "FCN-16s": ("FCN", {"stride": 16, "width": 0.0625, "dropout": 0.0}, 4e-3, 200),
}
COPIES = ("FCN-8s", "FCN-8s again")
DATA = {"size": (48, 96), "num_classes": 6, "images": (2000, 4, 96), "batch_size": 6, "eval_batch_size": 8}
ONE, TWO = {"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
PLAIN = ONE | {"ATEN_CPU_CAPABILITY": "default"}
ENVIRONMENTS = [  # of each seed
    *[ONE] * 4, *[TWO] * 2, *[PLAIN | {"ONEDNN_MAX_CPU_ISA": "AVX2"}] * 3, PLAIN | {"ONEDNN_MAX_CPU_ISA": "SSE41"},
]  # fmt: skip


def configure(name):
    """Return the configuration of a network's training."""
    net, arguments, rate, steps = NETWORKS[name]
    return {
        "data": {"class_path": "Shapes", "init_args": DATA},
        "model": {
            "net": {"class_path": f"dilated_seg.models.{net}", "init_args": arguments},
            "class_weights": [0.5, 1.5, 1, 1, 1, 1],
            "optimizer": {"class_path": "AdamW", "init_args": {"lr": rate, "weight_decay": 1e-4}},
            "lr_scheduler": {"class_path": "PolynomialLR", "init_args": {"total_iters": steps, "power": 0.9}},
        },
        "trainer": {
            "max_steps": steps, "val_check_interval": steps, "gradient_clip_val": 1.0, "accelerator": "cpu",
            "enable_progress_bar": False,
        },
    }  # fmt: skip


def locate(directory, name, seed):
    """Return the run of a network and a seed."""
    return Run(directory / name.replace(" ", "_") / f"seed{seed}")


def offset(name):
    """Return what is added to a network's seeds: a copy has others."""
    return SEEDS if name == COPIES[1] else 0


def train_seed(directory, seed):
    """Train what is missing of one seed of all networks, in this process and its environment."""
    from dilated_seg.cli import CLI

    for name in NETWORKS:
        run = locate(directory, name, seed)
        if "test-last" not in run.evaluation_names():
            own = str(seed + offset(name))
            configured = ["--config", json.dumps(configure(name)), "--seed_everything", own, "--evaluate", "test"]
            CLI(["fit", *configured, "--run_dir", str(run.path)], summary=False)


def train(directory, jobs):
    """Train the seeds that are missing, `jobs` at once, each in a process with its environment."""

    def start(seed):
        own = os.environ | ENVIRONMENTS[seed] | {"WANDB_MODE": "disabled"}
        command = [sys.executable, __file__, "train", "--directory", str(directory), "--seed", str(seed)]
        subprocess.run(command, env=own, check=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(start, range(SEEDS)))


def collect(directory):
    """Write the confusion matrix of every test image of every run to `RESULTS`."""
    columns = {"network": [], "seed": [], "environment": [], "image": [], "matrix": []}
    for name in NETWORKS:
        for seed, environment in enumerate(ENVIRONMENTS):
            ids, matrices = locate(directory, name, seed).evaluation("test-last").images
            columns["network"] += [name] * len(ids)
            columns["seed"] += [seed + offset(name)] * len(ids)
            columns["environment"] += [" ".join(f"{variable}={value}" for variable, value in environment.items())] * len(ids)
            columns["image"] += ids
            columns["matrix"] += [matrix.ravel().astype(np.int32) for matrix in matrices]
    RESULTS.parent.mkdir(exist_ok=True)
    with atomic_path(RESULTS) as partial:
        pq.write_table(pa.table(columns), partial, compression="zstd", compression_level=19)


def load(file=RESULTS):
    """Return the counts (seeds, N, 3, C) of each network, all of the same images."""
    table = pq.read_table(file)
    images = table["image"].to_numpy().reshape(-1, SEEDS, len(table) // SEEDS // len(NETWORKS))
    assert (images == images[0, 0]).all(), "runs were evaluated on other images"
    names = table["network"].to_numpy()[:: images.shape[1] * images.shape[2]]
    matrices = np.stack(table["matrix"].to_numpy())
    side = int(matrices.shape[1] ** 0.5)
    counts = count_pixels(matrices.reshape(-1, side, side)).reshape(*images.shape, 3, side)
    return dict(zip(names, counts, strict=True))


def analyze(counts, size, resamples):
    """Return the differences by pair of networks, as a report has them, for each group of `size` seeds."""
    found = {}
    for group in combinations(range(SEEDS), size):
        pairs = Bootstrap({name: list(seeds[list(group)]) for name, seeds in counts.items()}, resamples).pairs()
        found[group] = {frozenset((pair.better, pair.worse)): pair for pair in pairs}
    return found


def contains(interval, value):
    """Return whether a value is in an interval."""
    return interval.low <= value <= interval.high


def rate_pair(found, values, pair, foreign=False):
    """Return how often what a group of seeds says of a pair of networks is what other seeds show.

    Args:
        found: The result of `analyze`.
        values: The mean IoU of each seed, by network.
        pair: Two names.
        foreign: Whether to compare only groups that have no environment in common.
    """
    hits = {word: [] for word in ("interval", "repeat", "seven", "new", "apart", "opposite")}
    for group, said in found.items():
        one = said[pair]
        rest = np.setdiff1d(np.arange(SEEDS), group)
        single = values[one.better][rest][:, None] - values[one.worse][rest]
        hits["seven"].append(contains(one, single.mean()))
        hits["new"] += [contains(one.new, value) for value in single.ravel()]
        hits["apart"].append(one.told_apart)
        for others in combinations(rest.tolist(), len(group)):
            if foreign and any(ENVIRONMENTS[a] == ENVIRONMENTS[b] for a in group for b in others):
                continue
            again = found[others][pair]
            value = again.value if again.better == one.better else -again.value
            hits["interval"].append(contains(one, value))
            hits["repeat"].append(contains(one.repeat, value))
            hits["opposite"].append(one.told_apart and again.told_apart and again.better != one.better)
    return {word: float(np.mean(rates)) for word, rates in hits.items()}


def compare(counts, resamples):
    """Return the rates of every pair of networks, by their names in the order of their means."""
    values = {name: mean_iou(seeds.sum(1)) for name, seeds in counts.items()}
    three, one = (analyze(counts, size, resamples) for size in (GROUP, 1))
    rates = {}
    for pair in combinations(sorted(values, key=lambda name: -values[name].mean()), 2):
        key = frozenset(pair)
        rates[pair] = rate_pair(three, values, key)
        rates[pair]["foreign"] = rate_pair(three, values, key, foreign=True)["repeat"]
        rates[pair]["one seed"] = rate_pair(one, values, key)["interval"]
    return rates


def rate_copies(counts, resamples):
    """Return how often two groups of trainings of one network are told apart, drawn at random from all those of the copies."""
    rng = np.random.default_rng(0)
    pool = np.concatenate([counts[name] for name in COPIES])
    called = []
    for _ in range(DRAWS):
        drawn = {name: seeds[rng.choice(SEEDS, GROUP, replace=False)] for name, seeds in counts.items()}
        drawn |= dict(zip(COPIES, pool[rng.choice(len(pool), (2, GROUP), replace=False)], strict=True))
        pairs = Bootstrap({name: list(seeds) for name, seeds in drawn.items()}, resamples).pairs()
        called += [pair.told_apart for pair in pairs if {pair.better, pair.worse} == set(COPIES)]
    return float(np.mean(called))


def tabulate(counts, rates, copies):
    """Yield the lines of two Markdown tables: the mean IoU of each network, and what `compare` and `rate_copies` give."""
    values = {name: 100 * mean_iou(seeds.sum(1)) for name, seeds in counts.items()}
    yield from format_rows(("network", "mean", "deviation over seeds", *map(str, range(SEEDS))))
    for name, seeds in values.items():
        yield format_row(name, seeds.mean(), seeds.std(ddof=1), *seeds)
    yield ""
    yield from format_rows(("pair", "difference", *WORDS))
    for (one, other), row in rates.items():
        yield format_row(f"{one} - {other}", values[one].mean() - values[other].mean(), *(100 * row[word] for word in WORDS))
    yield format_row("all pairs", "-", *(100 * np.mean([row[word] for row in rates.values()]) for word in WORDS))
    yield ""
    yield f"Of {DRAWS} draws of two groups from the twenty trainings of {COPIES[0]}, {100 * copies:.1f} % are told apart."


def format_rows(header):
    """Return the first two lines of a table."""
    return "| " + " | ".join(header) + " |", "|---|" + "--:|" * (len(header) - 1)


def format_row(*cells):
    """Return a line of a table, numbers with one decimal."""
    return "| " + " | ".join(cell if isinstance(cell, str) else f"{cell:.1f}" for cell in cells) + " |"


def main():
    """Train and write the results, or only print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=("train", "compare"))
    parser.add_argument("--directory", type=Path, default=Path("runs/replication"), help="train: of the runs")
    parser.add_argument("--jobs", type=int, default=2, help="train: seeds at once")
    parser.add_argument("--seed", type=int, help="train: this one alone, in this process")
    options = parser.parse_args()
    if options.seed is not None:
        train_seed(options.directory, options.seed)
        return
    if options.action == "train":
        train(options.directory, options.jobs)
        collect(options.directory)
    counts = load()
    print(*tabulate(counts, compare(counts, RESAMPLES), rate_copies(counts, RESAMPLES)), sep="\n")


if __name__ == "__main__":
    main()
