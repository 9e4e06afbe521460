"""The optimal diffusion classifier (Chen et al. 2023, Theorem 3.2 and Corollary 3.3): DC of a data set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import diffproof as dp
from diffproof.defenses.diffusion_classifier.classifier import DiffusionClassifier
from diffproof.defenses.diffusion_classifier.loss import CLASSIFIER_VOTE
from diffproof.defenses.undefended import Undefended
from diffproof.noise import Noise
from helpers.noise import noise_of_images

# ᾱ of every fiftieth timestep of the linear schedule of Ho et al. (2020).
BARS = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[19::50]
SIGMAS = ((1 - BARS) / BARS).sqrt() / 2


def held(each: int, classes: int = 10) -> tuple[Tensor, Tensor]:
    """The first training digits of each of the first classes."""
    images, labels = dp.load_data("digits", split="train")
    index = torch.cat([(labels == k).nonzero()[:each, 0] for k in range(classes)])
    return images[index], labels[index]


def corollary(images: Tensor, data: Tensor, labels: Tensor, noise: Noise, samples: int) -> Tensor:
    """−E[α_t/σ_t²·‖Σ_i s_i·(x − x_i)‖²] in the paper's coordinates, one number at a time."""
    row = torch.arange(len(images))
    own = noise.rows(row, torch.full_like(row, CLASSIFIER_VOTE))
    logits = torch.zeros(len(images), int(labels.max()) + 1, dtype=torch.float64)
    for t, bar in enumerate(BARS):
        for sample in range(samples):
            draw = own.normal(images.shape[1:], t * samples + sample, torch.float64)
            for n, image in enumerate(images):
                x = 2 * image.flatten() - 1
                x_t = bar.sqrt() * x + (1 - bar).sqrt() * draw[n].flatten()
                for label in range(logits.shape[1]):
                    x_i = 2 * data[labels == label].flatten(1) - 1
                    s = torch.softmax(-(x_t - bar.sqrt() * x_i).square().sum(1) / (2 * (1 - bar)), dim=0)
                    mean = (s[:, None] * (x - x_i)).sum(0)
                    logits[n, label] -= bar / (1 - bar) * mean.square().sum() / (len(BARS) * samples)
    return logits


@pytest.mark.slow
@pytest.mark.parametrize("samples", [1, 2])
def test_the_formula(samples: int) -> None:
    data, labels = (part.double() if part.is_floating_point() else part for part in held(3, 4))
    classifier = DiffusionClassifier(dp.EmpiricalDenoiser(data, labels, sigmas=SIGMAS), samples=samples)
    images = dp.load_data("digits", indices="0:3").images.double()
    noise = noise_of_images(3, 5)
    expected = corollary(images, data, labels, noise, samples)
    assert float(expected.std()) > 1.0
    torch.testing.assert_close(classifier(images, noise), expected, rtol=1e-10, atol=1e-10)


def test_the_mixture_of_points_is_the_same_classifier() -> None:
    data, labels = held(2)
    points = dp.GaussianMixtureDenoiser(
        data.double(), torch.zeros(20), component_labels=labels.tolist(), sigmas=SIGMAS
    )
    narrow = dp.GaussianMixtureDenoiser(
        data.double(), torch.full((20,), 1e-9), component_labels=labels.tolist(), sigmas=SIGMAS
    )
    images, noise = dp.load_data("digits", indices="0:3").images.double(), noise_of_images(3, 5)
    empirical = dp.EmpiricalDenoiser(data.double(), labels, sigmas=SIGMAS)
    logits, exact, near = (
        DiffusionClassifier(one, timesteps="uniform:5")(images, noise) for one in (empirical, points, narrow)
    )
    torch.testing.assert_close(logits, exact, rtol=1e-9, atol=1e-9)
    # Points of variance v move the posterior means by v/(v + sigma²) < 1e-6.
    assert 0 < float(((near - exact) / exact).abs().max()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("budget", [8 / 255, 0.17])
def test_what_it_holds_is_robust(budget: float) -> None:
    """100% of its own examples under exact gradients, as in the paper, where a network is left with none."""
    images, labels = held(2, 4)
    denoiser = dp.EmpiricalDenoiser(images, labels, sigmas=SIGMAS)
    classifier = DiffusionClassifier(denoiser, timesteps="uniform:4")
    # The margin: cross-entropy is flat to the last bit where logits are hundreds apart.
    attack = dp.load_attack("pgd", iterations=10, loss="margin")
    results = dp.attack(classifier, images, labels, attack=attack, threat="linf", budget=budget)
    assert [one.zero_gradients for one in results] == [0.0] * 8
    assert [one.success for one in results] == [False] * 8
    if budget > 0.1:
        network = Undefended(dp.load_classifier("digits"))
        plain = dp.attack(network, images, labels, attack=attack, threat="linf", budget=budget)
        assert [one.success for one in plain] == [True] * 8


@pytest.mark.slow
def test_what_it_holds_can_be_lost_in_the_end() -> None:
    """The attack finds what there is: half way to a held image of another class the label changes."""
    images, labels = held(1, 4)
    classifier = DiffusionClassifier(
        dp.EmpiricalDenoiser(images, labels, sigmas=SIGMAS), timesteps="uniform:4"
    )
    attack = dp.load_attack("pgd", iterations=20, loss="margin")
    results = dp.attack(classifier, images, labels, attack=attack, threat="linf", budget=0.6)
    assert all(one.success for one in results)
