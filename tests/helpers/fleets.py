"""Workers for tests of who does what: orders without networks, and those of a run in this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

from simulated_fleet import Fate, LostError, SimulatedEngine
from torch import Tensor

from diffproof.runs.attack.job import AttackRun
from diffproof.runs.attack.workers import worker_of
from diffproof.runs.certify.job import CertifyRun
from diffproof.runs.certify.workers import CertifyWorker
from diffproof.runs.workers import Hire, facts_of
from diffproof.scale.engine import Answer, Hello, Order, Worker
from diffproof.scale.fleet import Fleet


def order(*images: int, size: int = 1, key: Hashable = None) -> Order:
    return Order(images if key is None else key, images, size, None)


GONE = RuntimeError("device-side assert triggered")


class Orders:
    """A source that notes what it is given; orders of several images can be divided."""

    def __init__(self, orders: Iterable[Order], enough: int = 4) -> None:
        self.enough = enough
        self.left = deque(orders)
        self.all = {one.key: one for one in self.left}
        self.found: list[Hashable] = []
        self.dropped: list[Hashable] = []

    def take(self, size: int) -> Order | None:
        return self.left.popleft() if self.left else None

    def split(self, order: Order) -> list[Order]:
        if len(order.images) < 2:
            return []
        del self.all[order.key]
        parts = [Order(("part", image), (image,), 1, None) for image in order.images]
        self.all |= {one.key: one for one in parts}
        return parts

    def put(self, order: Order, found: Any) -> None:
        assert found == ("done", order.key)
        self.found.append(order.key)

    def drop(self, order: Order) -> None:
        self.dropped.append(order.key)


class Doer:
    """Does orders but those of some images, in so many seconds for each of their size."""

    def __init__(
        self,
        raising: Collection[int] = (),
        killing: Collection[int] = (),
        facts: dict[str, Any] | None = None,
        each: float = 1.0,
    ) -> None:
        self.each = each
        self.raising, self.killing, self.facts = raising, killing, facts or {}
        self.queue: deque[Order] = deque()

    def hello(self) -> Hello:
        return Hello("here", 1, "cpu", self.facts)

    def work(self, orders: Sequence[Order], seconds: float) -> Answer:
        answer = Answer()
        self.queue.extend(orders)
        while self.queue and answer.seconds <= seconds:
            one = self.queue.popleft()
            answer.seconds += self.each * one.size
            if set(one.images) & set(self.killing):
                raise LostError(f"killed by {one.key}")
            if set(one.images) & set(self.raising):
                answer.failed.append((one.key, f"cannot do {one.key}"))
            else:
                answer.done.append((one.key, ("done", one.key)))
        return answer


class OneCall:
    """A worker of a run, who answers after each network call; an evaluation takes a hundredth of a second."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def hello(self) -> Hello:
        return self.worker.hello()

    def work(self, orders: Sequence[Order], seconds: float) -> Answer:
        answer = self.worker.work(orders, 0.0)
        answer.seconds = 0.001 + 0.01 * answer.evaluations
        return answer


def started(
    job: CertifyRun | AttackRun,
    workers: int,
    fate: Callable[[int], Fate] = lambda number: Fate(),
    make: Callable[[int], Worker] | None = None,
) -> Fleet:
    """A fleet for a run, whose workers are in this process."""

    def worker(number: int) -> OneCall:
        if make is not None:
            return OneCall(make(number))
        return OneCall(CertifyWorker(job) if isinstance(job, CertifyRun) else worker_of(job))

    fleet = Fleet(SimulatedEngine(worker, fate), workers, facts_of(job.identity()))
    fleet.start()
    return fleet


def failing(
    network: Any, when: Callable[[Tensor], bool], error: Callable[[], BaseException] = lambda: GONE
) -> None:
    """Let a network raise on some of its inputs, by default as on a device that is gone."""
    inner = network.forward

    def forward(images: Tensor) -> Tensor:
        if when(images):
            raise error()
        result: Tensor = inner(images)
        return result

    network.forward = forward


def hiring(fleet: Fleet | None) -> Hire:
    """Gives this fleet to a run that hires."""
    return lambda: nullcontext(fleet)
