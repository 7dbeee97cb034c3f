"""A report as sections of text, tables and pictures, and as files that people open: Markdown, CSV, PNG, one HTML page."""

import base64
import csv
import html
import io
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text

from dilated_seg.analysis.plots import INK, scale
from dilated_seg.storage import write_text

STYLE = Path(__file__).with_name("page.css")
NUMBER = re.compile(r"|-|yes|no|\[[-\d., ]+\]|(< )?[-+\d.,e ]+( \[[-\d., ]+\])?")  # what stands at the right of its column
TEXT = ' class="text"'  # of words, at the left

# What Markdown would interpret in a name: "front_end" stays as it is, "_x_" does not; and at the start of a paragraph.
SPECIAL = re.compile(r"[\\`*\[\]<>|~&$#\r\n]|_(?![^\W_])|(?<![^\W_])_")
SPECIAL_AT_START = re.compile(rf"{SPECIAL.pattern}|^[-+=:\s]|(?<=^\d)[.)]|(?<=^\d\d)[.)]")
PRIVATE = 0x10FE00  # code points for private use: a special character of a name, while it is inside text that has markup
SHIELDED = re.compile(f"[{chr(PRIVATE)}-{chr(PRIVATE + 127)}]")


@dataclass(frozen=True)
class Table:
    """Rows of text under a header, the first column naming them; also written as NAME.csv.

    ``heat`` colours cells that are percentages, where a page can; ``sheet`` is a drawing of the same for where it cannot.
    ``numbers`` are the CSV's header and rows where they differ from what is read.
    """

    name: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    heat: bool = False
    numbers: tuple[Sequence[str], Sequence[Sequence[Any]]] | None = None
    sheet: "Plot | None" = None


@dataclass(frozen=True)
class Plot:
    """A drawing, written as NAME.png; ``says`` is for those who do not see it."""

    name: str
    says: str
    figure: Figure


@dataclass(frozen=True)
class Pictures:
    """Rows of pictures (H, W, 3), each with a line below it, and a line above each row; Markdown has ``sheet`` in their place.

    ``legend`` gives each class its colour.
    """

    rows: Sequence[tuple[str, Sequence[tuple[str, np.ndarray]]]]
    sheet: Plot
    legend: Sequence[tuple[str, tuple[int, int, int]]] = ()


@dataclass(frozen=True)
class Commands:
    """Lines for a terminal."""

    lines: Sequence[str]


@dataclass
class Section:
    """A heading and what stands under it; text may hold **bold** and `code`."""

    title: str
    blocks: list[str | Table | Plot | Pictures | Commands] = field(default_factory=list)


def write(title: str, sections: Sequence[Section], out: Path, names: Collection[str] = ()) -> None:
    """Write report.md, report.html, and the PNG or CSV of every plot and table into a folder.

    Args:
        title: Of the page.
        sections: What stands on it.
        out: The folder.
        names: What users named, which is shown literally wherever it stands in a text.
    """
    out.mkdir(parents=True, exist_ok=True)
    for section in sections:
        section.blocks = [shield(block, names) if isinstance(block, str) else block for block in section.blocks]
    for section in sections:
        for block in section.blocks:
            if isinstance(block, Table):
                write_csv(block, out / f"{block.name}.csv")
            plot = block if isinstance(block, Plot) else getattr(block, "sheet", None)
            if plot:
                with without_math(plot.figure):
                    plot.figure.savefig(out / f"{plot.name}.png", dpi=150, facecolor="white")
    write_text(out / "report.md", markdown(title, sections))
    write_text(out / "report.html", page(title, sections))


def write_csv(table: Table, file: Path) -> None:
    """The table's rows for a spreadsheet."""
    header, rows = table.numbers or (table.header, table.rows)
    lines = io.StringIO(newline="")
    csv.writer(lines, lineterminator="\n").writerows([header, *rows])
    write_text(file, lines.getvalue())


def markdown(title: str, sections: Sequence[Section]) -> str:
    """The report for a repository or a terminal; its pictures are files beside it."""
    lines = [f"# {escape(title)}", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for block in section.blocks:
            match block:
                case str():
                    lines += [SHIELDED.sub(lambda found: backslash(chr(ord(found[0]) - PRIVATE)), block), ""]
                case Table():
                    lines += [
                        row(block.header),
                        row(["---" if word else "---:" for word in words(block)]),
                        *map(row, block.rows),
                        "",
                    ]
                    lines += [image(block.sheet), ""] if block.sheet else []
                case Commands():
                    lines += [*(f"    {line}" for command in block.lines for line in command.split("\n")), ""]
                case Plot():
                    lines += [image(block), ""]
                case Pictures():
                    lines += [image(block.sheet), ""]
    return "\n".join(lines).rstrip() + "\n"


def row(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cell if NUMBER.fullmatch(cell) else escape(cell) for cell in cells)} |"


def image(plot: Plot) -> str:
    """Return the Markdown of a drawing."""
    return f"![{escape(plot.says)}]({plot.name}.png)"


