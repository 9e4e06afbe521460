"""Counting draws step by step: it goes on from anywhere, to the same counts, and repeats no call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import diffproof as dp
from diffproof.defenses.base import CertifiableDefense, Labelled
from diffproof.noise import Noise, Stream
from diffproof.runs.certify.store import CertifyStore, Partial
from diffproof.runs.settings import CertifySettings
from diffproof.runs.store import Identity
from diffproof.smoothing.tally import Tally
from helpers.classifiers import linear_classifier, steep_classifier
from helpers.denoisers import ToyDenoiser, mixture
from helpers.images import pictures

SIGMA = 0.5
DRAWS = 7
BATCH = 3


def densepure(**settings: Any) -> dp.DensePure:
    return dp.DensePure(mixture(count=4), steep_classifier(hidden=8), **{"steps": 3, "votes": 5, **settings})


def with_learned_variance() -> dp.DensePure:
    return dp.DensePure(ToyDenoiser(channels=2), linear_classifier(), steps=3, votes=4)


def dc(**settings: Any) -> dp.DiffusionClassifier:
    return dp.DiffusionClassifier(mixture(count=4, component_labels=[0, 1, 2, 2]), samples=2, **settings)


class Plain(dp.Undefended):
    """A user's own, which writes `classify` alone."""

    def classify(self, noisy: Tensor, sigma: float, noise: Noise, batch_size: int) -> Labelled:
        labels = super().classify(noisy, sigma, noise, batch_size).labels
        return Labelled(2 - labels, 0, len(noisy))


class Changed(dp.DensePure):
    """A user's own, which changes what DensePure says."""

    def classify(self, noisy: Tensor, sigma: float, noise: Noise, batch_size: int) -> Labelled:
        labels = super().classify(noisy, sigma, noise, batch_size).labels
        return Labelled(2 - labels, 0, len(noisy))


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
}


def counted(smoothed: dp.Smoothed, batch_size: int, done: Tally | None = None) -> Iterator[Tally]:
    shape = smoothed.base.image_shape if isinstance(smoothed.base, CertifiableDefense) else None
    image = pictures(1, 7, shape or (1, 2, 2))[0]
    settings: dict[str, Any] = {"stream": Stream.ESTIMATION, "seed": 3, "image_index": 5}
    return smoothed.tally(image, DRAWS, batch_size=batch_size, done=done, **settings)


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


@pytest.mark.parametrize("name", DEFENSES)
def test_a_tally_goes_on_from_any_step_and_repeats_no_call(name: str) -> None:
    defense = DEFENSES[name]()
    smoothed = dp.Smoothed(defense, SIGMA)
    # A first look whether the networks are functions is none of these calls.
    next(counted(smoothed, BATCH))
    with watched(defense) as calls:
        spent = [(tally, len(calls)) for tally in counted(smoothed, BATCH)]
    whole = spent[-1][0]
    assert whole.draws == sum(whole.counts) == DRAWS
    assert whole.underway is None
    # After every call there is something to go on from; a race has several calls to a batch.
    places = {before for _, before in spent}
    assert (places == set(range(len(calls) + 1))) == (name != "dc in a race")
    # From every step of the last whole batch; the first draws of all have no others behind them.
    for done, before in spent:
        if done.draws != BATCH and before > 0:
            continue
        assert done.begun <= sum(defense.evaluations_per_draw(SIGMA)) * BATCH
        with watched(defense) as again:
            *_, last = counted(smoothed, BATCH, done)
        assert last == whole
        assert again == calls[before:]


@pytest.mark.parametrize("name", DEFENSES)
def test_it_goes_on_with_another_batch_size_to_the_same_counts(name: str) -> None:
    smoothed = dp.Smoothed(DEFENSES[name](), SIGMA)
    steps = list(counted(smoothed, BATCH))
    for done in steps[:: max(1, len(steps) // 4)]:
        for batch_size in (2, 64):
            *_, last = counted(smoothed, batch_size, done)
            assert last == steps[-1]


def test_what_a_user_s_class_changes_is_not_passed_over() -> None:
    plain, changed = densepure(), Changed(mixture(count=4), steep_classifier(hidden=8), steps=3, votes=5)
    (*_, before), (*_, after) = (counted(dp.Smoothed(defense, SIGMA), BATCH) for defense in (plain, changed))
    assert after.counts == before.counts[::-1] != before.counts


@pytest.mark.parametrize("name", ["dds", "densepure", "learned variance", "dc"])
def test_a_store_keeps_every_bit_of_it(name: str, tmp_path: Path) -> None:
    smoothed = dp.Smoothed(DEFENSES[name](), SIGMA)
    steps = list(counted(smoothed, BATCH))
    settings = CertifySettings(data="digits", defense="none", classifier="digits", sigma=SIGMA)
    identity = Identity(weights_hash="", data_hash="", planned=1, code={}, indices=(5,))
    for i, done in enumerate(steps[1:-1:5]):
        with CertifyStore.writing(tmp_path / str(i), settings, identity, lambda _: "") as store:
            store.save_partial(5, Partial(None, replace(done, underway=steps[1].underway), seconds=1.0))
            store.save_partial(5, Partial(None, done, seconds=2.0))
        with CertifyStore.reading(tmp_path / str(i)) as store:
            kept = store.partial(5).estimation
        assert kept == done
        assert (kept.underway is None) == (done.underway is None)
        if kept.underway is not None and done.underway is not None:
            assert kept.underway[2:] == done.underway[2:]
            for key, tensor in done.underway.tensors.items():
                assert torch.equal(kept.underway.tensors[key], tensor)
        *_, last = counted(smoothed, BATCH, kept)
        assert last == steps[-1]


def test_memory_that_runs_out_between_two_steps_loses_none_of_them() -> None:
    defense = densepure()
    smoothed = dp.Smoothed(defense, SIGMA)
    *_, expected = counted(smoothed, BATCH)
    assert defense.denoiser is not None
    estimate, failed = defense.denoiser.estimate, 0

    def failing(noisy: Tensor, sigma: Any, label: Tensor | None) -> Any:
        nonlocal failed
        if len(noisy) > 2 and sigma < SIGMA:
            failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return estimate(noisy, sigma, label)

    defense.denoiser.estimate = failing  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="going on with 1 images"), watched(defense) as calls:
        *_, last = counted(smoothed, BATCH)
    assert failed == 1
    assert last == expected
    # The first estimates of the batch were there, and one call of a batch failed.
    assert sum(calls) == expected.denoiser_evaluations + expected.classifier_evaluations + BATCH
