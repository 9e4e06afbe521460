"""The result store of a run folder: SQLite, one row a finished image, partial tallies of the one in work."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from diffproof.runs.settings import CertifySettings
from diffproof.smoothing.certificate import Certificate
from diffproof.smoothing.smoothed import Tally

STORE = "results.sqlite"
SETTINGS = "settings.yaml"
_LOCK = "lock"
_TABLES = """
CREATE TABLE settings (
    json TEXT NOT NULL, weights_hash TEXT NOT NULL, data_hash TEXT NOT NULL, planned INTEGER NOT NULL
);
CREATE TABLE images (
    image_index INTEGER PRIMARY KEY, true_label INTEGER NOT NULL, certificate TEXT NOT NULL,
    seconds REAL NOT NULL
);
CREATE TABLE partial (
    image_index INTEGER, stream TEXT, tally TEXT NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (image_index, stream)
);
"""


@dataclass(frozen=True)
class ImageResult:
    """A finished image: its certificate, true label and the seconds it took."""

    image_index: int
    true_label: int
    certificate: Certificate
    seconds: float

    @property
    def correct(self) -> bool:
        """Whether the certified label is the true one; False where it abstained."""
        return self.certificate.label == self.true_label


@dataclass(frozen=True)
class Partial:
    """Tallies of the image in work, and the seconds they took."""

    selection: Tally | None = None
    estimation: Tally | None = None
    seconds: float = 0.0


class RunStore:
    """An open run folder; use `RunStore.writing` or `RunStore.reading`.

    Attributes:
        folder, settings: the run's. planned: how many images it is to have.
    """

    def __init__(
        self, folder: Path, connection: sqlite3.Connection, settings: CertifySettings, planned: int
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.planned = planned
        self._connection = connection

    @classmethod
    @contextmanager
    def writing(
        cls, folder: Path, settings: CertifySettings, *, weights_hash: str, data_hash: str, planned: int
    ) -> Iterator[RunStore]:
        """Create a run folder, or continue one of the same settings and weights; one process at a time.

        Raises:
            ValueError: other settings or weights, another process at work, a folder that is no run, a
                corrupt store.
            OSError: the folder cannot be written.
        """
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"out: {folder} is a file, expected a folder")
        # A crash between making the folder and its store leaves only these.
        begun = {_LOCK, SETTINGS, f"{STORE}.new", f"{STORE}.new-journal"}
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        if STORE not in names and names - begun:
            raise ValueError(f"out: {folder} holds other files and is no run folder")
        new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise ValueError(f"out: another process is at work in {folder}") from None
        try:
            if not (folder / STORE).exists():
                try:
                    _create(folder, settings, (weights_hash, data_hash, planned))
                except OSError:
                    for name in begun if new else begun - {_LOCK}:
                        (folder / name).unlink(missing_ok=True)
                    if new:
                        folder.rmdir()
                    raise
            with _connect(folder) as connection:
                stored, stored_weights, stored_data, stored_planned = _read_settings(folder, connection)
                different = stored.differences(settings)
                if stored_weights != weights_hash:
                    different.append("the weights in the files")
                if stored_planned != planned:
                    different.append(f"images ({stored_planned}, now {planned})")
                elif stored_data != data_hash:
                    different.append("the images or labels in the data")
                if different:
                    raise ValueError(f"out: {folder} holds a run with other settings: {', '.join(different)}")
                store = cls(folder, connection, stored, planned)
                try:
                    yield store
                finally:
                    store.commit()
        finally:
            lock.release()

    @classmethod
    @contextmanager
    def reading(cls, folder: Path) -> Iterator[RunStore]:
        """Open a run folder, finished or live, to read its results.

        Raises:
            ValueError: no run folder, or a corrupt store.
        """
        if not (folder / STORE).is_file():
            raise ValueError(f"run: {folder} is no run folder ({STORE} is missing)")
        with _connect(folder) as connection:
            settings, *_, planned = _read_settings(folder, connection)
            yield cls(folder, connection, settings, planned)

    def results(self) -> list[ImageResult]:
        """All finished images by index.

        Raises:
            ValueError: the store is corrupt.
        """
        with _reporting(self.folder):
            rows = self._connection.execute(
                "SELECT image_index, true_label, certificate, seconds FROM images ORDER BY image_index"
            ).fetchall()
            return [
                ImageResult(index, label, Certificate.from_json(text), seconds)
                for index, label, text, seconds in rows
            ]

    def finished(self) -> set[int]:
        """Indices of the finished images."""
        with _reporting(self.folder):
            return {row[0] for row in self._connection.execute("SELECT image_index FROM images")}

    def partial(self, image_index: int) -> Partial:
        """What is saved of an image in work."""
        with _reporting(self.folder):
            rows = self._connection.execute(
                "SELECT stream, tally, seconds FROM partial WHERE image_index = ?", (image_index,)
            ).fetchall()
            tallies = {stream: json.loads(tally) for stream, tally, _ in rows}
            loaded = {
                stream: Tally(**{**fields, "counts": tuple(fields["counts"])})
                for stream, fields in tallies.items()
            }
        return Partial(
            loaded.get("selection"),
            loaded.get("estimation"),
            max((seconds for *_, seconds in rows), default=0.0),
        )

    def save_partial(self, image_index: int, partial: Partial) -> None:
        """Record the tallies of the image in work; kept from the next commit on."""
        tallies = {"selection": partial.selection, "estimation": partial.estimation}
        rows = [
            (image_index, stream, json.dumps(asdict(tally)), partial.seconds)
            for stream, tally in tallies.items()
            if tally is not None
        ]
        with _reporting(self.folder):
            self._connection.executemany("INSERT OR REPLACE INTO partial VALUES (?, ?, ?, ?)", rows)

    def save_result(self, result: ImageResult) -> None:
        """Record a finished image and drop its partial tallies; kept from the next commit on."""
        with _reporting(self.folder):
            self._connection.execute(
                "INSERT INTO images VALUES (?, ?, ?, ?)",
                (result.image_index, result.true_label, result.certificate.to_json(), result.seconds),
            )
            self._connection.execute("DELETE FROM partial WHERE image_index = ?", (result.image_index,))

    def commit(self) -> None:
        """Make all that was recorded survive a crash."""
        with _reporting(self.folder):
            self._connection.commit()


def _create(folder: Path, settings: CertifySettings, identity: tuple[str, str, int]) -> None:
    """Write settings.yaml and the empty store; the store appears whole or not at all."""
    (folder / SETTINGS).write_text(yaml.safe_dump(settings.as_dict(), sort_keys=False))
    fresh = folder / f"{STORE}.new"
    fresh.unlink(missing_ok=True)
    with _reporting(folder):
        connection = sqlite3.connect(fresh)
        try:
            connection.executescript(_TABLES)
            with connection:
                row = (json.dumps(settings.as_dict()), *identity)
                connection.execute("INSERT INTO settings VALUES (?, ?, ?, ?)", row)
        finally:
            connection.close()
    fresh.rename(folder / STORE)


@contextmanager
def _connect(folder: Path) -> Iterator[sqlite3.Connection]:
    with _reporting(folder):
        connection = sqlite3.connect(folder / STORE, timeout=30)
    try:
        with _reporting(folder):
            verdict = connection.execute("PRAGMA quick_check").fetchone()[0]
        if verdict != "ok":
            raise ValueError(f"run: the store in {folder} is corrupt: {verdict}")
        yield connection
    finally:
        connection.close()


def _read_settings(folder: Path, connection: sqlite3.Connection) -> tuple[CertifySettings, str, str, int]:
    with _reporting(folder):
        row = connection.execute("SELECT json, weights_hash, data_hash, planned FROM settings").fetchone()
        if row is None:
            raise ValueError("it holds no settings")
        return CertifySettings.from_dict(json.loads(row[0])), *row[1:]


@contextmanager
def _reporting(folder: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours: OSError where the disk is at fault, ValueError where the store is."""
    try:
        yield
    except sqlite3.OperationalError as error:
        text = str(error)
        if text.startswith("no such"):
            raise ValueError(f"run: the store in {folder} is corrupt: {text}") from None
        raise OSError(f"cannot write to {folder}: {text}") from None
    except (sqlite3.DatabaseError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"run: the store in {folder} is corrupt: {error}") from None
