"""The store of a run folder: settings and finished images in SQLite; safe from crashes and second writers."""

from __future__ import annotations

import json
import sqlite3
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

from diffproof.checks import check_at_least, renamed
from diffproof.errors import ArgumentError
from diffproof.fields import check_fields
from diffproof.files import created, expanded, replacing
from diffproof.runs.database import (
    LOCK,
    SETTINGS,
    STORE,
    connected,
    connected_run,
    has_table,
    indices_in,
    reporting,
    state_format,
    versions_in,
)
from diffproof.runs.folder import BEGUN, check_new, claimed
from diffproof.runs.progress import TABLES, Progress
from diffproof.runs.settings import RunSettings
from diffproof.runs.settings_file import edits, settings_text
from diffproof.texts import parse_json
from diffproof.version import version
from diffproof.wording import counted

# In seconds: a thousand years.
_LONGEST = 3e10
_TABLES = f"""{TABLES}
CREATE TABLE IF NOT EXISTS settings (
    json TEXT NOT NULL, weights_hash TEXT NOT NULL, data_hash TEXT NOT NULL, planned INTEGER NOT NULL,
    code TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS planned (image_index INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS part (image_index INTEGER PRIMARY KEY);
"""

S = TypeVar("S", bound=RunSettings)
Fingerprint = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Identity:
    """What a run is made of besides its settings.

    Attributes:
        weights_hash: SHA-256 of its networks.
        data_hash: SHA-256 of its images and labels.
        planned: how many images it is to have.
        code: the user's own modules that it runs, each with the SHA-256 of its source, None without a file.
        indices: those of its images, ascending; none in a folder of an earlier version.
        part: those of its shard, ascending; none in a run without shards.
    """

    weights_hash: str
    data_hash: str
    planned: int
    code: dict[str, str | None]
    indices: tuple[int, ...] = ()
    part: tuple[int, ...] = ()

    def differences(self, now: Identity, fingerprint: Fingerprint) -> list[str]:
        """What differs from a later one, in words; images may be other ones, but not change.

        Args:
            now: the later one.
            fingerprint: gives the SHA-256 of images and labels in the data as they are now.
        """
        found = []
        if self.weights_hash != now.weights_hash:
            found.append("the weights in the files")
        found += [f"the code of {module}" for module in self.changed_code(now.code)]
        known = self.indices or now.indices
        if self.planned != len(known):
            found.append(f"images ({self.planned}, now {now.planned})")
        elif self.data_hash != (now.data_hash if known == now.indices else fingerprint(known)):
            found.append("the images or labels in the data")
        if self.part and now.part and self.indices != now.indices:
            found.append("which images (a shard keeps those that it began with)")
        return found

    def changed_code(self, now: Mapping[str, str | None]) -> list[str]:
        """Modules whose source is not what it was, by name."""
        modules = sorted({*self.code, *now})
        return [module for module in modules if self.code.get(module) != now.get(module)]


