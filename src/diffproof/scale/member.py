"""A worker and an order as a fleet sees them."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from diffproof.scale.engine import Hello, Order


@dataclass
class Member:
    """A worker as the fleet sees it.

    Attributes:
        number: by which the engine knows it.
        state: "starting", "ready", "refused" or "lost".
        hello: what it said of itself.
        host: name of its machine, "" while that is not known.
        orders: what it has to do, by key, with the times when it got it.
        has: size of these.
        calls: how often it was asked and has not answered yet.
        lonely: whether it does one order at a time, by which a worker may have been lost.
        rate: size of orders done in a second, 0 when nothing is known.
        since_done: seconds that it worked since it last did an order.
        units: orders that it did first.
        size: their sizes, but of those about no image.
        evaluations: images that went through its networks.
        seconds: that it worked.
        heard: when it last said something, on the engine's clock.
        batch_size: see Answer.
        error: what was last wrong with it.
    """

    number: int
    state: str = "starting"
    hello: Hello | None = None
    host: str = ""
    orders: dict[Hashable, float] = field(default_factory=dict)
    has: int = 0
    calls: int = 0
    lonely: bool = False
    rate: float = 0.0
    since_done: float = 0.0
    units: int = 0
    size: int = 0
    evaluations: int = 0
    seconds: float = 0.0
    heard: float = 0.0
    batch_size: int | None = None
    error: str = ""

    def give(self, order: Order, now: float) -> None:
        """It has an order to do."""
        self.orders[order.key] = now
        self.has += order.size

    def take_back(self, order: Order) -> None:
        """It need not do an order, if it has it."""
        if self.orders.pop(order.key, None) is not None:
            self.has -= order.size

    @property
    def name(self) -> str:
        """By which people know it: its number, and where it is once that is known."""
        return f"worker {self.number}" + (f" on {self.host}" if self.host else "")


@dataclass
class Open:
    """An order that somebody does or is to do.

    Attributes:
        order: the order.
        holders: workers who have it, by number.
        losses: how many workers were lost while they had it.
        alone: of how many of them it was all that they had to do.
        failures: workers with whom it failed.
        failed: when it last did, on the engine's clock.
    """

    order: Order
    holders: set[int] = field(default_factory=set)
    losses: int = 0
    alone: int = 0
    failures: list[int] = field(default_factory=list)
    failed: float = 0.0
