"""The pages of docs/ say what is so: their numbers are computed again, what they quote is what we print."""

import ast
import doctest

from tests.conftest import ROOT


def test_the_worked_example_of_the_protocol_gives_the_numbers_it_shows():
    result = doctest.testfile(str(ROOT / "docs/protocol.md"), module_relative=False)
    assert result.failed == 0
    assert result.attempted >= 12


def printed() -> set[str]:
    """All texts of the package, with … for what is filled in."""
    texts = set()
    for file in (ROOT / "dilated_seg").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                texts.add("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.add(node.value)
    return texts


def test_every_message_that_the_faq_quotes_is_one_of_ours():
    quoted = [line[2:] for line in (ROOT / "docs/faq.md").read_text().splitlines() if line.startswith("> ")]
    texts = printed()
    assert len(quoted) >= 15
    assert [message for message in quoted if not any(message in text for text in texts)] == []
