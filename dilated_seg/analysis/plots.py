"""The report's pictures, in colours that colour-blind readers can tell apart; their protocol stands in report.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from PIL import Image

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from dilated_seg.analysis.report import Result

# Okabe and Ito's palette, and markers, for more networks than colours.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^Dv<>PX*"

History = Mapping[str, Sequence[tuple[int, float]]]


def groups(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The seeds of each name, best mean first."""
    grouped: dict[str, list[Result]] = {}
    for result in results:
        grouped.setdefault(result.name, []).append(result)
    return dict(sorted(grouped.items(), key=lambda kv: -np.mean([float(r.scores["mean_iou"]) for r in kv[1]])))


def bars(results: Sequence[Result], file: Path) -> None:
    """Mean IoU of each network, a dot for every seed."""
    grouped = groups(results)
    figure, axes = plt.subplots(figsize=(7, 0.8 + 0.45 * len(grouped)), layout="constrained")
    for row, group in enumerate(grouped.values()):
        values = [100 * float(result.scores["mean_iou"]) for result in group]
        axes.barh(row, np.mean(values), color=COLOURS[0], alpha=0.85)
        if len(values) > 1:
            axes.plot(values, [row] * len(values), "o", color="black", markersize=4)
        axes.annotate(f"{np.mean(values):.1f}", (max(values), row), (6, 0), textcoords="offset points", va="center")
    axes.set(yticks=range(len(grouped)), yticklabels=list(grouped), xlim=(0, 100), xlabel="mean IoU, %")
    axes.invert_yaxis()
    finish(figure, axes, file)


def class_bars(results: Sequence[Result], file: Path) -> None:
    """IoU of each class and network as a map of numbers, mean over seeds."""
    grouped, classes = groups(results), results[0].record["classes"]
    values = np.array([np.nanmean([r.scores["iou"].numpy() for r in group], axis=0) for group in grouped.values()]) * 100
    size = (2.2 + 0.62 * len(classes), 1.3 + 0.42 * len(grouped))
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    axes.imshow(values, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        text = "-" if np.isnan(value) else f"{value:.0f}"
        axes.text(column, row, text, ha="center", va="center", color="white" if value < 55 else "black", fontsize=9)
    axes.set_xticks(range(len(classes)), classes, rotation=35, ha="right")
    axes.set_yticks(range(len(grouped)), list(grouped))
    axes.set_title("IoU of each class, %", fontsize=10)
    axes.tick_params(length=0)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def curves(histories: Sequence[tuple[str, History]], file: Path) -> None:
    """Validation mean IoU and training loss over steps, a line for every seed, a colour for every name."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    names = list(dict.fromkeys(name for name, _ in histories))
    for i, (name, history) in enumerate(histories):
        k = names.index(name)
        first = name not in [earlier for earlier, _ in histories[:i]]
        style = {"color": COLOURS[k % len(COLOURS)], "label": name if first else None, "linewidth": 1.6}
        for axes, key, scale in ((panels[0], "val/mean_iou", 100), (panels[1], "train/loss", 1)):
            if points := history.get(key):
                steps, values = zip(*points, strict=True)
                marker = MARKERS[k % len(MARKERS)] if scale == 100 else None
                axes.plot(np.array(steps) + 1, np.array(values) * scale, marker=marker, markersize=4, **style)
    panels[0].set(xlabel="step", ylabel="validation mean IoU, %", ylim=(0, 100))
    panels[1].set(xlabel="step", ylabel="training loss", yscale="log")
    panels[0].legend(fontsize=8, frameon=False, loc="upper left", ncols=2)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def contact_sheet(results: Sequence[Result], file: Path, images: int = 4) -> bool:
    """Image, truth, and the prediction of every network (first seed), from the galleries that the runs kept.

    Gives False, and writes nothing, if they kept no image in common.
    """
    first = {name: group[0] for name, group in groups(results).items()}
    galleries = [result.folder / "gallery" / result.record["evaluation"] for result in first.values()]
    shared = [{p.name.removesuffix(".image.png") for p in gallery.glob("*.image.png")} for gallery in galleries]
    names = sorted(set.intersection(*shared))[:images]
    if not names:
        file.unlink(missing_ok=True)
        return False
    titles = ["image", "truth", *first]
    files = [[galleries[0] / f"{n}.image.png", galleries[0] / f"{n}.truth.png", *(g / f"{n}.prediction.png" for g in galleries)]
             for n in names]  # fmt: skip
    height, width = picture(files[0][0]).shape[:2]
    panorama = width > 1.5 * height  # then a row for each network, else a column
    rows, columns = (len(titles), len(names)) if panorama else (len(names), len(titles))
    size = (12, 12 / columns * rows * height / width + 0.3)
    figure, panels = plt.subplots(rows, columns, figsize=size, squeeze=False)
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    for n in range(len(names)):
        for t, title in enumerate(titles):
            axes = panels[t, n] if panorama else panels[n, t]
            axes.imshow(picture(files[n][t]), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if n == 0 and panorama:
                axes.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
            elif n == 0:
                axes.set_title(title, fontsize=9)
    figure.savefig(file, dpi=150)
    plt.close(figure)
    return True


def picture(file: Path) -> np.ndarray:
    """A PNG of the gallery, its palette applied, as RGB (H, W, 3)."""
    with Image.open(file) as image:
        return np.array(image.convert("RGB"))


def finish(figure: Figure, axes: Axes, file: Path) -> None:
    """The look that all the plots with axes share."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    figure.savefig(file, dpi=150)
    plt.close(figure)
