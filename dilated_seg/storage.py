"""Atomic writes, SHA-256, downloads, and text from a path or a URL."""

import hashlib
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request

from dilated_seg.errors import UserError, explain_url_error, format_error

TIMEOUT = 20.0  # seconds without a byte, after which a download fails


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same directory, which replaces ``path`` when the block ends; if it fails, it is removed.

    So a file is complete or absent, whatever ends the process. Of two processes that write it at once, the last one wins. The
    temporary name keeps the suffix, from which libraries tell the format, and is short whatever the name of ``path``.
    """
    partial = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}.partial{path.suffix[:16]}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically; make its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def is_url(root: str) -> bool:
    """Return whether data are behind a URL (hf://, s3://, https://), not in a directory."""
    return "://" in root


def join(root: str, name: str) -> str:
    """Return the path of a file in a directory or below a URL."""
    return f"{root.rstrip('/')}/{name}"


def read_text(root: str, name: str) -> str:
    """Read a small text file in a directory or behind a URL.

    Raises:
        UserError: It cannot be read.
    """
    place = join(root, name)
    try:
        if not is_url(root):
            return Path(place).read_text("utf-8-sig")
        import fsspec  # comes with datasets

        with fsspec.open(place, encoding="utf-8-sig", mode="rt") as file:
            return str(file.read())
    except UnicodeDecodeError as error:
        raise UserError(f"{place} is no UTF-8 text: save it as such") from error
    except ImportError as error:  # fsspec names the package that this kind of URL needs
        raise UserError(f"cannot read {place}: {format_error(error)}") from error
    except Exception as error:
        if is_url(root) and (problem := explain_url_error(place, error)):
            raise problem from error
        if isinstance(error, OSError):
            raise UserError(f"cannot read {place}: {error.strerror or error}") from error
        raise


def download(url: str, path: Path, checksum: str) -> None:
    """Download a file, whose SHA-256 is ``checksum`` or begins with it; it appears only when it is complete.

    Raises:
        OSError: It cannot be downloaded, or is another file.
    """
    from torch.hub import download_url_to_file

    timeout = socket.getdefaulttimeout()
    try:
        Request(url)  # torch would create a file before it finds that an address is not one
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
