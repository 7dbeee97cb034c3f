"""Errors that a user can act on, and how messages are formatted for the terminal."""

import errno
import shlex
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

REASON_FILE = "DILATED_SEG_REASON_FILE"  # environment variable: the file for the error of the run's first failing process

DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
PERMISSION = (errno.EACCES, errno.EPERM)
# Packages that access files behind URLs, and whose errors may be neither OSError nor ValueError.
TRANSPORTS = {
    "adlfs", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google", "http", "httpx", "httpx2",
    "huggingface_hub", "requests", "ssl", "urllib3",
}  # fmt: skip


class UserError(Exception):
    """Error caused by invalid user input; the message states what is wrong, where, and how to fix it.

    The command line prints the message without a traceback and exits with 2. It is not a ValueError, because jsonargparse
    catches ValueErrors and adds a page of types to their messages.
    """

    def __str__(self) -> str:
        # A DataLoader's worker sends a traceback as the message, whose last line begins with the name of this class.
        return super().__str__().rpartition(f"{type(self).__name__}: ")[2].strip()


class ResourceError(UserError):
    """A file cannot be read because of memory, disk or connection; ``on_bad_image="skip"`` does not skip it."""


class LostProcessError(UserError):
    """Another process of the run ended or hangs; its output has the cause of the failure."""


class CorruptError(Exception):
    """A file is damaged or not supported; the message is the end of a sentence that begins with its name."""


def format_error(error: object) -> str:
    """Return an error's text in one line of at most 500 characters, or the name of its type if the text is empty."""
    return " ".join(str(error).split())[:500] or type(error).__name__


def describe_error(error: BaseException) -> str:
    """Return an error's type and text in one line."""
    return f"{type(error).__name__}: {format_error(error)}"


def format_names(names: Sequence[str]) -> str:
    """Return the first three names, and the number of the others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def explain_system_error(name: object, error: BaseException) -> UserError | None:
    """Return the UserError for an error of the operating system with a file; None if the cause is the file's content.

    Errors of the operating system have an errno. Libraries also raise OSError for damaged content, but without errno.
    """
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return ResourceError(f"not enough memory to read {name}: free some, or lower data.num_workers")
    if not isinstance(error, OSError) or error.errno is None:
        return None
    name = error.filename or name
    if error.errno in DESCRIPTORS:
        return ResourceError(f"too many files are open to read {name}: lower data.num_workers, or raise the limit (ulimit -n)")
    if error.errno in SPACE:
        return ResourceError(f"no space to write {name} ({error.strerror}): free some, or use another disk")
    if error.errno in PERMISSION:
        return UserError(f"{name} cannot be opened ({error.strerror}): change its permissions")
    if error.errno == errno.ENOENT:
        return UserError(f"{name} disappeared after the dataset was opened: restore it")
    return ResourceError(f"{name} cannot be read ({format_error(error)}): check the disk or network drive that holds it")


def explain_url_error(name: str, error: BaseException) -> UserError | None:
    """Return the UserError for a file behind a URL that cannot be read; None for other errors."""
    package = type(error).__module__.partition(".")[0]
    if isinstance(error, OSError | ValueError) or package in TRANSPORTS:
        return ResourceError(f"cannot read {name} ({format_error(error)}): check the address, the connection and your access")
    return None


def open_console(**options: Any) -> "Console":  # noqa: ANN401 - as rich's
    """Return a console without markup, emoji and highlighting, so that names are printed literally."""
    from rich.console import Console  # 50 ms, which --help saves

    return Console(**{"markup": False, "emoji": False, "highlight": False, **options})


def print_table(table: "Table") -> None:
    """Print a table completely: where the terminal is too narrow, lines wrap."""
    from rich.measure import Measurement

    console = open_console()
    width = Measurement.get(console, console.options.update(width=1000), table).maximum
    open_console(width=max(console.width, width)).print(table)


def format_command(*words: str | Path) -> str:
    """Return a command quoted for a POSIX shell, each word as one argument."""
    return shlex.join(str(word) for word in words)


def require_extra(option: str, extra: str, *packages: str) -> None:
    """Require the packages that an optional extra of setup.cfg installs.

    Raises:
        UserError: A package is not installed.
    """
    if missing := [name for name in packages if find_spec(name.replace("-", "_")) is None]:
        raise UserError(f"{option} needs {' and '.join(missing)}: pip install {' '.join(packages)} (the extra '{extra}')")
