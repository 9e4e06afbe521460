"""Run folders before there is a store in them: made, or found to be free, by one process at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from diffproof.errors import ArgumentError
from diffproof.files import expanded
from diffproof.runs.database import LOCK, STORE, check_no_links
from diffproof.runs.settings_file import SETTINGS

# A crash between making the folder and its store leaves only these.
BEGUN = {LOCK, SETTINGS, f"{STORE}.new", f"{STORE}.new-journal"}


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Make a run folder, or lock one that is there; yields whether it was made.

    Raises:
        ValueError: another process at work, a folder that is no run, a link in the place of a file, or it
            cannot be made.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        if folder.exists() and not folder.is_dir():
            raise ArgumentError("out", f"{folder} is a file, expected a folder")
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        check_no_links(folder, "out", {*BEGUN, STORE})
        if STORE not in names and names - BEGUN:
            raise ArgumentError("out", f"{folder} holds other files and is no run folder")
        new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise ArgumentError("out", f"another process is at work in {folder}") from None
    except OSError as error:
        raise ArgumentError(
            "out", f"cannot make the run folder {folder}: {error.strerror or error}"
        ) from None
    try:
        yield new
    finally:
        lock.release()


def check_new(folder: Path) -> None:
    """Raise ValueError where a folder holds a run."""
    if os.path.lexists(expanded(folder) / STORE):
        raise ArgumentError("out", f"{folder} holds a run, expected a new folder")
