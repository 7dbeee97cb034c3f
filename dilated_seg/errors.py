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

REASON_FILE = "DILATED_SEG_REASON_FILE"  # names the file in which the first process of a run that fails says why

DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
PERMISSION = (errno.EACCES, errno.EPERM)
# Packages that access files behind URLs; several of their errors are neither OSError nor ValueError.
TRANSPORTS = {
    "adlfs", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google", "http", "httpx", "huggingface_hub", "requests", "ssl",
    "urllib3",
}  # fmt: skip


class UserError(Exception):
    """A mistake of the user's that one sentence explains: what is wrong, where, and what to do.

    The command line prints the sentence and exits with 2; nobody sees a traceback. It is no ValueError: jsonargparse would take
    that for its own and wrap it in a page of types.
    """

    def __str__(self) -> str:
        # A DataLoader's worker sends its whole traceback as the message; the sentence is what follows our name in it.
        return super().__str__().rpartition(f"{type(self).__name__}: ")[2].strip()


class ResourceError(UserError):
    """A file could not be read for a reason that is not the file's: memory, the disk, the connection.

    Training with ``on_bad_image="skip"`` does not skip the file.
    """


class LostProcessError(UserError):
    """Another process of the run ended or hangs: the reason of the failure is there, not here."""


class CorruptError(Exception):
    """What is wrong with a file, as the end of a sentence."""


def format_error(error: object) -> str:
    """Return an error's text in one line of at most 500 characters, or the name of its type if it has no text."""
    return " ".join(str(error).split())[:500] or type(error).__name__


def describe_error(error: BaseException) -> str:
    """Return an error's type and text in one line."""
    return f"{type(error).__name__}: {format_error(error)}"


def format_names(names: Sequence[str]) -> str:
    """Return the first three of many names, and the number of the others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def explain_system_error(name: object, error: BaseException) -> UserError | None:
    """Return what to tell the user if the operating system refused to read a file; None if its content is at fault.

    Errors of the operating system have an error number. Libraries raise OSError for damaged content too, without one.
    """
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return ResourceError(f"there is not enough memory to read {name}: free some, or lower data.num_workers")
    if not isinstance(error, OSError) or error.errno is None:
        return None
    name = error.filename or name
    if error.errno in DESCRIPTORS:
        return ResourceError(f"too many files are open to read {name}: lower data.num_workers, or raise the limit (ulimit -n)")
    if error.errno in SPACE:
        return ResourceError(f"there is no space to write {name} ({error.strerror}): free some, or name another disk")
    if error.errno in PERMISSION:
        return UserError(f"{name} cannot be opened ({error.strerror}): change its permissions")
    if error.errno == errno.ENOENT:
        return UserError(f"{name} is gone: it was there when the dataset was opened")
    return ResourceError(f"{name} cannot be read ({format_error(error)}): check the disk or network drive that holds it")


def explain_url_error(name: str, error: BaseException) -> UserError | None:
    """Return what to tell the user if a file behind a URL could not be read; None for errors that no storage raises."""
    package = type(error).__module__.partition(".")[0]
    if isinstance(error, OSError | ValueError) or package in TRANSPORTS:
        return ResourceError(f"cannot read {name} ({format_error(error)}): check the address, the connection and your access")
    return None


def open_console(**options: Any) -> "Console":  # noqa: ANN401 - as rich's
    """Return a console that prints names literally: ``[x]`` is no markup, ``:car:`` no emoji, a number no highlight."""
    from rich.console import Console  # 50 ms that --help does without

    return Console(**{"markup": False, "emoji": False, "highlight": False, **options})


def print_table(table: "Table") -> None:
    """Print a table without cutting off columns: in a terminal that is too narrow, lines wrap."""
    from rich.measure import Measurement

    console = open_console()
    width = Measurement.get(console, console.options.update(width=1000), table).maximum
    open_console(width=max(console.width, width)).print(table)


def format_command(*words: str | Path) -> str:
    """Return a command as a POSIX shell takes it; each word is one argument, whatever characters it has."""
    return shlex.join(str(word) for word in words)


def require_extra(option: str, extra: str, *packages: str) -> None:
    """Require the packages that an optional extra of setup.cfg installs.

    Raises:
        UserError: One is not installed.
    """
    if missing := [name for name in packages if find_spec(name.replace("-", "_")) is None]:
        raise UserError(f"{option} needs {' and '.join(missing)}: pip install {' '.join(packages)} (the extra '{extra}')")
