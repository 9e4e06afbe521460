"""Images that are worked on in groups, each by one worker."""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from diffproof.errors import ArgumentError, Fitting, printable
from diffproof.runs.workers import ImagesFailedError
from diffproof.scale.engine import Answer, Hello, Order
from diffproof.scale.fleet import Fleet
from diffproof.wording import counted

# The key of the order that is about an attack run as a whole, not about images of it.
FIRST = "the diagnosis"


def order(group: Sequence[int], load: Any = None) -> Order:
    """The order for a group of images, by their indices."""
    return Order(tuple(group), tuple(group), len(group), load)


class GroupWorker:
    """Works on one group after the other.

    Args:
        hello: what it says of itself.
        do: what an order finds, with at most so many rows at once.
        batch_size: most rows at once; halved for good when memory runs out.
        evaluated: images that went through a network so far.
        check: raises what the networks raise on an image that they can take.
    """

    def __init__(
        self,
        hello: Hello,
        do: Callable[[Order, int], Any],
        batch_size: int,
        evaluated: Callable[[], int],
        check: Callable[[], object],
    ) -> None:
        self._hello, self._do, self._fitting, self._evaluated = hello, do, Fitting(batch_size), evaluated
        self._check = check
        self._left: deque[Order] = deque()

    def hello(self) -> Hello:
        """See Worker."""
        return self._hello

    def work(self, orders: Sequence[Order], seconds: float) -> Answer:
        """See Worker.

        Raises:
            Exception: what the networks raise on what they could do when they were loaded.
        """
        started, before, answer = time.monotonic(), self._evaluated(), Answer()
        self._left.extend(orders)
        while self._left and (not answer.done or time.monotonic() - started < seconds):
            one = self._left.popleft()
            try:
                answer.done.append((one.key, self._fitting(partial(self._do, one))))
            except Exception as error:  # whichever network of the user's it is
                known = isinstance(error, ArgumentError)
                told = str(error) if known else f"{type(error).__name__}: {error}"
                answer.failed.append((one.key, printable(told)))
        if answer.failed and not answer.done:
            # It may be this worker that is broken.
            self._check()
        answer.batch_size, answer.evaluations = self._fitting.batch_size, self._evaluated() - before
        answer.seconds = time.monotonic() - started
        return answer


class Groups:
    """The orders of a run, and what is done with what is found; see Source.

    Args:
        fleet: the workers.
        orders: in the order of their turn; each is made when a worker is to get it.
        found: told an order and what was found for it.

    Attributes:
        enough: any order keeps a worker busy.
    """

    enough = 1

    def __init__(self, fleet: Fleet, orders: Iterable[Order], found: Callable[[Order, Any], None]) -> None:
        self._fleet, self._orders, self._found = fleet, iter(orders), found

    @staticmethod
    def warn_of_idle(fleet: Fleet, groups: int) -> None:
        """Say so where there is less to share than there are workers."""
        if groups < fleet.workers:
            told = f"{counted(groups, 'group')} of images for {fleet.workers} of them"
            warnings.warn(f"workers: {told}; a smaller --batch-size gives work to all", stacklevel=4)

    def run(self, each: Callable[[], None] = lambda: None) -> None:
        """Let the workers do all.

        Args:
            each: called every time that they have said something, or nothing for half a second.

        Raises:
            ValueError, FleetError: see `Fleet.step`.
            ImagesFailedError: images were given up; all else is done.
        """
        while self._fleet.step(self):
            each()
        each()
        if self._fleet.failed:
            raise ImagesFailedError(self._fleet.failed)

    def take(self, size: int) -> Order | None:
        """See Source."""
        return next(self._orders, None)

    def split(self, order: Order) -> list[Order]:
        """See Source: each image by itself."""
        if len(order.images) < 2:
            return []
        return [Order((index,), (index,), 1, order.load) for index in order.images]

    def put(self, order: Order, found: Any) -> None:
        """See Source."""
        self._found(order, found)

    def drop(self, order: Order) -> None:
        """See Source."""
