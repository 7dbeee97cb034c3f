"""Receptive fields as pictures, each drawn into matplotlib axes that are given."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle

from dilated_seg.analysis.plots import COLOURS, MARKERS
from dilated_seg.analysis.receptive_field.gradient import within
from dilated_seg.analysis.receptive_field.grey import Context
from dilated_seg.analysis.receptive_field.record import Measured

FAINTEST = 1e-3  # of the strongest pixel; what is weaker has the darkest colour


def field_map(axes: Axes, measured: Measured) -> None:
    """The effective field of the middle pixel, dashed what theory lets it see, dotted the squares of 50 and 90 %."""
    field = measured.effective
    height, width = field.shape
    strongest = field.max() or 1.0
    norm = LogNorm(FAINTEST * strongest, strongest, clip=True)
    axes.imshow(np.maximum(field, FAINTEST * strongest), cmap="cividis", norm=norm, interpolation="nearest")
    for share, side in measured.sides().items():
        if side and share < 0.95:
            corner = (width // 2 - side / 2, height // 2 - side / 2)
            axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor="white", linestyle=":", linewidth=1.2))
    top, bottom, left, right = measured.theory["box"]
    size = (right - left + 1, bottom - top + 1)
    box = Rectangle((left - 0.5, top - 0.5), *size, fill=False, edgecolor=COLOURS[1], linestyle="--", linewidth=2)
    box.set_clip_on(False)  # it may be the image's edge
    axes.add_patch(box)
    axes.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def profiles(axes: Axes, networks: Mapping[str, Measured]) -> None:
    """The part of each effective field that lies no farther than so far from the middle."""
    for k, (name, measured) in enumerate(networks.items()):
        held = within(measured.effective)
        axes.plot(np.arange(len(held)), 100 * held, color=COLOURS[k % len(COLOURS)], label=name)
    axes.set(xlabel="radius, pixels", ylabel="of the effective field, %", ylim=(0, 101), xlim=(0, None))
    finish(axes)


def accuracy(axes: Axes, networks: Mapping[str, Context], classes: Sequence[int] | None = None) -> None:
    """How many pixels, of all or of some true classes, each network predicts right when it sees no farther than so far."""
    for k, (name, context) in enumerate(networks.items()):
        at = range(len(context.radii))
        colour, marker = COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]
        axes.plot(at, 100 * context.accuracy(classes), marker, linestyle="-", color=colour, label=name, markersize=4)
        axes.set_xticks(at, ["whole" if radius is None else f"{radius}" for radius in context.radii])
    axes.set(xlabel="seen to each side, pixels", ylabel="predicted right, %", ylim=(0, 101))
    finish(axes)


def finish(axes: Axes) -> None:
    """The look that both plots share."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)
