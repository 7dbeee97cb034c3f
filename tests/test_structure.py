"""What keeps the repository simple: imports point one way, importing costs nothing, every path says what is in it."""

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT


def test_imports_keep_the_contract_of_setup_cfg():
    pytest.importorskip("importlinter")
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(config_filename='setup.cfg'))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, dilated_seg; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'lightning', 'yaml')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_no_path_is_called_utils_common_core_helpers_or_misc():
    vague = {"utils", "common", "core", "helpers", "misc"}
    assert not [p for p in (ROOT / "dilated_seg").rglob("*") if p.stem in vague]


# The files that may use private names of other libraries.
INTERNALS = ("training/lightning_internals.py", "models/torch_internals.py")
PRIVATE = re.compile(r"\.(_(?!_)[a-zA-Z]\w*)|^\s*from [\w.]+ import .*?\b(_[a-zA-Z]\w*)", re.M)
OWN = re.compile(r"def (_\w+)|self\.(_\w+)(?::[^=\n]*)? = |^    (_\w+): ", re.M)


def private_names(path):
    """The names with one underscore that a file uses and does not define."""
    code = re.sub(r'"""[\s\S]*?"""|#.*', "", path.read_text())
    used, own = ({name for names in pattern.findall(code) for name in names if name} for pattern in (PRIVATE, OWN))
    return used - own


def test_private_names_of_other_libraries_are_in_two_files():
    package = ROOT / "dilated_seg"
    elsewhere = {
        str(path.relative_to(package)): names
        for path in package.rglob("*.py")
        if str(path.relative_to(package)) not in INTERNALS and (names := private_names(path))
    }
    assert not elsewhere
    names = set.union(*(private_names(package / file) for file in INTERNALS))
    assert "_should_check_val_fx" in names and len(names) + len({"_get_train_description"}) <= 12
