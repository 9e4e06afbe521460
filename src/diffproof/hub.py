"""The Hugging Face Hub from a machine that may be offline."""

from __future__ import annotations

import socket
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

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
