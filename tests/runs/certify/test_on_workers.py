"""Certification on workers, without Ray: whatever becomes of them, the store is that of one process."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from simulated_fleet import Fate
from torch import Tensor

from diffproof.errors import ArgumentError
from diffproof.intervals import Share
from diffproof.noise import Stream
from diffproof.runs.certify import run as certify_run
from diffproof.runs.certify.accuracy import accuracies, order
from diffproof.runs.certify.job import CertifyRun, prepare
from diffproof.runs.certify.store import CertifyStore
from diffproof.runs.certify.workers import CertifyWorker
from diffproof.runs.settings import CertifySettings
from diffproof.runs.workers import ImagesFailedError
from diffproof.scale.engine import Order
from diffproof.smoothing.schedule import Unit
from helpers.fleets import failing, hiring, started
from helpers.runs import contents, rows

pytestmark = pytest.mark.usefixtures("small_digits")

VOTES: dict[str, Any] = {"defense": "densepure:steps=2,votes=3", "denoiser": "digits"}
KINDS: dict[str, dict[str, Any]] = {
    "fixed": {"n": 40, "indices": "0:96:8"},
    "sequential": {"n": 90, "stop": "sequential", "radii": "0,0.05"},
    "until": {"n": 12, "indices": "0:120:4", "until_half_width": 0.35},
    "several levels": {"n": 40, "scales": "0.12,0.25"},
    # A classifier of ten classes chooses among ten levels.
    "a chosen level": {
        "n": 44,
        "n0": 11,
        "indices": "0:48:16",
        "scales": ",".join(f"{0.1 + 0.02 * one:.2f}" for one in range(10)),
        "chooser": "digits",
    },
    "votes": {"n": 16, "indices": "0:48:16", "keep_ballots": True, **VOTES},
    "votes, sequential": {
        "n": 60,
        "indices": "0:48:16",
        "keep_ballots": True,
        "stop": "sequential",
        "radii": "0,0.1",
        **VOTES,
    },
}


def job_of(kind: str, **changes: Any) -> CertifyRun:
    given = {
        "indices": "0:96:16",
        "n0": 6,
        "sigma": 0.25,
        "batch_size": 16,
        "defense": "none",
        **KINDS[kind],
        **changes,
    }
    return prepare(CertifySettings(data="digits", classifier="digits", alpha=0.01, seed=3, **given))


class Kind:
    """A run, and what one process finds."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.job, self.folder = job_of(kind), folder
        certify_run.run(self.job, folder)
        self.rows = rows(folder)

    def same(self, folder: Path) -> bool:
        """Whether a folder holds the same certificates, and ballots where these are kept."""
        return rows(folder) == self.rows and ballots(folder) == ballots(self.folder)


def ballots(folder: Path) -> dict[int, dict[Stream, tuple[list[int], list[list[int]]]]]:
    with CertifyStore.reading(folder) as store:
        return {
            index: {
                stream: (draw.tolist(), votes.tolist())
                for stream, (draw, votes) in store.ballots(index).items()
            }
            for index, *_ in rows(folder)
        }


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Kind]:
    made: dict[str, Kind] = {}

    def kind(name: str) -> Kind:
        if name not in made:
            made[name] = Kind(name, tmp_path_factory.mktemp("one") / name)
        return made[name]

    return kind


def lost_at_random(seed: int) -> Callable[[int], Fate]:
    """One worker after the other is lost, and some are slow."""
    source = random.Random(seed)
    lost = [source.uniform(0.1, 0.5) + 6.0 * number for number in range(12)]
    slow = [source.choice([1.0, 1.0, 4.0]) for _ in range(12)]
    return lambda number: Fate(0.05, slow[number], lost[number]) if number < 12 else Fate(0.05)


