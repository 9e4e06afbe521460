"""Shares orders among workers: who is lost, slow or fails, others do the work of; each order counts once."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from diffproof.errors import ArgumentError, UnfinishedError
from diffproof.scale.engine import Answer, Engine, Hello, Order, Source
from diffproof.scale.member import Member, Open

# Seconds that a worker works before it answers: what is lost with it, and what it costs to ask it again.
SLICE = 0.5
# Calls that wait at a worker, so that it need not wait for the next.
_CALLS = 2
# Times that an order may fail, or be all that a worker was doing when it was lost, before it is given up.
_FAILURES = 2
_LOSSES = 3
# Losses after which an order is done alone, lest others be lost by it, too.
_SUSPECT = 2
# An order is late after so many times what orders take, and so many seconds more; twice that with each copy.
_LATE = 4.0
_LATE_SECONDS = 2.0
# Seconds after which one is late while nobody knows what orders take.
_LATE_FIRST = 60.0
# Workers that may be lost in a row without any answer, for each that there is to be, and beside these.
_LOST_EACH, _LOST_BESIDE = 3, 3
# Images that fail when none has been done, after which there is no hope for others.
_HOPELESS = 5
# Digits of a SHA-256.
_HASH = 64


class FleetError(UnfinishedError):
    """No worker is left that could go on; what was done is kept."""


class Fleet:
    """Workers that do the orders of a source.

    Args:
        engine: carries orders.
        workers: how many there are to be, ≥ 1.
        facts: that every worker must have, by name; see Hello. One of theirs that is missing here must be the
            same on all of them.
        tell: told in a line of workers that are lost or refused.

    Attributes:
        members: every worker that there was, by number.
        failed: images that were given up, each with what went wrong.
        needless: size of orders that were done, and of which their source found that it needs none.
    """

    def __init__(
        self,
        engine: Engine,
        workers: int,
        facts: dict[str, Any],
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.engine, self.workers, self.tell = engine, workers, tell
        self.facts = dict(facts)
        self.members: dict[int, Member] = {}
        self.failed: dict[int, str] = {}
        self.needless = 0
        # Size of orders that a second worker began for nothing.
        self._twice = 0
        self._open: dict[Hashable, Open] = {}
        # Those that are to be done again; those of them that may have been what a worker was lost by, alone.
        self._again: deque[Hashable] = deque()
        self._suspect: deque[Hashable] = deque()
        self._took: deque[float] = deque(maxlen=101)
        # Orders that are late, the latest last, and when they were looked for.
        self._overdue: list[Hashable] = []
        self._looked = -math.inf
        # Ready workers that may want orders.
        self._hungry: set[int] = set()
        self._lost_in_a_row = 0
        self._refusals: list[str] = []

    @property
    def work(self) -> int:
        """Size of all orders that were done, those for nothing included."""
        return self._twice + sum(member.size for member in self.members.values())

    @property
    def wasted(self) -> int:
        """Size of those for nothing: a second worker began them, too, or they were needless."""
        return min(self.work, self._twice + self.needless)

    def start(self) -> None:
        """Begin the workers, and wait until one is ready.

        Raises:
            ValueError: what the first worker said when it was refused, if all are.
            FleetError: the workers are lost before they say anything.
        """
        self._hire()
        while not self._those("ready"):
            self._listen(1.0)
            self._hire()

    def step(self, source: Source) -> bool:
        """Hand out orders and take answers; whether there is anything left to do.

        Raises:
            FleetError: no worker is left, each is lost before it answers, or an order about no image fails.
            ValueError: every image fails.
        """
        self._hire()
        self._hand_out(source)
        if not self._open:
            order = source.take(max(1, source.enough // 4))
            if order is None:
                return False
            self._add(order)
            self._hand_out(source)
        self._listen(SLICE, source)
        return True

    def add(self, orders: Iterable[Order]) -> None:
        """Let orders be done before any from the source."""
        for order in orders:
            self._add(order)

    def orders(self) -> list[Order]:
        """Those that are to be done, and are not."""
        return [one.order for one in self._open.values()]

    def close(self) -> None:
        """End all workers."""
        for member in self.members.values():
            if member.state in ("starting", "ready"):
                self.engine.stop(member.number)

    def _add(self, order: Order) -> None:
        self._open[order.key] = Open(order)
        self._again.append(order.key)

    def _those(self, *states: str) -> list[Member]:
        return [member for member in self.members.values() if member.state in states]

    def _hire(self) -> None:
        """Begin workers in the place of those that were lost; refused ones are not replaced."""
        there = len(self._those("starting", "ready", "refused"))
        if self._lost_in_a_row > _LOST_EACH * self.workers + _LOST_BESIDE:
            last = [member.error for member in self._those("lost")][-1]
            raise FleetError(f"workers are lost before they answer: {last}")
        if len(self._refusals) >= self.workers:
            raise ArgumentError("workers", self._refusals[0])
        for _ in range(self.workers - there):
            number = len(self.members)
            self.members[number] = Member(number, heard=self.engine.now())
            self.engine.start(number)

    def _hand_out(self, source: Source) -> None:
        """Give every worker enough to do, those with the least first."""
        now = self.engine.now()
        if self._suspect and (ready := self._those("ready")):
            latest = max(ready, key=lambda one: one.heard)
            # Who is to do them may have fallen silent.
            if not any(one.lonely and latest.heard - one.heard <= self._patience() for one in ready):
                latest.lonely = True
                self._hungry.add(latest.number)
        for member in sorted((self.members[number] for number in self._hungry), key=lambda one: one.has):
            if member.state != "ready" or member.calls >= _CALLS:
                # It is asked again when it answers.
                self._hungry.discard(member.number)
                continue
            orders = self._suspect_for(member) if member.lonely else self._orders_for(member, source)
            if orders or (member.orders and not member.calls):
                for order in orders:
                    self._open[order.key].holders.add(member.number)
                    member.give(order, now)
                member.calls += 1
                self.engine.send(member.number, orders, SLICE)

    def _suspect_for(self, member: Member) -> list[Order]:
        """A suspect for a worker that has nothing else to do."""
        if member.orders:
            return []
        while self._suspect:
            if (one := self._open.get(self._suspect.popleft())) is not None:
                return [one.order]
        member.lonely = False
        return []

    def _orders_for(self, member: Member, source: Source) -> list[Order]:
        """Further orders for a worker."""
        wanted = max(source.enough, math.ceil(2 * SLICE * member.rate))
        # In parts, so that a look at what was found comes between them.
        part = max(1, wanted // 4)
        orders: list[Order] = []
        has = member.has
        while has < wanted and (order := self._next(member, source, part)) is not None:
            orders.append(order)
            has += order.size
        if has >= wanted:
            self._hungry.discard(member.number)
        if not orders and not member.orders and (late := self._late(member)) is not None:
            orders.append(late)
        return orders

    def _next(self, member: Member, source: Source, size: int) -> Order | None:
        """An order that is to be done again by such a worker, else the source's next."""
        for _ in range(len(self._again)):
            key = self._again.popleft()
            if key not in self._open:
                continue
            failures, waits = self._open[key].failures, self.engine.now() - self._open[key].failed
            others = {one.number for one in self._those("ready")} - set(failures)
            if member.number in failures and others and waits < self._patience():
                # It failed here, and somebody else may do better.
                self._again.append(key)
                continue
            return self._open[key].order
        order = source.take(size)
        if order is not None:
            self._open[order.key] = Open(order)
        return order

    def _patience(self) -> float:
        """Seconds after which an order is late."""
        return _LATE * statistics.median(self._took) + _LATE_SECONDS if self._took else _LATE_FIRST

    def _late(self, member: Member) -> Order | None:
        """An order that others have had for longer than orders take."""
        if self.engine.now() >= self._looked + SLICE:
            self._overdue, self._looked = self._all_late(), self.engine.now()
        for place in reversed(range(len(self._overdue))):
            one = self._open.get(self._overdue[place])
            if one is not None and member.number not in one.holders:
                del self._overdue[place]
                return one.order
        return None

    def _all_late(self) -> list[Hashable]:
        now, late = self.engine.now(), self._patience()
        since = {
            key: max(self.members[holder].orders[key] for holder in one.holders)
            for key, one in self._open.items()
            if one.holders
        }
        overdue = [key for key in since if now - since[key] > late * 2 ** (len(self._open[key].holders) - 1)]
        return sorted(overdue, key=since.__getitem__, reverse=True)

    def _listen(self, seconds: float, source: Source | None = None) -> None:
        for event in self.engine.wait(seconds):
            member = self.members[event.worker]
            if member.state in ("lost", "refused"):
                continue
            member.heard = self.engine.now()
            member.host = member.host or event.host
            if event.lost:
                self._lose(member, event.error, source)
            elif isinstance(event.said, Hello):
                self._welcome(member, event.said)
            elif isinstance(event.said, Answer):
                assert source is not None
                self._hear(member, event.said, source)
            elif member.state == "starting":
                self._refuse(member, event.error)
            else:
                # Its own code failed, not an order's: it may hold anything by now.
                self.engine.stop(member.number)
                self._lose(member, event.error, source)

    def _welcome(self, member: Member, hello: Hello) -> None:
        """Let a worker work if it has what it must have."""
        member.hello, member.host = hello, hello.host
        for name, value in hello.facts.items():
            expected = self.facts.setdefault(name, value)
            if value != expected:
                self._refuse(member, f"it has other {name}: {_short(value)}, expected {_short(expected)}")
                return
        member.state = "ready"
        self._hungry.add(member.number)

    def _refuse(self, member: Member, error: str) -> None:
        member.state, member.error = "refused", error
        self.engine.stop(member.number)
        self._refusals.append(f"{member.name}: {error}" if member.host else error)
        self.tell(f"{member.name} is refused: {error}")

    def _hear(self, member: Member, answer: Answer, source: Source) -> None:
        """Take an answer."""
        now, size = self.engine.now(), 0
        member.calls -= 1
        self._hungry.add(member.number)
        self._lost_in_a_row = 0
        member.seconds += answer.seconds
        member.evaluations += answer.evaluations
        member.batch_size = answer.batch_size or member.batch_size
        for key, found in answer.done:
            one = self._open.pop(key, None)
            if one is None:
                # Somebody else was faster.
                continue
            since = member.orders.get(key)
            self._take_back(one)
            size += one.order.size
            # One about no image is none of what is counted.
            counts = one.order.size if one.order.images else 0
            member.size += counts
            member.units += 1
            if since is not None:
                self._took.append(now - since)
            self._twice += counts * len(one.holders - {member.number})
            source.put(one.order, found)
        member.since_done += answer.seconds
        if member.since_done > 0 and size:
            rate, member.since_done = size / member.since_done, 0.0
            member.rate = rate if not member.rate else 0.5 * (member.rate + rate)
        for key, error in answer.failed:
            member.error = error
            self._fail(member, key, error, source)

    def _fail(self, member: Member, key: Hashable, error: str, source: Source) -> None:
        """An order raised an error: somebody else tries it, unless enough did."""
        one = self._open.get(key)
        if one is None:
            return
        member.take_back(one.order)
        one.holders.discard(member.number)
        one.failures.append(member.number)
        one.failed = self.engine.now()
        if one.holders and len(one.failures) < _FAILURES:
            return
        parts = source.split(one.order)
        if parts:
            del self._open[key]
            self._take_back(one)
            self.add(parts)
        elif len(one.failures) < _FAILURES:
            self._again.append(key)
        else:
            self._give_up(one, error, source)

    def _lose(self, member: Member, error: str, source: Source | None) -> None:
        """A worker is no more: others do what it had."""
        member.state, member.error = "lost", error
        self._lost_in_a_row += 1
        alone = len(member.orders) == 1
        self.tell(f"{member.name} is lost: {error}")
        for key in member.orders:
            one = self._open[key]
            one.holders.discard(member.number)
            one.losses += 1
            one.alone += alone
            if one.holders and one.alone < _LOSSES:
                continue
            assert source is not None
            parts = source.split(one.order) if one.losses >= _SUSPECT and alone else []
            if parts:
                del self._open[key]
                self._take_back(one)
                self.add(parts)
            elif one.alone >= _LOSSES:
                self._give_up(one, f"workers are lost by it: {error}", source)
            elif alone and one.losses >= _SUSPECT:
                # At once, before others are lost by what they do meanwhile.
                self._suspect.appendleft(key)
            elif one.losses >= _SUSPECT:
                self._suspect.append(key)
            else:
                self._again.append(key)
        member.orders.clear()
        member.has = 0

    def _take_back(self, one: Open) -> None:
        """Nobody needs to do an order any more."""
        for holder in one.holders:
            self.members[holder].take_back(one.order)
            self._hungry.add(holder)

    def _give_up(self, one: Open, error: str, source: Source) -> None:
        """No worker can do an order: nothing more is done for its images."""
        if not one.order.images:
            raise FleetError(f"{one.order.key} failed on every worker: {error}")
        self._lost_in_a_row = 0
        for image in one.order.images:
            self.failed.setdefault(image, error)
        for key, other in list(self._open.items()):
            if other.order.images and self.failed.keys() >= set(other.order.images):
                del self._open[key]
                self._take_back(other)
                source.drop(other.order)
        if len(self.failed) >= _HOPELESS and not any(member.units for member in self.members.values()):
            raise ArgumentError("workers", f"every image fails: {error}")


def _short(value: object) -> str:
    """A fact in a message: of a hash, its beginning."""
    text = str(value)
    return text[:12] if len(text) == _HASH and text.isalnum() else text
