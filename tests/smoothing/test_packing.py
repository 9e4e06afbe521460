"""Draws of many images in common batches: the same counts, nothing repeated, nothing lost, full networks."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import diffproof as dp
from diffproof.defenses.base import CertifiableDefense
from diffproof.defenses.labelling import Labelled
from diffproof.noise import Noise, Stream
from diffproof.runs.certify.store import CertifyStore, Partial
from diffproof.runs.settings import CertifySettings
from diffproof.runs.store import Identity
from diffproof.smoothing.packing import SchedulePacking, Work
from diffproof.smoothing.schedule import Counting, Schedule, Unit
from diffproof.smoothing.sequential import RadiusSequence, RadiusTest
from diffproof.smoothing.tally import Counted, Looking, Looks, Tally
from helpers.classifiers import linear_classifier, steep_classifier
from helpers.denoisers import ToyDenoiser, mixture
from helpers.images import pictures

SIGMA = 0.5
N0, N = 2, 7
IMAGES = [5, 9, 2]
BATCH = 4
IMAGES_IN_ALL = 8


def densepure(**settings: Any) -> dp.DensePure:
    return dp.DensePure(mixture(count=4), steep_classifier(hidden=8), **{"steps": 3, "votes": 5, **settings})


def with_learned_variance() -> dp.DensePure:
    return dp.DensePure(ToyDenoiser(channels=2), linear_classifier(), steps=3, votes=4)


def dc(**settings: Any) -> dp.DiffusionClassifier:
    denoiser = mixture(count=4, component_labels=[0, 1, 2, 2])
    return dp.DiffusionClassifier(denoiser, samples=2, sigmas=[0.52, 0.56, 0.6], **settings)


class Plain(dp.Undefended):
    """A user's own, which writes `classify` alone."""

    def classify(self, noisy: Tensor, sigma: float, noise: Noise, batch_size: int) -> Labelled:
        labels = super().classify(noisy, sigma, noise, batch_size).labels
        return Labelled(2 - labels, 0, len(noisy))


class Changed(dp.DensePure):
    """A user's own, which changes what DensePure says."""

    def classify(self, noisy: Tensor, sigma: float, noise: Noise, batch_size: int) -> Labelled:
        made = super().classify(noisy, sigma, noise, batch_size)
        return made._replace(labels=2 - made.labels)


DEFENSES: dict[str, Callable[[], CertifiableDefense]] = {
    "none": lambda: dp.Undefended(steep_classifier(hidden=8)),
    "dds": lambda: dp.DDS(mixture(count=4), steep_classifier(hidden=8)),
    "densepure": densepure,
    "one step": lambda: densepure(steps=1),
    "every level": lambda: densepure(steps=None, votes=2),
    "deterministic": lambda: densepure(eta=0.0),
    "consensus": lambda: densepure(consensus=2),
    "learned variance": with_learned_variance,
    "dc": dc,
    "dc with noise of its own for each class": lambda: dc(shared_noise=False),
    "dc in a race": lambda: dc(race_error=0.1),
    "own": lambda: Plain(steep_classifier(hidden=8)),
    "own vote": lambda: Changed(mixture(count=4), steep_classifier(hidden=8), steps=3, votes=5),
}


class Several:
    """Some images that are counted together, and what is there of them so far."""

    def __init__(self, defense: CertifiableDefense) -> None:
        self.smoothed, self.looks = dp.Smoothed(defense, SIGMA), Looks((N,))
        shape = defense.image_shape or (1, 2, 2)
        self.images = dict(zip(IMAGES, pictures(len(IMAGES), 7, shape), strict=True))
        self.counted: dict[int, Counted] = {}

    def begin(self, index: int) -> Counting:
        return Counting(index, N0, self.looks, self.smoothed.num_classes, done=self.counted.get(index))

    def packing(self, batch_size: int) -> tuple[Schedule, SchedulePacking]:
        schedule = Schedule(IMAGES, self.begin)
        return schedule, self.smoothed.packing(
            schedule, self.images.__getitem__, seed=3, batch_size=batch_size
        )

    def whole(self, batch_size: int) -> dict[int, Counted]:
        schedule, packing = self.packing(batch_size)
        while packing.step():
            pass
        assert schedule.finished() == IMAGES
        return {index: schedule.close(index).counted for index in IMAGES}

    def by_hand(self, index: int, stream: Stream, draws: int) -> Labelled:
        """Draw after draw of one image, each by itself, through nothing but the defence's `classify`."""
        base, made = self.smoothed.base, []
        assert isinstance(base, CertifiableDefense)
        for draw in range(draws):
            noise = Noise.for_draws(3, stream, index, draw, draw + 1)
            noisy = self.smoothed.noise.added(self.images[index], noise)
            with torch.no_grad():
                made.append(base.classify(noisy, SIGMA, noise.after_first(), 64))
        return Labelled(
            torch.cat([one.labels for one in made]),
            sum(one.denoiser_evaluations for one in made),
            sum(one.classifier_evaluations for one in made),
        )


