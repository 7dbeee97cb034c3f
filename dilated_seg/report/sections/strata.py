"""The report's sections on mean IoU by object size, near boundaries, and by image difficulty."""

from collections.abc import Mapping, Sequence

from dilated_seg.analysis import plots
from dilated_seg.analysis.intervals import Interval
from dilated_seg.metrics.stratified import SIZES
from dilated_seg.report.blocks import Plot, ReportTable, Section
from dilated_seg.report.comparison import BAND_WIDTHS, MIN_IMAGES_PER_BIN, RESAMPLES_OF_PLOTS, Comparison
from dilated_seg.report.wording import format_points

TICKS = (1, 2, 3, 5, 10, 20, 40)  # widths of bands that plot and table name, in pixels


def build_object_section(comparison: Comparison) -> Section | None:
    """Build the section on small and large objects; None if no run has stratified counts of enough objects."""
    if not comparison.has_strata:
        return None
    bins, series = comparison.by_size()
    if not bins:
        return None
    labels = [describe_bin(k) for k in bins]
    figure = plots.draw_steps(
        [format_bin_start(k) for k in bins], series, comparison.numbers, "pixels of the object, from", "mean IoU, %"
    )
    note = (
        "An object is a connected region of one class, background excluded. False positives belong to no object, so "
        "those of a class are shared among sizes in proportion to its ground-truth pixels. The mean is over classes with "
        f"objects of a size; sizes that occur in fewer than {MIN_IMAGES_PER_BIN} images are left out. Objects of "
        "different sizes also differ in class, so a step in a line may be due to class instead of size. "
        f"Lines: 95 % intervals ({comparison.kind}) from {RESAMPLES_OF_PLOTS:,} resamples."
    )
    alt = "Mean IoU by the size of objects, a line for each network"
    table = tabulate_intervals("objects", labels, series)
    return Section("By object size", [Plot("objects", alt, figure), table, note])


def format_bin_start(k: int) -> str:
    """Format the least pixels of a bin of object sizes, as 256 or 1k."""
    low = (1, *SIZES)[k]
    return f"{low // 1024}k" if low >= 1024 else str(low)


def describe_bin(k: int) -> str:
    """Describe a bin of object sizes."""
    low, high = (0, *SIZES)[k], (*SIZES, None)[k]
    return f"< {high}" if not low else f"≥ {low}" if high is None else f"{low} to {high - 1}"


def build_boundary_section(comparison: Comparison) -> Section | None:
    """Build the section on errors near boundaries; None if a run lacks stratified counts."""
    if not comparison.has_strata:
        return None
    series = comparison.by_width()
    figure = plots.draw_lines(
        BAND_WIDTHS, series, comparison.numbers, "width of the band, pixels", "mean IoU in the band, %",
        {w: str(w) for w in TICKS},
    )  # fmt: skip
    band = {name: [interval] for name, interval in comparison.boundary_iou().items()}
    widths = [w for w in BAND_WIDTHS if w in TICKS]
    table = {
        name: [interval for interval, w in zip(intervals, BAND_WIDTHS, strict=True) if w in widths] + band[name]
        for name, intervals in series.items()
    }
    note = (
        "A band contains the pixels within a chessboard distance of a change of value in the ground truth, unlabelled pixels "
        "included. Thin objects are inside narrow bands as a whole. The mean is over the classes that have pixels in the band. "
        "Boundary IoU compares the inner rims of ground-truth and predicted regions, 2 % of the image's diagonal wide; the "
        "image's border is not a boundary. "
        f"Bands and brackets: 95 % intervals ({comparison.kind})."
    )
    header = [*(f"within {w}" for w in widths), "Boundary IoU"]
    alt = "Mean IoU within bands around the true boundaries, a line for each network"
    return Section("Near boundaries", [Plot("boundaries", alt, figure), tabulate_intervals("boundaries", header, table), note])


def build_difficulty_section(comparison: Comparison) -> Section | None:
    """Build the section on easy and hard images; None if there are too few to group."""
    groups, series = comparison.by_difficulty()
    if groups < 2:
        return None
    labels = ["easiest", *([""] * (groups - 2)), "hardest"]
    figure = plots.draw_steps(labels, series, comparison.numbers, f"{groups} groups of images", "mean IoU, %")
    note = (
        "Images are ordered by the share of their pixels that these runs get wrong on average, and cut into groups of "
        "equal size. Groups contain different classes as well, so their means are not over the same ones. "
        f"Lines and brackets: 95 % intervals ({comparison.kind})."
    )
    table = tabulate_intervals("difficulty", ["easiest", *(f"group {k + 1}" for k in range(1, groups - 1)), "hardest"], series)
    alt = "Mean IoU on easy and on hard images, a line for each network"
    return Section("By image difficulty", [Plot("difficulty", alt, figure), table, note])


def tabulate_intervals(name: str, header: Sequence[str], series: Mapping[str, Sequence[Interval]]) -> ReportTable:
    """Tabulate intervals by network (rows); the CSV has their ends in columns of their own."""
    rows = [[network, *map(format_points, intervals)] for network, intervals in series.items()]
    numbers = [
        [network, column, *(f"{100 * value:.2f}" for value in (interval.value, interval.low, interval.high))]
        for network, intervals in series.items()
        for column, interval in zip(header, intervals, strict=True)
    ]
    return ReportTable(name, ["network", *header], rows, csv=(["network", "where", "mean IoU", "low", "high"], numbers))
