"""What keeps the repository simple: imports point one way, importing costs nothing, every path says what is in it."""

import subprocess
import sys

from tests.conftest import ROOT


def test_imports_keep_the_contract_of_setup_cfg():
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(config_filename='setup.cfg'))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, dilated_seg; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'lightning', 'yaml')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_no_path_is_called_utils_common_core_helpers_or_misc():
    vague = {"utils", "common", "core", "helpers", "misc"}
    assert not [p for p in (ROOT / "dilated_seg").rglob("*") if p.stem in vague]
