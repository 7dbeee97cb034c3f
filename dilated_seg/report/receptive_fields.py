"""The report's section on receptive fields: what networks can see, what they look at, and what context buys them."""

from collections.abc import Sequence
from functools import partial

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from dilated_seg.analysis import plots, receptive_field
from dilated_seg.analysis.bootstrap import Bootstrap
from dilated_seg.analysis.intervals import Interval
from dilated_seg.analysis.receptive_field import Context, Measured, within
from dilated_seg.analysis.receptive_field.plots import field_map
from dilated_seg.analysis.resampling import Counts
from dilated_seg.errors import UserError
from dilated_seg.report.claims import Claim
from dilated_seg.report.comparison import ROUGH, Comparison
from dilated_seg.report.render import Plot, Section, Table
from dilated_seg.report.wording import join_names
from dilated_seg.runs.results import protocol

Seeds = dict[str, list[Measured]]  # of each network

SHARES = (0.5, 0.9, 0.95)
HOW = (
    "By its layers a pixel's scores, the last upsampling included, can depend on a square of the first column's side, cut at "
    "the image's edge. The effective field is how much each pixel of the image moves the score of the class predicted in its "
    "middle (gradient, mean over images); the next columns are the sides of the squares that contain so much of it, one number "
    "a seed. Drawings are of the first seed, in logarithmic colours; dotted are the squares of 50 and 90 %."
)
GREY = (
    "What context buys: pixels drawn from all classes alike (fewer of a class that has fewer), the same for all networks, are "
    "to be named while everything farther away than so many pixels is grey; in percent named right. Lines in the plots are "
    "95 % intervals ({}); there is none where fewer than 10 images err."
)


def section(comparison: Comparison, claims: Sequence[Claim]) -> Section | None:
    """Of the networks that were measured; None if none was."""
    found, without = measured(comparison)
    if not found:
        return None
    maps = Plot("effective_fields", "Effective receptive field of each network, dashed what it can see", drawn(found))
    blocks: list[str | Table | Plot] = [sides(found), HOW, profiles(comparison, found), maps]
    everything = [one for seeds in found.values() for one in seeds]
    if without:
        blocks.insert(0, f"Not measured, or not of the weights that were evaluated: {join_names(without)}.")
    if same_pixels([one.context for one in everything]):
        blocks.append(GREY.format(comparison.kind))
        far = [claim.classes for claim in claims if claim.classes and not claim.objects and not claim.boundary]
        far = [names for names in far if set(names) <= set(comparison.classes)]
        for k, classes in enumerate((None, *dict.fromkeys(far)), start=1):
            blocks += context(comparison, found, classes, "context" if k == 1 else f"context_{k}")
    return Section("Receptive fields", [*blocks, f"{protocol({'protocol': everything[0].protocol})}."])


def measured(comparison: Comparison) -> tuple[Seeds, list[str]]:
    """What was measured of the weights that were evaluated, and the networks of which it was not, of every seed."""
    found: Seeds = {}
    for name, group in comparison.groups.items():
        try:
            seeds = [receptive_field.read(one.folder, one.record["evaluation"]) for one in group]
        except UserError:
            continue
        if all(s.protocol["checkpoint"] == one.record["protocol"]["checkpoint"] for s, one in zip(seeds, group, strict=True)):
            found[name] = seeds
    return found, [name for name in comparison.groups if name not in found]


def sides(found: Seeds) -> Table:
    """What theory allows, and the squares that hold most of the effective fields."""
    header = ["network", "can see", *(f"{100 * share:.0f} % in" for share in SHARES)]
    rows = []
    for name, seeds in found.items():
        can = seeds[0].theory["side"]
        held = [[one.sides()[share] for one in seeds] for share in SHARES]
        shown = [" ".join(str(side) if side else "-" for side in each) for each in held]
        rows.append([name, str(can) if can else "everything", *shown])
    return Table("receptive_fields", header, rows)


