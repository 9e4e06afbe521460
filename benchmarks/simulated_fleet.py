"""Workers that are simulated: the real fleet and schedule hand out draws on a clock that costs no time.

What a network call, a message and an event at the driver take is given; everything else is what a run does.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count, islice
from typing import Protocol

import numpy as np

from diffproof.runs.certify.workers import Found
from diffproof.scale.engine import Answer, Event, Hello, Order
from diffproof.smoothing.schedule import Unit
from diffproof.smoothing.tally import Tally

# Times the seconds of a call, after which a worker answers though nothing is done; as in CertifyWorker.
_PATIENCE = 120


class LostError(Exception):
    """A worker is lost by what it does."""


class SimulatedWorker(Protocol):
    """A worker whose work takes no time, and who says what it would take."""

    def hello(self) -> Hello:
        """See Worker."""

    def work(self, orders: Sequence[Order], seconds: float) -> Answer:
        """See Worker; raises LostError where it is lost, and its `seconds` are those of the clock."""


@dataclass(frozen=True)
class Fate:
    """What becomes of a worker.

    Attributes:
        startup: seconds until it says hello.
        slow: times that its work takes as long.
        lost: when it is lost, on the engine's clock.
        hangs: when it falls silent for ever.
    """

    startup: float = 0.0
    slow: float = 1.0
    lost: float = math.inf
    hangs: float = math.inf


class SimulatedEngine:
    """Carries orders to workers of this process; see Engine.

    Args:
        make: makes the worker of a number.
        fate: what becomes of it.
        latency: seconds that a message takes.
        event: seconds that the driver spends on an event; None for those that it really spends.
    """

    def __init__(
        self,
        make: Callable[[int], SimulatedWorker],
        fate: Callable[[int], Fate] = lambda number: Fate(),
        *,
        latency: float = 0.001,
        event: float | None = 0.0,
    ) -> None:
        self._make, self._fate, self._latency, self._event = make, fate, latency, event
        self._now, self._turn = 0.0, count()
        self._events: list[tuple[float, int, Event]] = []
        self._workers: dict[int, SimulatedWorker] = {}
        self._fates: dict[int, Fate] = {}
        # When each has done what it was asked.
        self._free: dict[int, float] = {}
        self._since: float | None = None
        self.driver, self.events = 0.0, 0

    def start(self, worker: int) -> None:
        """See Engine."""
        fate = self._fates[worker] = self._fate(worker)
        self._workers[worker] = self._make(worker)
        self._free[worker] = self._now + fate.startup
        try:
            self._say(self._free[worker], Event(worker, self._workers[worker].hello()))
        except ValueError as error:
            self._say(self._free[worker], Event(worker, error=str(error), host="here"))

    def send(self, worker: int, orders: Sequence[Order], seconds: float) -> None:
        """See Engine."""
        fate = self._fates[worker]
        begins = max(self._free[worker], self._now + self._latency)
        if begins >= min(fate.lost, fate.hangs):
            self._end(worker, begins)
            return
        try:
            answer = self._workers[worker].work(orders, seconds / fate.slow)
        except LostError as error:
            self._fates[worker] = Fate(lost=begins)
            self._end(worker, begins, str(error))
            return
        except Exception as error:
            self._say(begins + self._latency, Event(worker, error=str(error)))
            return
        answer.seconds *= fate.slow
        self._free[worker] = begins + answer.seconds
        if self._free[worker] >= min(fate.lost, fate.hangs):
            self._end(worker, self._free[worker])
        else:
            self._say(self._free[worker] + self._latency, Event(worker, answer))

    def _end(self, worker: int, when: float, error: str = "killed") -> None:
        """A worker is lost, or hangs and says nothing more."""
        fate = self._fates[worker]
        if fate.lost <= when:
            self._say(max(fate.lost, self._now) + self._latency, Event(worker, error=error, lost=True))

    def _say(self, when: float, event: Event) -> None:
        heapq.heappush(self._events, (when, next(self._turn), event))

    def wait(self, seconds: float) -> list[Event]:
        """See Engine."""
        if self._since is not None:
            spent = time.perf_counter() - self._since
            self.driver += spent
            self._now += spent if self._event is None else 0.0
        found: list[Event] = []
        until = self._now + seconds
        while not found and self._events and self._events[0][0] <= until:
            self._now = max(self._now, self._events[0][0])
            while self._events and self._events[0][0] <= self._now:
                event = heapq.heappop(self._events)[2]
                if event.worker in self._workers:
                    found.append(event)
                if event.lost:
                    self.stop(event.worker)
        if not found:
            self._now = until
        self.events += len(found)
        self._now += (self._event or 0.0) * len(found)
        self._since = time.perf_counter()
        return found

    def stop(self, worker: int) -> None:
        """See Engine."""
        self._workers.pop(worker, None)

    def now(self) -> float:
        """See Engine."""
        return self._now


@dataclass(frozen=True)
class Cost:
    """What draws cost a worker.

    Attributes:
        call: seconds of a network call, by its rows.
        batch: most rows of a call.
        evaluations: of a draw, on average.
        rows: of a draw that may be in one call: its votes.
    """

    call: Callable[[int], float]
    batch: int
    evaluations: float = 1.0
    rows: int = 1

    def alone(self, draws: float) -> float:
        """Seconds of so many draws in full calls of one worker."""
        return draws * self.evaluations / self.batch * self.call(self.batch)


@dataclass
class _Queued:
    unit: Unit
    left: float


@dataclass
class Labels:
    """Labels of draws at random: class 0 with an image's probability, else 1; the same for the same draw.

    Args:
        probabilities: of each image.
        most: draws of an image and stream.
    """

    probabilities: Sequence[float]
    most: int
    _drawn: Callable[[int, int], np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        @lru_cache(maxsize=256)
        def drawn(index: int, stream: int) -> np.ndarray:
            source = np.random.default_rng([index, stream])
            hits = source.random(self.most, dtype=np.float32) < self.probabilities[index]
            return np.concatenate([[0], np.cumsum(hits, dtype=np.int32)])

        self._drawn = drawn

    def tally(self, unit: Unit, evaluations: float) -> Tally:
        """Of a unit's draws."""
        draws, hits = unit.stop - unit.start, self._drawn(unit.image_index, int(unit.stream))
        zeros = int(hits[unit.stop] - hits[unit.start])
        return Tally((zeros, draws - zeros), draws, 0, round(draws * evaluations))


