"""What workers bring: two real ones against one, and simulated ones by the hundred.

    python benchmarks/workers.py real             two workers of this machine over one, and what a unit costs
    python benchmarks/workers.py simulated        2 to 512 workers at the sizes of CIFAR-10 and ImageNet

Efficiency is the time of one worker, whose batches are always full, over the summed time of all.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

from simulated_fleet import Cost, Fate, Labelling, Labels, SimulatedEngine

from diffproof.runs.certify.job import CertifyRun, prepare
from diffproof.runs.certify.run import run
from diffproof.runs.certify.workers import OnWorkers, hired
from diffproof.runs.settings import CertifySettings
from diffproof.scale.fleet import Fleet
from diffproof.scale.workforce import Workforce
from diffproof.smoothing.schedule import Counting, Schedule
from diffproof.smoothing.tally import Looks

# A U-Net on digits, whose draws cost 10 votes of 2 steps: most of the time is the networks'.
SETTINGS: dict[str, Any] = {
    "data": "digits",
    "denoiser": "digits",
    "classifier": "digits",
    "defense": "densepure:steps=2,votes=10",
    "sigma": 0.5,
    "indices": "0:40:2",
    "n": 1000,
    "batch_size": 128,
    "seed": 0,
}


class Setting(NamedTuple):
    """A run to simulate.

    Attributes:
        title: what it is.
        images: how many.
        n: draws of each, besides 100 that select its class.
        cost: of a draw, on one GPU.
        startup: seconds until a worker's networks are loaded.
    """

    title: str
    images: int
    n: int
    cost: Cost
    startup: float


# Assumed of a GPU: 3,000 and 40 images a second in full batches, 5 and 50 ms for the first image of a call.
CIFAR = Setting(
    "CIFAR-10, DDS, 500 images, n = 100,000", 500, 100_000, Cost(lambda r: 0.005 + r / 3160, 256), 30.0
)
# Of 400 evaluations a draw 220.8 are made, on average, until its vote is decided.
IMAGENET = Setting(
    "ImageNet 256×256, DensePure K = 40, b = 10, 100 images, n = 10,000",
    100,
    10_000,
    Cost(lambda r: 0.05 + r / 41.3, 64, 220.8, 21),
    60.0,
)


class Outcome(NamedTuple):
    """What a simulated run took: seconds, those of full calls of one worker, and shares done in vain."""

    seconds: float
    alone: float
    wasted: float
    driver: float


def simulated(setting: Setting, workers: int, event: float = 2e-4) -> Outcome:
    """Simulate a run.

    Args:
        setting: the run.
        workers: how many.
        event: seconds that the driver takes for an event.
    """
    labels = Labels([0.9] * setting.images, setting.n)
    engine = SimulatedEngine(
        lambda number: Labelling(labels, setting.cost),
        lambda number: Fate(startup=setting.startup),
        event=event,
    )
    fleet, draws = Fleet(engine, workers, {}), 0
    schedule = Schedule(range(setting.images), lambda index: Counting(index, 100, Looks((setting.n,)), 2))
    work = OnWorkers(fleet, schedule, setting.cost.batch, 2)
    fleet.start()
    more = True
    while more:
        more = work.step()
        for index in schedule.finished():
            draws += schedule.close(index).draws
    units = sum(member.units for member in fleet.members.values())
    return Outcome(engine.now(), setting.cost.alone(draws), fleet.wasted / draws, engine.driver / units)


def table(setting: Setting, counts: Sequence[int]) -> None:
    """Print the efficiency of a run on so many workers."""
    print(f"\n{setting.title}")
    titles = ("workers", "time", "efficiency", "without start-up", "wasted", "driver a unit")
    print(" ".join(title.rjust(width) for title, width in zip(titles, (8, 10, 11, 17, 7, 14), strict=True)))
    for workers in counts:
        one = simulated(setting, workers)
        share = one.alone / workers
        without = share / (one.seconds - setting.startup)
        time_ = f"{one.seconds / 3600:.2f} h"
        print(
            f"{workers:8} {time_:>10} {share / one.seconds:11.3f} {without:17.3f} {one.wasted:7.2%}"
            f" {one.driver * 1e6:11.0f} µs",
            flush=True,
        )


class Timed(NamedTuple):
    """A run on real workers: seconds with their start and without, and the driver's processor time a unit."""

    whole: float
    working: float
    driver: float
    units: int


def timed(job: CertifyRun, workers: int, folder: Path) -> Timed:
    """Certify on workers of this machine."""
    found: list[Timed] = []
    started = time.perf_counter()

    @contextmanager
    def hire() -> Iterator[Fleet]:
        with hired(job, Workforce(workers=workers, cpus_per_worker=1)) as fleet:
            begun, driver = time.perf_counter(), time.process_time()
            yield fleet
            ended, spent = time.perf_counter(), time.process_time() - driver
            units = sum(member.units for member in fleet.members.values())
            found.append(Timed(ended - started, ended - begun, spent / units, units))

    run(job, folder, hire=hire)
    return found[0]


def median(values: Sequence[Timed], of: Callable[[Timed], float]) -> float:
    """The median of something."""
    return statistics.median(map(of, values))


def real(repeats: int) -> None:
    """Compare two workers with one, in turn."""
    job = prepare(CertifySettings(**SETTINGS), here=False)
    found: dict[int, list[Timed]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as place:
        for repeat in range(repeats):
            for workers, those in found.items():
                those.append(timed(job, workers, Path(place) / f"{workers}-{repeat}"))
                print(f"{workers} workers: {those[-1]}", flush=True)
    one, two = found[1], found[2]
    for what, of in (("networks bound", lambda t: t.working), ("with their start", lambda t: t.whole)):
        ratio = median(one, of) / (2 * median(two, of))
        print(f"efficiency of two workers over one, {what}: {ratio:.2f}")
    print(f"driver's processor time a unit: {median(two, lambda t: t.driver) * 1e6:.0f} µs")
    # The same run with the draws that one worker did in a second, in the simulator.
    draws = len(job.indices) * (job.settings.n0 + job.settings.n)
    each = median(one, lambda t: t.working) / draws
    cost = Cost(lambda rows: each * rows, job.settings.batch_size)
    like = Setting("digits", len(job.indices), job.settings.n, cost, 0.0)
    predicted = simulated(like, 1).seconds / (2 * simulated(like, 2).seconds)
    print(f"predicted by the simulation: {predicted:.2f}")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=["real", "simulated"])
    parser.add_argument("--repeats", type=int, default=3, help="runs of each number of real workers")
    parser.add_argument("--workers", type=int, nargs="*", default=[2, 4, 8, 16, 32, 64, 128, 256, 512])
    asked = parser.parse_args()
    if asked.what == "real":
        real(asked.repeats)
    else:
        for setting in (CIFAR, IMAGENET):
            table(setting, asked.workers)


if __name__ == "__main__":
    main()
