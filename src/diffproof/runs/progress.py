"""What a run folder tells of the commands that worked on it: for people who watch, never for results."""

from __future__ import annotations

import os
import socket
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from diffproof.checks import check_member, check_not_negative
from diffproof.fields import check_fields
from diffproof.runs.database import has_table, naming, reporting
from diffproof.version import version

# Seconds between what is told, at least.
TELL_EVERY = 2.0
# Most letters of an error that is kept.
_LONGEST = 500
TABLES = """
CREATE TABLE IF NOT EXISTS progress (
    session INTEGER PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL, version TEXT NOT NULL,
    started REAL NOT NULL, told REAL NOT NULL, images INTEGER NOT NULL, evaluations INTEGER NOT NULL,
    remaining INTEGER, ended TEXT
);
CREATE TABLE IF NOT EXISTS efforts (
    session INTEGER PRIMARY KEY, work INTEGER NOT NULL, wasted INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS workers (
    name TEXT NOT NULL, host TEXT NOT NULL, device TEXT NOT NULL, state TEXT NOT NULL, units INTEGER NOT NULL,
    done INTEGER NOT NULL, evaluations INTEGER NOT NULL, busy REAL NOT NULL, heard REAL NOT NULL, error TEXT
);
CREATE TABLE IF NOT EXISTS failures (
    image_index INTEGER PRIMARY KEY, error TEXT NOT NULL, times INTEGER NOT NULL, worker TEXT NOT NULL
);
"""

# Sessions of folders of earlier versions tell nothing of it.
_NO_EFFORTS = "(SELECT NULL AS session, NULL AS work, NULL AS wasted)"

Row = TypeVar("Row")


class Ended(StrEnum):
    """How a session ended, where it could tell."""

    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


class State(StrEnum):
    """What a worker is about."""

    STARTING = "starting"
    READY = "ready"
    WORKING = "working"
    LOST = "lost"
    REFUSED = "refused"


@dataclass(frozen=True)
class Session:
    """One time that a command worked on a run folder.

    Attributes:
        host: the machine's name.
        pid: the process there.
        version: of diffproof.
        started: when, in seconds since 1970 (UTC).
        told: when it last recorded how far it was, likewise.
        images: finished in it.
        evaluations: of networks done in it; of a certification also those that it found to be needless.
        remaining: evaluations that may still be needed for the images that it was asked for; None where that
            is not known.
        ended: how, see `Ended`; None while it is at work, and for good if it was killed.
        work: draws of a certification, or images of an attack, that were done in it; None where that is not
            known.
        wasted: how many of these were for nothing: two workers did them, or they turned out to be needless.
    """

    host: str
    pid: int
    version: str
    started: float
    told: float
    images: int
    evaluations: int
    remaining: int | None
    ended: str | None
    work: int | None = None
    wasted: int | None = None

    def __post_init__(self) -> None:
        if self.ended is not None:
            check_member("ended", self.ended, Ended)
        for name in ("started", "images", "evaluations"):
            check_not_negative(name, getattr(self, name))
        for name in ("work", "wasted"):
            check_not_negative(name, getattr(self, name) or 0)


@dataclass(frozen=True)
class WorkerState:
    """A worker of the last session.

    Attributes:
        name: what tells it from others.
        host: the machine's name.
        device: what it computes on.
        state: see `State`.
        units: of work that it finished; where one process does it all, images.
        done: draws of a certification or images of an attack that it finished.
        evaluations: of networks in it.
        busy: seconds that it worked.
        heard: when it was last heard of, in seconds since 1970 (UTC).
        error: its last one.
    """

    name: str
    host: str
    device: str
    state: str
    units: int
    done: int
    evaluations: int
    busy: float
    heard: float
    error: str | None = None

    def __post_init__(self) -> None:
        check_member("state", self.state, State)
        for name in ("units", "done", "evaluations", "busy"):
            check_not_negative(name, getattr(self, name))


def alone(device: object, **told: Any) -> WorkerState:
    """The only worker of a run in one process, which is this one.

    Args:
        device: see `WorkerState`.
        told: what it did so far, see `WorkerState`.
    """
    host = socket.gethostname()
    return WorkerState("0", host, str(device), State.WORKING.value, heard=time.time(), **told)


@dataclass(frozen=True)
class Failure:
    """An image that failed wherever it was tried.

    Attributes:
        image_index: the image's index in its data set.
        error: the last one.
        times: how often it failed.
        worker: where it last did.
    """

    image_index: int
    error: str
    times: int
    worker: str

    def __post_init__(self) -> None:
        for name in ("image_index", "times"):
            check_not_negative(name, getattr(self, name))


