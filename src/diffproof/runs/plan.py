"""What a run will take, told before it starts: calls of its networks are timed, and the run is their sum."""

from __future__ import annotations

import math
import sqlite3
import statistics
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter as now
from typing import Any, NamedTuple, TypeVar

import numpy as np

from diffproof.checks import check_at_least
from diffproof.errors import is_out_of_memory
from diffproof.runs.settings import RunSettings
from diffproof.runs.settings_file import settings_text
from diffproof.runs.store import Identity, RunStore

# Of how many images at most the calls are.
SAMPLE = 16
# Each size of a call is so many times the one before, as long as that promises to take no more seconds.
_GROWTH = 4
_LONGEST = 1.2
# Calls of each size, besides one that is not counted; of the largest, up to `_MOST` within so many seconds.
_LEAST, _MOST, _SECONDS = 3, 24, 1.5
# Images by which the size of one in a store is told.
_SIZED = 64
# Seconds that Ray takes to begin, by how busy and how fast a machine is.
_RAY_BEGINS = (2.0, 6.0, 20.0)

Store = TypeVar("Store", bound=RunStore[Any])


class Range(NamedTuple):
    """What is expected, and between what it may lie."""

    low: float
    expected: float
    high: float

    def times(self, factor: float) -> Range:
        """Each, so many times."""
        return Range(*(factor * one for one in self))

    def plus(self, other: Range) -> Range:
        """The sum of each with each."""
        return Range(*(one + more for one, more in zip(self, other, strict=True)))

    def at_least(self, other: Range) -> Range:
        """The larger of each and each."""
        return Range(*map(max, self, other))


@dataclass(frozen=True)
class Spent:
    """Evaluations of networks, and the seconds that they take."""

    evaluations: float
    seconds: Range

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.evaluations + other.evaluations, self.seconds.plus(other.seconds))

    def __mul__(self, factor: float) -> Spent:
        return Spent(factor * self.evaluations, self.seconds.times(factor))


@dataclass(frozen=True)
class Pace:
    """How long calls of networks take.

    Attributes:
        rows: sizes of the calls that were timed, ascending.
        seconds: those that an evaluation took in a call of each size, the median.
        spread: the least and the most seconds of an evaluation at the largest size, by their median.
    """

    rows: Sequence[int]
    seconds: Sequence[float]
    spread: tuple[float, float]

    def of(self, rows: int, at_once: int, evaluations: float) -> Range:
        """Seconds of so many rows, at most `at_once` in a call, each of so many evaluations of networks."""
        full, rest = divmod(rows, at_once)
        seconds = evaluations * (full * self._call(at_once) + self._call(rest))
        return Range(self.spread[0] * seconds, seconds, self.spread[1] * seconds)

    def _call(self, rows: int) -> float:
        """Seconds of a call, an evaluation a row: by the line through the two nearest sizes."""
        calls = [size * seconds for size, seconds in zip(self.rows, self.seconds, strict=True)]
        more = rows - self.rows[-1]
        if more <= 0:
            return float(np.interp(rows, self.rows, calls)) if rows else 0.0
        slope = np.diff(calls)[-1] / np.diff(self.rows)[-1] if len(calls) > 1 else np.inf
        # Whatever chance does to two sizes: no cheaper than the larger, nor dearer than in proportion to it.
        return calls[-1] + more * float(np.clip(slope, 0.0, self.seconds[-1]))


def measure(call: Callable[[int], int], most: int, *, start: int = 1) -> Pace:
    """Time calls of growing size, until one has `most` rows or the next would take too long.

    Args:
        call: runs so many rows and returns the evaluations of networks that it spent.
        most: rows of the largest call, ≥ 1.
        start: rows of the smallest one.
    """
    rows, paces = min(start, most), dict[int, list[tuple[float, int]]]()
    while True:
        try:
            call(rows)
            timed = [_timed(call, rows) for _ in range(_LEAST)]
            so_far, a_row = _pace({**paces, rows: timed}), timed[0][1] / rows
            # A single size does not tell what a call takes whatever its rows.
            growths = (_GROWTH,) if paces else (_GROWTH, 2)
            bearable = [
                more
                for more in (min(most, growth * rows) for growth in growths)
                if more > rows and so_far.of(more, more, a_row).expected <= _LONGEST
            ]
            last = not bearable
            while last and len(timed) < _MOST and sum(seconds for seconds, _ in timed) < _SECONDS:
                timed.append(_timed(call, rows))
        except (MemoryError, RuntimeError) as error:
            # As a run, which halves its batches then.
            if not paces or not is_out_of_memory(error):
                raise
            break
        paces[rows] = timed
        if last:
            break
        rows = bearable[0]
    return _pace(paces)


