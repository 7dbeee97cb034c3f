"""A report as Markdown, for a repository or a terminal; users' names are shown literally."""

import re
from collections.abc import Collection, Sequence
from itertools import zip_longest

from dilated_seg.report.blocks import NUMBER, TOLD_APART, Block, Commands, Fold, ImageGrid, PageOnly, Plot, ReportTable, Section

# Characters that Markdown would interpret in a name ("_x_", but not "front_end"), and at the start of a paragraph.
SPECIAL = re.compile(r"[\\`*\[\]<>|~&$#\r\n]|_(?![^\W_])|(?<![^\W_])_")
SPECIAL_AT_START = re.compile(rf"{SPECIAL.pattern}|^[-+=:\s]|(?<=^\d)[.)]|(?<=^\d\d)[.)]")
PRIVATE = 0x10FE00  # code points for private use: a special character of a name, while it is inside text that has markup
SHIELDED = re.compile(f"[{chr(PRIVATE)}-{chr(PRIVATE + 127)}]")


def render_markdown(title: str, sections: Sequence[Section]) -> str:
    """Return the report as Markdown; its images are files in the same directory."""
    lines = [f"# {escape(title)}", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for block in section.blocks:
            lines += [*render_block(block), ""]
    return "\n".join(lines).rstrip() + "\n"


def render_block(block: Block) -> list[str]:
    """Return the lines of a block."""
    match block:
        case str():
            return [SHIELDED.sub(lambda match: backslash(chr(ord(match[0]) - PRIVATE)), block)]
        case ReportTable():
            return render_table(block)
        case Commands():
            return [f"    {line}" for command in block.lines for line in command.split("\n")]
        case Plot():
            return [f"![{escape(block.alt)}]({block.name}.png)"]
        case PageOnly():
            return render_block(block.plot)
        case Fold():
            return [f"### {escape(block.title)}", *(line for inner in block.blocks for line in ("", *render_block(inner)))]
        case ImageGrid():
            return []  # inside PageOnly, which has a plot for it


def render_table(table: ReportTable) -> list[str]:
    """Return a table, cells that are told apart in bold, and its plot."""
    rule = ["---" if word else "---:" for word in table.words]
    lines = [render_row(table.header), render_row(rule)]
    for cells, shades in zip_longest(table.rows, table.shades, fillvalue=()):
        bold = [False, *(shade == TOLD_APART for shade in shades)]
        lines.append(render_row(cells, bold))
    return [*lines, "", *render_block(table.plot)] if table.plot else lines


def render_row(cells: Sequence[str], bold: Sequence[bool] = ()) -> str:
    """Return a row of a Markdown table."""
    texts = [cell if NUMBER.fullmatch(cell) else escape(cell) for cell in cells]
    return f"| {' | '.join(f'**{text}**' if marked else text for text, marked in zip_longest(texts, bold))} |"


def escape(text: str) -> str:
    """Return text that Markdown shows literally, on one line."""
    return SPECIAL.sub(lambda match: backslash(match[0]), text)


def backslash(character: str) -> str:
    """Return a character as Markdown shows it literally."""
    return " " if character.isspace() else f"\\{character}"


def shield_names(text: str, names: Collection[str]) -> str:
    """Return text in which special characters of names are replaced by private ones, so that they are not markup."""
    special = sorted((name for name in names if SPECIAL_AT_START.search(name)), key=len, reverse=True)
    if not special:
        return text

    def hide(name: re.Match[str]) -> str:
        return SPECIAL_AT_START.sub(lambda match: chr(PRIVATE + ord(match[0])) if ord(match[0]) < 128 else match[0], name[0])

    return re.sub("|".join(map(re.escape, special)), hide, text)


def reveal_names(text: str) -> str:
    """Return text with the characters that `shield_names` hid."""
    return SHIELDED.sub(lambda match: chr(ord(match[0]) - PRIVATE), text)
