"""Files from elsewhere: fetched whole or not at all, and used only if they are what their SHA-256 says.

An address names its file's checksum behind it: ``https://example.org/fcn.safetensors#sha256=...`` (64 digits), or
``hf://OWNER/NAME/FILE#sha256=...`` on the Hugging Face Hub.
"""

import os
import re
import socket
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request

import torch

from dilated_seg.errors import UserError, format_error
from dilated_seg.storage import digest, is_url

TIMEOUT = 20.0  # seconds without a byte


def local(source: str | Path) -> Path:
    """A file's path; what an address names is fetched into torch's cache first, unless it is there.

    Raises:
        UserError: The address names no checksum or cannot be fetched, or what lies there is another file.
    """
    if isinstance(source, Path) or not is_url(source):
        return Path(source)
    url, _, checksum = source.partition("#sha256=")
    if not re.fullmatch("[0-9a-f]{64}", checksum := checksum.lower()):
        raise UserError(f"{source} does not say which file it is: write its SHA-256 behind it, {url.split('#')[0]}#sha256=...")
    name = url.split("?")[0].rpartition("/")[2]
    return have(address(url), cache() / f"{checksum[:16]}-{name[-100:]}", checksum)


def address(url: str) -> str:
    """Where a file is fetched from.

    Raises:
        UserError: It is neither an http(s) address nor one of the Hugging Face Hub.
    """
    if url.startswith(("https://", "http://")):
        return url
    if found := re.fullmatch(r"hf://([^/]+/[^/@]+)(?:@([^/]+))?/(.+)", url):
        repository, revision, name = found.groups()
        hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        return f"{hub}/{repository}/resolve/{revision or 'main'}/{name}"
    raise UserError(f"{url} cannot be fetched: give an https:// address, or hf://OWNER/NAME/FILE")


def cache() -> Path:
    """The folder where torch keeps what it fetches."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def have(url: str, path: Path, checksum: str) -> Path:
    """A file of this checksum, or of one that starts so: the one that is there, or else fetched.

    Raises:
        UserError: It cannot be fetched, or is another file.
    """
    try:
        if not path.is_file():
            download(url, path, checksum)
        elif not (found := digest(path)).startswith(checksum):
            raise UserError(f"{path} is another file than {url} (SHA-256 {found}, not {checksum}): remove it")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return path


def download(url: str, path: Path, checksum: str) -> None:
    """Fetch a file; it appears whole, as its checksum says, or not at all."""
    timeout = socket.getdefaulttimeout()
    try:
        Request(url)  # torch would open a file before it sees that an address is none
        path.parent.mkdir(parents=True, exist_ok=True)
        socket.setdefaulttimeout(TIMEOUT)
        torch.hub.download_url_to_file(url, str(path), checksum, progress=True)
    except (OSError, HTTPException, RuntimeError, ValueError) as error:
        raise UserError(
            f"cannot download {url} ({format_error(error)}): fetch it where there is a network and put it into "
            f"{path.parent} as {path.name}, or name a file of weights in model.weights"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