def profiles(comparison: Comparison, found: Seeds) -> Plot:
    """How much of the effective field lies within so many pixels."""
    figure, panel = plots.axes()
    with matplotlib.rc_context(plots.RC):
        for name, seeds in found.items():
            held = within(seeds[0].effective)
            style = plots.look(comparison.numbers[name]) | {"marker": None}
            panel.plot(np.arange(len(held)), 100 * held, label=plots.SHOWN + name, linewidth=1.5, **style)
        panel.set(xlabel="pixels to each side", ylabel="of the effective field, %", ylim=(0, 101), xlim=(0, None))
        plots.legend(figure, panel)
    return Plot(
        "field_profiles", "Share of the effective receptive field within so many pixels, a line for each network", figure
    )


def drawn(found: Seeds) -> Figure:
    """The effective field of each network's first seed."""
    height, width = next(iter(found.values()))[0].effective.shape
    across = 1 if width > 1.5 * height else 2
    down = -(-len(found) // across)
    size = (plots.WIDTH, down * (plots.WIDTH / across * height / width + 0.3))
    with matplotlib.rc_context(plots.RC):
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(down, across, squeeze=False).ravel()
        for panel in panels:
            panel.set_axis_off()
        for panel, (name, seeds) in zip(panels, found.items(), strict=False):
            panel.set_axis_on()
            field_map(panel, seeds[0])
            panel.spines[:].set_visible(False)
            panel.set_title(name, fontsize=9, loc="left", pad=4)
    return figure


def same_pixels(contexts: Sequence[Context]) -> bool:
    """Whether networks were asked for the same pixels, and saw as much of them."""
    first = contexts[0]
    return all(
        list(other.ids) == list(first.ids)
        and list(other.radii) == list(first.radii)
        and all(np.array_equal(getattr(other, key), getattr(first, key)) for key in ("image", "row", "column"))
        for other in contexts[1:]
    )


def context(
    comparison: Comparison, found: Seeds, classes: Sequence[str] | None, file: str
) -> list[str | Table | Plot]:  # fmt: skip
    """How each network names pixels, of all classes or of some, from what lies within each radius."""
    radii = next(iter(found.values()))[0].context.radii
    chosen = [comparison.classes.index(name) for name in classes] if classes else None
    series: dict[str, list[Interval]] = {name: [] for name in found}
    for k in range(len(radii)):
        count = partial(named, radius=k, classes=chosen)
        boot = Bootstrap({name: [count(one.context) for one in seeds] for name, seeds in found.items()}, ROUGH)
        for name in found:
            series[name].append(boot.interval(name))
    of = ", ".join(classes) if classes else "all classes"
    labels = ["whole" if radius is None else str(radius) for radius in radii]
    figure = plots.steps(labels, series, comparison.numbers, "seen to each side, pixels", "named right, %")
    rows = [[name, *(f"{100 * one.value:.0f}" for one in intervals)] for name, intervals in series.items()]
    numbers = [
        [name, label, *(f"{100 * value:.2f}" for value in (one.value, one.low, one.high))]
        for name, intervals in series.items()
        for label, one in zip(labels, intervals, strict=True)
    ]
    table = Table(file, ["network", *labels], rows, numbers=(["network", "radius", "right", "low", "high"], numbers))
    return [f"**Pixels of {of}:**", Plot(file, f"Pixels of {of} named right against how far the image is seen", figure), table]


def named(seen: Context, radius: int, classes: Sequence[int] | None) -> Counts:
    """Of each image, pixels named right and pixels asked for: as counts whose IoU is the share that is right (N, 3, 1)."""
    asked = np.ones(len(seen.truth), bool) if classes is None else np.isin(seen.truth, classes)
    right = asked & (seen.predicted[:, radius] == seen.truth)
    hits, all_asked = (np.bincount(seen.image[chosen], minlength=len(seen.ids)) for chosen in (right, asked))
    return np.stack([hits, all_asked, hits], axis=1)[:, :, None].astype(np.int64)