class RunStore(Generic[S]):
    """An open run folder; use `writing` or `reading`. Subclasses say what a run holds.

    Attributes:
        folder: the run's.
        settings: as they were asked for and filled in.
        identity: what it is made of besides.
        progress: of the commands that worked on it.
    """

    # What such a run is called; its settings; its table of finished images and the column that tells the
    # version of each, the SQL of all its tables, and those whose rows are taken over from shards.
    kind: ClassVar[str]
    settings_type: ClassVar[type[Any]]
    table: ClassVar[str]
    stamped: ClassVar[str]
    tables: ClassVar[str]
    merged: ClassVar[tuple[str, ...]]

    def __init__(self, folder: Path, connection: sqlite3.Connection, settings: S, identity: Identity) -> None:
        self.folder = folder
        self.settings = settings
        self.identity = identity
        self.progress = Progress(folder, connection, self.table)
        self._connection = connection

    @classmethod
    @contextmanager
    def writing(
        cls, folder: Path, settings: S, identity: Identity, fingerprint: Fingerprint
    ) -> Iterator[Self]:
        """Create a run folder, or continue one of the same settings and identity; one process at a time.

        The images may be other ones than the folder has: it is to have these, too, from now on. What ends the
        block before a session begins leaves no new run.

        Args:
            folder: the run's.
            settings: what is asked for.
            identity: of the run that is asked for.
            fingerprint: see `Identity.differences`.

        Raises:
            ValueError: other settings, weights, data or code, another version of diffproof, another process
                at work, a folder that is no run or one of another kind, a corrupt store, a link in the place
                of a file.
            OSError: the folder cannot be written.
        """
        folder = expanded(folder)
        with claimed(folder) as new:
            made = not (folder / STORE).exists()
            if made:
                cls._create(folder, settings, identity, new)
            with renamed({"run": "out"}), connected(folder) as connection:
                stored, was = cls._read(folder, connection)
                different = stored.differences(settings) + was.differences(identity, fingerprint)
                if different:
                    raise ArgumentError(
                        "out", f"{folder} holds a run with other settings: {', '.join(different)}"
                    )
                store = cls(folder, connection, stored, was)
                store._check_version()
                with reporting(folder):
                    # Those of an earlier version had fewer tables.
                    connection.executescript(_TABLES + cls.tables)
                    state_format(connection)
                store.warn_if_edited()
                store._extend(settings, identity, fingerprint)
                try:
                    with store.progress.recording():
                        yield store
                except BaseException:
                    if made and not store.progress.begun:
                        _unmake(folder, new)
                    raise
                finally:
                    store.commit()

    @classmethod
    def make(cls, folder: Path, settings: S, identity: Identity, fill: Callable[[Self], None]) -> None:
        """Make a run folder with all that it is to hold; its store appears whole or not at all.

        Args:
            folder: the run's.
            settings: the run's.
            identity: the run's.
            fill: records what it is to hold in the store that it gets.

        Raises:
            ValueError: see `check_new`, or another process at work.
            OSError: the folder cannot be written.
        """
        folder = expanded(folder)
        with claimed(folder) as new:
            check_new(folder)
            cls._create(folder, settings, identity, new, fill)

    def take(self, other: Self) -> None:
        """Take over the finished images of another store, and what belongs to them; see `merged`."""
        for table in self.merged:
            with reporting(other.folder):
                rows = other._connection.execute(f"SELECT * FROM {table} ORDER BY rowid").fetchall()
            with reporting(self.folder), self._connection:
                if rows:
                    marks = ", ".join("?" * len(rows[0]))
                    self._connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)

    @classmethod
    @contextmanager
    def reading(cls, folder: Path) -> Iterator[Self]:
        """Open a run folder, finished or live, to read its results.

        Raises:
            ValueError: no run folder, one of another kind, or a corrupt store.
        """
        folder = expanded(folder)
        with connected_run(folder) as connection:
            yield cls(folder, connection, *cls._read(folder, connection))

    @classmethod
    def holds(cls, folder: Path) -> bool:
        """Whether a run folder is of this kind.

        Raises:
            ValueError: no run folder, or a corrupt store.
        """
        folder = expanded(folder)
        with connected_run(folder) as connection:
            return cls._has_table(folder, connection)

    def results(self) -> Sequence[Any]:
        """All finished images by index. Written by subclasses."""
        raise NotImplementedError

    def finished(self) -> set[int]:
        """Indices of the finished images."""
        with reporting(self.folder):
            rows = self._connection.execute(f"SELECT image_index FROM {self.table}")
            return {row[0] for row in rows}

    def versions(self) -> set[str]:
        """The versions of diffproof that worked on it."""
        with reporting(self.folder):
            return versions_in(self._connection, self.table, self.stamped)

    def _check_version(self) -> None:
        """Raise ValueError where another version worked on it: what that computed may be other than here."""
        if others := sorted(self.versions() - {version()}):
            raise ArgumentError(
                "out",
                f"{self.folder} is of diffproof {', '.join(others)}, this is {version()}: all images of a run"
                " come from one version; go on with that, or give a new folder",
            )

    def commit(self) -> None:
        """Make all that was recorded survive a crash."""
        with reporting(self.folder):
            self._connection.commit()

    def edited(self) -> list[str]:
        """What settings.yaml says that the run was not made with, or lacks; see `settings_file.edits`."""
        with reporting(self.folder):
            # Runs of earlier versions had fewer settings.
            stored = parse_json(self._connection.execute("SELECT json FROM settings").fetchone()[0])
        return edits(self.folder, self.settings, self.identity.code, stored)

    def warn_if_edited(self) -> None:
        """Say what `edited` finds."""
        for line in self.edited():
            warnings.warn(f"{self.folder}: {line}", stacklevel=3)

    def _extend(self, settings: S, identity: Identity, fingerprint: Fingerprint) -> None:
        """Let the run have the images of a later one besides its own."""
        had = self.identity.indices
        every = tuple(sorted({*had, *identity.indices}))
        if every == had:
            return
        if every == identity.indices:
            self.settings = settings
        else:
            self.settings = settings.of_images(every)
            identity = replace(identity, indices=every, planned=len(every), data_hash=fingerprint(every))
        self.identity = identity
        if had:
            with replacing(self.folder / SETTINGS) as fresh:
                fresh.write_text(settings_text(self.settings, identity.code))
        with reporting(self.folder), self._connection:
            _write_settings(self._connection, self.settings, identity)

    @classmethod
    def _create(
        cls,
        folder: Path,
        settings: S,
        identity: Identity,
        new: bool,
        fill: Callable[[Self], None] = lambda store: None,
    ) -> None:
        """Write settings.yaml and the store; what fails leaves neither, nor a folder that is `new`."""
        try:
            with replacing(folder / SETTINGS) as fresh:
                fresh.write_text(settings_text(settings, identity.code))
            fresh = folder / f"{STORE}.new"
            # As SQLite makes its own.
            created(fresh, 0o644)
            with reporting(folder):
                connection = sqlite3.connect(fresh)
            try:
                with reporting(folder):
                    store = cls.fresh(folder, connection, settings, identity)
                fill(store)
            finally:
                connection.close()
            fresh.rename(folder / STORE)
        except BaseException:
            if not (folder / STORE).exists():
                _unmake(folder, new)
            raise

    @classmethod
    def fresh(cls, folder: Path, connection: sqlite3.Connection, settings: S, identity: Identity) -> Self:
        """A store without images, in a new database."""
        with connection:
            # All at once: every transaction waits for the disk.
            connection.executescript(f"BEGIN; {_TABLES} {cls.tables}")
            state_format(connection)
            _write_settings(connection, settings, identity)
        return cls(folder, connection, settings, identity)

    @classmethod
    def _read(cls, folder: Path, connection: sqlite3.Connection) -> tuple[S, Identity]:
        with reporting(folder):
            query = "SELECT json, weights_hash, data_hash, planned, code FROM settings LIMIT 2"
            rows = connection.execute(query).fetchall()
            if len(rows) != 1:
                raise ValueError("it holds no settings" if not rows else "it holds settings of several runs")
            row = rows[0]
            indices, part = indices_in(connection, "planned"), indices_in(connection, "part")
        there = cls._has_table(folder, connection)
        with reporting(folder):
            settings = parse_json(row[0])
            names = [field.name for field in fields(Identity)]
            stored = dict(zip(names, (*row[1:4], parse_json(row[4]), indices, part), strict=True))
            if there:
                identity = Identity(**check_fields(Identity, stored))
                check_at_least("planned", identity.planned, 1)
                if indices and identity.planned != len(identity.indices):
                    raise ValueError(
                        f"{len(identity.indices)} of {identity.planned} planned images are named"
                    )
                return cls.settings_type.from_dict(settings), identity
            if settings.keys() <= {field.name for field in fields(cls.settings_type)}:
                raise ValueError(f"no such table: {cls.table}")
        raise ArgumentError("run", f"{folder} is no {cls.kind}")

    @classmethod
    def _has_table(cls, folder: Path, connection: sqlite3.Connection) -> bool:
        with reporting(folder):
            return has_table(connection, cls.table)


