"""SBGC against exact likelihoods of Gaussian mixtures."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor

import diffproof as dp
from helpers.denoisers import ToyDenoiser
from helpers.images import SHAPE, pictures
from helpers.noise import noise_of
from helpers.tensors import random

pytestmark = pytest.mark.usefixtures("small_digits")

# σ of the times 1e-5 and 1 of the papers' VP-SDE.
LOW, HIGH = 5.002488e-4, 76.0835


def exact(denoiser: dp.GaussianMixtureDenoiser, images: Tensor) -> Tensor:
    """log p(x|y) of images under noise of the lowest level, N×classes."""
    assert denoiser.labels is not None
    rows, weights = images.flatten(1), denoiser.log_weights.exp()
    columns = []
    for label in range(int(denoiser.labels.max()) + 1):
        parts = []
        for part in (denoiser.labels == label).nonzero()[:, 0]:
            axes = denoiser.axes[part]
            covariance = axes @ torch.diag(denoiser.variances[part] + LOW**2) @ axes.T
            density = multivariate_normal(denoiser.means[part].numpy(), covariance.numpy())
            parts.append(torch.as_tensor(density.logpdf(rows.numpy())).reshape(-1) + weights[part].log())
        share = weights[denoiser.labels == label].sum().log()
        columns.append(torch.stack(parts).logsumexp(0) - share)
    return torch.stack(columns, 1)


def one_pixel(*means: float) -> dp.GaussianMixtureDenoiser:
    """Of one pixel a Rademacher vector gives the trace itself, of any density."""
    variances = torch.tensor([0.01, 0.02, 0.01, 0.03, 0.03], dtype=torch.float64)
    return dp.GaussianMixtureDenoiser(
        torch.tensor(means or (0.2, 0.5, 0.8, 0.4, 0.6), dtype=torch.float64).reshape(5, 1, 1, 1),
        variances,
        [0.1, 0.3, 0.1, 0.25, 0.25],
        component_labels=[0, 0, 0, 1, 1],
    )


@pytest.mark.slow
def test_the_likelihood_of_a_mixture_of_one_pixel() -> None:
    denoiser, images = one_pixel(), torch.linspace(0, 1, 9, dtype=torch.float64).reshape(9, 1, 1, 1)
    errors = []
    for steps in (15, 30, 60):
        found = dp.SBGC(denoiser, steps=steps).log_likelihoods(images, noise_of(9))
        errors.append(float((found - exact(denoiser, images)).abs().max()))
    # Fourth order: a sixteenth at half the step, down to what the Gaussian at the end is off by.
    assert errors[0] / errors[1] > 8
    assert errors[2] < 1e-3
    # A mean other than ½ is that much off the Gaussian, of deviation 76: some (0.2/76)·z.
    aside = one_pixel(0.4, 0.7, 1.0, 0.2, 0.4)
    found = dp.SBGC(aside).log_likelihoods(images, noise_of(9))
    torch.testing.assert_close(found, exact(aside, images), rtol=0, atol=0.05)


@pytest.mark.slow
def test_round_classes_have_no_error_of_the_estimate() -> None:
    means, variances = torch.full((3, *SHAPE), 0.5), torch.tensor([0.01, 0.04, 0.25], dtype=torch.float64)
    denoiser = dp.GaussianMixtureDenoiser(means, variances, component_labels=[0, 1, 2])
    images = pictures(2)
    found = dp.SBGC(denoiser, steps=80).log_likelihoods(images, noise_of(2))
    expected = exact(denoiser, images)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=5e-3)
    logits = dp.SBGC(denoiser, steps=80, temperature=5.0)(images, noise_of(2))
    torch.testing.assert_close(logits, found / 5)


def test_the_estimate_is_the_likelihood_in_the_mean() -> None:
    # Correlated pixels, whose trace an estimate misses by its off-diagonal part.
    root = 0.3 * random(2, 4, 4, seed=3)
    denoiser = dp.GaussianMixtureDenoiser(
        pictures(2, 5, (1, 2, 2)), root @ root.mT + 0.01 * torch.eye(4), component_labels=[0, 1]
    )
    image, draws = pictures(1, 6, (1, 2, 2)), 400
    found = dp.SBGC(denoiser, steps=30).log_likelihoods(image.expand(draws, -1, -1, -1), noise_of(draws))
    error = found.mean(0) - exact(denoiser, image)[0]
    spread = found.std(0) / draws**0.5
    assert bool((spread > 0.01).all())
    # Five standard errors: one in a million; the rest is of the solver.
    assert bool((error.abs() < 5 * spread + 1e-3).all())


def test_classes_share_the_estimate_and_rows_do_not() -> None:
    root = 0.3 * random(1, 4, 4, seed=3)
    covariance = (root @ root.mT + 0.01 * torch.eye(4)).expand(2, 4, 4)
    same = pictures(1, 5, (1, 2, 2)).expand(2, -1, -1, -1)
    defense = dp.SBGC(dp.GaussianMixtureDenoiser(same, covariance, component_labels=[0, 1]), steps=5)
    image = pictures(1, 6, (1, 2, 2)).expand(12, -1, -1, -1)
    found = defense(image, noise_of(12))
    torch.testing.assert_close(found[:, 0], found[:, 1])
    assert len(found[:, 0].unique()) > 1
    assert torch.equal(defense(image, noise_of(12)), found)
    torch.testing.assert_close(defense(image[3:5], noise_of(2, first=3)), found[3:5])


def test_gradients_are_exact() -> None:
    denoiser = dp.GaussianMixtureDenoiser(
        pictures(4, 7, (1, 2, 2)), torch.full((4,), 0.02), component_labels=[0, 0, 1, 1]
    )
    defense, noise = dp.SBGC(denoiser, steps=6), noise_of(2)
    images = (0.2 + 0.6 * pictures(2, 8, (1, 2, 2))).requires_grad_()

    def loss(point: Tensor) -> Tensor:
        logits: Tensor = defense(point, noise)
        return (logits * torch.tensor([1.0, -0.5])).sum()

    value = loss(images)
    (gradient,) = torch.autograd.grad(value, images)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        along = torch.randn(images.shape, dtype=images.dtype, generator=generator)
        with torch.no_grad():
            slope = (loss(images + 1e-6 * along) - loss(images - 1e-6 * along)) / 2e-6
            assert torch.equal(loss(images), value.detach())
        assert float((gradient * along).sum()) == pytest.approx(float(slope), rel=1e-6)


def test_levels_are_those_that_the_denoiser_knows() -> None:
    low, *inner, high = dp.SBGC(one_pixel(), steps=4).levels()
    assert low == pytest.approx(LOW, rel=1e-4)
    assert high == pytest.approx(HIGH, rel=1e-4)
    ratios = [after / before for before, after in zip([low, *inner], [*inner, high], strict=True)]
    assert ratios == pytest.approx([ratios[0]] * 4)
    digits = dp.load_denoiser("digits")
    low, high = dp.SBGC(digits, steps=1).levels()
    assert low == digits.sigma_min > LOW
    assert high == pytest.approx(HIGH, rel=1e-4)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^denoiser: expected a class-conditional one"):
        dp.SBGC(ToyDenoiser())
    with pytest.raises(ValueError, match=r"^steps: expected an integer ≥ 1"):
        dp.SBGC(one_pixel(), steps=0)
    with pytest.raises(ValueError, match=r"^temperature: expected"):
        dp.SBGC(one_pixel(), temperature=0.0)
    grid = torch.tensor([80.0, 90.0], dtype=torch.float64)
    coarse = dp.GaussianMixtureDenoiser(pictures(1), torch.tensor([0.1]), component_labels=[0], sigmas=grid)
    with pytest.raises(ValueError, match=r"^denoiser: expected one of noise levels below"):
        dp.SBGC(coarse)


@pytest.mark.usefixtures("packaged_digits")
@pytest.mark.slow
def test_digits_are_classified_and_attacked() -> None:
    images, labels = dp.load_data("digits", split="test", indices="0:5")
    defense = dp.load_defense("sbgc:steps=8", denoiser=dp.load_denoiser("digits"))
    assert int((defense.predict_labels(images, noise_of(5)) == labels).sum()) >= 4
    (found,) = dp.attack(
        defense, images[:1], labels[:1], attack="pgd:iterations=1", threat="linf", budget=0.2, seed=1
    )
    assert found.norm <= 0.2 + 1e-6
