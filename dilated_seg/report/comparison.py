"""Comparison of networks on the same images: metrics with intervals, pairwise differences, verdicts on claims."""

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

RESAMPLES, RESAMPLES_OF_PLOTS = 10_000, 1_000  # bootstrap resamples: for tables, for the bands of plots
BAND_WIDTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 35, MAX_BOUNDARY_DISTANCE)  # pixels
MIN_IMAGES_PER_BIN = 5  # images with objects of a size bin; bins with fewer images are left out
DIFFICULTY_GROUPS = 5  # groups of images, from easy to hard

BACKGROUND = "background"  # the class name in Shapes and VOC

Count = Callable[[Result], Counts]  # returns the counts of the pixels that it selects, such as those near boundaries


@dataclass(frozen=True)
class Verdict:
    """The measured differences in mean IoU between the two networks of a claim.

    Args:
        here: The difference on the pixels that the claim names.
        elsewhere: The difference on the other pixels: see `Comparison.split_counts`. None if there are no such pixels.
        more: ``here`` minus ``elsewhere``; None without ``elsewhere``.
    """

    here: Difference
    elsewhere: Difference | None
    more: Interval | None


class Comparison:
    """A comparison of networks on the same images. Results of one name are seeds of one network; the best network is first.

    Raises:
        UserError: The evaluations are not of the same images and classes.
    """

    def __init__(self, results: Sequence[Result]) -> None:
        require_same_split(results)
        self.results = results
        self.classes: list[str] = results[0].evaluation.classes
        self.groups = group_by_name(results)
        self.numbers = {name: k for k, name in enumerate(dict.fromkeys(result.name for result in results))}  # color indices

    def bootstrap(self, count: Count, resamples: int = RESAMPLES, minus: Count | None = None) -> Bootstrap:
        """Return the bootstrap of mean IoU on the pixels of ``count``; with ``minus``, of its difference to that on others."""
        return Bootstrap(self.count(count), resamples, minus=self.count(minus) if minus else None)

    def count(self, count: Count) -> dict[str, list[Counts]]:
        """Return the counts of every seed of each network on the selected pixels."""
        return {name: [count(result) for result in group] for name, group in self.groups.items()}

    @cached_property
    def all_pixels(self) -> Bootstrap:
        """The bootstrap of all networks on all pixels."""
        return self.bootstrap(count_all_pixels)

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """The mean IoU of each network, with its interval; the best network is first."""
        return {name: self.all_pixels.interval(name) for name in self.groups}

    @cached_property
    def pairs(self) -> list[Difference]:
        """The differences of all pairs of networks, p-values adjusted by Holm's method."""
        bootstrap = self.all_pixels
        pairs = [
            self.pair_trainings(pair.better, pair.worse, count_all_pixels, bootstrap) or pair for pair in bootstrap.pairs()
        ]
        return [replace(pair, adjusted=p) for pair, p in zip(pairs, adjust_holm([pair.p for pair in pairs]), strict=True)]

    def difference(self, better: str, worse: str, count: Count) -> Difference:
        """Return the difference of two networks on the selected pixels."""
        bootstrap = self.bootstrap(count)  # with all networks, since their variances over seeds are estimated together
        return self.pair_trainings(better, worse, count, bootstrap) or bootstrap.difference(better, worse)

    def pair_trainings(self, better: str, worse: str, count: Count, bootstrap: Bootstrap) -> Difference | None:
        """Return the difference of two evaluations of the same runs, paired by run; None if the runs differ.

        Examples are rows of an ablation's table that differ in the evaluation protocol only, such as with and without a CRF.
        """
        first, second = (sorted(self.groups[name], key=lambda result: result.run.path) for name in (better, worse))
        if [result.run.path for result in first] != [result.run.path for result in second]:
            return None
        others = [network for name, network in bootstrap.networks.items() if name not in (better, worse)]
        return compare_paired(better, worse, list(map(count, first)), list(map(count, second)), RESAMPLES, others)

    @cached_property
    def settings(self) -> dict[str, dict[str, str]]:
        """The settings that differ between networks, with the value of each network."""
        return compare_settings(self.groups)

    @property
    def kind(self) -> str:
        """The repetition that the intervals cover: `OTHER_IMAGES` or `NEW_TRAININGS` of `analysis.intervals`."""
        return self.all_pixels.kind

    @property
    def enough(self) -> bool:
        """Whether two networks or more have ``MIN_SEEDS`` seeds: the minimum for statements about networks."""
        return sum(len(group) >= MIN_SEEDS for group in self.groups.values()) > 1

    @property
    def cliques(self) -> list[tuple[str, ...]]:
        """Groups of networks without a significant difference within the group: see `find_cliques`."""
        return find_cliques(list(self.groups), self.pairs)

    @property
    def has_strata(self) -> bool:
        """Whether all evaluations have stratified counts."""
        return all(result.evaluation.strata is not None for result in self.results)

    def by_size(self) -> tuple[list[int], dict[str, list[Interval]]]:
        """Return the object size bins with at least ``MIN_IMAGES_PER_BIN`` images, and each network's mean IoU in each bin."""
        images_per_bin = [count_objects(self.results[0], k, k)[:, 1].any(1).sum() for k in range(len(SIZES) + 1)]
        bins = [k for k, images in enumerate(images_per_bin) if images >= MIN_IMAGES_PER_BIN]
        return bins, self.curves([partial(count_objects, low=k, high=k) for k in bins])

    def by_width(self) -> dict[str, list[Interval]]:
        """Return each network's mean IoU within ``BAND_WIDTHS`` pixels of a boundary."""
        return self.curves([partial(count_within_boundary, width=w) for w in BAND_WIDTHS])

    def boundary_iou(self) -> dict[str, Interval]:
        """Return each network's mean Boundary IoU."""
        bootstrap = self.bootstrap(lambda result: require_strata(result).boundary_iou())
        return {name: bootstrap.interval(name) for name in self.groups}

    def by_difficulty(self) -> tuple[int, dict[str, list[Interval]]]:
        """Return the number of groups of images, from easy to hard, and each network's mean IoU in each group."""
        groups = min(DIFFICULTY_GROUPS, len(self.results[0].evaluation.images[0]))
        group = measure_difficulty([result.evaluation.images[1] for result in self.results], groups)
        return groups, self.curves([partial(count_all_pixels, images=group == k) for k in range(groups)])

    def curves(self, counts: Sequence[Count]) -> dict[str, list[Interval]]:
        """Return each network's mean IoU, with its interval, on the pixels of each ``count``."""
        bootstraps = [self.bootstrap(count, RESAMPLES_OF_PLOTS) for count in counts]
        return {name: [bootstrap.interval(name) for bootstrap in bootstraps] for name in self.groups}

    def verdict(self, claim: Claim) -> Verdict:
        """Measure the difference between a claim's networks on the pixels that it names, and on other pixels.

        Raises:
            UserError: The claim names an unknown class, the runs have no stratified counts, or there is no such pixel.
        """
        count_here, count_elsewhere = self.split_counts(claim)
        if not count_here:
            raise UserError("no image has pixels of the kind that the claim names")
        here = self.difference(claim.better, claim.worse, count_here)
        if not count_elsewhere:
            return Verdict(here, None, None)
        elsewhere = self.difference(claim.better, claim.worse, count_elsewhere)
        more = self.bootstrap(count_here, minus=count_elsewhere).difference(claim.better, claim.worse)
        return Verdict(here, elsewhere, more)

    def split_counts(self, claim: Claim) -> tuple[Count | None, Count | None]:
        """Return functions that count the pixels that a claim names, and the other pixels; None if there are no such pixels.

        For a claim about small objects or boundaries, the other pixels are those of larger objects, or farther from boundaries,
        of the same classes. For a claim about classes only, they are the pixels of the other classes. The mean IoU on the
        named pixels is over the classes that occur there, and that on the other pixels over those that occur in both.
        """
        require_known_classes([claim], self.classes)
        if (claim.objects or claim.boundary) and not self.has_strata:
            raise UserError("a run has no stratified counts: evaluate it again")
        selected = {self.classes.index(name) for name in claim.classes or self.classes}
        if claim.objects:
            edge = SIZES.index(claim.objects)
            count_here: Count = partial(count_objects, low=0, high=edge)
            count_elsewhere: Count = partial(count_objects, low=edge + 1, high=len(SIZES))
        elif claim.boundary:
            count_here = partial(count_within_boundary, width=claim.boundary)
            count_elsewhere = partial(count_beyond_boundary, width=claim.boundary)
        else:
            others = set(range(len(self.classes))) - selected
            return restrict(count_all_pixels, selected), restrict(count_all_pixels, others)
        classes_here, classes_elsewhere = (
            {k for k in selected if count(self.results[0])[:, 1, k].any()} for count in (count_here, count_elsewhere)
        )  # fmt: skip
        return restrict(count_here, classes_here), restrict(count_elsewhere, classes_here & classes_elsewhere)


