"""Atomic writes, SHA-256, downloads, and text from a path or URL."""

import hashlib
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import Request

from dilated_seg.errors import UserError, explain_url_error, format_error

TIMEOUT = 20.0  # seconds without a byte, after which a download fails
SYSTEMS: dict[int, Any] = {}  # the file systems of `find_system`, by identity


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same directory, which replaces ``path`` when the block ends and is removed if it fails.

    The file is complete or absent, however the process ends. If two processes write it, the last one wins. The temporary name
    is short and keeps the suffix, from which libraries infer the format. The file's permissions follow the umask, even if a
    library (safetensors) sets other permissions.
    """
    partial = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}.partial{path.suffix[:16]}")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def require_writable(path: Path, suffix: str, overwrite: bool) -> None:
    """Raise UserError unless the file ``--out`` ends in ``suffix``, is new or may be replaced, and its directory exists."""
    if path.suffix != suffix:
        raise UserError(f"--out {path}: the file name must end in {suffix}")
    if os.path.isdir(path):
        raise UserError(f"--out {path} is a directory: give the name of a file")
    if os.path.lexists(path) and not overwrite:
        raise UserError(f"--out {path} exists: give another name, or replace it with --overwrite")
    if not os.path.isdir(path.parent):
        raise UserError(f"--out {path}: there is no directory {path.parent}: create it first")


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically; make its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def is_url(root: str) -> bool:
    """Return whether a root is a URL (hf://, s3://, https://) and not a directory."""
    return "://" in root


def make_relative(path: Path) -> Path:
    """Return a path relative to the working directory if it is inside it."""
    absolute, working = Path(os.path.abspath(path)), Path.cwd()
    return absolute.relative_to(working) if working in absolute.parents else path


def join(root: str, name: str) -> str:
    """Return the path or URL of a file in a directory or below a URL."""
    return f"{root.rstrip('/')}/{name}"


def find_system(url: str) -> tuple[Any, str]:
    """Return the file system of fsspec for a URL, and the path in it.

    The file system is never released. In a forked worker that would close the connections of its parent, whose event loop
    shares its epoll object with the worker: the parent would wait for answers until the time limit.
    """
    import fsspec  # comes with datasets

    system, path = fsspec.core.url_to_fs(url)
    SYSTEMS[id(system)] = system
    return system, path


def read_text(root: str, name: str) -> str:
    """Read a small text file in a directory or behind a URL.

    Raises:
        UserError: The file cannot be read.
    """
    location = join(root, name)
    try:
        if not is_url(root):
            return Path(location).read_text("utf-8-sig")
        system, path = find_system(location)
        return str(system.cat_file(path).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{location} is not UTF-8 text: save it as UTF-8") from error
    except ImportError as error:  # fsspec names the package that this kind of URL needs
        raise UserError(f"cannot read {location}: {format_error(error)}") from error
    except Exception as error:
        if is_url(root) and (problem := explain_url_error(location, error)):
            raise problem from error
        if isinstance(error, OSError):
            raise UserError(f"cannot read {location}: {error.strerror or error}") from error
        raise


def download(url: str, path: Path, checksum: str) -> None:
    """Download a file atomically; raise OSError if that fails or its SHA-256 does not begin with ``checksum``."""
    from torch.hub import download_url_to_file

    timeout = socket.getdefaulttimeout()
    try:
        Request(url)  # raises for an invalid URL, for which torch would create a file first
        path.parent.mkdir(parents=True, exist_ok=True)
        socket.setdefaulttimeout(TIMEOUT)
        download_url_to_file(url, str(path), checksum, progress=True)
    except (OSError, HTTPException, RuntimeError, ValueError) as error:
        raise OSError(format_error(error)) from error
    finally:
        socket.setdefaulttimeout(timeout)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
