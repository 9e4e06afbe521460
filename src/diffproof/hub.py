"""The Hugging Face Hub from a machine that may be offline."""

from __future__ import annotations

import socket
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from diffproof.errors import ArgumentError

# Seconds to wait for an answer of the Hub before it counts as out of reach.
_PATIENCE = 5.0


@contextmanager
def quick_hub() -> Iterator[None]:
    """Within this block, an unreachable Hub sends its libraries to their caches at once and without a log.

    By themselves they try again for more than a minute and report every attempt.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    # `datasets` keeps a copy of the setting.
    settings: list[Any] = [constants, *filter(None, [sys.modules.get("datasets.config")])]
    before = [module.HF_HUB_OFFLINE for module in settings]
    offline = any(before) or not _reachable(constants.ENDPOINT)
    try:
        for module in settings:
            module.HF_HUB_OFFLINE = offline
        yield
    finally:
        for module, value in zip(settings, before, strict=True):
            module.HF_HUB_OFFLINE = value
        logging.set_verbosity(verbosity)


def snapshot(hub_id: str, patterns: Sequence[str]) -> Path:
    """The folder of a Hub repository's files: the newest, or the cached ones where the Hub is out of reach.

    Args:
        hub_id: "owner/name".
        patterns: patterns of the files wanted, such as "*.json".

    Raises:
        ValueError: no such repository, or it is neither in reach nor in the cache.
    """
    from huggingface_hub import snapshot_download

    try:
        with quick_hub():
            return Path(snapshot_download(hub_id, allow_patterns=list(patterns)))
    except Exception as error:  # the library's own errors and those of the network
        reason = " ".join(str(error).split())[:160]
        raise ArgumentError(
            "hub",
            f"{hub_id!r} is no folder here and cannot be had from the Hub or its cache: {reason};"
            f" download it once while online (hf download {hub_id}), or give a folder",
        ) from None


def _reachable(endpoint: str) -> bool:
    """Whether a server listens there; where a proxy stands between, only the request itself can tell."""
    parts = urlsplit(endpoint)
    if parts.scheme in urllib.request.getproxies() or "all" in urllib.request.getproxies():
        return True
    try:
        port = parts.port or (80 if parts.scheme == "http" else 443)
        socket.create_connection((parts.hostname or "", port), timeout=_PATIENCE).close()
    except OSError:
        return False
    return True