def escape(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return SPECIAL.sub(lambda found: backslash(found[0]), text)


def backslash(character: str) -> str:
    """Return a character as Markdown shows it literally."""
    return " " if character.isspace() else f"\\{character}"


def shield(text: str, names: Collection[str]) -> str:
    """Return text in which names have private characters in the place of special ones, so that they are no markup."""
    special = sorted((name for name in names if SPECIAL_AT_START.search(name)), key=len, reverse=True)
    if not special:
        return text

    def hide(found: re.Match[str]) -> str:
        return SPECIAL_AT_START.sub(lambda one: chr(PRIVATE + ord(one[0])) if ord(one[0]) < 128 else one[0], found[0])

    return re.sub("|".join(map(re.escape, special)), hide, text)


@contextmanager
def without_math(figure: Figure) -> Iterator[None]:
    """Draw text as it is written: dollar signs are no formula."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with matplotlib.rc_context({"text.parse_math": False}):  # of ticks that are made when they are drawn
        yield


def page(title: str, sections: Sequence[Section]) -> str:
    """One HTML page that asks nobody for anything: pictures are inside, scripts there are none."""
    contents = "".join(f'<li><a href="#{anchor(s.title)}">{html.escape(s.title)}</a></li>' for s in sections)
    body = "".join(
        f'<section id="{anchor(s.title)}"><h2>{html.escape(s.title)}</h2>{"".join(map(element, s.blocks))}</section>'
        for s in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f'<link rel="icon" href="data:,"><title>{html.escape(title)}</title><style>{STYLE.read_text()}</style></head>\n'
        f"<body><header><h1>{html.escape(title)}</h1><nav><ul>{contents}</ul></nav></header>\n<main>{body}</main></body></html>\n"
    )


def words(table: Table) -> list[bool]:
    """Which columns hold words, at the left of their column, and not numbers."""
    return [k == 0 or not all(NUMBER.fullmatch(cells[k]) for cells in table.rows) for k in range(len(table.header))]


def anchor(title: str) -> str:
    """A section's name within the page."""
    return re.sub(r"\W+", "-", title.lower()).strip("-")


def inline(text: str) -> str:
    """Text with **bold** and `code`, as HTML."""
    text = html.escape(text)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text))
    return SHIELDED.sub(lambda found: html.escape(chr(ord(found[0]) - PRIVATE)), text)


def element(block: str | Table | Plot | Pictures | Commands) -> str:
    """A block of a section, as HTML."""
    match block:
        case str():
            return f"<p>{inline(block)}</p>"
        case Table():
            head = "".join(
                f'<th scope="col"{TEXT * word}>{html.escape(cell)}</th>'
                for cell, word in zip(block.header, words(block), strict=True)
            )
            rows = "".join(
                f'<tr><th scope="row">{html.escape(cells[0])}</th>'
                + "".join(td(cell, word, block.heat) for cell, word in zip(cells[1:], words(block)[1:], strict=True))
                + "</tr>"
                for cells in block.rows
            )
            kind = ' class="heat"' if block.heat else ""
            table = f"<table{kind}><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
            return f'<div class="wide" tabindex="0">{table}</div>'
        case Commands():
            return f"<pre>{html.escape(chr(10).join(block.lines))}</pre>"
        case Plot():
            return f'<figure role="img" aria-label="{html.escape(block.says)}">{svg(block.figure, block.name)}</figure>'
        case Pictures():
            rows = "".join(f"<h3>{html.escape(line)}</h3>{gallery(pictures)}" for line, pictures in block.rows)
            swatches = "".join(
                f'<li><span style="background:rgb{colour}"></span>{html.escape(name)}</li>' for name, colour in block.legend
            )
            return f'<ul class="legend">{swatches}</ul>{rows}'


def td(cell: str, word: bool, heat: bool) -> str:
    """A cell of words or of a number, which has a colour if it is a percentage of a table that shows heat."""
    if not heat or not re.fullmatch(r"\d+(\.\d+)?", cell):
        return f"<td{TEXT * word}>{html.escape(cell)}</td>"
    background, ink = scale(float(cell) / 100)
    return f'<td style="background:{background};color:{ink}">{cell}</td>'


def gallery(pictures: Sequence[tuple[str, np.ndarray]]) -> str:
    """Pictures side by side, as many in a row as there is room for."""
    wide = pictures[0][1].shape[1] > 1.5 * pictures[0][1].shape[0]
    shown = "".join(
        f'<figure><img alt="{html.escape(line)}" src="{png(picture)}"><figcaption>{html.escape(line)}</figcaption></figure>'
        for line, picture in pictures
    )
    return f'<div class="gallery{" panorama" if wide else ""}">{shown}</div>'


def png(picture: np.ndarray) -> str:
    """A picture (H, W, 3) as an address that holds it."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def svg(figure: Figure, name: str) -> str:
    """A drawing whose ink has the page's colour, light or dark, and whose text stays text."""
    buffer = io.StringIO()
    with without_math(figure), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", facecolor="none", metadata={"Date": None, "Creator": None})
    drawn = buffer.getvalue()
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :], flags=re.DOTALL)
    drawn = re.sub(r'(<svg[^>]*?) width="[^"]*"|(<svg[^>]*?) height="[^"]*"', r"\1\2", drawn)
    drawn = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", drawn)
    width = figure.get_size_inches()[0]
    drawn = drawn.replace("<svg", f'<svg style="max-width:{width * 96:.0f}px"', 1)
    return re.sub(r"<[^>]*>", lambda tag: restyle(tag[0]), drawn)


def restyle(tag: str) -> str:
    """Return an SVG's tag with the page's font and colour of text; what stands between tags is a user's."""
    return re.sub(r"'?DejaVu Sans'?(, [^;\"]*)?", "sans-serif", tag).replace(INK, "currentColor")
