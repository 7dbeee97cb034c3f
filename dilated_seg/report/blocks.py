"""What a report is made of: sections of text, tables, plots, images and commands, before they become Markdown or HTML."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.figure import Figure

NUMBER = re.compile(r"|-|yes|no|\[[-\d., ]+\]|(< )?[-+\d.,e ]+( \[[-\d., ]+\])?")  # aligned at the right of its column


@dataclass(frozen=True)
class Plot:
    """A drawing, written as NAME.png; ``alt`` is its text for those who do not see it."""

    name: str
    alt: str
    figure: Figure


@dataclass(frozen=True)
class ReportTable:
    """Rows of text under a header, the first column naming them; also written as NAME.csv.

    Args:
        name: Of the CSV file.
        header: The columns' names.
        rows: The cells.
        heat: Whether cells that are percentages have a color, where a page can.
        csv: The CSV's header and rows where they differ from what is read.
        plot: A drawing of the same for where cells have no color.
    """

    name: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    heat: bool = False
    csv: tuple[Sequence[str], Sequence[Sequence[Any]]] | None = None
    plot: Plot | None = None

    @property
    def words(self) -> list[bool]:
        """Whether each column holds words, aligned at the left, and not numbers."""
        return [k == 0 or not all(NUMBER.fullmatch(cells[k]) for cells in self.rows) for k in range(len(self.header))]


@dataclass(frozen=True)
class ImageGrid:
    """Rows of images (H, W, 3), each with a line below it, and a line above each row.

    Args:
        rows: The line above, and the images with their lines.
        plot: A drawing of some, which Markdown has in their place.
        legend: The color of each class.
    """

    rows: Sequence[tuple[str, Sequence[tuple[str, np.ndarray]]]]
    plot: Plot
    legend: Sequence[tuple[str, tuple[int, int, int]]] = ()


@dataclass(frozen=True)
class Commands:
    """Lines for a terminal."""

    lines: Sequence[str]


Block = str | ReportTable | Plot | ImageGrid | Commands


@dataclass
class Section:
    """A heading and what stands under it; text may hold **bold** and `code`."""

    title: str
    blocks: list[Block] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        """The section's id within the page."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")
