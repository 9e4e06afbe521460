"""Workers of a run: they hold its networks, and take its orders from the command that owns its folder."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, Protocol, Self, TypeVar

from diffproof.errors import UnfinishedError, printable
from diffproof.own_code import current_directory_first
from diffproof.runs.progress import Progress, WorkerState
from diffproof.runs.settings import RunSettings
from diffproof.runs.store import Identity
from diffproof.scale.cluster import RayEngine, connected
from diffproof.scale.engine import Hello, Worker
from diffproof.scale.fleet import Fleet
from diffproof.scale.surroundings import Surroundings
from diffproof.scale.workforce import Workforce
from diffproof.version import version
from diffproof.wording import effort, shortened

# Gives workers while a block lasts, or None where there are none.
Hire = Callable[[], AbstractContextManager[Fleet | None]]


class ImagesFailedError(UnfinishedError):
    """Some images failed on every worker that tried them; all else is done."""

    def __init__(
        self,
        failed: Mapping[int, str],
        *,
        names: Sequence[str] | None = None,
        left: str = "the same command tries again what failed",
    ) -> None:
        images = [str(index) for index in sorted(failed)] if names is None else names
        what = "image" if names is None else "picture"
        others = f"; so did {shortened(images[1:])}" * (len(images) > 1)
        super().__init__(f"{what} {images[0]} failed on every worker: {failed[min(failed)]}{others}; {left}")
        self.failed = failed


class Prepared(Protocol):
    """A run with its networks."""

    def on(self, device: str) -> Self:
        """The run with its networks on a device; see `resolve_device`."""


S = TypeVar("S", bound=RunSettings)
J = TypeVar("J", bound=Prepared)


def prepared(
    settings: S,
    surroundings: Surroundings,
    shipped: J | None,
    *,
    prepare: Callable[[S], J],
    tried: Callable[[J], J],
) -> J:
    """A run in a worker's process, whose networks have run once.

    Args:
        settings: of the run.
        surroundings: of the command.
        shipped: the run; None to read its networks and images here.
        prepare: loads it.
        tried: runs its networks once.

    Raises:
        ValueError: what these raise.
    """
    surroundings.enter()
    with current_directory_first():
        return prepare(settings) if shipped is None else tried(shipped.on(settings.device))


@contextmanager
def hired(
    asked: Workforce,
    make: Callable[..., Worker],
    settings: Any,
    facts: dict[str, Any],
    *,
    ship: Callable[[], Any],
    what: str,
) -> Iterator[Fleet]:
    """Workers for a run, of whom one at least is ready; at its end is told what they did.

    Args:
        asked: how many, and where.
        make: makes one of the run's settings, its Surroundings, and what `ship` gave or None.
        settings: of the run; `device` is that of the workers.
        facts: see Fleet.
        ship: gives what is sent to workers that read no files of their own.
        what: sizes of orders are numbers of, such as "draws".

    Raises:
        ValueError: what `connected` and `Fleet.start` raise.
        FleetError: see `Fleet.start`.
    """
    with connected(asked, settings.device) as each:
        import ray

        if not each.gpus:
            settings = replace(settings, device="cpu")
        shipped = ray.put(ship()) if asked.ship else None
        arguments: Sequence[Any] = (settings, Surroundings.here(each.cpus), shipped)
        fleet = Fleet(RayEngine(make, arguments, each), each.workers, facts, tell=_tell)
        try:
            fleet.start()
            yield fleet
            evaluations = sum(member.evaluations for member in fleet.members.values())
            busy = sum(member.units > 0 for member in fleet.members.values())
            _tell(effort(busy, evaluations, fleet.wasted / max(1, fleet.work), what))
        finally:
            fleet.close()


def facts_of(identity: Identity) -> dict[str, Any]:
    """What must be the same on all workers, in words; see Hello."""
    return {
        "version of diffproof": version(),
        "weights in the files": identity.weights_hash,
        "images or labels in the data": identity.data_hash,
        "code of your own": identity.code,
    }


def states(fleet: Fleet) -> list[WorkerState]:
    """The workers of a fleet, for who watches the run."""
    now, clock = time.time(), fleet.engine.now()
    return [
        WorkerState(
            name=str(member.number),
            host=member.host,
            device=member.hello.device if member.hello else "",
            state="working" if member.state == "ready" and member.orders else member.state,
            units=member.units,
            done=member.size,
            evaluations=member.evaluations,
            busy=member.seconds,
            heard=now - (clock - member.heard),
            error=member.error or None,
        )
        for member in fleet.members.values()
    ]


class Roll:
    """Records the workers of a fleet, and images that were given up, for who watches the run.

    Args:
        fleet: the workers.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet, self._told = fleet, set[int]()

    @property
    def effort(self) -> dict[str, int]:
        """How much they did, and how much of it for nothing; see Session."""
        return {"work": self._fleet.work, "wasted": self._fleet.wasted}

    def say(self, progress: Progress) -> None:
        """Record them as they are now; of the images, those that were given up since this was last called."""
        progress.tell_workers(states(self._fleet))
        for index in self._fleet.failed.keys() - self._told:
            progress.fail(index, "every worker that tried it", self._fleet.failed[index])
        self._told = set(self._fleet.failed)


def hello(device: str, facts: dict[str, Any]) -> Hello:
    """What a worker says of itself."""
    return Hello(platform.node(), os.getpid(), device, facts)


def _tell(line: str) -> None:
    print(printable(f"diffproof: {line}"), file=sys.stderr, flush=True)
