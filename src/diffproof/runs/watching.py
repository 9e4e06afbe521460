"""Run folders that are looked at again and again: read only when something changed, never disturbed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Generic, TypeVar

from diffproof.errors import ArgumentError
from diffproof.files import expanded
from diffproof.runs.database import SETTINGS, STORE, is_locked
from diffproof.runs.folder import BEGUN, check_runs
from diffproof.runs.status import Status, load_status
from diffproof.wording import counted, duration

# What is made of runs at work takes at most one part in so many of the time, which the runs need themselves.
_PART = 10
_STATES = {"unknown": "perhaps at work on another machine"}

Made = TypeVar("Made")


@dataclass(frozen=True)
class Seen(Generic[Made]):
    """What is seen of some folders at a moment.

    Attributes:
        statuses: of those that hold a run, in their order.
        missing: those that hold none yet.
        made: what is made of the runs that have a finished image; None where none has.
        trouble: why they cannot be read now, "" where they can; all else is from when they last could.
    """

    statuses: list[Status]
    missing: list[Path]
    made: Made | None
    trouble: str = ""

    @property
    def finished(self) -> bool:
        """Whether all folders hold finished runs."""
        return not self.missing and all(one.state == "finished" for one in self.statuses)

    def told(self, *, moving: bool) -> list[str]:
        """How far each folder is, a line each, and what is the trouble.

        Args:
            moving: also say what changes while no image is finished.
        """
        lines = [_told(one, moving) for one in self.statuses]
        lines += [f"{folder}: waiting, there is no run yet" for folder in self.missing]
        return [*lines, f"cannot be read now: {self.trouble}"] if self.trouble else lines


class Watched(Generic[Made]):
    """Run folders, some of which may not be there yet, and what is made of them.

    Args:
        folders: their paths.
        make: makes it of the folders with finished images; called again when there are more of these, or a
            run's state or settings changed.

    Raises:
        ValueError: a folder is named twice.
    """

    def __init__(self, folders: Sequence[Path], make: Callable[[Sequence[Path]], Made]) -> None:
        check_runs(folders)
        self._folders, self._make = folders, make
        self._pids: dict[Path, int] = {}
        self._stamps: object = None
        self._key: object = None
        self._seen: Seen[Made] | None = None
        self._rested = 0.0

    def look(self) -> Seen[Made]:
        """What is there now.

        Raises:
            ValueError: a folder is no run, or its store is corrupt; runs are of two kinds or of different
                data. It is a trouble that may pass where somebody wrote meanwhile.
            OSError: a folder cannot be read; if that was possible before, it is a trouble that may pass.
        """
        stamps = [self._stamp(folder) for folder in self._folders]
        if stamps == self._stamps and self._seen is not None:
            return self._seen
        try:
            self._seen = self._read(stamps)
        except (ArgumentError, OSError) as error:
            settled = stamps == [self._stamp(folder) for folder in self._folders]
            if self._seen is None or (settled and isinstance(error, ArgumentError)):
                raise
            self._seen = replace(self._seen, trouble=str(error))
        return self._seen

    def _read(self, stamps: object) -> Seen[Made]:
        found = {folder: _status(folder) for folder in self._folders}
        statuses = [one for one in found.values() if one is not None]
        missing = [folder for folder, one in found.items() if one is None]
        # Where the process that worked on it last is known, so is its lock.
        self._pids = {one.folder: one.sessions[-1].pid for one in statuses if one.sessions}
        seen = Seen(statuses, missing, None if self._seen is None else self._seen.made)
        key = [_key(one) for one in statuses if one.finished]
        if key == self._key:
            self._stamps = stamps
        elif not key:
            self._key, self._stamps, seen = key, stamps, replace(seen, made=None)
        elif monotonic() >= self._rested or seen.finished:
            begun = monotonic()
            try:
                made = self._make([one.folder for one in statuses if one.finished])
            finally:
                self._rested = monotonic() + (_PART - 1) * (monotonic() - begun)
            self._key, self._stamps, seen = key, stamps, replace(seen, made=made)
        return seen

    def _stamp(self, folder: Path) -> tuple[object, ...]:
        """What differs once something in a folder does: its files are not opened."""
        path = expanded(folder)
        files = [_stat(path / name) for name in ("", STORE, SETTINGS)]
        return *files, is_locked(path, self._pids.get(path))


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _key(one: Status) -> tuple[object, ...]:
    """What a report tells of a run, as far as it changes."""
    again = [_stat(one.folder / SETTINGS), len(one.sessions), one.state]
    return one.folder, one.finished, one.planned, one.part, len(one.failures), *again


def _status(folder: Path) -> Status | None:
    """How far a run is; None where there is no run yet."""
    path = expanded(folder)
    try:
        names = set(os.listdir(path))
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise ArgumentError("run", f"{folder} is a file, expected a run folder") from None
    return None if STORE not in names and names <= BEGUN else load_status(folder)


def _told(one: Status, moving: bool) -> str:
    images = f"{one.finished:,} of {counted(one.part, 'image')} finished"
    text = f"{one.folder}: {_STATES.get(one.state, one.state)}, {images}"
    if not moving or one.state not in ("running", "unknown"):
        return text
    left = "" if one.seconds_left is None else f", at most {duration(one.seconds_left)} left"
    return f"{text}, {one.share:.1%} done{left}"
