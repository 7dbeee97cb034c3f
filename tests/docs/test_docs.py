"""The pages of docs/ say what is so: their numbers are computed again, what they quote is what we print."""

import ast
import doctest
import re
import subprocess
import sys
from importlib import import_module

import pytest

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_points_to_is_there(page):
    text = page.read_text()
    links = [link.partition("#")[0] for link in re.findall(r"\]\((?!http)([^)]+)\)", text)]
    assert [link for link in links if link and not (page.parent / link).exists()] == []
    if page.name != "extending.md":  # whose files are not there yet
        assert [name for name in re.findall(r"\bexperiments/[\w/]+\.\w+", text) if not (ROOT / name).is_file()] == []


def resolves(name: str) -> bool:
    """Whether a dotted name is a module of ours, something in one, or an attribute of such a class."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:]:
            found = getattr(found, part, None)
        return found is not None
    return False


def test_every_dotted_name_of_ours_that_is_mentioned_exists():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    skipped = ("tests/", "CHANGELOG.md", "docs/extending.md")  # history, and what a page adds
    kinds = (".md", ".py", ".yaml", ".ipynb", ".cfg")
    mentioned = {}
    for file in (ROOT / name for name in tracked if name.endswith(kinds) and not name.startswith(skipped)):
        for name in re.findall(r"(?<![\w/.])dilated_seg(?:\.[A-Za-z_]\w*)+", file.read_text()):
            mentioned.setdefault(name, file.name)
    assert len(mentioned) > 100
    assert {name: file for name, file in mentioned.items() if not resolves(name)} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_of_ours_that_a_page_names_is_there(page):
    named = set(re.findall(r"`((?:dilated_seg/)?[a-z_]+(?:/[a-z_]+)*/[a-z_]+\.py)`", page.read_text()))
    if page.name in ("extending.md", "CONTRIBUTING.md"):  # what they add
        named = {name for name in named if not re.search(r"/my\w+\.py|oxfordpets|highresnet", name)}
    places = [ROOT, ROOT / "dilated_seg"]
    assert {name for name in named if not any((place / name).is_file() for place in places)} == set()


def test_the_diagram_of_the_architecture_is_drawn_from_the_imports():
    pytest.importorskip("grimp")
    done = subprocess.run([sys.executable, ROOT / "docs/import_graph.py", "--check"], cwd=ROOT)
    assert done.returncode == 0, "run python docs/import_graph.py"


def test_readme_is_short():
    assert (ROOT / "README.md").stat().st_size <= 8192


def test_the_networks_of_readme_are_those_that_describe_lists():
    def rows(file):
        cells = ([cell.strip() for cell in line.split("|")[1:-1]] for line in (ROOT / file).read_text().splitlines())
        return {row[0]: row for row in cells if row and re.match(r"`[A-Z]\w+\(21", row[0])}

    measured = rows("docs/networks.md")
    listed = rows("README.md")
    assert len(listed) == 8
    for network, (_, _, parameters, stride, receptive_field, experiment) in listed.items():
        _, _, number, _, _, *expected = measured[network]
        assert (parameters, stride, receptive_field) == (f"{int(number.replace(',', '')) / 1e6:.1f} M", *expected)
        assert (ROOT / "experiments" / experiment.strip("`")).is_file()


def test_every_page_is_in_the_navigation_of_the_site():
    navigation = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text()))
    assert navigation == {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")}