FATES: dict[str, Callable[[int], Fate]] = {
    "well": lambda number: Fate(),
    "one comes late": lambda number: Fate(5.0 * (number == 0)),
    "one is slow": lambda number: Fate(slow=20.0 if number == 1 else 1.0),
    "one hangs": lambda number: Fate(hangs=0.3 if number == 0 else 1e9),
    **{f"lost at random, {seed}": lost_at_random(seed) for seed in range(3)},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("fate", FATES)
def test_whatever_becomes_of_workers_the_store_is_that_of_one_process(
    name: str, fate: str, kinds: Callable[[str], Kind], tmp_path: Path
) -> None:
    one, told = kinds(name), list[int]()
    workers = (4, 2, 1)[(list(FATES).index(fate) + list(KINDS).index(name)) % 3]
    workers = max(workers, 2) if "hangs" in fate else workers
    fleet = started(one.job, workers, FATES[fate])
    certify_run.run(one.job, tmp_path / "run", told.append, hiring(fleet))
    assert one.same(tmp_path / "run")
    assert sum(told) == len(one.job.indices) * one.job.certifier.evaluations_per_image
    assert not fate.startswith("lost") or name == "until" or fleet.members[0].state == "lost"


@pytest.mark.slow
def test_two_workers_find_what_one_process_finds(kinds: Callable[[str], Kind], tmp_path: Path) -> None:
    one = kinds("sequential")
    fleet = started(one.job, 2, FATES["one is slow"])
    certify_run.run(one.job, tmp_path / "run", hire=hiring(fleet))
    assert one.same(tmp_path / "run")
    assert all(member.units for member in fleet.members.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fixed", "sequential", "until"])
def test_what_was_done_for_nothing_is_told(name: str, kinds: Callable[[str], Kind], tmp_path: Path) -> None:
    one = kinds(name)
    fleet = started(one.job, 3, FATES["one is slow"])
    certify_run.run(one.job, tmp_path / "run", hire=hiring(fleet))
    with CertifyStore.reading(tmp_path / "run") as store:
        (session,), results = store.progress.sessions(), store.results()
    assert session.work is not None
    assert session.wasted is not None
    # All else is in a certificate.
    counted = sum(one.certificate.n0 + one.certificate.n for one in results)
    assert session.work - session.wasted == counted
    assert session.wasted > 0
    assert (session.work, session.wasted) == (fleet.work, fleet.wasted)


# Interrupted


class Interruption:
    """Ends a run whenever so many evaluations more are done, those of earlier commands included."""

    def __init__(self, more: Callable[[], int]) -> None:
        self.more, self.done = more, 0
        self.limit = more()

    def __call__(self, evaluations: int) -> None:
        self.done += evaluations
        if self.done >= self.limit:
            self.limit, self.done = self.done + self.more(), 0
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_run_goes_on_with_workers_without_them_and_back(
    name: str, kinds: Callable[[str], Kind], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certify_run, "COMMIT_EVERY", 0.0)
    one, source = kinds(name), random.Random(4)
    share = one.job.certifier.evaluations_per_image * len(one.job.indices) // 9
    interruption = Interruption(lambda: source.randrange(1, share))
    for session in range(60):
        fleet = None
        if session % 3:
            fate = lost_at_random(session) if session % 2 else FATES["one is slow"]
            fleet = started(one.job, session % 5 + 1, fate)
        interruption.done = 0
        try:
            certify_run.run(one.job, tmp_path / "run", interruption, hiring(fleet))
            break
        except KeyboardInterrupt:
            assert set(rows(tmp_path / "run")) <= set(one.rows)
    assert session > 2
    assert one.same(tmp_path / "run")


@pytest.mark.slow
def test_draws_that_are_labelled_while_a_slow_worker_has_earlier_ones_are_kept(
    kinds: Callable[[str], Kind], tmp_path: Path
) -> None:
    one = kinds("fixed")
    # The first of each image that it gets hang.
    fleet = started(one.job, 2, FATES["one hangs"])
    with pytest.raises(KeyboardInterrupt):
        certify_run.run(one.job, tmp_path / "run", Interruption(lambda: 200), hiring(fleet))
    with CertifyStore.reading(tmp_path / "run") as store:
        units = store.work().units
    labelled = sum(tally.draws for _, tally in units)
    assert labelled > 0
    assert any(not tally.draws for _, tally in units)
    for again in (None, 1):
        drawn = Counter[Unit]()

        class Counting(CertifyWorker):
            """Counts what it is given."""

            def work(self, orders: Any, seconds: float) -> Any:
                drawn.update(order.load for order in orders)  # noqa: B023
                return super().work(orders, seconds)

        folder = tmp_path / f"again {again}"
        folder.mkdir()
        for file in ("settings.yaml", "results.sqlite"):
            (folder / file).write_bytes((tmp_path / "run" / file).read_bytes())
        certify_run.run(
            one.job,
            folder,
            hire=hiring(
                None if again is None else started(one.job, again, make=lambda number: Counting(one.job))
            ),
        )
        assert one.same(folder)
        # None of those that were labelled is labelled again.
        done = {(unit.image_index, unit.stream, unit.start) for unit, tally in units if tally.draws}
        assert not done & {(unit.image_index, unit.stream, unit.start) for unit in drawn}


# What goes wrong


def poisoned(job: CertifyRun, images: list[int], error: Callable[[], BaseException]) -> None:
    """Let a job's classifier raise on draws that are nearest to these of its images."""
    base: Any = job.smoothed.base
    clean = torch.stack([job.data.pixels[index] for index in job.indices])

    def near(draws: Tensor) -> bool:
        nearest = torch.cdist(draws.flatten(1), clean.flatten(1)).argmin(1)
        return bool({job.indices[place] for place in nearest.tolist()} & set(images))

    failing(base.classifier, near, error)


def broken() -> BaseException:
    return RuntimeError("bad pixel")


# So little noise that draws are nearest to their own image.
FEW: dict[str, Any] = {"sigma": 0.02, "n": 8, "n0": 4, "indices": "0:96:8"}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("changes", [{}, {"until_half_width": 0.08}])
def test_poisoned_images_are_named_and_all_others_are_finished(
    changes: dict[str, Any], workers: int, tmp_path: Path
) -> None:
    # Two of twelve that may be certified or not leave accuracy open by a half-width of 0.083 at least.
    job, whole = job_of("fixed", **FEW, **changes), tmp_path / "whole"
    certify_run.run(job_of("fixed", **FEW), whole)
    turn = order(job.indices, job.settings)
    bad = sorted([turn[1], turn[4]])
    poisoned(job, bad, broken)
    message = rf"^image {bad[0]} failed on every worker: RuntimeError: bad pixel; so did {bad[1]}; "
    with pytest.raises(ImagesFailedError, match=message) as caught:
        certify_run.run(job, tmp_path / "run", hire=hiring(started(job, workers)))
    assert sorted(caught.value.failed) == bad
    assert rows(tmp_path / "run") == [row for row in rows(whole) if row[0] not in bad]
    with CertifyStore.reading(tmp_path / "run") as store:
        assert [(one.image_index, one.error) for one in store.progress.failures()] == [
            (index, "RuntimeError: bad pixel") for index in bad
        ]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_a_poisoned_image_does_not_keep_a_run_from_knowing_enough(workers: int, tmp_path: Path) -> None:
    job, folder = job_of("fixed", **FEW, until_half_width=0.3), tmp_path / "run"
    turn = order(job.indices, job.settings)
    poisoned(job, [turn[1]], broken)
    either = f"image {turn[1]} failed .*: bad pixel; accuracy is known well enough, whether certified or not"
    with pytest.warns(UserWarning, match=either):
        results = certify_run.run(job, folder, hire=hiring(started(job, workers)))
    taken = [turn.index(one.image_index) for one in results]
    assert {0, 2} < set(taken) == {*range(max(taken) + 1)} - {1}
    assert max(taken) < 11
    (share,) = accuracies({one.image_index: one for one in results}, job.indices, job.settings).values()
    # All of the others are certified: of twelve, so many are seen, and one of those seen may be none.
    hits = [True] * (max(taken) + 1)
    assert share.high == Share.of_sequence(hits, 12).high == 1.0
    hits[1] = False
    assert share.low == Share.of_sequence(hits, 12).low
    assert (share.high - share.low) / 2 <= 0.3
    # There is nothing to do for who asks again.
    before = contents(folder)
    certify_run.run(job, folder, hire=hiring(None))
    assert contents(folder) == before


def order_of(image: int, start: int, stop: int) -> Order:
    unit = Unit(image, Stream.ESTIMATION, start, stop)
    return Order(unit, (image,), stop - start, unit)


def test_a_worker_tells_which_of_its_units_fails_and_does_the_others() -> None:
    job = job_of("fixed", sigma=0.02)
    first, second, third = job.indices[:3]
    expected = dict(CertifyWorker(job).work([order_of(first, 0, 9), order_of(third, 5, 12)], 60.0).done)
    poisoned(job, [second], broken)
    worker = CertifyWorker(job)
    answer = worker.work([order_of(first, 0, 9), order_of(second, 0, 9), order_of(third, 5, 12)], 60.0)
    assert answer.failed == [(order_of(second, 0, 9).key, "RuntimeError: bad pixel")]
    assert {key: found.tally for key, found in answer.done} == {
        key: found.tally for key, found in expected.items()
    }
    # It goes on as if nothing had been.
    again = worker.work([order_of(first, 9, 12)], 60.0)
    assert [key for key, _ in again.done] == [order_of(first, 9, 12).key]


@pytest.mark.slow
def test_a_worker_that_can_label_nothing_any_more_says_so_and_its_orders_go_to_others(
    kinds: Callable[[str], Kind], tmp_path: Path
) -> None:
    one = kinds("fixed")

    def make(number: int) -> CertifyWorker:
        job = job_of("fixed")
        worker = CertifyWorker(job)
        if number < 2:
            # Their device is gone, after the first network calls.
            base: Any = job.smoothed.base
            calls = count(1)
            failing(base.classifier, lambda images: next(calls) > 3)
        return worker

    fleet = started(one.job, 3, make=make)
    certify_run.run(one.job, tmp_path / "run", hire=hiring(fleet))
    assert one.same(tmp_path / "run")
    assert [fleet.members[number].state for number in (0, 1)] == ["lost", "lost"]
    assert "device-side assert" in fleet.members[0].error


@pytest.mark.slow
def test_memory_that_runs_out_on_one_worker_halves_its_batch_alone(
    kinds: Callable[[str], Kind], tmp_path: Path
) -> None:
    one = kinds("fixed")

    def make(number: int) -> CertifyWorker:
        job = job_of("fixed")
        if number == 1:
            base: Any = job.smoothed.base
            full = torch.OutOfMemoryError("CUDA out of memory")
            failing(base.classifier, lambda images: len(images) > 5, lambda: full)
        return CertifyWorker(job)

    fleet = started(one.job, 3, make=make)
    with pytest.warns(UserWarning, match="no memory for the batch"):
        certify_run.run(one.job, tmp_path / "run", hire=hiring(fleet))
    assert one.same(tmp_path / "run")
    assert [member.batch_size for member in fleet.members.values()] == [16, 4, 16]
    assert all(member.units for member in fleet.members.values())


def test_workers_of_another_run_are_refused_by_name(kinds: Callable[[str], Kind]) -> None:
    one = kinds("fixed")
    other = prepare(
        CertifySettings(
            seed=0, data="digits", classifier="digits", defense="none", sigma=0.25, indices="0:8:4"
        )
    )
    fleet = started(one.job, 3, make=lambda number: CertifyWorker(other if number == 1 else one.job))
    for _ in range(3):
        fleet._listen(1.0)
    assert [member.state for member in fleet.members.values()] == ["ready", "refused", "ready"]
    assert "it has other images or labels in the data: " in fleet.members[1].error
    with pytest.raises(
        ArgumentError, match=r"^workers: worker 0 on .*: it has other images or labels in the data"
    ):
        started(one.job, 2, make=lambda number: CertifyWorker(other))
