"""Attacks on workers: each attacks a group of images at a time."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from diffproof.runs import workers
from diffproof.runs.attack.attacking import attack_images, findings_of, watched
from diffproof.runs.attack.job import AttackRun, prepare, tried
from diffproof.runs.groups import FIRST, GroupWorker
from diffproof.runs.settings import AttackSettings
from diffproof.scale.engine import Order
from diffproof.scale.fleet import Fleet
from diffproof.scale.surroundings import Surroundings
from diffproof.scale.workforce import Workforce


def attack_worker(
    settings: AttackSettings, surroundings: Surroundings, shipped: AttackRun | None
) -> GroupWorker:
    """A worker of a run; see `prepared`."""
    return worker_of(workers.prepared(settings, surroundings, shipped, prepare=prepare, tried=tried))


def worker_of(job: AttackRun) -> GroupWorker:
    """A worker of a run that is on its device."""
    evaluated = [0]

    def count(evaluations: int) -> None:
        evaluated[0] += evaluations

    def do(one: Order, batch_size: int) -> Any:
        with watched(job.view.defense, count):
            if one.key == FIRST:
                return findings_of(job, batch_size)
            size = job.images_at_once(batch_size)
            parts = [list(one.images[start : start + size]) for start in range(0, len(one.images), size)]
            return [image for part in parts for image in attack_images(job, part, batch_size)]

    hello = workers.hello(str(job.device), workers.facts_of(job.identity()))
    return GroupWorker(hello, do, job.settings.batch_size, lambda: evaluated[0], lambda: tried(job))


def hired(job: AttackRun, asked: Workforce) -> AbstractContextManager[Fleet]:
    """Workers for a run that was prepared for them; see `runs.workers.hired`."""
    facts = workers.facts_of(job.identity())
    return workers.hired(asked, attack_worker, job.settings, facts, ship=lambda: job, what="images")