def _pace(timed: dict[int, list[tuple[float, int]]]) -> Pace:
    """The pace of calls by their rows, each with its seconds and evaluations."""
    paces = [[seconds / evaluations for seconds, evaluations in calls] for calls in timed.values()]
    medians, largest = [statistics.median(one) for one in paces], paces[-1]
    return Pace(list(timed), medians, (min(largest) / medians[-1], max(largest) / medians[-1]))


def _timed(call: Callable[[int], int], rows: int) -> tuple[float, int]:
    started = now()
    evaluations = call(rows)
    return now() - started, evaluations


def spread_out(indices: Sequence[int]) -> list[int]:
    """At most SAMPLE of some indices, evenly spaced: neighbours may be of one class."""
    count = min(SAMPLE, len(indices))
    return [indices[place * len(indices) // count] for place in range(count)]


def folder_sizes(
    kind: type[Store], settings: RunSettings, identity: Identity, save: Callable[[Store, int], None]
) -> tuple[int, float]:
    """Bytes of a run folder without finished images, and of each that it then gets; all is in memory.

    Args:
        kind: what kind of run.
        settings: the run's.
        identity: of the run.
        save: records a finished image of this index in a store.
    """
    with closing(sqlite3.connect(":memory:")) as connection:
        store = kind.fresh(Path(), connection, settings, identity)
        (page,) = connection.execute("PRAGMA page_size").fetchone()
        (empty,) = connection.execute("PRAGMA page_count").fetchone()
        for index in range(_SIZED):
            save(store, index)
        (full,) = connection.execute("PRAGMA page_count").fetchone()
    begin = page * empty + len(settings_text(settings, identity.code).encode())
    return begin, page * (full - empty) / _SIZED


@dataclass(frozen=True)
class Plan:
    """What a run takes in one process or on some workers.

    Attributes:
        workers: how many there are; None for one process that does it all.
        busy: how many of them have something to do.
        evaluations: of networks, on all together.
        most_evaluations: those that a plain implementation would spend, or that there can be at most.
        seconds: from the begin to the end.
        size: bytes of the run folder.
    """

    workers: int | None
    busy: int
    evaluations: int
    most_evaluations: int
    seconds: Range
    size: int


@dataclass(frozen=True)
class Costs:
    """What a run is made of: images, and what there is to do before the first.

    Attributes:
        images: how many there are, ≥ 1.
        evaluations: of networks for an image, expected.
        most_evaluations: those that a plain implementation would spend, or that there can be at most.
        seconds: of an image.
        size: bytes of an image in the run folder.
        begin_seconds: until all is loaded.
        first_evaluations: those of what is done once, before the first image or by a worker beside it.
        first_seconds: of that.
        begin_size: bytes of the run folder without images.
        units: parts of the work that are done by one worker each, ≥ 1.
        largest: the share of the work that the largest of them is, in (0, 1].
        least: seconds of what is done one after the other, however many workers there are.
        worker_seconds: until a worker is ready; all begin at the same time.
    """

    images: int
    evaluations: float
    most_evaluations: int
    seconds: Range
    size: float
    begin_seconds: Range
    first_evaluations: int
    first_seconds: Range
    begin_size: int
    units: int
    largest: float
    least: Range
    worker_seconds: Range

    def on(self, workers: int | None = None) -> Plan:
        """The plan for one process, or for so many workers with a device like this one each.

        Raises:
            ValueError: workers < 1.
        """
        asked = 1 if workers is None else check_at_least("workers", workers, 1)
        busy = min(asked, self.units + any(self.first_seconds))
        work = self.seconds.times(self.images)
        seconds = work.plus(self.first_seconds)
        if busy > 1:
            # What is done once is as much as so many units, of which one worker does all.
            first = self.first_seconds.expected / (self.largest * work.expected)
            share = min(1.0, math.ceil((self.units + first) / busy) * self.largest)
            seconds = work.times(share).at_least(self.least).at_least(self.first_seconds)
        begin = self.begin_seconds if workers is None else self.begin_seconds.plus(self.worker_seconds)
        return Plan(
            workers=workers,
            busy=busy,
            evaluations=round(self.images * self.evaluations) + self.first_evaluations,
            most_evaluations=self.images * self.most_evaluations + self.first_evaluations,
            seconds=begin.plus(seconds),
            size=round(self.images * self.size) + self.begin_size,
        )


def until_ready(loading: float, importing: float) -> Range:
    """Seconds until a worker is ready that loads what took so many here, once Ray has begun.

    Args:
        loading: seconds that the run's networks and images took here.
        importing: seconds that the libraries took.
    """
    return Range(*(ray + loading + importing for ray in _RAY_BEGINS))
