"""ADP against its formula: on a Gaussian, where every step is known, and on a network in a plain loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import diffproof as dp
from helpers.classifiers import linear_classifier
from helpers.denoisers import ToyDenoiser, mixture_around, one_gaussian
from helpers.images import pictures
from helpers.noise import noise_of

IMAGES = pictures(3)


@pytest.mark.parametrize(
    ("score_sigma", "rate", "share"),
    [
        # One step goes rate of the way to the mean, whatever the variance 0.01 + score_sigma².
        (0.25, 0.05, 0.95**4),
        # Below 0.001 an image stays: 0.05·(0.01 + 0.01)·0.5.
        (0.1, 0.025, 1.0),
        # At most 0.1: of 0.1/(0.01 + 0.09) here.
        (0.3, 2.0, 0.0),
        (0.4, 0.9, (1 - 0.1 / 0.17) ** 4),
    ],
)
def test_steps_on_a_gaussian(score_sigma: float, rate: float, share: float) -> None:
    defense = dp.ADP(
        one_gaussian(), linear_classifier(), sigma=0.1, score_sigma=score_sigma, steps=4, rate=rate
    )
    noise = noise_of(3)
    start = (IMAGES + 0.1 * noise.normal(IMAGES.shape[1:], 0, IMAGES.dtype)).clamp(0, 1)
    torch.testing.assert_close(defense.purify(IMAGES, noise), 0.5 + share * (start - 0.5), rtol=0, atol=1e-9)


def bumpy() -> dp.Denoiser:
    """A mixture, whose score bends."""
    return mixture_around(pictures(5, 1))


@torch.no_grad()
def purified_alone(denoiser: dp.Denoiser, start: Tensor, sigma: float, rate: float, steps: int) -> Tensor:
    """One image by the released code's algorithm, in floats."""
    state = start
    for _ in range(steps):
        score = (denoiser(state[None], sigma)[0] - state) / sigma**2
        further = state + 1e-3 * score
        other = (denoiser(further[None], sigma)[0] - further) / sigma**2
        z = float((score * other).sum() / (score * score).sum())
        step = min(max(rate * 1e-3 / (1 - z), 1e-5), 0.1)
        if step <= 1e-3:
            break
        state = (state + step * score).clamp(0, 1)
    return state


@pytest.mark.parametrize("rate", [0.01575, 0.05])
def test_each_image_stops_by_itself(rate: float) -> None:
    denoiser, noise = bumpy(), noise_of(3)
    defense = dp.ADP(denoiser, linear_classifier(), score_sigma=0.2, steps=6, rate=rate)
    found = defense.purify(IMAGES, noise)
    start = (IMAGES + 0.25 * noise.normal(IMAGES.shape[1:], 0, IMAGES.dtype)).clamp(0, 1)
    alone = torch.stack([purified_alone(denoiser, one, 0.2, rate, 6) for one in start])
    torch.testing.assert_close(found, alone.detach(), rtol=0, atol=1e-9)
    moved = (found - start).abs().flatten(1).amax(1) > 0
    # With the smaller rate some images move and others do not.
    assert moved.any()
    assert bool(moved.all()) == (rate == 0.05)


def test_logits_are_the_mean_over_purifications() -> None:
    classifier = linear_classifier()
    defense = dp.ADP(bumpy(), classifier, score_sigma=0.2, steps=2, samples=3)
    noise = noise_of(3)
    single = [
        classifier(defense.purify(IMAGES, noise.rows(torch.arange(3), torch.full((3,), vote))))
        for vote in range(3)
    ]
    torch.testing.assert_close(defense(IMAGES, noise), torch.stack(single).mean(0))
    assert not torch.allclose(single[0], single[1])
    assert torch.equal(defense.predict_labels(IMAGES, noise, 1), torch.stack(single).mean(0).argmax(1))
    assert defense.images_at_once(7) == 2
    assert defense.random
    assert not dp.ADP(ToyDenoiser(), classifier, sigma=0.0).random


def test_gradients_are_exact_and_bpda_takes_every_purification() -> None:
    defense = dp.ADP(bumpy(), linear_classifier(), score_sigma=0.2, steps=3, samples=2)
    noise = noise_of(3)
    # Away from 0 and 1, where pixels are clipped.
    images = (0.3 + 0.4 * IMAGES).requires_grad_()

    def loss(point: Tensor) -> Tensor:
        logits: Tensor = defense(point, noise)
        return logits.log_softmax(1)[:, 0].sum()

    (gradient,) = torch.autograd.grad(loss(images), images)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        along = torch.randn(images.shape, dtype=images.dtype, generator=generator)
        with torch.no_grad():
            slope = (loss(images + 1e-6 * along) - loss(images - 1e-6 * along)) / 2e-6
        assert float((gradient * along).sum()) == pytest.approx(float(slope), rel=1e-5)
    assert all(one.grad is None for one in defense.parameters())
    view = dp.AttackedDefense(defense, "bpda")
    torch.testing.assert_close(view(images, noise), defense(images, noise))
    (through,) = torch.autograd.grad(view(images, noise)[:, 0].sum(), images)
    # A linear classifier has the same gradient at each purified image.
    leaf = images.detach().requires_grad_()
    (plain,) = torch.autograd.grad(defense.classifier(leaf)[:, 0].sum(), leaf)
    torch.testing.assert_close(through, plain)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": -0.1}, "sigma: expected"),
        ({"score_sigma": 0.0}, "score_sigma: expected"),
        ({"score_sigma": 1e9}, "sigma: expected"),
        ({"steps": 0}, "steps: expected an integer ≥ 1"),
        ({"rate": float("nan")}, "rate: expected"),
        ({"samples": 2**20}, "samples: expected"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        dp.ADP(ToyDenoiser(), linear_classifier(), **settings)  # type: ignore[arg-type]
