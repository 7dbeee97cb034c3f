"""Several networks on the same images: the metrics of the comparison, each with its interval."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from dilated_seg.analysis.bootstrap import Bootstrap
from dilated_seg.analysis.intervals import MIN_SEEDS, Difference, Interval, adjust_holm, find_cliques
from dilated_seg.analysis.paired import compare_paired
from dilated_seg.analysis.resampling import Counts, count_pixels
from dilated_seg.errors import UserError
from dilated_seg.metrics.stratified import MAX_BOUNDARY_DISTANCE, SIZES
from dilated_seg.report.claims import Claim, require_known_classes
from dilated_seg.report.results import Result, group_by_name, measure_difficulty, require_same_split
from dilated_seg.report.settings import compare_settings
from dilated_seg.runs.strata import Strata

RESAMPLES, RESAMPLES_OF_PLOTS = 10_000, 1_000  # for tables, and for the bands of plots
BAND_WIDTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 35, MAX_BOUNDARY_DISTANCE)  # pixels
MIN_IMAGES_PER_BIN = 5  # images with objects of a size, below which there is no interval
DIFFICULTY_GROUPS = 5  # of images, from easy to hard

BACKGROUND = "background"  # what Shapes and VOC call it

Count = Callable[[Result], Counts]


@dataclass(frozen=True)
class Verdict:
    """A claim's difference where the claim applies, elsewhere, and their difference; None if there is no elsewhere."""

    here: Difference
    elsewhere: Difference | None
    more: Interval | None


class Comparison:
    """The evaluations of networks, grouped by name, best mean first; runs of one name are its seeds.

    Raises:
        UserError: They are not of the same images and classes.
    """

    def __init__(self, results: Sequence[Result]) -> None:
        require_same_split(results)
        self.results = results
        self.classes: list[str] = results[0].evaluation.classes
        self.groups = group_by_name(results)
        self.numbers = {name: k for k, name in enumerate(dict.fromkeys(result.name for result in results))}  # their colours

    def bootstrap(self, counted: Count, resamples: int = RESAMPLES, minus: Count | None = None) -> Bootstrap:
        """Resample what is counted of each run; with ``minus``, its mean IoU minus that of other counts."""
        return Bootstrap(self.count(counted), resamples, minus=self.count(minus) if minus else None)

    def count(self, counted: Count) -> dict[str, list[Counts]]:
        """Count each run of each network."""
        return {name: [counted(result) for result in group] for name, group in self.groups.items()}

    @cached_property
    def all_pixels(self) -> Bootstrap:
        """The resampled mean IoU over all pixels."""
        return self.bootstrap(count_all_pixels)

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """The mean IoU of each network, best first."""
        return {name: self.all_pixels.interval(name) for name in self.groups}

    @cached_property
    def pairs(self) -> list[Difference]:
        """All pairs of networks, adjusted for their number."""
        bootstrap = self.all_pixels
        pairs = [
            self.pair_trainings(pair.better, pair.worse, count_all_pixels, bootstrap) or pair for pair in bootstrap.pairs()
        ]
        return [replace(pair, adjusted=p) for pair, p in zip(pairs, adjust_holm([pair.p for pair in pairs]), strict=True)]

    def difference(self, better: str, worse: str, counted: Count) -> Difference:
        """Return the difference of two networks in what is counted."""
        bootstrap = self.bootstrap(counted)  # of all networks, as their spreads over seeds are estimated together
        return self.pair_trainings(better, worse, counted, bootstrap) or bootstrap.difference(better, worse)

    def pair_trainings(self, better: str, worse: str, counted: Count, bootstrap: Bootstrap) -> Difference | None:
        """Return the difference of two evaluations of the same runs, paired by run; None if the runs are not the same."""
        first, second = (sorted(self.groups[name], key=lambda one: one.run.path) for name in (better, worse))
        if [one.run.path for one in first] != [one.run.path for one in second]:
            return None
        others = [network for name, network in bootstrap.networks.items() if name not in (better, worse)]
        return compare_paired(better, worse, list(map(counted, first)), list(map(counted, second)), RESAMPLES, others)

    @cached_property
    def settings(self) -> dict[str, dict[str, str]]:
        """The settings in which the runs differ, and the value of each network."""
        return compare_settings(self.groups)

    @property
    def kind(self) -> str:
        """The kind of the intervals: other images, or other images and other seeds."""
        return self.all_pixels.kind

    @property
    def enough(self) -> bool:
        """Whether at least two networks have ``MIN_SEEDS`` seeds, which a statement about networks needs."""
        return sum(len(group) >= MIN_SEEDS for group in self.groups.values()) > 1

    @property
    def cliques(self) -> list[tuple[str, ...]]:
        """Networks of which no two are told apart."""
        return find_cliques(list(self.groups), self.pairs)

    @property
    def has_strata(self) -> bool:
        """Whether all runs have stratified counts."""
        return all(result.evaluation.strata is not None for result in self.results)

    def by_size(self) -> tuple[list[int], dict[str, list[Interval]]]:
        """Return the bins of object sizes that ``MIN_IMAGES_PER_BIN`` images have, and each network's mean IoU in them."""
        sizes = [count_objects(self.results[0], k, k)[:, 1].any(1).sum() for k in range(len(SIZES) + 1)]
        bins = [k for k, images in enumerate(sizes) if images >= MIN_IMAGES_PER_BIN]
        return bins, self.curves([partial(count_objects, low=k, high=k) for k in bins])

    def by_width(self) -> dict[str, list[Interval]]:
        """Return each network's mean IoU within ``BAND_WIDTHS`` pixels of a boundary."""
        return self.curves([partial(count_within_boundary, width=w) for w in BAND_WIDTHS])

    def boundary_iou(self) -> dict[str, Interval]:
        """Return each network's mean Boundary IoU."""
        bootstrap = self.bootstrap(lambda result: require_strata(result).boundary_iou())
        return {name: bootstrap.interval(name) for name in self.groups}

    def by_difficulty(self) -> tuple[int, dict[str, list[Interval]]]:
        """Return the number of groups of images, from easy to hard for all networks, and each network's mean IoU in them."""
        groups = min(DIFFICULTY_GROUPS, len(self.results[0].evaluation.images[0]))
        group = measure_difficulty([result.evaluation.images[1] for result in self.results], groups)
        return groups, self.curves([partial(count_all_pixels, images=group == k) for k in range(groups)])

    def curves(self, counted: Sequence[Count]) -> dict[str, list[Interval]]:
        """Return an interval of each network for each of several ways to count."""
        bootstraps = [self.bootstrap(count, RESAMPLES_OF_PLOTS) for count in counted]
        return {name: [bootstrap.interval(name) for bootstrap in bootstraps] for name in self.groups}

    def verdict(self, claim: Claim) -> Verdict:
        """Measure the difference where a claim applies, and elsewhere.

        Raises:
            UserError: The claim names an unknown class, the runs have no stratified counts, or no pixel is of what it names.
        """
        here, elsewhere = self.split_counts(claim)
        if not here:
            raise UserError("no image has what the claim names")
        difference = self.difference(claim.better, claim.worse, here)
        if not elsewhere:
            return Verdict(difference, None, None)
        there = self.difference(claim.better, claim.worse, elsewhere)
        more = self.bootstrap(here, minus=elsewhere).difference(claim.better, claim.worse)
        return Verdict(difference, there, more)

    def split_counts(self, claim: Claim) -> tuple[Count | None, Count | None]:
        """Return how to count what a claim is about, and the rest of the same classes, or the other classes; None for nothing.

        Only classes with true pixels count; elsewhere, those of them that have some there.
        """
        require_known_classes([claim], self.classes)
        if (claim.objects or claim.boundary) and not self.has_strata:
            raise UserError("a run has no stratified counts: evaluate it again")
        selected = {self.classes.index(name) for name in claim.classes or self.classes}
        if claim.objects:
            edge = SIZES.index(claim.objects)
            count_here: Count = partial(count_objects, low=0, high=edge)
            count_there: Count = partial(count_objects, low=edge + 1, high=len(SIZES))
        elif claim.boundary:
            count_here = partial(count_within_boundary, width=claim.boundary)
            count_there = partial(count_beyond_boundary, width=claim.boundary)
        else:
            others = set(range(len(self.classes))) - selected
            return restrict(count_all_pixels, selected), restrict(count_all_pixels, others)
        here, there = (
            {k for k in selected if count(self.results[0])[:, 1, k].any()} for count in (count_here, count_there)
        )  # fmt: skip
        return restrict(count_here, here), restrict(count_there, here & there)