def _unmake(folder: Path, new: bool) -> None:
    """Remove what was made of a run, and its folder if that is new, as far as they are there."""
    for name in {STORE, *(BEGUN if new else BEGUN - {LOCK})}:
        (folder / name).unlink(missing_ok=True)
    if new and folder.is_dir():
        folder.rmdir()


def _write_settings(connection: sqlite3.Connection, settings: RunSettings, identity: Identity) -> None:
    """Record settings and identity in place of those that are there."""
    connection.execute("DELETE FROM settings")
    row = (
        json.dumps(settings.as_dict()),
        identity.weights_hash,
        identity.data_hash,
        identity.planned,
        json.dumps(identity.code),
    )
    connection.execute("INSERT INTO settings VALUES (?, ?, ?, ?, ?)", row)
    for table, indices in (("planned", identity.indices), ("part", identity.part)):
        rows = [(index,) for index in indices]
        connection.executemany(f"INSERT OR IGNORE INTO {table} VALUES (?)", rows)


def warn_of_more(folder: Path, identity: Identity, indices: Sequence[int]) -> None:
    """Say how many images a run folder has besides those that a command asks for."""
    more = len(set(identity.indices) - set(indices))
    if more:
        warnings.warn(
            f"out: {folder} has {counted(more, 'image')} more than are asked for here, which stay",
            stacklevel=3,
        )


def check_seconds(seconds: float) -> None:
    """Raise ValueError unless a run can have taken these seconds."""
    if not 0.0 <= seconds < _LONGEST:
        raise ArgumentError("seconds", f"expected a number ≥ 0, got {seconds}")