@contextmanager
def watched(defense: CertifiableDefense) -> Iterator[list[int]]:
    """The rows of each call of the denoiser and of the classifier while in this context."""
    calls: list[int] = []
    hooks = []
    if isinstance(defense.classifier, nn.Module):

        def count(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            calls.append(len(inputs[0]))

        hooks.append(defense.classifier.register_forward_hook(count))
    denoiser = defense.denoiser
    estimate = None if denoiser is None else denoiser.estimate

    def counting(noisy: Tensor, sigma: Any, label: Tensor | None) -> Any:
        calls.append(len(noisy))
        assert estimate is not None
        return estimate(noisy, sigma, label)

    if denoiser is not None:
        denoiser.estimate = counting  # type: ignore[method-assign]
    yield calls
    for hook in hooks:
        hook.remove()
    if denoiser is not None:
        del denoiser.estimate


def stepped(several: Several) -> tuple[list[tuple[dict[int, Counted], Callable[[], Work], int]], list[int]]:
    """What is counted, what is in work and how many calls there were after each step; the calls' rows."""
    defense = several.smoothed.base
    assert isinstance(defense, CertifiableDefense)
    schedule, packing = several.packing(BATCH)
    snapshots = []
    with watched(defense) as calls:
        while packing.step():
            counted = {index: one.counted for index, one in schedule.in_work.items()}
            snapshots.append((counted, packing.snapshot(), len(calls)))
    return snapshots, calls


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("none", "dds", "one step", "own") else pytest.param(name, marks=pytest.mark.slow)
        for name in DEFENSES
    ],
)
def test_counts_are_those_of_each_draw_by_itself_whatever_shares_its_batches(name: str) -> None:
    several = Several(DEFENSES[name]())
    wholes = [several.whole(batch_size) for batch_size in (1, 7, 64)]
    assert wholes[1:] == wholes[:-1]
    for index, counted in wholes[0].items():
        for tally, stream, draws in (
            (counted.selection, Stream.SELECTION, N0),
            (counted.estimation, Stream.ESTIMATION, N),
        ):
            expected = several.by_hand(index, stream, draws)
            assert tally is not None
            assert tally.counts == tuple(torch.bincount(expected.labels, minlength=3).tolist())
            spent = (tally.denoiser_evaluations, tally.classifier_evaluations)
            assert spent == (expected.denoiser_evaluations, expected.classifier_evaluations)


@pytest.mark.slow
def test_what_a_user_s_class_changes_is_not_passed_over() -> None:
    before, after = (Several(DEFENSES[name]()).whole(BATCH) for name in ("densepure", "own vote"))
    pairs = [(before[index].estimation, after[index].estimation) for index in IMAGES]
    assert all(one and other and one.counts == other.counts[::-1] for one, other in pairs)
    assert any(one and one.counts != one.counts[::-1] for one, _ in pairs)


class Beyond(Plain):
    """A user's own that counts its classes from 1."""

    def classify(self, noisy: Tensor, sigma: float, noise: Noise, batch_size: int) -> Labelled:
        return Labelled(1 + super().classify(noisy, sigma, noise, batch_size).labels, 0, len(noisy))


def test_labels_that_are_no_classes_are_refused() -> None:
    with pytest.raises(dp.ArgumentError, match=r"defense: expected labels in \[0, 3\), got [01] to 3"):
        Several(Beyond(steep_classifier(hidden=8))).whole(64)