def restrict(count: Count, classes: Collection[int]) -> Count | None:
    """Return ``count`` restricted to some classes; None for no classes."""
    return partial(count_classes, count=count, classes=sorted(classes)) if classes else None


def count_classes(result: Result, count: Count, classes: Sequence[int]) -> Counts:
    """Count the selected pixels of some classes."""
    counted = count(result)
    return np.where(np.isin(np.arange(counted.shape[2]), classes), counted, 0)


def count_all_pixels(result: Result, images: np.ndarray | None = None) -> Counts:
    """Count all pixels of all images, or of those for which ``images`` (N,) is True."""
    matrices = result.evaluation.images[1]
    return count_pixels(matrices if images is None else matrices[images])


def count_within_boundary(result: Result, width: int) -> Counts:
    """Count the pixels within ``width`` pixels of a boundary, for the classes that have such pixels."""
    return keep_occurring(require_strata(result).trimap(width))


def count_beyond_boundary(result: Result, width: int) -> Counts:
    """Count the pixels farther than ``width`` pixels from a boundary, for the classes that have such pixels."""
    return keep_occurring(require_strata(result).band(width + 1, MAX_BOUNDARY_DISTANCE + 1))


def keep_occurring(counted: Counts) -> Counts:
    """Set the counts of classes that do not occur in the masks to 0, so that all networks average over the same classes."""
    return np.where(counted[:, 1].any(0), counted, 0)


def require_strata(result: Result) -> Strata:
    """Return the stratified counts of an evaluation.

    Raises:
        UserError: The evaluation has no stratified counts.
    """
    if result.evaluation.strata is None:
        raise UserError(f"{result.run} has no stratified counts of {result.evaluation.name}: evaluate it again")
    return result.evaluation.strata


def count_objects(result: Result, low: int, high: int) -> Counts:
    """Count the pixels of objects in the size bins ``low`` to ``high``, for classes with such objects except background."""
    counted = keep_occurring(require_strata(result).size(low, high))
    background = [name == BACKGROUND for name in result.evaluation.classes]
    return np.where(background, 0, counted)


def list_mean_ious(groups: Mapping[str, Sequence[Result]]) -> dict[str, list[float]]:
    """Return the mean IoU of every seed of each network."""
    return {name: [result.evaluation.mean_iou for result in group] for name, group in groups.items()}
