"""Plans of runs: what they count is what runs then spend and write."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import diffproof as dp
import diffproof.runs.attack.run as attack_run
import diffproof.runs.certify.run as certify_run
from diffproof.defenses.repeatability import check_repeatable
from diffproof.errors import ArgumentError
from diffproof.runs import plan
from diffproof.runs.attack import job as attack_jobs
from diffproof.runs.attack.plan import attack_costs
from diffproof.runs.certify.job import CertifyRun, prepare
from diffproof.runs.certify.plan import certify_costs
from diffproof.runs.plan import SAMPLE, Costs, Pace, Plan, Range, measure, spread_out
from diffproof.runs.settings import AttackRequest, CertifySettings
from helpers.command_line import composed
from helpers.runs import PLAIN, SMALL_RUN

pytestmark = pytest.mark.usefixtures("small_digits")

ATTACK: dict[str, Any] = {
    "seed": 0,
    "data": "digits",
    "indices": "0:6:2",
    "denoiser": "digits",
    "classifier": "digits",
    "defense": "diffpure:t_star=0.05,steps=1",
    "threat": "linf",
    "budget": "0.01",
    "attack": "pgd:iterations=3,eot=2",
    "draws": 3,
    "majority_of": 4,
    "diagnose": 0,
}
ALONE: dict[str, Any] = {"defense": "none", "denoiser": None}


@pytest.fixture(autouse=True)
def few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more calls than are needed: counts do not depend on how many were timed."""
    monkeypatch.setattr(plan, "_LEAST", 1)
    monkeypatch.setattr(plan, "_MOST", 1)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


class Clock:
    """Time that only calls take: so many seconds each and a row, an evaluation being half a row."""

    def __init__(self, each: float, row: float) -> None:
        self.time, self.each, self.row, self.asked = 0.0, each, row, list[int]()

    def call(self, rows: int) -> int:
        self.asked.append(rows)
        self.time += self.each + self.row * rows
        return 2 * rows


@pytest.mark.parametrize(
    ("clock", "most", "sizes"),
    [
        (Clock(0.001, 0.0001), 100, [1, 4, 16, 64, 100]),
        (Clock(0.001, 0.0001), 3, [1, 3]),
        (Clock(0.0, 0.02), 1000, [1, 4, 16]),
        (Clock(0.0, 0.5), 1000, [1, 2]),
        (Clock(0.5, 0.0001), 1000, [1, 2, 8, 32, 128, 512, 1000]),
        (Clock(3.0, 1.0), 1000, [1]),
    ],
    ids=["to the largest", "small", "as far as time allows", "slower", "slow whatever the rows", "slow"],
)
def test_paces_are_those_of_the_calls(
    clock: Clock, most: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "now", lambda: clock.time)
    pace = measure(clock.call, most)
    assert list(pace.rows) == sizes
    # Of each size one call to warm up and one that counts.
    assert clock.asked == [rows for rows in sizes for _ in range(2)]
    assert pace.spread == (1.0, 1.0)
    at_once = min(70, sizes[-1])
    for rows in (1, 2, at_once, 5 * at_once + 1):
        calls = math.ceil(rows / at_once)
        low, expected, high = pace.of(rows, at_once, 2.0)
        assert low == expected == high == pytest.approx(calls * clock.each + rows * clock.row)
    # Beyond what was timed, along the line; of a single size, in proportion.
    beyond = pace.of(10 * sizes[-1], 10 * sizes[-1], 2.0).expected
    each = 10 * clock.each if len(sizes) == 1 else clock.each
    assert beyond == pytest.approx(each + 10 * sizes[-1] * clock.row)


def test_calls_that_no_memory_holds_end_the_timing() -> None:
    def call(rows: int) -> int:
        if rows > 16:
            raise MemoryError
        return rows

    assert list(measure(call, 1000).rows) == [1, 4, 16]
    with pytest.raises(MemoryError):
        measure(call, 1000, start=17)


