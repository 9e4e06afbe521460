"""How far a run is: what its folder holds and tells of its commands, read without the networks' libraries."""

from __future__ import annotations

import socket
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffproof.checks import check_at_least
from diffproof.errors import ArgumentError
from diffproof.files import expanded
from diffproof.methods import told
from diffproof.runs.database import connected_run, has_table, indices_in, is_locked, naming, reporting
from diffproof.runs.progress import Ended, Failure, Progress, Session, WorkerState
from diffproof.texts import parse_json

# Tables of finished images, and what has them.
_CERTIFIED = "images"
_KINDS = {_CERTIFIED: "certification", "attacked": "attack"}


@dataclass(frozen=True)
class Status:
    """How far a run is.

    Attributes:
        folder: the run's.
        kind: "certification" or "attack".
        description: the defence and what is done to it.
        shard: of the run that the folder is, "3/16"; None for all of it.
        planned: how many images the run is to have.
        part: how many of them are the folder's.
        finished: how many are finished.
        draws: with a label, of images in work; none of an attack.
        share: of the images that the folder is to have, draws in work included; in [0, 1].
        live: whether a process works on it now; None where that cannot be told, see `is_locked`.
        state: running, finished, interrupted, failed, killed or unfinished; "unknown" where `live` is None.
        evaluations_per_second: of the last session, as progress counts them; None of none.
        images_per_hour: likewise.
        seconds_left: of what the last session was asked for, at most; None if it does not run, or where
            nothing is done in it yet.
        sessions: each time that a command worked on the folder.
        workers: of the last one.
        failures: images that failed wherever they were tried.
    """

    folder: Path
    kind: str
    description: str
    shard: str | None
    planned: int
    part: int
    finished: int
    draws: int
    share: float
    live: bool | None
    state: str
    evaluations_per_second: float | None
    images_per_hour: float | None
    seconds_left: float | None
    sessions: list[Session]
    workers: list[WorkerState]
    failures: list[Failure]


def load_status(folder: Path) -> Status:
    """Read how far a run is; its folder may be at work, and is not disturbed.

    The store is not looked through for damage, which `diffproof verify` does.

    Args:
        folder: a run's.

    Raises:
        ValueError: no run folder, or a corrupt store.
    """
    folder = expanded(folder)
    with connected_run(folder, whole=False) as connection:
        table = _table(folder, connection)
        progress = Progress(folder, connection, table)
        sessions, workers, failures = progress.sessions(), progress.workers(), progress.failures()
        with reporting(folder):
            text, planned = connection.execute("SELECT json, planned FROM settings").fetchone() or ("{}", 0)
            finished = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            part = len(indices_in(connection, "part"))
            with naming("settings"):
                settings: dict[str, Any] = parse_json(text)
                description = _description(table, settings)
                check_at_least("planned", planned, 1)
            draws, each = _in_work(connection, settings) if table == _CERTIFIED else (0, 1)
    last = sessions[-1] if sessions else None
    total = part or planned
    ended = last is not None and last.ended == Ended.FINISHED
    done = finished >= total or (ended and settings.get("until_half_width") is not None)
    live = _is_live(folder, last)
    return Status(
        folder=folder,
        kind=_KINDS[table],
        description=description,
        shard=settings.get("shard"),
        planned=planned,
        part=total,
        finished=finished,
        draws=draws,
        share=1.0 if done else min(1.0, (finished + draws / each) / total),
        live=live,
        state=_state(live, done, last),
        evaluations_per_second=_rate(last, "evaluations"),
        images_per_hour=_rate(last, "images", 3600.0),
        seconds_left=None if live is False or done else _left(last, total - finished),
        sessions=sessions,
        workers=workers,
        failures=failures,
    )


def _is_live(folder: Path, last: Session | None) -> bool | None:
    """See `Status.live`."""
    held = is_locked(folder, None if last is None else last.pid)
    if held or last is None or last.ended is not None:
        return bool(held)
    return False if held is False and last.host == socket.gethostname() else None


def _state(live: bool | None, done: bool, last: Session | None) -> str:
    """See `Status.state`."""
    if live or done:
        return "running" if live else "finished"
    if last is None or last.ended == Ended.FINISHED:
        return "unfinished"
    return last.ended or ("unknown" if live is None else "killed")


def _rate(last: Session | None, what: str, seconds: float = 1.0) -> float | None:
    """How many evaluations or images a session did in so many seconds; None where it did not tell yet."""
    spent = 0.0 if last is None else last.told - last.started
    return seconds * getattr(last, what) / spent if spent > 0 else None


def _left(last: Session | None, images: int) -> float | None:
    """Seconds that the rest takes, so many images of it, at the pace of a session."""
    known = last is not None and last.remaining is not None
    rest, rate = (last.remaining, "evaluations") if last is not None and known else (images, "images")
    pace = _rate(last, rate)
    return rest / pace if rest is not None and pace else None


def _table(folder: Path, connection: sqlite3.Connection) -> str:
    """The table of a run's finished images."""
    with reporting(folder):
        found = [table for table in _KINDS if has_table(connection, table)]
        known = found and has_table(connection, "settings")
    if not known:
        raise ArgumentError("run", f"{folder} is no run folder (its store lacks {' or '.join(_KINDS)})")
    return found[0]


def _description(table: str, settings: dict[str, Any]) -> str:
    """The defence, and what is done to it."""
    defense = told("defense", settings["defense"])
    if table == _CERTIFIED:
        return f"{defense}, sigma = {settings['sigma']:g}"
    share, gradient = settings.get("surrogate_share"), settings["gradient"]
    gradient = gradient if share is None else f"{gradient} {share:g}"
    attack, threat = told("attack", settings["attack"]), f"{settings['threat']} {settings['budget']}"
    return f"{defense}, {attack} {gradient}, {threat}"


def _in_work(connection: sqlite3.Connection, settings: dict[str, Any]) -> tuple[int, int]:
    """Draws with a label of images in work, and how many an image has at most."""
    query = "SELECT tally FROM partial WHERE stream != 'hits'"
    tallies = [parse_json(text) for (text,) in connection.execute(query)]
    recorded = has_table(connection, "work")
    for (text,) in connection.execute("SELECT units FROM work LIMIT 1") if recorded else ():
        tallies += [tally for *_, tally in parse_json(text)]
    with naming("draws in work"):
        draws = sum(check_at_least("draws", tally["draws"], 0) for tally in tallies)
        return draws, sum(check_at_least(name, settings[name], 1) for name in ("n0", "n"))
