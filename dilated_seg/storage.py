"""Files: whole or not at all, their SHA-256, and text from a path or a URL."""

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dilated_seg.errors import UserError, explain_url_error, format_error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, which replaces it when the block ends and is removed if the block fails.

    So a file is whole or not there, whatever ends the process. Of two processes that write it at once, the last one wins.
    The temporary name keeps the suffix, from which libraries tell the format, and is short whatever ``path`` is called.
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
    """Whether data lie behind a URL (hf://, s3://, https://) and not in a folder."""
    return "://" in root


def join(root: str, name: str) -> str:
    """A file's place below a folder or URL."""
    return f"{root.rstrip('/')}/{name}"


def read_text(root: str, name: str) -> str:
    """A small text file in a folder or behind a URL.

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


def digest(path: Path) -> str:
    """A file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
