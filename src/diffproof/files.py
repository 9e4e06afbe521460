"""Paths as users write them, and writing files so that an interruption leaves the old one or the new one."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """A path whose leading "~" or "~user" is that home folder; as it is where there is none."""
    return Path(os.path.expanduser(path))


def expanded_spec(spec: str) -> str:
    """A network's spec with "~" expanded wherever a path may begin: at its start, after ":" or "@"."""
    return re.sub(r"(?<![^:@])~[^/:@]*(?=/|$)", lambda home: os.path.expanduser(home[0]), spec)


def warn_of_path(argument: str, name: str, what: str) -> None:
    """Say that a name means what we call so, where a file or folder here has that name, too.

    Args:
        argument: what the name was given for, such as "data".
        name: without a slash.
        what: what it means, such as "the packaged data set".
    """
    if os.path.lexists(name):
        kind = "folder" if os.path.isdir(name) else "file"
        warnings.warn(f"{argument}: {name} is {what}; ./{name} is the {kind} of that name", stacklevel=3)


def remove(path: Path) -> None:
    """Remove a file, if it is there, and what a kill within `replacing` left beside it."""
    path.unlink(missing_ok=True)
    path.with_name(f"{path.name}.new").unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes the place of `path` only if all went well.

    A device or a pipe is written to itself, and a link keeps its name: renaming would destroy either.
    """
    path = expanded(path)
    if path.exists() and not path.is_file():
        yield path
        return
    path = path.resolve()
    fresh = path.with_name(f"{path.name}.new")
    try:
        yield fresh
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