@pytest.mark.slow
@pytest.mark.parametrize("name", DEFENSES)
def test_it_goes_on_from_any_network_call_and_repeats_none(name: str, tmp_path: Path) -> None:
    defense = DEFENSES[name]()
    several = Several(defense)
    expected = several.whole(BATCH)
    snapshots, calls = stepped(several)
    # A race, and what only writes `classify`, have several calls to a batch; others one to a step.
    places = {before for *_, before in snapshots}
    several_calls = name in ("dc in a race", "own vote")
    assert (places == set(range(1, len(calls) + 1))) == (not several_calls)
    settings = CertifySettings(
        seed=0, data="digits", defense="none", classifier="digits", sigma=SIGMA, n0=N0, n=N
    )
    identity = Identity(weights_hash="", data_hash="", planned=3, code={}, indices=(2, 5, 9))
    for counted, snapshot, before in snapshots[:: max(1, len(snapshots) // 4)]:
        work = snapshot()
        with CertifyStore.writing(tmp_path / str(before), settings, identity, lambda _: "") as store:
            # What was there before gives way.
            store.save_partials({}, snapshots[0][1]())
            kept = {
                index: Partial(one.selection, one.estimation, one.hits, 1.0) for index, one in counted.items()
            }
            store.save_partials(kept, work)
        with CertifyStore.reading(tmp_path / str(before)) as store:
            several.counted = {index: store.partial(index, (N,)) for index in IMAGES}
            found = store.work()
        assert found.units == work.units
        assert found.tensors.keys() == work.tensors.keys()
        assert all(torch.equal(found.tensors[key], tensor) for key, tensor in work.tensors.items())
        for batch_size in (BATCH, 64):
            schedule, packing = several.packing(batch_size)
            packing.resume(found)
            with watched(defense) as again:
                while packing.step():
                    pass
            # As they come out of a store they have seconds, too.
            made = {index: vars(one.counted) for index, one in schedule.in_work.items()}
            assert {index: {**made[index], "seconds": None} for index in IMAGES} == {
                index: {**vars(counted), "seconds": None} for index, counted in expected.items()
            }
            if batch_size == BATCH:
                assert sum(again) == sum(calls[before:])
        several.counted = {}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["densepure", "consensus", "learned variance"])
def test_of_large_draws_the_votes_that_are_cast_are_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffproof.smoothing.packing.LARGEST_STATE", 0)
    defense = DEFENSES[name]()
    several = Several(defense)
    expected = several.whole(BATCH)
    snapshots, calls = stepped(several)
    votes = []
    for counted, snapshot, before in snapshots[:: len(snapshots) // 6]:
        several.counted, work = counted, snapshot()
        if work.tensors:
            assert work.tensors.keys() == {"unit", "draw", "of ballots"}
            votes.append(int((work.tensors["of ballots"] >= 0).sum()))
        for batch_size in (BATCH, 64):
            schedule, packing = several.packing(batch_size)
            packing.resume(work)
            with watched(defense) as again:
                while packing.step():
                    pass
            assert {index: one.counted for index, one in schedule.in_work.items()} == expected
            # First estimates of draws without a label, and what a batch of samples had of its three steps.
            lost = len(work.tensors.get("draw", [])) + 3 * BATCH
            assert batch_size != BATCH or sum(again) <= sum(calls[before:]) + lost
    assert max(votes) > BATCH


@pytest.mark.slow
def test_memory_that_runs_out_between_two_calls_loses_none_of_them() -> None:
    defense = densepure()
    several = Several(defense)
    expected = several.whole(BATCH)
    assert defense.denoiser is not None
    estimate, failed = defense.denoiser.estimate, 0

    def failing(noisy: Tensor, sigma: Any, label: Tensor | None) -> Any:
        nonlocal failed
        if len(noisy) > 2 and sigma < SIGMA:
            failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return estimate(noisy, sigma, label)

    defense.denoiser.estimate = failing  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="going on with 2 images"), watched(defense) as calls:
        made = several.whole(BATCH)
    assert failed == 1
    assert made == expected
    # One call of a batch failed, and nothing was made twice.
    assert sum(calls) == sum(counted.evaluations for counted in expected.values()) + BATCH
    with watched(defense) as calls:
        assert several.whole(BATCH) == expected
    # It is remembered.
    assert max(calls) == 2


@pytest.mark.parametrize(
    ("joined", "place"), [("cat", place) for place in range(1, 31, 3)] + [("index_put", 1), ("index_put", 2)]
)
def test_memory_that_runs_out_anywhere_changes_no_count(
    joined: str, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = Several(with_learned_variance())
    expected, calls = several.whole(64), 0
    holder = torch if joined == "cat" else Tensor
    function = getattr(holder, joined)

    def failing(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == place:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return function(*arguments, **named)

    monkeypatch.setattr(holder, joined, failing)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no memory for the batch")
        made = several.whole(64)
    assert made == expected
    assert calls > place


# The schedule


def tally(*counts: int) -> Tally:
    """Labels that cost a classifier evaluation each."""
    return Tally(counts, sum(counts), 0, sum(counts))


def answers(share: float, seed: int) -> Callable[[int, Stream, int], int]:
    """Labels of draws at random, 0 with this chance, else 1; the same for the same draw."""
    drawn: dict[tuple[int, Stream, int], int] = {}
    source = random.Random(seed)

    def label(index: int, stream: Stream, draw: int) -> int:
        return drawn.setdefault((index, stream, draw), int(source.random() >= share))

    return label


LOOKING: dict[str, Callable[[], Looking]] = {
    "fixed": lambda: Looks((300,)),
    "looks": lambda: Looks((32, 100, 300)),
    "radii": lambda: RadiusTest([0.0, 0.2, 0.4], sigma=SIGMA, alpha=0.01, n=300),
    "without futility": lambda: RadiusTest([0.0, 0.2, 0.4], sigma=SIGMA, alpha=0.01, n=300, futility=0.0),
    "largest radius": lambda: RadiusSequence(sigma=SIGMA, alpha=0.01, n=300),
}


@pytest.mark.parametrize(
    ("name", "share"),
    [
        pytest.param(
            name, share, marks=[pytest.mark.slow] if name == "largest radius" and share > 0.5 else []
        )
        for name in LOOKING
        for share in (0.4, 0.85, 1.0)
    ],
)
def test_units_in_any_order_give_the_counts_of_draws_one_after_another(name: str, share: float) -> None:
    looks = LOOKING[name]()
    label = answers(share, seed=1)

    def one_after_another(index: int) -> Counted:
        """By the definition, without units: draws up to each look, until that is enough."""
        selection = Counter(label(index, Stream.SELECTION, draw) for draw in range(N0))
        selected = 0 if selection[0] >= selection[1] else 1
        hits: tuple[int, ...] = ()
        for look in looks.checkpoints:
            made = Counter(label(index, Stream.ESTIMATION, draw) for draw in range(look))
            hits += (made[selected],)
            if looks.enough(hits):
                break
        return Counted(tally(selection[0], selection[1]), tally(made[0], made[1]), hits)

    source, vain, spent = random.Random(2), 0, 0
    for workers in (1, 3, 40):
        schedule = Schedule(range(4), lambda index: Counting(index, N0, looks, 2))
        away: list[Unit] = []
        while True:
            while len(away) < workers and (unit := schedule.take(source.randint(1, 60))) is not None:
                away.append(unit)
            if not away:
                break
            unit = away.pop(source.randrange(len(away)))
            made = Counter(
                label(unit.image_index, unit.stream, draw) for draw in range(unit.start, unit.stop)
            )
            schedule.put(unit, tally(made[0], made[1]))
        assert schedule.finished() == [0, 1, 2, 3]
        for index in range(4):
            assert schedule.close(index).counted == one_after_another(index)
        vain += schedule.vain
        spent += sum(one_after_another(index).evaluations for index in range(4))
    # Of the draws that looks make needless there are few, and of those that none can make so none.
    assert vain <= (0.05 * spent if len(looks.checkpoints) > 3 else 0)


def test_images_stay_in_turn_when_one_is_opened_before_it() -> None:
    schedule = Schedule(range(4), lambda index: Counting(index, N0, Looks((10,)), 2))
    schedule.open(2)
    assert [unit.image_index for unit in (schedule.take(100) for _ in range(4)) if unit] == [2, 0, 1, 3]
    assert list(schedule.in_work) == [0, 1, 2, 3]


def test_images_begin_where_others_must_wait_and_no_earlier() -> None:
    looks = Looks((10, 20))
    schedule = Schedule(range(3), lambda index: Counting(index, N0, looks, 2))
    taken = [schedule.take(100) for _ in range(3)]
    assert [(unit and (unit.image_index, unit.start, unit.stop)) for unit in taken] == [
        (0, 0, 2),
        (1, 0, 2),
        (2, 0, 2),
    ]
    assert schedule.take(1) is None
    assert taken[1] is not None
    schedule.put(taken[1], tally(2, 0))
    # Looks that end nothing keep nobody waiting.
    units = [schedule.take(8) for _ in range(4)]
    assert [(unit and (unit.image_index, unit.start, unit.stop)) for unit in units] == [
        (1, 0, 8),
        (1, 8, 10),
        (1, 10, 18),
        (1, 18, 20),
    ]
    assert list(schedule.in_work) == [0, 1, 2]


@pytest.mark.slow
def test_networks_are_full_while_votes_and_images_finish() -> None:
    """Of images with looks at ever more hits."""
    smoothed = dp.Smoothed(densepure(votes=9), SIGMA)
    shape = smoothed.base.image_shape if isinstance(smoothed.base, CertifiableDefense) else None
    assert shape is not None
    images = pictures(IMAGES_IN_ALL, 7, shape)
    looks = RadiusTest([0.0, 0.2, 0.4], sigma=SIGMA, alpha=0.01, n=100)
    schedule = Schedule(range(IMAGES_IN_ALL), lambda index: Counting(index, 20, looks, 3))
    packing = smoothed.packing(schedule, images.__getitem__, seed=0, batch_size=16)
    while packing.step():
        pass
    spent = sum(schedule.close(index).counted.evaluations for index in range(IMAGES_IN_ALL))
    assert spent + schedule.vain == packing.labeller.rows
    assert packing.labeller.rows / packing.labeller.slots > 0.95
    assert schedule.vain <= 0.05 * spent