def restrict(count: Count, classes: Collection[int]) -> Count | None:
    """Restrict counts to some classes; None if there are none."""
    return partial(count_classes, count=count, classes=sorted(classes)) if classes else None


def count_classes(result: Result, count: Count, classes: Sequence[int]) -> Counts:
    """Count pixels of these classes only."""
    counted = count(result)
    return np.where(np.isin(np.arange(counted.shape[2]), classes), counted, 0)


def count_all_pixels(result: Result, images: np.ndarray | None = None) -> Counts:
    """Count every pixel, of all images or of some."""
    matrices = result.evaluation.images[1]
    return count_pixels(matrices if images is None else matrices[images])


def count_within_boundary(result: Result, width: int) -> Counts:
    """Count pixels within a distance of a boundary, of the classes that have any."""
    return keep_occurring(require_strata(result).trimap(width))


def count_beyond_boundary(result: Result, width: int) -> Counts:
    """Count pixels farther from a boundary, of the classes that have any."""
    return keep_occurring(require_strata(result).band(width + 1, MAX_BOUNDARY_DISTANCE + 1))


def keep_occurring(counted: Counts) -> Counts:
    """Keep classes that occur in the ground truth, so that all networks are averaged over the same classes."""
    return np.where(counted[:, 1].any(0), counted, 0)


def require_strata(result: Result) -> Strata:
    """Return the stratified counts of a run.

    Raises:
        UserError: It has none.
    """
    if result.evaluation.strata is None:
        raise UserError(f"{result.run} has no stratified counts of {result.evaluation.name}: evaluate it again")
    return result.evaluation.strata


def count_objects(result: Result, low: int, high: int) -> Counts:
    """Count the pixels of objects of these bins of sizes, of the classes that have any; the background is no object."""
    counted = keep_occurring(require_strata(result).size(low, high))
    background = [name == BACKGROUND for name in result.evaluation.classes]
    return np.where(background, 0, counted)


def list_mean_ious(groups: Mapping[str, Sequence[Result]]) -> dict[str, list[float]]:
    """List the mean IoU of every seed of each network."""
    return {name: [result.evaluation.mean_iou for result in group] for name, group in groups.items()}