class Labelling:
    """A worker that packs draws into network calls as CertifyWorker does, and labels them at random.

    Args:
        labels: of draws.
        cost: of draws.
    """

    def __init__(self, labels: Labels, cost: Cost) -> None:
        self._labels, self._cost = labels, cost
        self._queue: deque[_Queued] = deque()

    def hello(self) -> Hello:
        """See Worker."""
        return Hello("simulated", 0, "none", {"arithmetic": {}})

    def work(self, orders: Sequence[Order], seconds: float) -> Answer:
        """See Worker."""
        answer = Answer()
        for order in orders:
            self._queue.append(_Queued(order.load, order.size * self._cost.evaluations))
        limit = _PATIENCE * seconds
        while self._queue:
            answer.seconds += self._calls(answer, limit - answer.seconds)
            if answer.seconds > seconds and (answer.done or answer.seconds > limit):
                break
        return answer

    def _calls(self, answer: Answer, seconds: float) -> float:
        """Seconds of a network call with rows of the first draws, or of full ones until a unit is done."""
        batch, head = self._cost.batch, self._queue[0]
        rows, others = self._rows(head), 0
        for one in islice(self._queue, 1, None):
            others += self._rows(one)
            if others >= batch:
                break
        rows, calls = min(batch, rows + others), 1
        each = self._cost.call(rows)
        if others >= batch:
            calls = max(1, min(math.ceil(head.left / batch - 1e-9), math.ceil(seconds / each)))
        left = float(rows * calls)
        while left > 1e-9 and self._queue:
            one = self._queue[0]
            done = min(left, one.left)
            one.left, left = one.left - done, left - done
            if one.left < 1e-9:
                unit = self._queue.popleft().unit
                found = Found(self._labels.tally(unit, self._cost.evaluations), 0.0, [])
                answer.done.append((unit, found))
        answer.evaluations += rows * calls
        return each * calls

    def _rows(self, one: _Queued) -> int:
        """Rows that a unit can have in a call."""
        return math.ceil(one.left / self._cost.evaluations - 1e-9) * self._cost.rows
