"""The terminal: text is printed as it is written, and commands can be pasted into a shell."""

import shlex
from pathlib import Path
from typing import Any

from rich.console import Console


def open_console(**options: Any) -> Console:  # noqa: ANN401 - as rich's
    """Return a console that prints names literally: ``[x]`` is no markup, ``:car:`` no emoji, a number no highlight."""
    return Console(**{"markup": False, "emoji": False, "highlight": False, **options})


def format_command(*words: str | Path) -> str:
    """Return a command as a POSIX shell takes it; each word is one argument, whatever characters it has."""
    return shlex.join(str(word) for word in words)
