"""An attack run: from settings to a run folder, resumable at any moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from diffproof.errors import Fitting
from diffproof.runs.attack.attacking import attack_images, findings_of, watched
from diffproof.runs.attack.job import AttackRun
from diffproof.runs.attack.store import AttackedImage, AttackStore
from diffproof.runs.groups import FIRST, Groups, order
from diffproof.runs.progress import TELL_EVERY, alone
from diffproof.runs.shards import is_first
from diffproof.runs.store import warn_of_more
from diffproof.runs.workers import Hire, Roll
from diffproof.scale.engine import Order
from diffproof.scale.fleet import Fleet

OnProgress = Callable[[int], None]


def run(
    job: AttackRun,
    folder: Path,
    on_images: OnProgress = lambda images: None,
    on_evaluations: OnProgress = lambda evaluations: None,
    hire: Hire = nullcontext,
) -> list[AttackedImage]:
    """Attack every image of the job, or of its shard, that the run folder does not hold yet.

    The evaluation is diagnosed first, once for all shards.

    Args:
        job: from `prepare`.
        folder: the run folder, new or of the same settings; its images may be other ones, and stay.
        on_images: called with the number of images that came to be finished, stored ones included.
        on_evaluations: called at each network call with its number of images, recomputations included.
        hire: gives workers that attack, once there is an image to attack; by default this process does.

    Returns:
        The results of all images of the folder, by index.

    Raises:
        ValueError: the folder holds another run, another process works in it, or the store is corrupt.
        OSError: the folder cannot be written.
        MemoryError: not even one image fits into memory.
        ImagesFailedError: images that no worker could attack are left out.
        FleetError: no worker is left.

    What `hire` raises leaves no new folder.
    """
    settings, identity = job.settings, job.identity()
    with AttackStore.writing(folder, settings, identity, job.data.fingerprint) as store:
        warn_of_more(folder, store.identity, job.indices)
        finished = store.finished()
        on_images(len(finished.intersection(job.part)))
        # Of a group of which some are finished, the rest.
        groups = [[index for index in group if index not in finished] for group in job.groups]
        groups = [group for group in groups if group]
        if not groups:
            return store.results()
        diagnosed = not settings.diagnose or not is_first(settings.shard) or store.findings() is not None
        with hire() as fleet:
            session = _Session(store, job, on_images, on_evaluations)
            if fleet is None:
                _here(job, session, groups, diagnosed=diagnosed)
            else:
                _on_workers(session, fleet, groups, diagnosed=diagnosed)
        return store.results()


def _here(job: AttackRun, session: _Session, groups: list[list[int]], *, diagnosed: bool) -> None:
    """Attack groups of images in this process."""
    fitting = Fitting(job.settings.batch_size)
    with watched(job.view.defense, session.on_evaluations):
        if not diagnosed:
            session.store.save_findings(fitting(partial(findings_of, job)))
        for todo in groups:
            while todo:
                attacked = fitting(partial(_first, job, todo))
                session.save(attacked)
                del todo[: len(attacked)]


def _first(job: AttackRun, indices: list[int], batch_size: int) -> list[AttackedImage]:
    """The first of these images, as many as fill a batch, attacked."""
    return attack_images(job, indices[: job.images_at_once(batch_size)], batch_size)


def _on_workers(session: _Session, fleet: Fleet, groups: list[list[int]], *, diagnosed: bool) -> None:
    """Let workers attack groups of images."""

    def found(one: Order, what: Any) -> None:
        if one.key == FIRST:
            session.store.save_findings(what)
        else:
            session.save(what)

    Groups.warn_of_idle(fleet, len(groups))
    first = [] if diagnosed else [Order(FIRST, (), 1, None)]
    work = Groups(fleet, [*first, *map(order, groups)], found)
    session.roll = Roll(fleet)

    def each() -> None:
        spent = sum(member.evaluations for member in fleet.members.values())
        session.on_evaluations(spent - session.evaluations)

    try:
        work.run(each)
    finally:
        session.say()


class _Session:
    """Records what a session finishes, and every few seconds how far it is.

    Args:
        store: of the run's folder.
        job: the run.
        on_images: see `run`.
        told: see `run`.

    Attributes:
        roll: records who works; None for this process alone.
    """

    roll: Roll | None = None

    def __init__(self, store: AttackStore, job: AttackRun, on_images: OnProgress, told: OnProgress) -> None:
        self.store, self.device, self.on_images, self.told = store, job.device, on_images, told
        self.images = self.evaluations = 0
        self._started = self._said = time.monotonic()
        self._thread = threading.get_ident()
        store.progress.begin()

    def on_evaluations(self, evaluations: int) -> None:
        """So many more were done."""
        self.evaluations += evaluations
        self.told(evaluations)
        # On a GPU, gradients recompute in a thread of their own, and SQLite is for the one that opened it.
        if time.monotonic() - self._said > TELL_EVERY and threading.get_ident() == self._thread:
            self.say()
            self.store.commit()

    def save(self, images: list[AttackedImage]) -> None:
        """Record finished images."""
        self.images += len(images)
        self.say()
        self.store.save_results(images)
        self.on_images(len(images))

    def say(self) -> None:
        """Record how far it is, and who works."""
        images, evaluations, self._said = self.images, self.evaluations, time.monotonic()
        told, progress = {"images": images, "evaluations": evaluations}, self.store.progress
        if self.roll is not None:
            progress.tell(**told, **self.roll.effort)
            self.roll.say(progress)
            return
        progress.tell(**told, work=images, wasted=0)
        busy = self._said - self._started
        progress.tell_workers(
            [alone(self.device, units=images, done=images, evaluations=evaluations, busy=busy)]
        )
