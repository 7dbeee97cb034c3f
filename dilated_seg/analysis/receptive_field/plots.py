"""Plots of receptive fields."""

from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dilated_seg.analysis import plots
from dilated_seg.analysis.receptive_field.gradient import accumulate_field
from dilated_seg.analysis.receptive_field.record import Measured

DARKEST = 1e-3  # of the strongest pixel: the value of the darkest color


def draw_field_map(axes: Axes, measured: Measured) -> None:
    """Draw the effective field of the middle pixel; dashed: the theoretical field, dotted: the squares with 50 and 90 %."""
    field = measured.effective
    height, width = field.shape
    strongest = field.max() or 1.0
    norm = LogNorm(DARKEST * strongest, strongest, clip=True)
    axes.imshow(np.maximum(field, DARKEST * strongest), cmap="cividis", norm=norm, interpolation="nearest")
    for share, side in measured.sides().items():
        if side and share < 0.95:
            corner = (width // 2 - side / 2, height // 2 - side / 2)
            axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor="white", linestyle=":", linewidth=1.2))
    top, bottom, left, right = measured.theory["box"]
    size = (right - left + 1, bottom - top + 1)
    box = Rectangle((left - 0.5, top - 0.5), *size, fill=False, edgecolor=plots.COLORS[1], linestyle="--", linewidth=2)
    box.set_clip_on(False)  # its edge may be that of the image
    axes.add_patch(box)
    axes.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def draw_field_maps(networks: Mapping[str, Measured]) -> Figure:
    """Draw the effective field of each network: wide fields in one column, others in two."""
    height, width = next(iter(networks.values())).effective.shape
    across = 1 if width > 1.5 * height else 2
    down = -(-len(networks) // across)
    size = (plots.FIGURE_WIDTH, down * (plots.FIGURE_WIDTH / across * height / width + 0.3))
    with matplotlib.rc_context(plots.PLOT_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(down, across, squeeze=False).ravel()
        for panel in panels:
            panel.set_axis_off()
        for panel, (name, measured) in zip(panels, networks.items(), strict=False):
            panel.set_axis_on()
            draw_field_map(panel, measured)
            panel.spines[:].set_visible(False)
            panel.set_title(name, fontsize=9, loc="left", pad=4)
    return figure


def draw_profiles(networks: Mapping[str, Measured], numbers: Mapping[str, int]) -> Figure:
    """Draw the share of each effective field within each distance of the middle; ``numbers`` index the networks' colors."""
    figure, panel = plots.create_axes()
    with matplotlib.rc_context(plots.PLOT_STYLE):
        for name, measured in networks.items():
            shares = accumulate_field(measured.effective)
            style = plots.network_style(numbers[name]) | {"marker": None}
            panel.plot(np.arange(len(shares)), 100 * shares, label=plots.VISIBLE_PREFIX + name, linewidth=1.5, **style)
        panel.set(xlabel="pixels to each side", ylabel="of the effective field, %", ylim=(0, 101), xlim=(0, None))
        plots.add_legend(figure, panel)
    return figure
