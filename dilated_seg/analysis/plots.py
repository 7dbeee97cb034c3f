"""Plots of the report, legible on a phone, in colors that color-blind readers can distinguish.

Text and axes of the figures have the color ``INK``, which a page replaces by its own; the background is transparent.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from dilated_seg.analysis.intervals import Interval

matplotlib.rcParams.update({"figure.dpi": 100})

INK = "#17191d"
# Okabe and Ito's palette without its yellow and black, and markers and dashes, for more networks than colors.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1")
MARKERS = "os^Dv<>PX*"
DASHES = ("-", "--", ":", "-.")

FIGURE_WIDTH, FIGURE_HEIGHT = 5.2, 3.5  # inches
MAX_CLASSES_WITH_TEXT = 12  # of a confusion matrix whose cells show their values
PLOT_STYLE: Any = {  # matplotlib types each of its three hundred keys
    name: INK for name in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "legend.labelcolor")
} | {
    "font.size": 10,
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "figure.facecolor": "none",
    "font.family": "DejaVu Sans",
    "text.parse_math": False,
}

VISIBLE_PREFIX = "\N{ZERO WIDTH SPACE}"  # before a label: matplotlib leaves out of legends what starts with an underscore

History = Mapping[str, Sequence[tuple[int, float]]]


def network_style(number: int) -> dict[str, Any]:
    """Return color, marker and dashes of the network with this index."""
    dashes = DASHES[number // len(COLORS) % len(DASHES)]
    return {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)], "linestyle": dashes}


def create_axes(width: float = FIGURE_WIDTH, height: float = FIGURE_HEIGHT) -> tuple[Figure, Axes]:
    """Return a figure with one pair of axes, in ``PLOT_STYLE``."""
    with matplotlib.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, color=INK)
        axes.set_axisbelow(True)
    return figure, axes


def color_fraction(value: float) -> tuple[str, str]:
    """Return the color of a fraction from 0 to 1 on a map of metrics, and the color of text that can be read on it."""
    r, g, b, _ = matplotlib.colormaps["cividis"](value)
    return matplotlib.colors.to_hex((r, g, b)), "#ffffff" if 0.2126 * r + 0.7152 * g + 0.0722 * b < 0.42 else "#000000"


def draw_means(
    intervals: Mapping[str, Interval],
    seeds: Mapping[str, Sequence[float]],
    groups: Sequence[Sequence[str]],
    numbers: Mapping[str, int],
) -> Figure:
    """Draw the mean IoU of each network with its interval, and every seed; networks that do not differ share a bar.

    Args:
        intervals: The mean IoU of each network with its interval, best first.
        seeds: The mean IoU of each of its seeds.
        groups: Networks of which no two differ significantly.
        numbers: The index of each network's color.
    """
    names = list(intervals)
    figure, panel = create_axes(height=1.1 + 0.34 * len(names))
    with matplotlib.rc_context(PLOT_STYLE):
        for row, (name, interval) in enumerate(intervals.items()):
            color = network_style(numbers[name])["color"]
            if not np.isnan(interval.low):
                ends = [100 * interval.low, 100 * interval.high]
                panel.plot(ends, [row, row], color=color, linewidth=3, solid_capstyle="butt")
            value = 100 * interval.value
            panel.plot(value, row, "o", color=color, markersize=7)
            if len(seeds[name]) > 1:
                panel.plot([100 * seed for seed in seeds[name]], [row] * len(seeds[name]), "|", color=INK, markersize=9)
            panel.annotate(f"{value:.1f}", (value, row), (0, 7), textcoords="offset points", ha="center", fontsize=9)
        for k, group in enumerate(groups):
            rows = [names.index(name) for name in group]
            panel.plot(
                [1.02 + 0.025 * k] * 2, [min(rows) - 0.2, max(rows) + 0.2], color=INK, linewidth=4, solid_capstyle="butt",
                clip_on=False, transform=panel.get_yaxis_transform(),
            )  # fmt: skip
        panel.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.75), xlabel="mean IoU, %")
    return figure


def draw_class_map(names: Sequence[str], classes: Sequence[str], values: np.ndarray) -> Figure:
    """Draw the IoU of each class (rows) and network (columns) as a map of numbers."""
    with matplotlib.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(1.8 + 0.75 * len(names), 1.2 + 0.3 * len(classes)), layout="constrained")
        panel = figure.add_subplot()
        panel.imshow(100 * values, cmap="cividis", vmin=0, vmax=100, aspect="auto")
        annotate_percentages(panel, values, fontsize=9)
        panel.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
        panel.set_yticks(range(len(classes)), classes)
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
    return figure


def draw_confusions(matrices: Mapping[str, np.ndarray], classes: Sequence[str]) -> Figure:
    """Draw the row-normalized confusion matrix (C, C) of each network, all with the same axes; NaN is left blank.

    Args:
        matrices: Fractions of the pixels of each class (rows) that are predicted as each class (columns).
        classes: Class names.
    """
    size = max(2.6, 0.22 * len(classes))  # inches
    across = min(len(matrices), max(1, int(10 // size)))
    down = -(-len(matrices) // across)
    with matplotlib.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(across * size + 1.4, down * (size + 0.3) + 1.2), layout="constrained")
        panels = figure.subplots(down, across, squeeze=False).ravel()
        for panel in panels[len(matrices) :]:
            panel.set_axis_off()
        for k, (panel, (name, matrix)) in enumerate(zip(panels, matrices.items(), strict=False)):
            panel.imshow(100 * matrix, cmap="cividis", vmin=0, vmax=100)
            panel.set_title(name, fontsize=9, loc="left", pad=4)
            panel.set_xticks(range(len(classes)), classes if k + across >= len(matrices) else [""] * len(classes), rotation=90)
            panel.set_yticks(range(len(classes)), classes if k % across == 0 else [""] * len(classes))
            panel.tick_params(length=0, labelsize=8)
            panel.spines[:].set_visible(False)
            if len(classes) <= MAX_CLASSES_WITH_TEXT:
                annotate_percentages(panel, matrix, fontsize=7, least=0.005)
    return figure


def annotate_percentages(panel: Axes, values: np.ndarray, fontsize: float, least: float = 0) -> None:
    """Write fractions as whole percentages into the cells of a heat map; a dash for NaN, nothing below ``least``."""
    for (row, column), value in np.ndenumerate(values):
        text, color = ("-", INK) if np.isnan(value) else (f"{100 * value:.0f}", color_fraction(value)[1])
        if not value < least:  # NaN too
            panel.text(column, row, text, ha="center", va="center", color=color, fontsize=fontsize)


def draw_curves(
    histories: Sequence[tuple[str, History]], key: str, label: str, numbers: Mapping[str, int], percent: bool
) -> Figure | None:
    """Draw a logged number over steps, a line for every seed, a color for every network; None if no run logged it."""
    figure, panel = create_axes()
    drawn = set[str]()
    with matplotlib.rc_context(PLOT_STYLE):
        for name, history in histories:
            if logged := history.get(key):
                steps, values = zip(*logged, strict=True)
                style = network_style(numbers[name]) | ({} if percent else {"marker": None})
                shown: dict[str, Any] = {"label": VISIBLE_PREFIX + name} if name not in drawn else {}
                scaled = np.array(values) * (100 if percent else 1)
                panel.plot(np.array(steps) + 1, scaled, markersize=4, linewidth=1.5, **style, **shown)
                drawn.add(name)
        panel.set(xlabel="step", ylabel=label, **({"ylim": (0, 100)} if percent else {"yscale": "log"}))
        if not percent:  # 0.3 and not a formula, which is not drawn
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.5)))
        add_legend(figure, panel)
    return figure if drawn else None


def draw_lines(
    x: Sequence[float], series: Mapping[str, Sequence[Interval]], numbers: Mapping[str, int], xlabel: str, ylabel: str,
    ticks: Mapping[float, str],
) -> Figure:  # fmt: skip
    """Draw metrics of each network over x, with bands as their intervals; ``ticks`` are on the x axis, which is logarithmic."""
    figure, panel = create_axes()
    with matplotlib.rc_context(PLOT_STYLE):
        for name, intervals in series.items():
            value, low, high = in_percent(intervals)
            style = network_style(numbers[name])
            panel.plot(x, value, label=VISIBLE_PREFIX + name, markersize=4, linewidth=1.5, **style)
            panel.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
        panel.set_xscale("log")
        panel.set_xticks(list(ticks), list(ticks.values()))
        panel.minorticks_off()
        panel.set(xlabel=xlabel, ylabel=ylabel)
        panel.set_ylim(bottom=0)
        add_legend(figure, panel)
    return figure


def draw_steps(
    groups: Sequence[str], series: Mapping[str, Sequence[Interval]], numbers: Mapping[str, int], xlabel: str, ylabel: str
) -> Figure:
    """Draw metrics of each network in a few groups side by side, with bars as their intervals."""
    figure, panel = create_axes()
    with matplotlib.rc_context(PLOT_STYLE):
        for k, (name, intervals) in enumerate(series.items()):
            value, low, high = in_percent(intervals)
            positions = np.arange(len(groups)) + 0.6 * ((k + 0.5) / len(series) - 0.5)
            style = network_style(numbers[name])
            panel.plot(positions, value, label=VISIBLE_PREFIX + name, markersize=4.5, linewidth=0.8, **style)
            panel.vlines(positions, low, high, color=style["color"], linewidth=1.6)
        panel.set_xticks(range(len(groups)), groups)
        panel.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, 100))
        add_legend(figure, panel)
    return figure


def in_percent(intervals: Sequence[Interval]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return values and ends of intervals in percent; without an interval, both ends are the value."""
    value, low, high = (100 * np.array([getattr(i, part) for i in intervals]) for part in ("value", "low", "high"))
    return value, np.where(np.isnan(low), value, low), np.where(np.isnan(high), value, high)


