"""What is drawn next: units of work of any image out, their tallies in, in any order."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from heapq import heappop, heappush
from typing import NamedTuple

from diffproof.noise import Stream
from diffproof.smoothing.tally import Counted, Looking, Tally

# How far beyond the draws before which an image's hardly end others are taken, where networks were idle
# otherwise: looks are 5% apart.
_AHEAD = 1.1
# The share of all draws that may turn out to be needless so.
_NEEDLESS = 0.04


class Unit(NamedTuple):
    """The draws start ≤ draw < stop of a stream of an image; no look at the hits lies between them.

    Attributes:
        image_index: the image's index in its data set.
        stream: what the draws are for.
        start: the first.
        stop: the one after the last.
    """

    image_index: int
    stream: Stream
    start: int
    stop: int


class Counting:
    """The draws of one image: those that select its class, then those that bound its probability.

    Which units they come in, and in which order their tallies come back, changes nothing of what is counted.

    Args:
        image_index: the image's index in its data set.
        n0: draws of the first kind, ≥ 1.
        looks: at the hits of the second kind; None for none of that.
        num_classes: number of labels.
        done: what was counted before.
        first: the stream of the first kind.
        seconds: that were spent on it before.

    Attributes:
        counted: what is counted so far.
        finished: whether that is all.
        vain: evaluations for draws that turned out to be needless.
        seconds: that were spent on it.
    """

    def __init__(
        self,
        image_index: int,
        n0: int,
        looks: Looking | None,
        num_classes: int,
        *,
        done: Counted | None = None,
        first: Stream = Stream.SELECTION,
        seconds: float = 0.0,
    ) -> None:
        self.image_index, self.n0, self.looks, self.first = image_index, n0, looks, first
        self._none = Tally((0,) * num_classes)
        self.counted = done or Counted()
        self.vain, self.seconds = 0, seconds
        # Tallies of later draws than the next, by their start.
        self._later: dict[int, Tally] = {}
        self.finished, self._limit, self._looked = False, 0, -1
        self._settle()
        self._handed = self._tally.draws

    @property
    def _stream(self) -> Stream:
        selection = self.counted.selection
        return self.first if selection is None or selection.draws < self.n0 else Stream.ESTIMATION

    @property
    def _tally(self) -> Tally:
        """Of the stream in work."""
        counted = self.counted
        return (counted.selection if self._stream is self.first else counted.estimation) or self._none

    @property
    def draws(self) -> int:
        """How many are counted."""
        counted = (self.counted.selection, self.counted.estimation)
        return sum(tally.draws for tally in counted if tally is not None)

    @property
    def ahead(self) -> int:
        """How many were taken that a look may yet make needless."""
        return self.needless if self.finished else max(0, self._handed - self._limit)

    def take(self, rows: int, *, ahead: bool = False) -> Unit | None:
        """The next draws, of which nothing is known that would make them needless; None for none.

        Args:
            rows: how many at most, ≥ 1.
            ahead: take those, too, that the next looks may make needless.
        """
        if self.finished:
            return None
        start, limit = self._handed, self._limit
        if ahead and self.looks is not None and self._stream is not self.first:
            limit = min(self.looks.checkpoints[-1], math.ceil(_AHEAD * limit))
        if start >= limit:
            return None
        self._handed = min(start + rows, limit, self._look_after(start))
        return Unit(self.image_index, self._stream, start, self._handed)

    def _look_after(self, start: int) -> int:
        """The next look after so many draws of the stream in work, or its end."""
        if self.looks is None or self._stream is self.first:
            return self.n0
        looks = self.looks.checkpoints
        return looks[min(bisect_right(looks, start), len(looks) - 1)]

    def put(self, unit: Unit, tally: Tally) -> None:
        """Count the draws of a unit that was taken."""
        if self.finished:
            self.vain += tally.evaluations
            return
        self._later[unit.start] = tally
        while not self.finished and (next_ := self._later.pop(self._tally.draws, None)) is not None:
            if self._stream is self.first:
                self.counted = replace(self.counted, selection=self._tally + next_)
                if self._stream is not self.first:
                    self._handed = 0
            else:
                self.counted = replace(self.counted, estimation=self._tally + next_)
            self._settle()
        if self.finished:
            self.vain += sum(tally.evaluations for tally in self._later.values())

    def hand_out(self, unit: Unit) -> bool:
        """Whether a unit that was taken in an interrupted run is the next one; if so, it is taken again."""
        fits = unit.stream is self._stream and unit.start == self._handed < unit.stop
        if fits and not self.finished and unit.stop <= self._look_after(unit.start):
            self._handed = unit.stop
            return True
        return False

    @property
    def needless(self) -> int:
        """Draws that were taken and are not counted, once it is finished."""
        estimation = self.counted.estimation
        return 0 if estimation is None else self._handed - estimation.draws

    def waiting(self) -> list[tuple[Unit, Tally]]:
        """Units that are labelled while earlier ones are not."""
        return [
            (Unit(self.image_index, self._stream, start, start + tally.draws), tally)
            for start, tally in self._later.items()
        ]

    def _settle(self) -> None:
        """Look at the hits if it is time, and see what may be drawn before the next time."""
        looks, counted = self.looks, self.counted
        if self._stream is self.first:
            self._limit = self.n0
            return
        if looks is None:
            self.finished = True
            return
        estimation, hits = counted.estimation, counted.hits
        if estimation is not None and estimation.draws in looks.checkpoints[len(hits) : len(hits) + 1]:
            assert counted.selection is not None
            hits += (estimation.counts[counted.selection.selected],)
            self.counted = replace(counted, hits=hits)
        if self._looked != len(hits):
            self._looked = len(hits)
            self.finished = bool(hits) and looks.enough(hits)
            self._limit = 0 if self.finished else looks.first_end(hits)


class Schedule:
    """Many images' draws: those of the first images first, those of others where these must wait.

    Args:
        images: indices in the order of their turn.
        begin: makes the Counting of an index, when it is its turn.

    Attributes:
        in_work: those that have begun and are not closed, in the order of their turn.
        vain: evaluations for draws of closed images that turned out to be needless.
        returned: units that were given back and are to be taken before others.
    """

    def __init__(self, images: Iterable[int], begin: Callable[[int], Counting]) -> None:
        self._order = list(images)
        self._left = self._order[::-1]
        self._turn = {index: turn for turn, index in enumerate(self._order)}
        # Turns of images in work that may have draws to hand out, as a heap, each once.
        self._ready: list[int] = []
        self._awake: set[int] = set()
        self.returned: deque[Unit] = deque()
        self._begin = begin
        self.in_work: dict[int, Counting] = {}
        self.vain = 0
        # Draws of closed images, and those beyond them that were taken in vain.
        self._drawn = self._needless = 0
        # Images in work from which draws may be taken ahead, and how many; None when that has changed.
        self._ahead: list[Counting] | None = None
        self._risk = 0

    def take(self, rows: int) -> Unit | None:
        """The next unit; None at the end, and while units that were taken must come back first.

        Args:
            rows: how many draws at most, ≥ 1.
        """
        while self.returned:
            again = self.returned.popleft()
            if again.image_index in self.in_work and not self.in_work[again.image_index].finished:
                part = again._replace(stop=min(again.stop, again.start + rows))
                if part.stop < again.stop:
                    self.returned.appendleft(again._replace(start=part.stop))
                return part
        while self._ready or self._left:
            if not self._ready:
                self.open(self._left[-1])
            counting = self.in_work.get(self._order[self._ready[0]])
            if counting is not None and (unit := counting.take(rows)) is not None:
                return unit
            self._awake.remove(heappop(self._ready))
        return self._take_ahead(rows)

    def _wake(self, image_index: int) -> None:
        """An image may have draws to hand out."""
        self._ahead, turn = None, self._turn[image_index]
        if turn not in self._awake:
            self._awake.add(turn)
            heappush(self._ready, turn)

    def _take_ahead(self, rows: int) -> Unit | None:
        """Draws that may turn out to be needless, so few of them that it does not matter if they do."""
        if self._ahead is None:
            in_work = self.in_work.values()
            drawn = self._drawn + sum(counting.draws for counting in in_work)
            risked = self._needless + sum(counting.ahead for counting in in_work)
            self._risk = math.floor(_NEEDLESS * drawn) - risked
            # Those that have gone on for long are the likeliest to go on; the last is the next.
            self._ahead = sorted(in_work, key=lambda one: one.draws, reverse=True)[::-1]
        while self._ahead and self._risk > 0:
            if (unit := self._ahead[-1].take(min(rows, self._risk), ahead=True)) is not None:
                self._risk -= unit.stop - unit.start
                return unit
            self._ahead.pop()
        return None

    @property
    def needless(self) -> int:
        """Draws of finished images that were taken and are not counted."""
        return self._needless + sum(one.needless for one in self.in_work.values() if one.finished)

    def open(self, image_index: int) -> Counting:
        """The Counting of an image in work; if need be, it begins before its turn."""
        if image_index not in self.in_work:
            counting, latest = self._begin(image_index), next(reversed(self.in_work), image_index)
            if self._left[-1] == image_index:
                self._left.pop()
            else:
                self._left.remove(image_index)
            self.in_work[image_index] = counting
            if self._turn[latest] > self._turn[image_index]:
                self.in_work = dict(sorted(self.in_work.items(), key=lambda one: self._turn[one[0]]))
            self._wake(image_index)
        return self.in_work[image_index]

    def in_turn(self, unit: Unit) -> tuple[int, int]:
        """What sorts units: the turn of their image, and where they begin."""
        return self._turn.get(unit.image_index, len(self._turn)), unit.start

    def reopen(self, unit: Unit) -> bool:
        """See `Counting.hand_out`; False for an image that has no turn any more."""
        known = unit.image_index in self.in_work or unit.image_index in self._left
        return known and self.open(unit.image_index).hand_out(unit)

    def put(self, unit: Unit, tally: Tally) -> None:
        """Count the draws of a unit that was taken."""
        if unit.image_index in self.in_work:
            self.in_work[unit.image_index].put(unit, tally)
            self._wake(unit.image_index)
        else:
            self.vain += tally.evaluations

    def close(self, image_index: int) -> Counting:
        """Take a finished image out of work."""
        counting, self._ahead = self.in_work.pop(image_index), None
        self.vain += counting.vain
        self._drawn += counting.draws
        self._needless += counting.needless
        return counting

    def finished(self) -> list[int]:
        """Images in work of which all is counted, in the order of their turn."""
        return [index for index, counting in self.in_work.items() if counting.finished]
