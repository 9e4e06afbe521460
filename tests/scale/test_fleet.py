"""Each order is done and counted once, whatever becomes of the workers; what cannot be done is named."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from simulated_fleet import Fate, SimulatedEngine

from diffproof.errors import ArgumentError
from diffproof.scale.engine import Answer, Event, Hello, Order
from diffproof.scale.fleet import Fleet, FleetError
from helpers.fleets import Doer, Orders, order

Fates = Callable[[int], Fate]


def fates(*of: Fate) -> Fates:
    """Of the first workers; later ones do well."""
    return lambda number: of[number] if number < len(of) else Fate(startup=1.0)


def lost_at_random(seed: int, losses: int = 50) -> Fates:
    """The first workers are lost, each a while after the one before."""
    source = random.Random(seed)
    when = 0.0
    moments = []
    for _ in range(losses):
        when += source.uniform(2.0, 12.0)
        moments.append(when)
    return lambda number: Fate(1.0, lost=moments[number]) if number < losses else Fate(1.0)


def done(fleet: Fleet, source: Orders) -> dict[int, str]:
    """Do all; images that failed. Every order is put once, or is about such images."""
    fleet.start()
    while fleet.step(source):
        assert fleet.engine.now() < 5_000
    fleet.close()
    assert len(set(source.found)) == len(source.found)
    assert not set(source.found) & set(source.dropped)
    for key, one in source.all.items():
        assert key in source.found or set(one.images) <= fleet.failed.keys()
    return fleet.failed


def fleet_of(workers: int, fate: Fates, **doer: Any) -> tuple[Fleet, list[str]]:
    told: list[str] = []
    return Fleet(SimulatedEngine(lambda number: Doer(**doer), fate), workers, {}, told.append), told


FATES: dict[str, Fates] = {
    "well": fates(),
    "a late one": fates(Fate(100.0)),
    "a slow one": fates(Fate(slow=10.0)),
    "slow ones": fates(Fate(slow=10.0), Fate(slow=20.0)),
    "a hanging one": fates(Fate(hangs=7.0)),
    "hanging ones": fates(Fate(hangs=7.0), Fate(hangs=9.0), Fate(hangs=9.0)),
    "lost and slow": fates(Fate(lost=5.0), Fate(slow=20.0), Fate(hangs=12.0)),
    **{f"lost at random, {seed}": lost_at_random(seed) for seed in range(8)},
}


# How many hang; one more is needed to end.
HANGING = {"a hanging one": 1, "hanging ones": 3, "lost and slow": 1}


@pytest.mark.parametrize(
    ("name", "workers"),
    [(name, workers) for name in FATES for workers in (1, 2, 4) if workers > HANGING.get(name, 0)],
)
def test_every_order_counts_once_whatever_becomes_of_workers(name: str, workers: int) -> None:
    source = Orders(order(image, size=1 + image % 3) for image in range(60))
    fleet, told = fleet_of(workers, FATES[name], each=0.5)
    assert done(fleet, source) == {}
    assert sum(member.size for member in fleet.members.values()) == sum(
        one.size for one in source.all.values()
    )
    assert sum(member.units for member in fleet.members.values()) == 60
    assert len(told) == sum(member.state == "lost" for member in fleet.members.values())


def test_the_orders_of_a_slow_worker_are_given_again_and_the_first_answer_counts() -> None:
    wasted = []
    for slow in (1.0, 1000.0):
        source = Orders(order(image) for image in range(40))
        fleet, _ = fleet_of(4, fates(Fate(slow=slow)))
        done(fleet, source)
        # Alone the slow one would take 1,000 s for one order.
        assert fleet.engine.now() < 40
        wasted.append(fleet.wasted)
    assert wasted[0] == 0 < wasted[1]


def test_what_the_first_worker_hangs_with_is_done_by_another() -> None:
    # No order was answered yet, by which to tell what is late.
    source = Orders([order(0)])
    fleet, _ = fleet_of(2, fates(Fate(hangs=0.0)))
    assert done(fleet, source) == {}
    assert fleet.members[1].units == 1


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("poison", [[3], [0, 17, 29]])
@pytest.mark.parametrize("kind", ["raising", "killing"])
@pytest.mark.parametrize("fate", ["well", "a slow one", "a hanging one"])
def test_poisoned_images_are_named_and_all_others_done(
    kind: str, poison: list[int], workers: int, fate: str
) -> None:
    if workers <= HANGING.get(fate, 0):
        workers += 1
    orders = [order(image, key=(image, part)) for image in range(30) for part in range(2)]
    fleet, _ = fleet_of(workers, FATES[fate], **{kind: poison})
    source = Orders(orders)
    failed = done(fleet, source)
    assert sorted(failed) == poison
    assert all(("cannot do" if kind == "raising" else "killed by") in failed[image] for image in poison)
    assert len(source.found) == 60 - 2 * len(poison)


@pytest.mark.parametrize("kind", ["raising", "killing"])
def test_of_a_group_the_poisoned_image_alone_fails(kind: str) -> None:
    source = Orders(order(*range(start, start + 5)) for start in range(0, 40, 5))
    fleet, _ = fleet_of(2, fates(), **{kind: [12]})
    assert list(done(fleet, source)) == [12]


def test_orders_that_workers_were_lost_with_by_chance_are_done() -> None:
    """Twice with others, and once by itself."""
    fleet, told = fleet_of(1, fates(Fate(lost=0.5), Fate(lost=1.0), Fate(lost=1.5)))
    assert done(fleet, Orders(order(image) for image in range(8))) == {}
    assert len(told) == 3


def test_an_order_about_no_image_is_given_up_by_none_and_names_no_image() -> None:
    source = Orders([*(order(image) for image in range(8)), order(key="first", size=30)])
    fleet, _ = fleet_of(2, fates(), raising=[1])
    assert list(done(fleet, source)) == [1]
    assert "first" in source.found

    class Refusing(Doer):
        def work(self, orders: Sequence[Order], seconds: float) -> Answer:
            answer = super().work(orders, seconds)
            bad = [key for key, _ in answer.done if key == "first"]
            answer.done = [one for one in answer.done if one[0] not in bad]
            answer.failed += [(key, "no such thing") for key in bad]
            return answer

    fleet = Fleet(SimulatedEngine(lambda number: Refusing()), 2, {})
    with pytest.raises(FleetError, match=r"^first failed on every worker: no such thing$"):
        done(fleet, Orders([order(0), order(key="first")]))


# Who may work


def test_a_worker_with_other_facts_is_refused_by_name_and_not_replaced() -> None:
    facts = [{"weights": "a" * 64}, {"weights": "b" * 64}, {"weights": "a" * 64}]
    told: list[str] = []
    engine = SimulatedEngine(lambda number: Doer(facts=facts[number]))
    fleet = Fleet(engine, 3, {"weights": "a" * 64}, told.append)
    done(fleet, Orders(order(image) for image in range(9)))
    assert told == [f"worker 1 on here is refused: it has other weights: {'b' * 12}, expected {'a' * 12}"]
    assert [member.state for member in fleet.members.values()] == ["ready", "refused", "ready"]
    assert fleet.members[1].units == 0


def test_facts_that_nobody_has_yet_are_those_of_the_first() -> None:
    engine = SimulatedEngine(
        lambda number: Doer(facts={"device": f"gpu {number}"}), fates(Fate(5.0), Fate(1.0))
    )
    fleet = Fleet(engine, 2, {})
    done(fleet, Orders(order(image) for image in range(20)))
    assert fleet.facts == {"device": "gpu 1"}
    assert fleet.members[0].error == "it has other device: gpu 0, expected gpu 1"


class Unloadable(Doer):
    def hello(self) -> Hello:
        raise ValueError("data: no such file")


def test_when_all_are_refused_the_first_says_why_and_on_which_machine() -> None:
    told: list[str] = []
    fleet = Fleet(SimulatedEngine(lambda number: Unloadable()), 2, {}, told.append)
    with pytest.raises(ArgumentError, match=r"^workers: worker 0 on here: data: no such file$"):
        fleet.start()
    assert told == [f"worker {number} on here is refused: data: no such file" for number in range(2)]


class Dying:
    """An engine all of whose workers are lost when they begin."""

    def __init__(self) -> None:
        self.begun: list[int] = []

    def start(self, worker: int) -> None:
        self.begun.append(worker)

    def send(self, worker: int, orders: Sequence[Order], seconds: float) -> None:
        raise AssertionError("nobody said hello")

    def wait(self, seconds: float) -> list[Event]:
        begun, self.begun = self.begun, []
        return [Event(worker, error="killed", lost=True) for worker in begun]

    def stop(self, worker: int) -> None:
        pass

    def now(self) -> float:
        return 0.0


def test_workers_that_are_lost_again_and_again_end_it() -> None:
    fleet = Fleet(Dying(), 4, {})
    with pytest.raises(FleetError, match=r"^workers are lost before they answer: killed$"):
        fleet.start()
    assert 4 * 3 < len(fleet.members) < 30


@pytest.mark.parametrize(
    ("kind", "error"), [("raising", ArgumentError), ("killing", (ArgumentError, FleetError))]
)
def test_where_every_image_fails_the_rest_is_not_tried(kind: str, error: Any) -> None:
    source = Orders(order(image) for image in range(1000))
    fleet, _ = fleet_of(2, fates(), **{kind: range(1000)})
    with pytest.raises(error, match=r"every image fails: |lost before they answer"):
        done(fleet, source)
    assert len(source.left) > 900


# Any events in any order


class Hand:
    """An engine whose events somebody else chooses."""

    def __init__(self) -> None:
        self.clock = 0.0
        self.starting: list[int] = []
        self.calls: dict[int, deque[list[Order]]] = {}
        self.has: dict[int, list[Order]] = {}
        self.events: list[Event] = []

    def start(self, worker: int) -> None:
        self.starting.append(worker)

    def send(self, worker: int, orders: Sequence[Order], seconds: float) -> None:
        if worker in self.calls:
            # It may be lost, and nobody told.
            self.calls[worker].append(list(orders))

    def wait(self, seconds: float) -> list[Event]:
        events, self.events = self.events, []
        return events

    def stop(self, worker: int) -> None:
        self.calls.pop(worker, None)
        if worker in self.starting:
            self.starting.remove(worker)

    def now(self) -> float:
        return self.clock

    def hello(self, worker: int) -> None:
        self.starting.remove(worker)
        self.calls[worker], self.has[worker] = deque(), []
        self.events.append(Event(worker, Hello("here", worker, "cpu", {})))

    def answer(self, worker: int, done: int, fail: int = 0) -> None:
        """It does so many of the orders that it has, and so many others raise an error."""
        has = self.has[worker]
        has += self.calls[worker].popleft()
        answer = Answer(seconds=1.0)
        answer.done = [(one.key, ("done", one.key)) for one in has[:done]]
        answer.failed = [(one.key, "an error") for one in has[done : done + fail]]
        del has[: done + fail]
        self.events.append(Event(worker, answer))

    def lose(self, worker: int, *, told: bool) -> None:
        """It is no more, or its own code failed."""
        self.stop(worker)
        self.events.append(Event(worker, error="killed", lost=told))


class Machine(RuleBasedStateMachine):
    """Events as Hypothesis likes."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = Hand()
        self.fleet = Fleet(self.engine, 3, {})
        images = [order(image, key=(image, part)) for image in range(6) for part in range(3)]
        groups = [order(image, image + 1, image + 2, size=3) for image in range(6, 21, 3)]
        self.source = Orders([*images, *groups], enough=3)
        self.fleet._hire()
        self.lost = 0
        self.over = False

    def _events(self, worker: int) -> bool:
        """Whether something of a worker is not yet told."""
        return any(event.worker == worker for event in self.engine.events)

    def asked(self) -> list[int]:
        return [worker for worker, calls in self.engine.calls.items() if calls]

    @precondition(lambda self: self.engine.starting)
    @rule(place=st.integers(0, 2))
    def begins(self, place: int) -> None:
        self.engine.hello(self.engine.starting[place % len(self.engine.starting)])

    @precondition(lambda self: self.asked())
    @rule(place=st.integers(0, 2), done=st.integers(0, 4), fail=st.sampled_from([0, 0, 0, 1, 2]))
    def answers(self, place: int, done: int, fail: int) -> None:
        asked = self.asked()
        self.engine.answer(asked[place % len(asked)], done, fail)
        self.lost = 0

    @precondition(lambda self: self.engine.calls and self.lost < 8)
    @rule(place=st.integers(0, 2), told=st.booleans())
    def is_lost(self, place: int, told: bool) -> None:
        there = list(self.engine.calls)
        self.engine.lose(there[place % len(there)], told=told)
        self.lost += 1

    @rule(seconds=st.sampled_from([0.1, 3.0, 100.0, 10_000.0]))
    def passes(self, seconds: float) -> None:
        self.engine.clock += seconds

    @precondition(lambda self: not self.over)
    @rule()
    def steps(self) -> None:
        try:
            self.over = not self.fleet.step(self.source)
        except (ArgumentError, FleetError):
            # Nothing was done but failures, or nobody answered: the orders are not asked about any more.
            assert not self.source.found or self.lost
            self.over = True
            self.source.all = {key: one for key, one in self.source.all.items() if key in self.source.found}

    @invariant()
    def everything_is_counted_once(self) -> None:
        assert len(set(self.source.found)) == len(self.source.found)
        assert not set(self.source.found) & set(self.source.dropped)

    @invariant()
    def the_fleet_knows_who_has_what(self) -> None:
        """No order of a worker is one that is done, and each that is not done can be found."""
        there = {one.key for one in self.fleet.orders()}
        for member in self.fleet.members.values():
            assert member.orders.keys() <= there
            assert member.has == sum(self.source.all[key].size for key in member.orders)
        assert there.isdisjoint(self.source.found)

    def teardown(self) -> None:
        """From any state it comes to the end when workers work."""
        for _ in range(300):
            if self.over:
                break
            for worker in list(self.engine.starting):
                self.engine.hello(worker)
            self.steps()
            for worker in self.asked():
                self.engine.answer(worker, 100)
            self.engine.clock += 10.0
        assert self.over
        for key, one in self.source.all.items():
            assert key in self.source.found or set(one.images) <= self.fleet.failed.keys()


@pytest.mark.slow
def test_any_events_in_any_order_do_every_order_once() -> None:
    case = Machine.TestCase
    case.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
    case().runTest()
