"""The report's section on receptive fields: theoretical, effective, and accuracy with limited context."""

from collections.abc import Sequence

import numpy as np

from dilated_seg.analysis import plots, receptive_field
from dilated_seg.analysis.bootstrap import Bootstrap
from dilated_seg.analysis.intervals import Interval
from dilated_seg.analysis.receptive_field import Context, Measured
from dilated_seg.analysis.receptive_field.gradient import SHARES
from dilated_seg.analysis.receptive_field.plots import draw_field_maps, draw_profiles
from dilated_seg.analysis.resampling import Counts
from dilated_seg.errors import UserError
from dilated_seg.report.blocks import Block, Plot, ReportTable, Section
from dilated_seg.report.claims import Claim
from dilated_seg.report.comparison import RESAMPLES_OF_PLOTS, Comparison
from dilated_seg.report.wording import join_names
from dilated_seg.runs import Evaluation

Measurements = dict[str, list[Measured]]  # of each network, one a seed

FIELDS_EXPLAINED = (
    "The theoretical receptive field is the square that a pixel's logits can depend on, including the last upsampling, clipped "
    "at the image's edge (first column: its side in pixels). The effective field is the gradient of the predicted class's "
    "logit at the center with respect to each pixel, averaged over images; the next columns are the sides of the squares that "
    "contain a share of it, one value for each seed. Maps are of the first seed, in logarithmic colors; dotted: 50 and 90 %."
)
CONTEXT_EXPLAINED = (
    "Accuracy with limited context: the percentage of sampled pixels that are classified correctly if everything beyond a "
    "radius is gray. Pixels are the same for all networks, evenly divided among the classes if possible. Lines in the plots "
    "are 95 % intervals ({}); there is none if fewer than 10 images have errors."
)


def build_section(comparison: Comparison, claims: Sequence[Claim]) -> Section | None:
    """Build the section on the measured networks; None if no network was measured."""
    networks, missing = read_measurements(comparison)
    if not networks:
        return None
    first = {name: seeds[0] for name, seeds in networks.items()}
    alt = "Share of the effective receptive field within a distance, in pixels; one line per network"
    blocks: list[Block] = [
        tabulate_sides(networks),
        FIELDS_EXPLAINED,
        Plot("field_profiles", alt, draw_profiles(first, comparison.numbers)),
        Plot(
            "effective_fields", "Effective receptive field of each network; dashed: the theoretical one", draw_field_maps(first)
        ),
    ]
    measurements = [measured for seeds in networks.values() for measured in seeds]
    if missing:
        blocks.insert(0, f"Not measured, or not of the weights that were evaluated: {join_names(missing)}.")
    if have_same_pixels([measured.context for measured in measurements]):
        blocks.append(CONTEXT_EXPLAINED.format(comparison.kind))
        far = [claim.classes for claim in claims if claim.classes and not claim.objects and not claim.boundary]
        far = [names for names in far if set(names) <= set(comparison.classes)]
        for k, classes in enumerate((None, *dict.fromkeys(far)), start=1):
            blocks += compare_context(comparison, networks, classes, "context" if k == 1 else f"context_{k}")
    return Section("Receptive fields", [*blocks, f"{measurements[0].protocol}."])


def read_measurements(comparison: Comparison) -> tuple[Measurements, list[str]]:
    """Read the measurements of the evaluated weights; also return the networks for which one is missing."""
    networks: Measurements = {}
    for name, group in comparison.groups.items():
        try:
            seeds = [receptive_field.read(result.run, result.evaluation.name) for result in group]
        except UserError:
            continue
        if all(have_same_weights(measured, result.evaluation) for measured, result in zip(seeds, group, strict=True)):
            networks[name] = seeds
    return networks, [name for name in comparison.groups if name not in networks]


def have_same_weights(measured: Measured, evaluation: Evaluation) -> bool:
    """Return whether receptive fields were measured of the weights that were evaluated."""
    weights = (measured.protocol.checkpoint, measured.protocol.step)
    return weights == (evaluation.protocol.checkpoint, evaluation.protocol.step)


def tabulate_sides(networks: Measurements) -> ReportTable:
    """Tabulate the theoretical fields, and the sides of the squares that contain most of the effective fields."""
    header = ["network", "theoretical", *(f"{100 * share:.0f} % in" for share in SHARES)]
    rows = []
    for name, seeds in networks.items():
        side = seeds[0].theory["side"]
        sides = [[measured.sides()[share] for measured in seeds] for share in SHARES]
        cells = [" ".join(str(side) if side else "-" for side in each) for each in sides]
        rows.append([name, str(side) if side else "everything", *cells])
    return ReportTable("receptive_fields", header, rows)


def have_same_pixels(contexts: Sequence[Context]) -> bool:
    """Return whether all networks were measured at the same pixels and radii."""
    first = contexts[0]
    return all(
        list(other.ids) == list(first.ids)
        and list(other.radii) == list(first.radii)
        and all(np.array_equal(getattr(other, key), getattr(first, key)) for key in ("image", "row", "column"))
        for other in contexts[1:]
    )


def compare_context(
    comparison: Comparison, networks: Measurements, classes: Sequence[str] | None, name: str
) -> list[Block]:  # fmt: skip
    """Compare the accuracy of each network at each visible radius, over all classes or some."""
    radii = next(iter(networks.values()))[0].context.radii
    ids = [comparison.classes.index(name) for name in classes] if classes else None
    series: dict[str, list[Interval]] = {network: [] for network in networks}
    for k in range(len(radii)):
        counts = {network: [count_named(measured.context, k, ids) for measured in seeds] for network, seeds in networks.items()}
        bootstrap = Bootstrap(counts, RESAMPLES_OF_PLOTS)
        for network in networks:
            series[network].append(bootstrap.interval(network))
    labels = ["whole" if radius is None else str(radius) for radius in radii]
    figure = plots.draw_steps(labels, series, comparison.numbers, "visible radius, pixels", "classified correctly, %")
    rows = [[network, *(f"{100 * interval.value:.0f}" for interval in intervals)] for network, intervals in series.items()]
    lines = [
        [network, label, *(f"{100 * value:.2f}" for value in (interval.value, interval.low, interval.high))]
        for network, intervals in series.items()
        for label, interval in zip(labels, intervals, strict=True)
    ]
    table = ReportTable(name, ["network", *labels], rows, csv=(["network", "radius", "right", "low", "high"], lines))
    of = f"Pixels of {', '.join(classes) if classes else 'all classes'}"
    return [f"**{of}:**", Plot(name, f"{of} classified correctly against the visible radius", figure), table]


def count_named(context: Context, radius: int, classes: Sequence[int] | None) -> Counts:
    """Return counts (N, 3, 1) whose IoU is the accuracy in each image, at the sampled pixels of some classes or of all."""
    sampled = np.ones(len(context.truth), bool) if classes is None else np.isin(context.truth, classes)
    right = sampled & (context.predicted[:, radius] == context.truth)
    hits, total = (np.bincount(context.image[pixels], minlength=len(context.ids)) for pixels in (right, sampled))
    return np.stack([hits, total, hits], axis=1)[:, :, None].astype(np.int64)
