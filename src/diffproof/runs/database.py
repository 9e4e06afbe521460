"""The SQLite file of a run folder, and its errors as ours; without torch, for what only looks."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from diffproof.errors import ArgumentError
from diffproof.files import no_own_file
from diffproof.version import version

SETTINGS = "settings.yaml"
STORE = "results.sqlite"
# What purified pictures have instead of a store.
SHEET = "sheet.png"
LOCK = "lock"
JOURNAL = f"{STORE}-journal"
# What SQLite opens beside a store, or makes.
BESIDE = {JOURNAL, f"{STORE}-wal", f"{STORE}-shm"}
# Of stores that this version writes, as SQLite's user_version; 0 is that of versions that stated none, whose
# stores have this one's tables or fewer.
FORMAT = 1
# What SQLite's files begin with, and what follows where a store has a journal beside it, and no log.
_MAGIC, _WITH_JOURNAL = b"SQLite format 3\0", b"\1\1"
_HOLDERS = Path("/proc/locks")
# In bytes: a text or picture in a store.
_LARGEST = 2**28


def check_no_links(folder: Path, argument: str, names: set[str]) -> None:
    """Raise ValueError where a link, a pipe or a folder has the name of one of a run's files."""
    for name in sorted(names):
        if (kind := no_own_file(folder / name)) is not None:
            raise ArgumentError(argument, f"{folder / name} is a {kind}, expected a file of the run's own")


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
        # The file first: where there is none, the system, which takes milliseconds, is not asked.
        lock = (folder / LOCK).stat()
        held = _HOLDERS.read_text(encoding="utf-8")
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
    """Open the store of a run folder to read it; the folder is not written to.

    Args:
        folder: the run's.
        whole: see `connected`.

    Raises:
        ValueError: no run folder, or a corrupt store.
    """
    check_no_links(folder, "run", {STORE, *BESIDE})
    if not (folder / STORE).is_file():
        purified = (folder / SETTINGS).is_file() and (folder / SHEET).is_file()
        why = "of `diffproof purify`, whose result is its pictures" if purified else f"{STORE} is missing"
        raise ArgumentError("run", f"{folder} is no run folder ({why})")
    with ExitStack() as stack:
        address = _address(folder / STORE, "ro")
        if _is_left_open(folder):
            address = _address(stack.enter_context(_copied(folder)), "rw")
        yield stack.enter_context(connected(folder, whole=whole, address=address))


def _address(path: Path, mode: str) -> str:
    """What SQLite calls a file that it is to open in a mode, "ro" or "rw", and not to make."""
    return f"{path.absolute().as_uri()}?mode={mode}"


def _is_left_open(folder: Path) -> bool:
    """Whether a writer was killed within a transaction, which the next writer undoes."""
    if not (folder / JOURNAL).exists():
        return False
    with reporting(folder), closing(sqlite3.connect(_address(folder / STORE, "ro"), 30, uri=True)) as found:
        try:
            found.execute("SELECT 1 FROM sqlite_master").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_READONLY_ROLLBACK:
                return True
            raise
        return False


@contextmanager
def _copied(folder: Path) -> Iterator[Path]:
    """A store and its journal elsewhere, where a transaction can be undone.

    Raises:
        OSError: they change while they are copied: somebody goes on with the run.
    """
    with tempfile.TemporaryDirectory(prefix="diffproof-") as elsewhere:
        before = _times(folder)
        for name in (STORE, JOURNAL):
            shutil.copyfile(folder / name, Path(elsewhere) / name)
        if _times(folder) != before:
            raise OSError(f"{folder} changes while it is read")
        yield Path(elsewhere) / STORE


def _times(folder: Path) -> list[tuple[int, int]]:
    found = [(folder / name).stat() for name in (STORE, JOURNAL)]
    return [(one.st_mtime_ns, one.st_size) for one in found]


@contextmanager
def connected(
    folder: Path, *, whole: bool = True, address: str | None = None
) -> Iterator[sqlite3.Connection]:
    """Open the store of a folder.

    Args:
        folder: the run's.
        whole: look through all of it first, which takes as long as to read it.
        address: of the store in SQLite's words; None to read and write that of the folder.

    Raises:
        ValueError: the store is corrupt, or of a later version.
        OSError: it cannot be read.
    """
    with reporting(folder):
        _check_journal(folder / STORE)
        connection = sqlite3.connect(address or _address(folder / STORE, "rw"), timeout=30, uri=True)
    try:
        with reporting(folder):
            # Nothing that a run stores is larger; views and triggers would run SQL of whoever wrote the file.
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LARGEST)
            stated = connection.execute("PRAGMA user_version").fetchone()[0]
        if not 0 <= stated <= FORMAT:
            raise ArgumentError(
                "run",
                f"the store in {folder} has format {stated}, that of a later version of diffproof; this one,"
                f" {version()}, knows formats up to {FORMAT}",
            )
        with reporting(folder):
            verdict = connection.execute("PRAGMA quick_check").fetchone()[0] if whole else "ok"
            query = "SELECT type, name FROM sqlite_master WHERE type NOT IN ('table', 'index')"
            other = connection.execute(query).fetchone()
            verdict = f"expected tables, got a {other[0]}" if other is not None else verdict
        if verdict != "ok":
            raise ArgumentError("run", f"the store in {folder} is corrupt: {verdict}")
        yield connection
    finally:
        connection.close()


def state_format(connection: sqlite3.Connection) -> None:
    """Let a store state this version's format."""
    # To state it again would change the file.
    if connection.execute("PRAGMA user_version").fetchone()[0] != FORMAT:
        connection.execute(f"PRAGMA user_version = {FORMAT}")


def has_table(connection: sqlite3.Connection, table: str) -> bool:
    """Whether a store has a table of this name."""
    query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
    return connection.execute(query, (table,)).fetchone() is not None


def _check_journal(store: Path) -> None:
    """Raise ValueError where a store has a write-ahead log: SQLite writes beside it even to read it."""
    # A pipe would be waited for. What cannot be read SQLite tells of.
    if not store.is_file():
        return
    with suppress(OSError), store.open("rb") as file:
        begin = file.read(20)
        if begin.startswith(_MAGIC) and begin[18:] != _WITH_JOURNAL:
            raise ValueError("expected a rollback journal, got a write-ahead log")


def versions_in(connection: sqlite3.Connection, table: str, column: str) -> set[str]:
    """The versions of diffproof that worked on a run.

    Args:
        connection: to its store.
        table: of finished images.
        column: of it that holds JSON with the version that made an image.
    """
    stated = f"SELECT json_extract({column}, '$.version') FROM {table} WHERE json_valid({column})"
    queries = [stated, *["SELECT version FROM progress"] * has_table(connection, "progress")]
    rows = connection.execute(" UNION ".join(queries)).fetchall()
    return {str(one) for (one,) in rows if one is not None}


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
