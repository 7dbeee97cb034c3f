"""Weights behind URLs, downloaded into torch's cache and used only if they have the stated SHA-256.

A URL ends with its file's checksum of 64 digits: ``https://example.org/fcn.safetensors#sha256=...``, or
``hf://OWNER/NAME/FILE#sha256=...`` on the Hugging Face Hub.
"""

import os
import re
from pathlib import Path

import torch

from dilated_seg.errors import UserError
from dilated_seg.storage import digest, download, is_url


def fetch(source: str | Path) -> Path:
    """Return the local path of a file or URL; a URL is downloaded into torch's cache unless it is cached.

    Raises:
        UserError: The URL has no checksum or cannot be downloaded, or the file in the cache is another.
    """
    if isinstance(source, Path) or not is_url(source):
        return Path(source)
    url, _, checksum = source.partition("#sha256=")
    if not re.fullmatch("[0-9a-f]{64}", checksum := checksum.lower()):
        raise UserError(f"{source} has no checksum of its file: append its SHA-256, {url.split('#')[0]}#sha256=...")
    name = url.split("?")[0].rpartition("/")[2]
    return ensure_downloaded(resolve_url(url), get_cache_directory() / f"{checksum[:16]}-{name[-100:]}", checksum)


def resolve_url(url: str) -> str:
    """Return the http(s) address of a file; raise UserError unless the URL is http(s) or of the Hugging Face Hub."""
    if url.startswith(("https://", "http://")):
        return url
    if match := re.fullmatch(r"hf://([^/]+/[^/@]+)(?:@([^/]+))?/(.+)", url):
        repository, revision, name = match.groups()
        hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        return f"{hub}/{repository}/resolve/{revision or 'main'}/{name}"
    raise UserError(f"{url} cannot be downloaded: give an https:// address, or hf://OWNER/NAME/FILE")


def get_cache_directory() -> Path:
    """Return the directory in which torch keeps downloaded weights."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def ensure_downloaded(url: str, path: Path, checksum: str) -> Path:
    """Return the path of a file whose SHA-256 is ``checksum`` or begins with it, after a download unless it exists.

    Raises:
        UserError: The file cannot be downloaded, or has another checksum.
    """
    try:
        if path.is_file():
            if not (actual := digest(path)).startswith(checksum):
                raise UserError(f"{path} is another file than {url} (SHA-256 {actual}, not {checksum}): remove it")
            return path
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        download(url, path, checksum)
    except OSError as error:
        raise UserError(
            f"cannot download {url} ({error}): fetch it where there is a network and put it into {path.parent} as {path.name}, "
            "or name a file of weights in model.weights"
        ) from error
    return path
