"""What passes between the command that schedules and its workers, whatever carries it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol


class Order(NamedTuple):
    """Work that one worker does at a time; whoever does it finds the same.

    Attributes:
        key: by which it is known; another order has another.
        images: indices of the images that it is about.
        size: how much of it there is, such as a number of draws, ≥ 1.
        load: what the worker needs to know.
    """

    key: Hashable
    images: tuple[int, ...]
    size: int
    load: Any


@dataclass(frozen=True)
class Hello:
    """What a worker says of itself when its networks are loaded.

    Attributes:
        host: the name of its machine.
        process: its number there.
        device: what its networks run on.
        facts: what must be the same on every worker and for who schedules, by name.
    """

    host: str
    process: int
    device: str
    facts: dict[str, Any]


@dataclass
class Answer:
    """What a worker did since it was last asked.

    Attributes:
        done: keys of orders with what was found.
        failed: keys of orders that raised an error, done alone, with its text.
        seconds: that it took.
        evaluations: images that went through a network.
        batch_size: most images that go through a network at once by now.
    """

    done: list[tuple[Hashable, Any]] = field(default_factory=list)
    failed: list[tuple[Hashable, str]] = field(default_factory=list)
    seconds: float = 0.0
    evaluations: int = 0
    batch_size: int | None = None


class Worker(Protocol):
    """Holds the networks of a run and does its orders; lives in a process of its own."""

    def hello(self) -> Hello:
        """Load all that is needed.

        Raises:
            ValueError: something cannot be loaded, or does not fit together.
        """

    def work(self, orders: Sequence[Order], seconds: float) -> Answer:
        """Do some of the orders that there are.

        Args:
            orders: further ones.
            seconds: after which it answers if an order is done, though more may be left; if none is, it may
                take longer.
        """


class Event(NamedTuple):
    """Something that a worker said, or that became of it.

    Attributes:
        worker: its number.
        said: a Hello, an Answer, or None.
        error: in one line, where it said nothing.
        lost: whether it is no more; if not, it goes on in spite of the error.
        host: name of its machine, where that is known of one with an error.
    """

    worker: int
    said: Hello | Answer | None = None
    error: str = ""
    lost: bool = False
    host: str = ""


class Engine(Protocol):
    """Carries orders to workers and their answers back."""

    def start(self, worker: int) -> None:
        """Begin a worker, who says hello when it is ready; this does not wait for it.

        Args:
            worker: a number that no other has or had.
        """

    def send(self, worker: int, orders: Sequence[Order], seconds: float) -> None:
        """Ask a worker to work, after what it was asked before; see `Worker.work`."""

    def wait(self, seconds: float) -> list[Event]:
        """What happened; [] if nothing did for so long.

        Raises:
            ConnectionError: it carries nothing any more.
        """

    def stop(self, worker: int) -> None:
        """End a worker, whatever it does; nothing more is heard of it."""

    def now(self) -> float:
        """Seconds on its clock."""


class Source(Protocol):
    """Where orders come from, and where what was found goes."""

    @property
    def enough(self) -> int:
        """How much of the size of orders keeps a worker busy while more is sent."""

    def take(self, size: int) -> Order | None:
        """The next order, of that size at most if it can be divided; None while there is none."""

    def split(self, order: Order) -> list[Order]:
        """Orders for the same that are about fewer images; [] where it cannot be divided."""

    def put(self, order: Order, found: Any) -> None:
        """Take what was found for an order that was taken, or that one was split into."""

    def drop(self, order: Order) -> None:
        """Take notice that an order will not be done, since one for the same image was given up."""
