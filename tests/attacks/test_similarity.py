"""The randomness of gradients against closed forms and a plain loop over pairs."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from scipy.special import gamma, hyp1f1
from torch import Tensor, nn

import diffproof as dp
from diffproof.noise import Noise, Stream
from helpers.defenses import JitteryGradient
from helpers.images import pictures

SHAPE = (1, 2, 3)
SIZE = math.prod(SHAPE)
MEAN = torch.tensor([0.5, -1.0, 0.25, 2.0, 0.0, 1.0], dtype=torch.float64).reshape(SHAPE)


def jittery(spread: float, mean: Tensor = MEAN) -> JitteryGradient:
    return JitteryGradient(spread, mean)


def similarity(defense: dp.Defense | dp.AttackedDefense, number: int, **settings: Any) -> Tensor:
    labels = torch.ones(number, dtype=torch.int64)
    return dp.gradient_similarity(
        defense, pictures(number, 1, SHAPE), labels, **{"loss": "margin", **settings}
    )


@pytest.mark.parametrize(("spread", "eot"), [(0.3, 1), (1.0, 1), (5.0, 1), (5.0, 6)])
def test_normal_gradients_have_the_closed_form(spread: float, eot: int) -> None:
    # Unit vectors of N(g, s²·I) have the mean resultant length ρ (Presnell & Rumcheva 2008), and the cosine
    # of two independent ones the mean ρ².
    # A mean of `eot` draws has a standard deviation smaller by their root.
    kappa = float(MEAN.norm()) / spread * math.sqrt(eot)
    rho = gamma((SIZE + 1) / 2) / gamma(SIZE / 2 + 1) * kappa / math.sqrt(2)
    rho *= hyp1f1(0.5, SIZE / 2 + 1, -(kappa**2) / 2)
    found = similarity(jittery(spread), 400, repeats=4, eot=eot, batch_size=400)
    # The means of 400 images are independent; a false alarm at 5 standard errors has a rate of 6e-7.
    assert abs(float(found.mean()) - rho**2) < 5 * float(found.std()) / 20
    assert float(found.std()) > 0.003


def test_pairs_one_by_one() -> None:
    defense = jittery(1.0)
    found = similarity(defense, 3, repeats=5, seed=4, image_indices=[7, 0, 2])
    for row, index in enumerate([7, 0, 2]):
        noise = Noise.for_draws(4, Stream.ATTACK, index, 0, 5)
        slopes = (MEAN + noise.normal(SHAPE, 0, torch.float64)).flatten(1)
        cosines = [torch.cosine_similarity(a, b, dim=0) for a, b in itertools.combinations(slopes, 2)]
        torch.testing.assert_close(found[row], torch.stack(cosines).mean(), rtol=1e-12, atol=0)


def test_without_noise_it_is_one() -> None:
    torch.testing.assert_close(similarity(jittery(0.0), 4), torch.ones(4, dtype=torch.float64))


def test_a_zero_gradient_has_no_direction() -> None:
    assert bool(similarity(jittery(0.0, torch.zeros(SHAPE)), 2).isnan().all())


def test_batches_change_nothing() -> None:
    whole, split = (similarity(jittery(1.0), 5, batch_size=size) for size in (64, 2))
    torch.testing.assert_close(whole, split, rtol=1e-12, atol=0)


def test_it_is_that_of_the_gradient_that_the_attack_gets() -> None:
    # Blind to the noise of the purification, the classifier's gradient is the same each time.
    means = torch.rand(2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(0)
    classifier = dp.Classifier(nn.Sequential(nn.Flatten(), nn.Linear(SIZE, 2).double(), nn.Tanh()), 2)
    denoiser = dp.GaussianMixtureDenoiser(means, torch.full((2,), 0.02))
    defense = dp.DiffPure(denoiser, classifier, t_star=0.1, steps=2)
    blind = similarity(dp.AttackedDefense(defense, "blind"), 2, repeats=3)
    torch.testing.assert_close(blind, torch.ones(2, dtype=torch.float64))
    assert bool((similarity(defense, 2, repeats=3) < 0.999).all())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repeats": 1}, "repeats: expected an integer ≥ 2, got 1"),
        ({"loss": "cw"}, "loss: expected one of ce, dlr, margin, got 'cw'"),
        ({"batch_size": 0}, "batch_size: expected an integer ≥ 1, got 0"),
        ({"image_indices": [0]}, r"image_indices: expected 2 numbers in \[0, 2\^28\), got \[0\]"),
    ],
)
def test_refusals(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        similarity(jittery(1.0), 2, **settings)