def add_legend(figure: Figure, panel: Axes) -> None:
    """Write the networks' names above the axes, and make the figure higher for many."""
    handles, labels = panel.get_legend_handles_labels()
    labels = [label.removeprefix(VISIBLE_PREFIX) for label in labels]
    if labels:
        columns = max(1, min(3, 66 // (max(map(len, labels)) + 7)))
        figure.legend(handles, labels, loc="outside upper left", ncols=columns, fontsize=8.5, frameon=False)
        rows = -(-len(labels) // columns)
        figure.set_figheight(figure.get_figheight() + 0.18 * max(0, rows - 3))  # inches


def draw_contact_sheet(rows: Sequence[tuple[str, Sequence[tuple[str, np.ndarray]]]]) -> Figure:
    """Draw rows of images (H, W, 3), each with a line above it; wide images stand below each other."""
    height, width = rows[0][1][0][1].shape[:2]
    panorama = width > 1.5 * height
    down, across = (len(rows[0][1]), len(rows)) if panorama else (len(rows), len(rows[0][1]))
    with matplotlib.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(12, 12 / across * down * (height / width + 0.08) + 0.3), layout="constrained")
        panels = figure.subplots(down, across, squeeze=False)
        for n, (title, images) in enumerate(rows):
            for t, (line, image) in enumerate(images):
                panel = panels[t, n] if panorama else panels[n, t]
                panel.imshow(image, interpolation="nearest")
                panel.set(xticks=[], yticks=[])
                panel.spines[:].set_visible(False)
                panel.set_title(f"{title}\n{line}" if t == 0 else line, fontsize=8, loc="left", pad=2)
    return figure
