"""Run folders before there is a store in them: made, or found to be free, by one process at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from diffproof.errors import ArgumentError
from diffproof.files import expanded
from diffproof.runs.database import BESIDE, LOCK, SETTINGS, STORE, check_no_links, is_locked

# A crash between making the folder and its store leaves only these.
BEGUN = {LOCK, SETTINGS, f"{SETTINGS}.new", f"{STORE}.new", f"{STORE}.new-journal"}


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Make a run folder, or lock one that is there; yields whether it was made.

    Raises:
        ValueError: another process at work, a folder that is no run, a link in the place of a file, or it
            cannot be made.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    with _making(folder):
        _check(folder)
        new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            raise _busy(folder) from None
    try:
        yield new
    finally:
        lock.release()


def check_free(folder: Path) -> None:
    """See at once what `claimed` would refuse, before anything is loaded for a run.

    Args:
        folder: the run's.

    Raises:
        ValueError: see `claimed`, where the system tells of another process at work.
    """
    folder = expanded(folder)
    with _making(folder):
        _check(folder)
    if is_locked(folder, None):
        raise _busy(folder)


def _check(folder: Path) -> None:
    """Raise ValueError where a folder is not for a run."""
    if folder.exists() and not folder.is_dir():
        raise ArgumentError("out", f"{folder} is a file, expected a folder")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    check_no_links(folder, "out", {*BEGUN, STORE, *BESIDE})
    if STORE not in names and names - BEGUN:
        raise ArgumentError("out", f"{folder} holds other files and is no run folder")


@contextmanager
def _making(folder: Path) -> Iterator[None]:
    """Turn an error of the file system into one of the run folder."""
    try:
        yield
    except OSError as error:
        raise ArgumentError(
            "out", f"cannot make the run folder {folder}: {error.strerror or error}"
        ) from None


def _busy(folder: Path) -> ArgumentError:
    return ArgumentError("out", f"another process is at work in {folder}")


def is_there(folder: Path) -> bool:
    """Whether a folder holds a run."""
    return os.path.lexists(expanded(folder) / STORE)


def check_new(folder: Path) -> None:
    """Raise ValueError where a folder holds a run."""
    if is_there(folder):
        raise ArgumentError("out", f"{folder} holds a run, expected a new folder")


def check_runs(folders: Sequence[Path]) -> None:
    """Raise ValueError unless there is a run folder, and none that would count twice."""
    if not folders:
        raise ArgumentError("runs", "expected at least one run folder")
    first: dict[str, Path] = {}
    for folder in folders:
        other = first.setdefault(os.path.realpath(expanded(folder)), folder)
        if other is not folder:
            same = f", which is {other}" * (other != folder)
            raise ArgumentError("runs", f"expected each run once, got {folder} again{same}")
