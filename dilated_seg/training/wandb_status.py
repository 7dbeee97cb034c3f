"""Decide whether to log to W&B directly: its mode, an API key, and a server that answers."""

import netrc
import os
import sys
import urllib.error
import urllib.request
from http.client import HTTPException
from urllib.parse import SplitResult, urlsplit

from dilated_seg.errors import format_error

TIMEOUT = 4  # seconds that W&B's server has to answer


def is_online() -> bool:
    """Return whether to log online: WANDB_MODE is online, or unset with a key and a server that answers; print why not."""
    mode = os.environ.get("WANDB_MODE")
    if mode or not has_key():
        return bool(mode) and mode not in ("offline", "dryrun", "disabled")
    if problem := explain_unreachable():
        print_offline(problem)
    return not problem


def print_offline(problem: object) -> None:
    """Print that W&B is offline, and why."""
    print(f"W&B is offline: {format_error(problem)}; `wandb sync` later", file=sys.stderr)


def parse_server() -> SplitResult:
    """Return the address of W&B's server."""
    return urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))


def explain_unreachable() -> str:
    """Return why W&B's server does not answer; "" if it answers anything."""
    try:
        urllib.request.urlopen(parse_server().geturl(), timeout=TIMEOUT).close()
    except urllib.error.HTTPError:
        return ""
    except (OSError, ValueError, HTTPException) as error:
        return f"{parse_server().netloc} does not answer ({error})"
    return ""


def has_key() -> bool:
    """Return whether W&B would find a key: in the environment, or in ~/.netrc, where ``wandb login`` writes it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return parse_server().hostname in netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False
