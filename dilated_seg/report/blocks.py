"""Blocks of a report: text, tables, plots, images and commands, before they are rendered as Markdown or HTML."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.figure import Figure

NUMBER = re.compile(r"|-|yes|no|\[[-\d., ]+\]|(< )?[-+\d.,e ]+( \[[-\d., ]+\])?")  # a cell that is aligned right
TOLD_APART = "apart"  # the shade of a cell that is emphasized; the others are h0 to h100, of heat maps


@dataclass(frozen=True)
class Plot:
    """A matplotlib figure, written as NAME.png; ``alt`` is its alternative text."""

    name: str
    alt: str
    figure: Figure


@dataclass(frozen=True)
class ReportTable:
    """Rows of text under a header; the first column names the rows. Also written as NAME.csv.

    Args:
        name: Name of the CSV file; without one no file is written.
        header: Names of the columns.
        rows: The cells.
        shades: The shade of each cell after the first of a row: "h0" to "h100" for a heat map, ``TOLD_APART``, or "".
        matrix: Whether to show it as a compact matrix, the header vertical.
        caption: The text above the table on the page.
        csv: Header and rows of the CSV file if they differ.
        plot: The same as a figure, used in Markdown, where cells have no colors.
    """

    name: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    shades: Sequence[Sequence[str]] = ()
    matrix: bool = False
    caption: str = ""
    csv: tuple[Sequence[str], Sequence[Sequence[Any]]] | None = None
    plot: Plot | None = None

    @property
    def words(self) -> list[bool]:
        """Return, for each column, whether it is text (aligned left) and not numbers."""
        return [k == 0 or not all(NUMBER.fullmatch(cells[k]) for cells in self.rows) for k in range(len(self.header))]


@dataclass(frozen=True)
class ImageGrid:
    """Rows of images (H, W, 3), each with a caption, under a heading for each row.

    Args:
        rows: The heading, and the images with their captions.
        legend: The color of each class.
    """

    rows: Sequence[tuple[str, Sequence[tuple[str, np.ndarray]]]]
    legend: Sequence[tuple[str, tuple[int, int, int]]] = ()


@dataclass(frozen=True)
class Commands:
    """Lines for a terminal."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Fold:
    """Blocks that the page shows when the reader opens them, and print always."""

    title: str
    blocks: Sequence["Block"]


@dataclass(frozen=True)
class PageOnly:
    """Blocks of the page, in whose place Markdown has a plot."""

    blocks: Sequence["Block"]
    plot: Plot


Block = str | ReportTable | Plot | ImageGrid | Commands | Fold | PageOnly


@dataclass
class Section:
    """A heading and the blocks under it; text may hold **bold** and `code`."""

    title: str
    blocks: list[Block] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        """The section's id within the page."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


def walk_blocks(blocks: Sequence[Block]) -> Iterator[Block]:
    """Yield all blocks, each before those inside it and the plot that goes with it."""
    for block in blocks:
        yield block
        if isinstance(block, Fold | PageOnly):
            yield from walk_blocks(block.blocks)
        if isinstance(block, ReportTable | PageOnly) and block.plot:
            yield block.plot
