"""The commit of the running code."""

import subprocess
from functools import cache
from pathlib import Path

import dilated_seg


@cache
def commit() -> str:
    """Return the commit of the running code, marked if files differ from it; the version if there is no checkout.

    It is read once: the checkout may change while a run lasts.
    """
    root = Path(dilated_seg.__file__).parents[1]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        if (root / ".git").exists():
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pass  # no git: the version will do
    return dilated_seg.__version__
