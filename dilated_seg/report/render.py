"""A report as files that people open: one HTML page, Markdown, CSV, PNG."""

import base64
import csv
import io
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from dilated_seg.analysis.plots import INK, color_fraction
from dilated_seg.report.blocks import Block, Commands, Fold, PageOnly, Plot, ReportTable, Section, walk_blocks
from dilated_seg.report.markdown import render_markdown, reveal_names, shield_names
from dilated_seg.storage import write_text


def write_report(title: str, sections: Sequence[Section], out: Path, names: Collection[str] = ()) -> None:
    """Write report.md, report.html, and the PNG or CSV of every plot and table into a directory.

    Args:
        title: The title of the page.
        sections: The sections of the page.
        out: The directory.
        names: Names that users chose, which are never interpreted as markup.
    """
    out.mkdir(parents=True, exist_ok=True)
    for section in sections:
        section.blocks = [shield_block(block, names) for block in section.blocks]
        for block in walk_blocks(section.blocks):
            if isinstance(block, ReportTable) and block.name:
                write_csv(block, out / f"{block.name}.csv")
            elif isinstance(block, Plot):
                with without_math(block.figure):
                    block.figure.savefig(out / f"{block.name}.png", dpi=150, facecolor="white")
    write_text(out / "report.md", render_markdown(title, sections))
    write_text(out / "report.html", render_page(title, sections))


def shield_block(block: Block, names: Collection[str]) -> Block:
    """Return a block in whose text users' names are not interpreted as markup."""
    if isinstance(block, str):
        return shield_names(block, names)
    return Fold(block.title, [shield_block(inner, names) for inner in block.blocks]) if isinstance(block, Fold) else block


def write_csv(table: ReportTable, file: Path) -> None:
    """Write the table's rows for a spreadsheet."""
    header, rows = table.csv or (table.header, table.rows)
    lines = io.StringIO(newline="")
    csv.writer(lines, lineterminator="\n").writerows([header, *rows])
    write_text(file, lines.getvalue())


def render_page(title: str, sections: Sequence[Section]) -> str:
    """Return one HTML page that fetches nothing: images are inside, there are no scripts."""
    return page_template().render(title=title, sections=sections, heat=style_heat())


@cache
def page_template() -> jinja2.Template:
    """Load page.html; every value that it shows is escaped."""
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.tests |= {
        "table": lambda block: isinstance(block, ReportTable),
        "commands": lambda block: isinstance(block, Commands),
        "plot": lambda block: isinstance(block, Plot),
        "fold": lambda block: isinstance(block, Fold),
        "page_only": lambda block: isinstance(block, PageOnly),
    }
    environment.filters |= {
        "split_bold": re.compile(r"\*\*(.+?)\*\*").split,  # every second part is bold
        "split_code": re.compile(r"`([^`]+)`").split,
        "reveal_names": reveal_names,
        "encode_png": encode_png,
        "draw_svg": draw_svg,
    }
    return environment.get_template("page.html")


def style_heat() -> str:
    """Return the CSS rules of the shades h0 to h100: the colors of percentages."""
    colors = [color_fraction(value / 100) for value in range(101)]
    return "".join(f".h{value}{{background:{back};color:{text}}}" for value, (back, text) in enumerate(colors))


def encode_png(image: np.ndarray) -> str:
    """Return an image (H, W, 3) as a data URL."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@contextmanager
def without_math(figure: Figure) -> Iterator[None]:
    """Draw dollar signs literally instead of as formulas."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with matplotlib.rc_context({"text.parse_math": False}):  # of ticks, which are created when drawn
        yield


def draw_svg(plot: Plot) -> Markup:
    """Return a figure as SVG; its ink has the page's color, light or dark, and its text remains text."""
    buffer = io.StringIO()
    with without_math(plot.figure), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": plot.name}):
        plot.figure.savefig(buffer, format="svg", facecolor="none", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    style = f'style="max-width:{plot.figure.get_size_inches()[0] * 96:.0f}px"'
    svg = re.sub(r"<svg[^>]*>", lambda tag: resize_tag(tag[0], style), svg, count=1)
    return Markup(re.sub(r"<[^>]*>", lambda tag: restyle_tag(tag[0]), svg))


def resize_tag(tag: str, style: str) -> str:
    """Return the tag of an SVG with a style instead of its width and height."""
    return re.sub(r' (width|height)="[^"]*"', "", tag).replace("<svg", f"<svg {style}", 1)


def restyle_tag(tag: str) -> str:
    """Return an SVG's tag with the page's font and color of text; text between tags may be a user's."""
    return re.sub(r"'?DejaVu Sans'?(, [^;\"]*)?", "sans-serif", tag).replace(INK, "currentColor")
