"""The store of a run folder: settings and finished images in SQLite; safe from crashes and second writers."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import yaml
from filelock import FileLock, Timeout

from diffproof.errors import ArgumentError
from diffproof.runs.settings import RunSettings

STORE = "results.sqlite"
SETTINGS = "settings.yaml"
_LOCK = "lock"
_SETTINGS_TABLE = """
CREATE TABLE settings (
    json TEXT NOT NULL, weights_hash TEXT NOT NULL, data_hash TEXT NOT NULL, planned INTEGER NOT NULL
);
"""

S = TypeVar("S", bound=RunSettings)


class RunStore(Generic[S]):
    """An open run folder; use `writing` or `reading`. Subclasses say what a run holds.

    Attributes:
        folder, settings: the run's. weights_hash: of its networks. planned: how many images it is to have.
    """

    # What such a run is called; its settings; its table of finished images, and the SQL of all its tables.
    kind: ClassVar[str]
    settings_type: ClassVar[type[Any]]
    table: ClassVar[str]
    tables: ClassVar[str]

    def __init__(
        self, folder: Path, connection: sqlite3.Connection, settings: S, weights_hash: str, planned: int
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.weights_hash = weights_hash
        self.planned = planned
        self._connection = connection

    @classmethod
    @contextmanager
    def writing(
        cls, folder: Path, settings: S, *, weights_hash: str, data_hash: str, planned: int
    ) -> Iterator[Self]:
        """Create a run folder, or continue one of the same settings and weights; one process at a time.

        Raises:
            ValueError: other settings or weights, another process at work, a folder that is no run or one of
                another kind, a corrupt store.
            OSError: the folder cannot be written.
        """
        # A crash between making the folder and its store leaves only these.
        begun = {_LOCK, SETTINGS, f"{STORE}.new", f"{STORE}.new-journal"}
        lock = FileLock(folder / _LOCK, timeout=0)
        try:
            if folder.exists() and not folder.is_dir():
                raise ArgumentError("out", f"{folder} is a file, expected a folder")
            names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
            if STORE not in names and names - begun:
                raise ArgumentError("out", f"{folder} holds other files and is no run folder")
            new = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise ArgumentError("out", f"another process is at work in {folder}") from None
        except OSError as error:
            raise OSError(f"out: cannot make the run folder {folder}: {error.strerror or error}") from None
        try:
            if not (folder / STORE).exists():
                try:
                    cls._create(folder, settings, (weights_hash, data_hash, planned))
                except OSError:
                    for name in begun if new else begun - {_LOCK}:
                        (folder / name).unlink(missing_ok=True)
                    if new:
                        folder.rmdir()
                    raise
            with _connect(folder) as connection:
                stored, stored_weights, stored_data, stored_planned = cls._read(folder, connection)
                different = stored.differences(settings)
                if stored_weights != weights_hash:
                    different.append("the weights in the files")
                if stored_planned != planned:
                    different.append(f"images ({stored_planned}, now {planned})")
                elif stored_data != data_hash:
                    different.append("the images or labels in the data")
                if different:
                    raise ArgumentError(
                        "out", f"{folder} holds a run with other settings: {', '.join(different)}"
                    )
                store = cls(folder, connection, stored, weights_hash, planned)
                try:
                    yield store
                finally:
                    store.commit()
        finally:
            lock.release()

    @classmethod
    @contextmanager
    def reading(cls, folder: Path) -> Iterator[Self]:
        """Open a run folder, finished or live, to read its results.

        Raises:
            ValueError: no run folder, one of another kind, or a corrupt store.
        """
        with _connect_run(folder) as connection:
            settings, weights_hash, _, planned = cls._read(folder, connection)
            yield cls(folder, connection, settings, weights_hash, planned)

    @classmethod
    def holds(cls, folder: Path) -> bool:
        """Whether a run folder is of this kind.

        Raises:
            ValueError: no run folder, or a corrupt store.
        """
        with _connect_run(folder) as connection:
            return cls._has_table(folder, connection)

    def finished(self) -> set[int]:
        """Indices of the finished images."""
        with reporting(self.folder):
            rows = self._connection.execute(f"SELECT image_index FROM {self.table}")
            return {row[0] for row in rows}

    def commit(self) -> None:
        """Make all that was recorded survive a crash."""
        with reporting(self.folder):
            self._connection.commit()

    @classmethod
    def _create(cls, folder: Path, settings: S, identity: tuple[str, str, int]) -> None:
        """Write settings.yaml and the empty store; the store appears whole or not at all."""
        (folder / SETTINGS).write_text(yaml.safe_dump(settings.as_dict(), sort_keys=False))
        fresh = folder / f"{STORE}.new"
        fresh.unlink(missing_ok=True)
        with reporting(folder):
            connection = sqlite3.connect(fresh)
            try:
                connection.executescript(_SETTINGS_TABLE + cls.tables)
                with connection:
                    row = (json.dumps(settings.as_dict()), *identity)
                    connection.execute("INSERT INTO settings VALUES (?, ?, ?, ?)", row)
            finally:
                connection.close()
        fresh.rename(folder / STORE)

    @classmethod
    def _read(cls, folder: Path, connection: sqlite3.Connection) -> tuple[S, str, str, int]:
        with reporting(folder):
            row = connection.execute("SELECT json, weights_hash, data_hash, planned FROM settings").fetchone()
            if row is None:
                raise ValueError("it holds no settings")
        there = cls._has_table(folder, connection)
        with reporting(folder):
            settings = json.loads(row[0])
            if there:
                return cls.settings_type.from_dict(settings), *row[1:]
            if settings.keys() <= {field.name for field in fields(cls.settings_type)}:
                raise ValueError(f"no such table: {cls.table}")
        raise ArgumentError("run", f"{folder} is no {cls.kind}")

    @classmethod
    def _has_table(cls, folder: Path, connection: sqlite3.Connection) -> bool:
        with reporting(folder):
            query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
            return connection.execute(query, (cls.table,)).fetchone() is not None


@contextmanager
def _connect_run(folder: Path) -> Iterator[sqlite3.Connection]:
    if not (folder / STORE).is_file():
        raise ArgumentError("run", f"{folder} is no run folder ({STORE} is missing)")
    with _connect(folder) as connection:
        yield connection


@contextmanager
def _connect(folder: Path) -> Iterator[sqlite3.Connection]:
    with reporting(folder):
        connection = sqlite3.connect(folder / STORE, timeout=30)
    try:
        with reporting(folder):
            verdict = connection.execute("PRAGMA quick_check").fetchone()[0]
        if verdict != "ok":
            raise ArgumentError("run", f"the store in {folder} is corrupt: {verdict}")
        yield connection
    finally:
        connection.close()


@contextmanager
def reporting(folder: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours: OSError where the disk is at fault, ValueError where the store is."""
    try:
        yield
    except sqlite3.OperationalError as error:
        text = str(error)
        if text.startswith("no such"):
            raise ArgumentError("run", f"the store in {folder} is corrupt: {text}") from None
        raise OSError(f"cannot write to {folder}: {text}") from None
    except (sqlite3.DatabaseError, ValueError, TypeError, KeyError, EOFError) as error:
        raise ArgumentError("run", f"the store in {folder} is corrupt: {error}") from None
