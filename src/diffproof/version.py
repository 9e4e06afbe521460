"""The version that results are stamped with."""

from __future__ import annotations

import functools
from importlib import metadata


@functools.cache
def version() -> str:
    """Of the installed package; read from its metadata once, which takes longer than to certify."""
    return metadata.version("diffproof")
