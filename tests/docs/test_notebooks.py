"""Every notebook runs from top to bottom, leaves nothing behind, and is kept with the outputs of its present code."""

import os
import re
import subprocess
import sys

import nbformat
import pytest

from notebooks.execute import hash_code
from tests.support.commands import ROOT, THREADS

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def list_outputs(file):
    """Return the kind and the formats of each output, cell by cell; texts of one cell are one."""
    cells = [cell for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"]
    return [dict.fromkeys((output.output_type, *output.get("data", {})) for output in cell.outputs) for cell in cells]


@each_notebook
def test_a_notebook_is_kept_with_the_outputs_of_its_code_or_without(notebook):
    content = nbformat.read(notebook, as_version=4)
    executed = content.metadata.get("executed")
    assert executed in (None, hash_code(content)), "the code has changed: make notebooks"
    assert any(list_outputs(notebook)) == bool(executed)
    assert notebook.stat().st_size < 600_000
    assert not re.search(r"/tmp/tmp|/home/|Traceback", notebook.read_text())


@pytest.mark.slow
@each_notebook
def test_a_notebook_runs_and_gives_the_same_kinds_of_outputs(notebook, tmp_path):
    before = set(notebook.parent.iterdir())
    command = [sys.executable, "-W", "ignore", "notebooks/execute.py", str(notebook), "--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": THREADS}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    if any(list_outputs(notebook)):
        assert list_outputs(tmp_path / notebook.name) == list_outputs(notebook)
    assert set(notebook.parent.iterdir()) == before
