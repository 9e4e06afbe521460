"""Certification on workers: each labels draws that it is given, packed as one process packs them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

from torch import Tensor

from diffproof.errors import printable
from diffproof.runs import workers
from diffproof.runs.certify.job import CertifyRun, label_first, prepare, tried
from diffproof.runs.settings import CertifySettings
from diffproof.runs.workers import Roll, facts_of, hello, prepared
from diffproof.scale.engine import Answer, Hello, Order
from diffproof.scale.fleet import Fleet
from diffproof.scale.surroundings import Surroundings
from diffproof.scale.workforce import Workforce
from diffproof.smoothing.arithmetic import arithmetic
from diffproof.smoothing.packing import OnVotes, Packing, Work
from diffproof.smoothing.schedule import Schedule, Unit
from diffproof.smoothing.tally import Tally

ARITHMETIC = "arithmetic"
# A worker without a complete unit works on before it answers, for at most so many times the seconds given.
_PATIENCE = 120


class Found(NamedTuple):
    """What a worker found for a unit.

    Attributes:
        tally: of its draws.
        seconds: that these took.
        ballots: numbers of draws and their ballots, where there was a vote and they are kept.
    """

    tally: Tally
    seconds: float
    ballots: list[tuple[Tensor, Tensor]]


class _Time:
    """Seconds that were spent on an image since somebody took account of them."""

    def __init__(self) -> None:
        self.seconds = 0.0


class Inbox:
    """Units that a worker was given, as a schedule that a packing takes draws from.

    Args:
        num_classes: number of labels.

    Attributes:
        in_work: what time goes to, by image.
        held: the units without a tally.
        done: tallies of complete units.
        vain: none.
    """

    def __init__(self, num_classes: int) -> None:
        self._none = Tally((0,) * num_classes)
        self._left: deque[tuple[Unit, int]] = deque()
        # The unit of each part that was taken, and what is counted of it.
        self._whole: dict[Unit, Unit] = {}
        self._tallies: dict[Unit, Tally] = {}
        self._ballots: dict[Unit, list[tuple[Tensor, Tensor]]] = {}
        self.in_work: dict[int, _Time] = {}
        self.held: set[Unit] = set()
        self.done: dict[Unit, Found] = {}
        self.vain = 0

    def give(self, unit: Unit) -> None:
        """Add a unit."""
        self.held.add(unit)
        self._left.append((unit, unit.start))
        self.in_work.setdefault(unit.image_index, _Time())

    def take(self, rows: int) -> Unit | None:
        """The next draws; see Schedule."""
        if not self._left:
            return None
        unit, start = self._left.popleft()
        part = unit._replace(start=start, stop=min(unit.stop, start + rows))
        if part.stop < unit.stop:
            self._left.appendleft((unit, part.stop))
        self._whole[part] = unit
        return part

    def put(self, part: Unit, tally: Tally) -> None:
        """Count draws that were taken."""
        unit = self._whole.pop(part)
        total = self._tallies.pop(unit, self._none) + tally
        if total.draws < unit.stop - unit.start:
            self._tallies[unit] = total
            return
        # Its image's, whose other units' share it takes with it.
        clock = self.in_work[unit.image_index]
        self.done[unit] = Found(total, clock.seconds, self._ballots.pop(unit, []))
        self.held.discard(unit)
        clock.seconds = 0.0
        if all(other.image_index != unit.image_index for other in self.held):
            del self.in_work[unit.image_index]

    def vote(self, part: Unit, draw: Tensor, ballots: Tensor) -> None:
        """Keep ballots; see Packing."""
        self._ballots.setdefault(self._whole[part], []).append((draw, ballots))


class CertifyWorker:
    """Labels draws for a certification run.

    Args:
        job: the run, on the worker's device.
    """

    def __init__(self, job: CertifyRun) -> None:
        self._job = job
        self._packing, self._inbox = self._fresh()

    def _fresh(self) -> tuple[Packing, Inbox]:
        inbox = Inbox(self._job.smoothed.num_classes)
        return self._job.certifier.packing(
            inbox, inbox.vote if self._job.settings.keep_ballots else None
        ), inbox

    def hello(self) -> Hello:
        """See Worker."""
        facts = facts_of(self._job.identity())
        facts[ARITHMETIC] = arithmetic(self._job.smoothed.base, self._job.image(self._job.indices[0]))
        return hello(str(self._job.device), facts)

    def work(self, orders: Sequence[Order], seconds: float) -> Answer:
        """See Worker."""
        started, before, answer = time.monotonic(), self._packing.labeller.rows, Answer()
        for order in orders:
            self._inbox.give(order.load)
        try:
            while self._packing.step():
                passed = time.monotonic() - started
                if passed > seconds and (self._inbox.done or passed > _PATIENCE * seconds):
                    break
            self._report(answer, self._inbox)
            answer.evaluations = self._packing.labeller.rows - before
        except Exception:  # whichever network of the user's it is
            self._alone(answer)
        answer.batch_size = self._packing.labeller.batch_size
        answer.seconds = time.monotonic() - started
        return answer

    def _report(self, answer: Answer, inbox: Inbox) -> None:
        """Tell what is done, by networks that are what they were."""
        if inbox.done:
            self._job.smoothed.check_unchanged()
            answer.done += inbox.done.items()
            inbox.done = {}

    def _alone(self, answer: Answer) -> None:
        """Label each unit in work by itself, to see which of them it was that something went wrong with.

        Raises:
            Exception: what the networks raise on draws that they could label when they were loaded.
        """
        units: list[Unit] = [*self._inbox.done, *self._inbox.held]
        self._packing, self._inbox = self._fresh()
        for unit in sorted(units):
            packing, inbox = self._fresh()
            inbox.give(unit)
            try:
                while packing.step():
                    pass
                self._report(answer, inbox)
            except Exception as error:
                answer.failed.append((unit, printable(f"{type(error).__name__}: {error}")))
            answer.evaluations += packing.labeller.rows
        if answer.failed and not answer.done:
            # It may be this worker that is broken.
            label_first(self._job, 1)


def certify_worker(
    settings: CertifySettings, surroundings: Surroundings, shipped: CertifyRun | None
) -> CertifyWorker:
    """A worker of a run; see `prepared`."""
    return CertifyWorker(prepared(settings, surroundings, shipped, prepare=prepare, tried=tried))


def hired(job: CertifyRun, asked: Workforce) -> AbstractContextManager[Fleet]:
    """Workers for a run that was prepared for them; see `runs.workers.hired`."""
    facts = facts_of(job.identity())
    return workers.hired(asked, certify_worker, job.settings, facts, ship=lambda: job, what="draws")


class OnWorkers:
    """Labels the draws of a schedule on workers; see Packing, in whose place it stands.

    Args:
        fleet: the workers.
        schedule: what is drawn.
        batch_size: most images that go through a network at once.
        num_classes: number of labels.
        on_ballots: see Packing.

    Attributes:
        fleet: the workers.
        failed: images that were given up, each with what went wrong.
        roll: records the workers.
    """

    begun = 0

    def __init__(
        self, fleet: Fleet, schedule: Schedule, batch_size: int, num_classes: int, on_ballots: OnVotes = None
    ) -> None:
        self.fleet, self._schedule, self._on_ballots = fleet, schedule, on_ballots
        self._none, self.enough = Tally((0,) * num_classes), 2 * batch_size
        self.failed: dict[int, str] = {}
        self.roll = Roll(fleet)

    def step(self) -> bool:
        """Hand out draws and count what comes back; whether there is more to do.

        Raises:
            ValueError, FleetError: see `Fleet.step`.
        """
        more = self.fleet.step(self)
        for index in self.fleet.failed.keys() - self.failed.keys():
            self.failed[index] = self.fleet.failed[index]
            if index in self._schedule.in_work:
                self._schedule.close(index)
        return more

    def take(self, size: int) -> Order | None:
        """See Source."""
        unit = self._schedule.take(size)
        return None if unit is None else _order(unit)

    def split(self, order: Order) -> list[Order]:
        """See Source: draws are of one image."""
        return []

    def put(self, order: Order, found: Found) -> None:
        """See Source."""
        unit: Unit = order.load
        if self._on_ballots is not None:
            for draw, ballots in found.ballots:
                self._on_ballots(unit, draw, ballots)
        counting = self._schedule.in_work.get(unit.image_index)
        if counting is not None:
            counting.seconds += found.seconds
        self._schedule.put(unit, found.tally)

    def drop(self, order: Order) -> None:
        """See Source."""

    @property
    def labelled(self) -> int:
        """See Packing."""
        return sum(tally.draws for _, tally in self._waiting())

    def _waiting(self) -> Iterable[tuple[Unit, Tally]]:
        return (one for counting in self._schedule.in_work.values() for one in counting.waiting())

    def snapshot(self) -> Callable[[], Work]:
        """See Packing: units that are complete while earlier ones are not, and those, without a label."""
        waiting, orders, returned = list(self._waiting()), self.fleet.orders(), list(self._schedule.returned)

        def work() -> Work:
            missing = [*(order.load for order in orders), *returned]
            return Work([(unit, self._none) for unit in missing] + waiting, {})

        return work

    def resume(self, work: Work) -> None:
        """Go on with what was being labelled, before the first step; from its start where not complete."""
        for unit, tally in sorted(work.units, key=lambda one: self._schedule.in_turn(one[0])):
            if not self._schedule.reopen(unit):
                continue
            if tally.draws == unit.stop - unit.start:
                self._schedule.put(unit, tally)
            else:
                self._schedule.returned.append(unit)


def _order(unit: Unit) -> Order:
    key: Hashable = unit
    return Order(key, (unit.image_index,), unit.stop - unit.start, unit)
