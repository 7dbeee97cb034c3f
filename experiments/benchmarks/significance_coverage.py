"""Coverage, false positives and width of the intervals for differences, in simulated studies with known truth.

A study draws 64 images of a population and trains networks on nothing: a training shifts a network's quality by a normal
deviate, whose size is the network's own ("steady" or four times that, "wild"). Every study is made twice with other seeds on
the same images, and once more with one training of each network on other images.

Columns, in percent: how often the interval covers the true difference of the training procedures, over all pairs and over the
kind of pair where it does so least; how often the difference of the second set of seeds is in it, and in the prediction
interval for as many seeds; how often one new training on other images is in the prediction interval for one; how often two
copies of one network are called different, the pair taken alone, and any copies in the study after Holm's correction. Then, for
two steady networks, the interval's half-width in points here and with one spread pooled over all networks, and the coverage of
the latter in the kind of pair where it is least.

run:    python experiments/benchmarks/significance_coverage.py [--studies 200] [--seeds 2 3 5 10]
"""

import argparse
from collections import defaultdict

import numpy as np
from scipy import stats

from dilated_seg.analysis.bootstrap import Bootstrap
from dilated_seg.analysis.intervals import UPPER_QUANTILE
from dilated_seg.analysis.resampling import mean_iou

POPULATION, IMAGES, CLASSES, RESAMPLES = 20_000, 64, 6, 1_000
STEADY, RATIO = 0.1, 4  # of quality, about 2 and 8 points of mean IoU
SETTINGS = {
    "2 alike": [1, 1],
    "7 alike": [1] * 7,
    "1 steady, 1 wild": [1, RATIO],
    "6 steady, 1 wild": [1] * 6 + [RATIO],
    "5 steady, 2 wild": [1] * 5 + [RATIO] * 2,
    "2 steady, 2 wild": [1, 1, RATIO, RATIO],
}


class Population:
    """Images with objects of unequal size and rare classes, some harder than others."""

    def __init__(self, rng):
        self.rng = rng
        there = rng.random((POPULATION, CLASSES)) < np.linspace(1, 0.2, CLASSES)
        self.pixels = np.round(np.exp(rng.normal(6, 1, there.shape))) * there
        self.hardness = rng.normal(0, 1, (POPULATION, 1))

    def predict(self, quality, images):
        """Counts (N, 3, C) of one training on some images: what it misses of one class it takes for others."""
        pixels, hardness = self.pixels[images], self.hardness[images]
        odds = np.linspace(2, 0.5, CLASSES) + quality + self.rng.normal(0, 0.7, pixels.shape) - 0.6 * hardness
        hits = np.round(pixels / (1 + np.exp(-odds)))
        share = self.rng.dirichlet(np.ones(CLASSES), len(pixels))
        wrong = np.round((pixels - hits).sum(1, keepdims=True) * share)
        return np.stack([hits, pixels, hits + wrong], axis=1).astype(np.int64)

    def integrate(self, spread):
        """The mean IoU over all images, averaged over trainings by Gauss-Hermite quadrature."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(9)
        values = [mean_iou(self.predict(spread * x, slice(None)).sum(0)) for x in nodes]
        return float(np.dot(weights, values) / weights.sum())


def simulate(spreads, seeds, studies, rng):
    """Return rates over studies of networks with these spreads, relative to `STEADY`, each trained with `seeds` seeds."""
    population = Population(rng)
    truth = {spread: population.integrate(STEADY * spread) for spread in set(spreads)}
    hits = defaultdict(list)
    for study in range(studies):
        images, others = rng.integers(0, POPULATION, (2, IMAGES))

        def train(spread, number, seen):
            return [population.predict(STEADY * spread * rng.normal(), seen) for _ in range(number)]

        first, second = ({str(k): train(s, seeds, images) for k, s in enumerate(spreads)} for _ in range(2))
        new = [mean_iou(train(s, 1, others)[0].sum(0)) for s in spreads]
        found = Bootstrap(first, RESAMPLES, study)
        again = [np.mean([mean_iou(run.sum(0)) for run in runs]) for runs in second.values()]
        called = False
        for pair in found.pairs():
            a, b = int(pair.better), int(pair.worse)
            kind = tuple(sorted((spreads[a], spreads[b])))
            low, high = compute_pooled_interval(found, pair)
            true = truth[spreads[a]] - truth[spreads[b]]
            hits["covered", kind].append(pair.low <= true <= pair.high)
            hits["pooled", kind].append(low <= true <= high)
            hits["repeated", kind].append(pair.low <= again[a] - again[b] <= pair.high)
            hits["predicted", kind].append(pair.repeat.low <= again[a] - again[b] <= pair.repeat.high)
            hits["new", kind].append(pair.new.low <= new[a] - new[b] <= pair.new.high)
            if kind[0] == kind[1]:
                hits["copies", kind].append(pair.p < 0.05)
                called |= pair.significant
            if kind == (1, 1):
                hits["width", kind].append(pair.high - pair.low)
                hits["pooled width", kind].append(high - low)
        hits["any", "study"].append(called)
    return hits


def compute_pooled_interval(found, pair):
    """Return the ends of the interval with one variance for all networks, and Welch and Satterthwaite's degrees of freedom."""
    networks = found.networks.values()
    freedom = sum(one.n - 1 for one in networks)
    variance = sum((one.n - 1) * one.s2 for one in networks) / freedom
    among = sum(1 / found.networks[name].n for name in (pair.better, pair.worse)) * variance
    error = found.estimate_image_error({pair.better: 1, pair.worse: -1})[1] ** 2
    total = error + among
    half = stats.t.ppf(UPPER_QUANTILE, total**2 / (error**2 / (found.size - 1) + among**2 / freedom)) * np.sqrt(total)
    return pair.value - half, pair.value + half


def summarize(hits, what):
    """Return the rate over all pairs, and by kind of pair."""
    by_kind = {kind: values for (name, kind), values in hits.items() if name == what}
    pairs = [value for values in by_kind.values() for value in values]
    return np.mean(pairs) if pairs else np.nan, {kind: np.mean(values) for kind, values in by_kind.items()}


def print_row(name, seeds, hits):
    """Print the rates of a setting."""
    cells = [100 * summarize(hits, what)[0] for what in ("covered", "repeated", "predicted", "new")]
    cells.insert(1, 100 * min(summarize(hits, "covered")[1].values()))
    copies = summarize(hits, "copies")[1]
    cells += [100 * max(copies.values(), default=np.nan), 100 * summarize(hits, "any")[0]]
    cells += [50 * summarize(hits, what)[0] for what in ("width", "pooled width")]
    cells.append(100 * min(summarize(hits, "pooled")[1].values()))
    print(f"{name:17} {seeds:5} " + " ".join(f"{cell:9.1f}" for cell in cells), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 5, 10])
    options = parser.parse_args()
    header = ["covers", "least", "repeated", "predicted", "new", "copies", "any", "steady+-", "pooled+-", "its_least"]
    print(f"{'networks':17} seeds " + " ".join(f"{word:>9}" for word in header))
    for name, spreads in SETTINGS.items():
        for seeds in options.seeds:
            print_row(name, seeds, simulate(spreads, seeds, options.studies, np.random.default_rng(0)))