def test_the_range_is_that_of_the_calls() -> None:
    pace = Pace([1, 10], [0.3, 0.2], (0.5, 3.0))
    assert pace.of(20, 10, 1.5) == pytest.approx((3.0, 6.0, 18.0))


@pytest.mark.parametrize("number", [1, 2, SAMPLE, SAMPLE + 1, 1000])
def test_images_of_the_calls_are_spread_out(number: int) -> None:
    chosen = spread_out(range(100, 100 + number))
    assert len(set(chosen)) == len(chosen) == min(number, SAMPLE)
    assert chosen[0] == 100
    gaps = {after - before for before, after in zip(chosen, [*chosen[1:], 100 + number], strict=True)}
    assert max(gaps) - min(gaps) <= 1


COSTS = Costs(
    images=10,
    evaluations=3.5,
    most_evaluations=7,
    seconds=Range(1.0, 2.0, 4.0),
    size=100.0,
    begin_seconds=Range(5.0, 6.0, 7.0),
    first_evaluations=20,
    first_seconds=Range(0.0, 0.0, 0.0),
    begin_size=1000,
    units=4,
    largest=0.3,
    least=Range(0.5, 7.0, 8.0),
    worker_seconds=Range(1.0, 2.0, 3.0),
)


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        (None, Plan(None, 1, 55, 90, Range(15.0, 26.0, 47.0), 2000)),
        # A worker has to begin, too.
        (1, Plan(1, 1, 55, 90, Range(16.0, 28.0, 50.0), 2000)),
        # Two of four units each, the largest being 0.3 of the work.
        (2, Plan(2, 2, 55, 90, Range(12.0, 20.0, 34.0), 2000)),
        (3, Plan(3, 3, 55, 90, Range(12.0, 20.0, 34.0), 2000)),
        # One unit, or what is done one after the other.
        (4, Plan(4, 4, 55, 90, Range(9.0, 15.0, 22.0), 2000)),
        # There is nothing to do for more than there are units.
        (99, Plan(99, 4, 55, 90, Range(9.0, 15.0, 22.0), 2000)),
    ],
)
def test_workers_share_the_units(workers: int | None, expected: Plan) -> None:
    assert COSTS.on(workers) == expected


@pytest.mark.parametrize(
    ("once", "workers", "expected"),
    [
        (4.0, None, 24.0),
        (4.0, 1, 24.0),
        # Two units' worth, and ten units of two seconds: six rounds of two workers, four of three.
        (4.0, 2, 12.0),
        (4.0, 3, 8.0),
        (4.0, 11, 4.0),
        (4.0, 99, 4.0),
        # One worker does that, the other all images.
        (50.0, 2, 50.0),
    ],
)
def test_one_worker_does_what_is_done_once(once: float, workers: int | None, expected: float) -> None:
    nothing = Range(0.0, 0.0, 0.0)
    costs = replace(
        COSTS, units=10, largest=0.1, least=nothing, begin_seconds=nothing, worker_seconds=nothing
    )
    plan = replace(costs, first_seconds=Range(once, once, once)).on(workers)
    assert plan.seconds.expected == pytest.approx(expected)
    assert plan.busy == min(workers or 1, 11)


def test_no_worker_is_refused() -> None:
    with pytest.raises(ArgumentError, match="workers: expected an integer ≥ 1, got 0"):
        COSTS.on(0)