class Progress:
    """The tables of a run folder that tell how far its commands came, and by which workers.

    What is recorded is kept from the store's next commit on. In folders of earlier versions there is nothing.

    Args:
        folder: the run's.
        connection: to its store.
        table: that of the finished images.
    """

    def __init__(self, folder: Path, connection: sqlite3.Connection, table: str) -> None:
        self._folder, self._connection, self._table = folder, connection, table
        self._session: int | None = None

    @property
    def begun(self) -> bool:
        """Whether a session has begun."""
        return self._session is not None

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Within this block a session may begin; how it ends is recorded."""
        try:
            yield
        except BaseException as error:
            # Whatever ended it is what is to be told, not that a disk is full.
            with suppress(OSError, ValueError):
                self._end(Ended.INTERRUPTED if isinstance(error, KeyboardInterrupt) else Ended.FAILED)
            raise
        self._end(Ended.FINISHED)

    def begin(self) -> None:
        """A session begins to work; whoever looks sees it at once."""
        now = time.time()
        row = (socket.gethostname(), os.getpid(), version(), now, now)
        with reporting(self._folder), self._connection:
            self._connection.execute("DELETE FROM workers")
            query = (
                "INSERT INTO progress (host, pid, version, started, told, images, evaluations)"
                " VALUES (?, ?, ?, ?, ?, 0, 0)"
            )
            self._session = self._connection.execute(query, row).lastrowid

    def tell(
        self, *, images: int, evaluations: int, work: int, wasted: int, remaining: int | None = None
    ) -> None:
        """Record how far the session is; see `Session`."""
        with reporting(self._folder):
            self._connection.execute(
                "UPDATE progress SET told = ?, images = ?, evaluations = ?, remaining = ? WHERE session = ?",
                (time.time(), images, evaluations, remaining, self._session),
            )
            row = (self._session, work, wasted)
            self._connection.execute("INSERT OR REPLACE INTO efforts VALUES (?, ?, ?)", row)
            self._forget()

    def tell_workers(self, workers: Sequence[WorkerState]) -> None:
        """Record all workers of the session, in place of what was told of them before."""
        names = [field.name for field in fields(WorkerState)]
        rows = [tuple(getattr(worker, name) for name in names) for worker in workers]
        with reporting(self._folder):
            self._connection.execute("DELETE FROM workers")
            places = ", ".join("?" * len(names))
            query = f"INSERT INTO workers ({', '.join(names)}) VALUES ({places})"
            self._connection.executemany(query, rows)

    def fail(self, image_index: int, worker: str, error: str) -> None:
        """Record that an image failed on a worker; forgotten when some session finishes it."""
        with reporting(self._folder):
            self._connection.execute(
                "INSERT INTO failures VALUES (?, ?, 1, ?) ON CONFLICT (image_index)"
                " DO UPDATE SET error = excluded.error, times = times + 1, worker = excluded.worker",
                (image_index, error[:_LONGEST], worker),
            )

    def sessions(self) -> list[Session]:
        """Those that there were, in their order.

        Raises:
            ValueError: the store is corrupt.
        """
        with reporting(self._folder):
            efforts = "efforts" if has_table(self._connection, "efforts") else _NO_EFFORTS
        return self._rows(Session, "progress", "session", f" LEFT JOIN {efforts} USING (session)")

    def workers(self) -> list[WorkerState]:
        """Those of the last session, in the order in which they were told.

        Raises:
            ValueError: the store is corrupt.
        """
        return self._rows(WorkerState, "workers", "rowid")

    def failures(self) -> list[Failure]:
        """Images that failed and are not finished, by index.

        Raises:
            ValueError: the store is corrupt.
        """
        return self._rows(Failure, "failures", "image_index")

    def _end(self, how: Ended) -> None:
        if not self.begun:
            return
        with reporting(self._folder):
            query = "UPDATE progress SET told = ?, ended = ? WHERE session = ?"
            self._connection.execute(query, (time.time(), how.value, self._session))
            self._forget()

    def _forget(self) -> None:
        """Failures of images that are finished now."""
        finished = f"SELECT image_index FROM {self._table}"
        self._connection.execute(f"DELETE FROM failures WHERE image_index IN ({finished})")

    def _rows(self, kind: type[Row], table: str, order: str, joined: str = "") -> list[Row]:
        names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
        with reporting(self._folder), naming(table):
            if not has_table(self._connection, table):
                return []
            query = f"SELECT {', '.join(names)} FROM {table}{joined} ORDER BY {order}"
            rows: list[tuple[Any, ...]] = self._connection.execute(query).fetchall()
            return [kind(**check_fields(kind, dict(zip(names, row, strict=True)))) for row in rows]
