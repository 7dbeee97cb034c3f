"""Every notebook runs from top to bottom, leaves nothing behind, and is kept without outputs."""

import json
import os
import subprocess
import sys

import pytest

from tests.support.commands import ROOT, THREADS

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(notebook):
    cells = json.loads(notebook.read_text())["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbmake",
        "--nbmake-timeout=900",
        "-p",
        "no:cacheprovider",
        "-q",
        str(notebook),
    ]
    before = set(notebook.parent.iterdir())
    result = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": THREADS}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
    assert set(notebook.parent.iterdir()) == before