@pytest.mark.parametrize(
    ("changes", "units"),
    [
        # Of each of three images 20 draws and 100, half a batch at a time.
        ({"indices": "0:6:2"}, 3 * 2),
        ({"indices": "0:6:2", "batch_size": 32}, 3 * (2 + 7)),
        ({"indices": "0:6:2", "batch_size": 1}, 3 * 120),
        ({"indices": "0:6:2", "shard": "1/3"}, 2),
    ],
)
def test_a_certification_is_shared_by_draws(
    changes: dict[str, Any], units: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each call takes a second, whatever else the machine does.
    monkeypatch.setattr(plan, "now", map(float, count()).__next__)
    costs = certify_costs(certify_job(**PLAIN, **changes), loading=100.0, importing=10.0)
    assert costs.units == units
    assert costs.largest == 1 / units
    alone, many = costs.on(), costs.on(10**5)
    assert many.busy == units
    # Networks are loaded by the command and by its workers, side by side.
    assert many.seconds.low > 210.0
    work = alone.seconds.expected - 100.0
    assert 0 < costs.least.expected <= work + 1e-9
    started = costs.begin_seconds.plus(costs.worker_seconds).expected
    assert many.seconds.expected == pytest.approx(started + max(work / units, costs.least.expected))


@pytest.mark.parametrize(
    ("changes", "groups", "largest"),
    [({}, 1, 3), ({"batch_size": 1}, 3, 1), ({"batch_size": 2}, 2, 2)],
)
def test_an_attack_is_shared_by_groups(changes: dict[str, Any], groups: int, largest: int) -> None:
    costs = attack_costs(attack_job(**ALONE, attack="pgd:iterations=1", **changes), loading=100.0)
    assert (costs.units, costs.largest) == (groups, largest / 3)
    assert costs.on(9).busy == groups
    work, started = (
        costs.on().seconds.expected - 100.0,
        costs.begin_seconds.plus(costs.worker_seconds).expected,
    )
    assert costs.on(9).seconds.expected == pytest.approx(started + work * largest / 3)
    assert costs.on(9).evaluations == costs.on().evaluations


def certify_job(**changes: Any) -> CertifyRun:
    settings = composed({**SMALL_RUN, **changes})
    return prepare(CertifySettings(**{k: v for k, v in settings.items() if v is not None}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "exact"),
    [
        ({**PLAIN, "indices": "0:80:4"}, True),
        pytest.param(
            {"defense": "dds", "steps": None, "votes": None, "batch_size": 32}, True, marks=pytest.mark.slow
        ),
        # When draws will be enough is only guessed at.
        pytest.param(
            {**PLAIN, "indices": "0:20:4", "stop": "sequential", "radii": "0"},
            False,
            marks=pytest.mark.slow,
        ),
        # How many votes a draw takes is known of some draws only.
        pytest.param(
            {"defense": "densepure", "votes": 10, "sigma": 0.5, "batch_size": 64},
            False,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["none", "dds", "sequential", "densepure"],
)
def test_a_certification_spends_what_was_planned(
    changes: dict[str, Any], exact: bool, denoiser: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However fast a machine is, the tallies of the image in work are recorded.
    for module in ("run", "plan"):
        monkeypatch.setattr(f"diffproof.runs.certify.{module}.COMMIT_EVERY", 0.0)
    job = certify_job(**{"denoiser": str(denoiser), **changes})
    costs = certify_costs(job, loading=100.0)
    planned = costs.on()
    assert not any(tmp_path.iterdir())
    results = certify_run.run(job, tmp_path / "run")
    certificates = [result.certificate for result in results]
    ends = job.settings.stop == "sequential"
    spent = sum(one.denoiser_evaluations + one.classifier_evaluations for one in certificates)
    naive = sum(one.naive_denoiser_evaluations + one.naive_classifier_evaluations for one in certificates)
    assert costs.images == len(results)
    assert planned.most_evaluations == (job.certifier.evaluations_per_image * len(results) if ends else naive)
    assert planned.evaluations == pytest.approx(spent, rel=0 if exact else 0.5 if ends else 0.1)
    assert exact == (planned.evaluations == naive)
    assert planned.size == pytest.approx(size_of(tmp_path / "run"), rel=0.25)
    low, expected, high = planned.seconds
    assert 100.0 < low <= expected <= high


def attack_job(**changes: Any) -> attack_jobs.AttackRun:
    flags = {name: value for name, value in {**ATTACK, **changes}.items() if value is not None}
    job = attack_jobs.prepare(AttackRequest(**flags))
    # Asked once in the life of its networks, which no plan counts.
    check_repeatable(job.view.defense, job.images(job.indices)[0])
    return job


def attacked(job: attack_jobs.AttackRun, folder: Path) -> int:
    """Run it; the evaluations of networks."""
    evaluations: list[int] = []
    attack_run.run(job, folder, on_evaluations=evaluations.append)
    return sum(evaluations)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"attack": "pgd:iterations=2,eot=3,mean_of=logits", "batch_size": 4, **ALONE},
        {"gradient": "blind"},
        pytest.param(
            {"gradient": "surrogate", "surrogate_share": 0.5, "defense": "diffpure:t_star=0.05,steps=2"},
            marks=pytest.mark.slow,
        ),
        {"attack": "low-frequency:iterations=2", **ALONE},
        {"threat": "stadv", "attack": "stadv:iterations=2", **ALONE},
        pytest.param({"attack": "diffattack:iterations=2"}, marks=pytest.mark.slow),
        {"attack": "square:queries=9", **ALONE},
        pytest.param({"diagnose": 2}, marks=pytest.mark.slow),
        {"fixed_noise": True, "attack": "pgd:iterations=2,eot=3", **ALONE},
        pytest.param({"fixed_noise": True, "attack": "pgd:iterations=2,eot=3"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_an_attack_run_spends_what_was_planned(changes: dict[str, Any], tmp_path: Path) -> None:
    job = attack_job(**changes)
    costs = attack_costs(job, loading=100.0)
    planned = costs.on()
    assert not any(tmp_path.iterdir())
    spent = attacked(job, tmp_path / "run")
    assert costs.images == 3
    # The diagnostics leave out what does not apply; the picture of each purified image is not labelled.
    pictures = 0 if job.settings.defense == "none" else 3
    few = 0.1 * spent if job.settings.diagnose else 0
    assert 0 <= planned.evaluations - pictures - spent <= few
    assert planned.evaluations == planned.most_evaluations
    # SQLite writes whole pages, and a table with more than one has one more.
    assert planned.size == pytest.approx(size_of(tmp_path / "run"), abs=2 * 4096)
    assert planned.seconds.low > 100.0


def test_a_run_without_networks_takes_time_all_the_same() -> None:
    exact = {"defense": "dc:timesteps=first:2", "denoiser": "empirical:digits", "classifier": None}
    costs = attack_costs(attack_job(**exact), loading=0.0)
    assert costs.on().evaluations == 0
    assert 0 < costs.on().seconds.low <= costs.on().seconds.expected


def test_images_that_are_wrong_already_are_not_planned_to_be_attacked(tmp_path: Path) -> None:
    images, labels = dp.load_data("digits", indices="0:8")
    wrong = np.where(np.arange(8) % 4 < 3, np.where(labels == 9, 0, 9), labels)
    np.savez(tmp_path / "data.npz", images=(images.numpy() * 255).round().astype(np.uint8), labels=wrong)
    job = attack_job(data=str(tmp_path / "data.npz"), indices="0:8", **ALONE, attack="pgd:iterations=6")
    planned = attack_costs(job, loading=0.0).on()
    assert planned.evaluations == attacked(job, tmp_path / "run")
    # One label of each image; of two, seven looks, a label and the control, too.
    assert planned.evaluations == 8 + 2 * 9
    assert planned.most_evaluations == 8 * 10


@pytest.mark.parametrize(
    ("prepared", "costs"),
    [(certify_job, certify_costs), (attack_job, attack_costs)],
    ids=["certify", "attack"],
)
def test_size_grows_with_the_images(
    prepared: Callable[..., Any], costs: Callable[..., Costs], denoiser: Path
) -> None:
    few, many = (
        costs(prepared(**PLAIN if prepared is certify_job else ALONE, indices=indices), loading=0.0).on().size
        for indices in ("0:10", "0:360")
    )
    assert 5 < many / few < 36
