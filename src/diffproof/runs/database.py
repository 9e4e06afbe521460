"""The SQLite file of a run folder, and its errors as ours; without torch, for what only looks."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffproof.errors import ArgumentError

SETTINGS = "settings.yaml"
STORE = "results.sqlite"
LOCK = "lock"
_HOLDERS = Path("/proc/locks")
# In bytes: a text or picture in a store.
_LARGEST = 2**28


def check_no_links(folder: Path, argument: str, names: set[str]) -> None:
    """Raise ValueError where a link has the name of one of a run's files: it might lead anywhere."""
    for name in sorted(names):
        if (folder / name).is_symlink():
            raise ArgumentError(argument, f"{folder / name} is a link, expected a file of the run's own")


def is_locked(folder: Path, pid: int | None) -> bool | None:
    """Whether a process of this machine works on a run folder, by what the system says of its lock.

    To try and take it, even for a moment, could get in the way of a run that begins.

    Args:
        folder: the run's.
        pid: who is known to have worked on it: some file systems have devices of other numbers there.

    Returns:
        None where the system does not tell; processes of other machines and containers are not seen.
    """
    try:
        held, lock = _HOLDERS.read_text(encoding="utf-8"), (folder / LOCK).stat()
    except FileNotFoundError:
        return False if _HOLDERS.exists() else None
    except OSError:
        return None
    # "1: FLOCK  ADVISORY  WRITE 11739 fe:00:5563557 0 EOF"; of who waits, "->" stands behind the number.
    for line in held.splitlines():
        _, kind, *_, holder, file, _, _ = line.split()
        major, minor, inode = file.split(":")
        known = os.makedev(int(major, 16), int(minor, 16)) == lock.st_dev or int(holder) == pid
        if kind == "FLOCK" and int(inode) == lock.st_ino and known:
            return True
    return False


@contextmanager
def connected_run(folder: Path, *, whole: bool = True) -> Iterator[sqlite3.Connection]:
    """Open the store of a run folder to read it.

    Args:
        folder: the run's.
        whole: see `connected`.

    Raises:
        ValueError: no run folder, or a corrupt store.
    """
    check_no_links(folder, "run", {STORE})
    if not (folder / STORE).is_file():
        raise ArgumentError("run", f"{folder} is no run folder ({STORE} is missing)")
    with connected(folder, whole=whole) as connection:
        yield connection


@contextmanager
def connected(folder: Path, *, whole: bool = True) -> Iterator[sqlite3.Connection]:
    """Open the store of a folder.

    Args:
        folder: the run's.
        whole: look through all of it first, which takes as long as to read it.

    Raises:
        ValueError: the store is corrupt.
        OSError: it cannot be read.
    """
    with reporting(folder):
        connection = sqlite3.connect(folder / STORE, timeout=30)
    try:
        with reporting(folder):
            # Nothing that a run stores is larger; views and triggers would run SQL of whoever wrote the file.
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LARGEST)
            verdict = connection.execute("PRAGMA quick_check").fetchone()[0] if whole else "ok"
            query = "SELECT type, name FROM sqlite_master WHERE type NOT IN ('table', 'index')"
            other = connection.execute(query).fetchone()
            verdict = f"expected tables, got a {other[0]}" if other is not None else verdict
        if verdict != "ok":
            raise ArgumentError("run", f"the store in {folder} is corrupt: {verdict}")
        yield connection
    finally:
        connection.close()


def has_table(connection: sqlite3.Connection, table: str) -> bool:
    """Whether a store has a table of this name."""
    query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
    return connection.execute(query, (table,)).fetchone() is not None


def indices_in(connection: sqlite3.Connection, table: str) -> list[int]:
    """Indices of images, ascending; none in a store of an earlier version, which has no such table."""
    if not has_table(connection, table):
        return []
    return [one for (one,) in connection.execute(f"SELECT image_index FROM {table} ORDER BY image_index")]


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Within this block, errors begin with what they are about, such as an image."""
    try:
        yield
    except ArgumentError as error:
        raise ArgumentError(what, str(error)) from None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ArgumentError(what, f"{error}") from None


@contextmanager
def reporting(folder: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours: OSError where the disk is at fault, ValueError where the store is."""
    try:
        yield
    except sqlite3.OperationalError as error:
        text = str(error)
        if text.startswith(("no such", "Could not decode")):
            raise ArgumentError("run", f"the store in {folder} is corrupt: {text}") from None
        what = "open the store in" if text.startswith("unable to open") else "write to"
        raise OSError(f"cannot {what} {folder}: {text}") from None
    except (sqlite3.DatabaseError, ValueError, TypeError, KeyError, EOFError, RecursionError) as error:
        raise ArgumentError("run", f"the store in {folder} is corrupt: {error}") from None
