"""docs/extending.md: its blocks are applied to a copy of the repository as they stand, and the commands below them run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

RECIPES = dict(re.findall(r"^## (.*)\n((?:(?!^## ).*\n)*)", (ROOT / "docs/extending.md").read_text(), re.M))
CHANGE = re.compile(r"^(New,|In|At the end of) `([^`\n]+)`:\n\n```\w+\n(.*?)^```$", re.M | re.S)
COMMANDS = re.compile(r"^```sh\n(.*?)^```$", re.M | re.S)


def copied(folder: Path) -> Path:
    """The repository's files, as they are now."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def edited(text: str, changes: str) -> str:
    """A file with the changes of a diff, whose places are found by the lines that stay or go, once each."""
    for change in changes.split("@@\n"):
        lines = change.splitlines(keepends=True)
        before, after = ("".join(line[1:] for line in lines if line[0] in kinds) for kinds in (" -", " +"))
        assert f"\n{text}".count(f"\n{before}") == 1, before
        text = f"\n{text}".replace(f"\n{before}", f"\n{after}")[1:]
    return text


def apply(recipe: str, root: Path) -> None:
    """Make the changes of a recipe."""
    for how, name, text in CHANGE.findall(recipe):
        file = root / name
        assert file.exists() == (how != "New,"), name
        file.parent.mkdir(parents=True, exist_ok=True)
        before = f"{file.read_text()}\n\n" if file.exists() else ""
        file.write_text(edited(before[:-2], text) if how == "In" else before + text)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_does_what_the_page_says(recipe, tmp_path):
    root = copied(tmp_path / "copy")
    apply(RECIPES[recipe], root)
    (commands,) = COMMANDS.findall(RECIPES[recipe])
    here = {"PYTHONPATH": str(root), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "80"}
    for command in (commands, "ruff check --no-cache .; ruff format --no-cache --check ."):
        done = subprocess.run(["bash", "-ec", command], cwd=root, env=os.environ | here, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_no_recipe_is_part_of_the_repository():
    new = [name for recipe in RECIPES.values() for how, name, _ in CHANGE.findall(recipe) if how == "New,"]
    assert len(new) == 9
    assert not [name for name in new if (ROOT / name).exists()]
