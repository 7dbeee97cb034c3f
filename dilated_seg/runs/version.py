"""The commit of the running code."""

import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path

import dilated_seg


@cache
def commit() -> str:
    """Return the commit of the running code, marked if files differ from it; the version if the commit is unknown.

    It is read only once, because the checkout may change during a run. A built wheel holds it in a file (setup.py).
    """
    package = Path(dilated_seg.__file__).parent
    command = ["git", "-C", str(package.parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    with suppress(OSError, subprocess.CalledProcessError):  # no git
        if (package.parent / ".git").exists():
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    built = package / "COMMIT"
    return (built.read_text().strip() if built.is_file() else "") or dilated_seg.__version__
