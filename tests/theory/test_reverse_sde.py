"""The reverse process with an exact denoiser tends to the posterior: order, leading constant, simulation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from diffproof.noise import Noise, Stream
from diffproof.reverse.sampling import posterior_sample
from diffproof.reverse.solvers import Solver
from diffproof.theory.densities import GaussianMixture
from diffproof.theory.divergences import chain_law
from diffproof.theory.reverse_sde import (
    Distance,
    GaussianLaw,
    affine_chain_law,
    convergence,
    even_sigmas,
    gaussian_kl,
    order,
)
from helpers.tensors import seeded

MIXTURE = GaussianMixture(
    torch.tensor([[-1.0], [0.2], [1.0]]).double(), torch.tensor([0.1, 0.3, 0.2]).double(), [0.3, 0.3, 0.4]
)
START = torch.tensor([0.1], dtype=torch.float64)


def gaussian(seed: int, dimension: int) -> tuple[GaussianMixture, Tensor, Tensor]:
    """A Gaussian with its eigenvalues, log-uniform in [1, 8], and a start for sigma near 1."""
    generator = seeded(seed)
    normal = torch.randn(dimension, dimension + 2, dtype=torch.float64, generator=generator)
    basis = torch.linalg.qr(normal[:, 2:]).Q
    low, high = math.log(1.0), math.log(8.0)
    values = (low + (high - low) * torch.rand(dimension, dtype=torch.float64, generator=generator)).exp()
    return GaussianMixture(normal[None, :, 0], (basis * values @ basis.T)[None]), values, 2 * normal[:, 1]


@pytest.mark.slow
def test_order_two_and_its_constant() -> None:
    """A Gaussian of each of 1 to 64 dimensions against the leading term of KL·n², derived by hand.

    A step from level u to u − du lacks du²/u²·λu/(λ + u) of variance, of which the rest of the process
    passes on (λ/(λ + u))². With levels even in s = √u, du = 2s·sigma/n, and the sum tends to
    (4·sigma/n)·∫λ³/(λ + s²)³ ds over [0, sigma]: a share e of the posterior variance
    λ·sigma²/(λ + sigma²), and KL is e²/4 an axis.
    """
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(40))
    for seed in range(0, 64, 3):
        dimension = 1 + seed * 37 % 64
        density, values, noisy = gaussian(seed, dimension)
        sigma = 0.4 + 0.6 * float(torch.rand(1, generator=seeded(seed)))
        counts = (6, 12, 24)
        distances = convergence(density, noisy, sigma, counts)
        assert [d.steps for d in distances] == list(counts)
        assert 1.7 < order(distances) < 2.3
        levels = sigma * (nodes + 1) / 2
        integral = (values[:, None] ** 3 / (values[:, None] + levels**2) ** 3) @ weights * sigma / 2
        excess = 4 * sigma * integral * (values + sigma**2) / (values * sigma**2)
        # √KL·n² is this times n, and a multiple of log n (the last steps, where s is no wider than a step),
        # and a constant; the second difference of doubled n leaves the first.
        first, second, third = (math.sqrt(d.kl) * d.steps**2 for d in distances)
        constant = (third - 2 * second + first) / counts[0]
        assert constant == pytest.approx(math.sqrt(float(excess.square().sum()) / 4), rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [Solver.DDPM, Solver.SDE])
def test_mixtures_have_the_order_of_gaussians(solver: Solver) -> None:
    distances = convergence(MIXTURE, START, 0.6, [24, 48, 96], solver)
    assert 1.75 < order(distances) < 2.2
    assert distances[-1].kl < 2e-3


def test_euler_maruyama_has_order_two_too() -> None:
    density, _, noisy = gaussian(3, 6)
    assert 1.8 < order(convergence(density, noisy, 0.8, [32, 64, 128], Solver.SDE)) < 2.2


@pytest.mark.parametrize("solver", [Solver.DDPM, Solver.SDE])
def test_grid_and_recursion_agree_on_a_gaussian(solver: Solver) -> None:
    density = GaussianMixture(torch.tensor([[0.3]]).double(), torch.tensor([0.7]).double())
    levels = even_sigmas(0.9, 12)
    mean, covariance = affine_chain_law(density.denoiser(), START, levels, solver)
    law = chain_law(density.denoiser(), float(START), levels, solver)
    expected = stats.norm.pdf(law.points.numpy(), float(mean), math.sqrt(float(covariance)))
    torch.testing.assert_close(law.density, torch.from_numpy(expected), rtol=0, atol=1e-12)
    # Split into two equal halves it is a mixture for the code, and the same distribution.
    halves = GaussianMixture(torch.full((2, 1), 0.3).double(), torch.full((2,), 0.7).double())
    for one, two in zip(
        *(convergence(d, START, 0.9, [1, 5, 12], solver) for d in (density, halves)), strict=True
    ):
        assert two.steps == one.steps
        assert two.kl == pytest.approx(one.kl, rel=1e-7)


def test_the_mean_is_exact_and_the_variance_too_small() -> None:
    density, _, noisy = gaussian(5, 8)
    posterior = density.posterior(noisy, 0.7)
    for steps in (1, 2, 7):
        law = affine_chain_law(density.denoiser(), noisy, [*even_sigmas(0.7, steps), 0.0])
        torch.testing.assert_close(law.mean, posterior.means[0], rtol=0, atol=1e-12)
        assert float(torch.linalg.eigvalsh(posterior.covariances[0] - law.covariance).min()) > 0
    assert convergence(density, noisy, 0.7, [1]) == [Distance(1, math.inf)]


def draws(count: int) -> Noise:
    return Noise.for_draws(11, Stream.ESTIMATION, 0, 0, count)


def test_the_recursion_is_the_law_of_posterior_sample() -> None:
    """20,000 samples of the real process: mean and covariance; false alarm 2e-6.

    Whitened by the law's covariance, each of 3 means and 6 products is normal with a known variance.
    """
    count, levels = 20_000, even_sigmas(0.8, 5)
    density, _, noisy = gaussian(7, 3)
    law = affine_chain_law(density.denoiser(), noisy, [*levels, 0.0])
    start = noisy.expand(count, 3).reshape(count, 1, 1, 3)
    samples = posterior_sample(density.denoiser(), start, levels, draws(count), clip=False).flatten(1)
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(law.covariance), (samples - law.mean).T, upper=False
    )
    scores = [float(axis.sum()) / math.sqrt(count) for axis in white]
    for i, j in itertools.combinations_with_replacement(range(3), 2):
        variance = 2.0 if i == j else 1.0
        scores.append(float((white[i] * white[j] - float(i == j)).sum()) / math.sqrt(count * variance))
    assert max(abs(score) for score in scores) < 5.2


def test_the_grid_is_the_law_of_posterior_sample() -> None:
    """20,000 samples of a mixture's process by Kolmogorov and Smirnov's test; false alarm 1e-6."""
    count, levels = 20_000, even_sigmas(0.8, 6)
    denoiser = MIXTURE.denoiser()
    law = chain_law(denoiser, float(START), levels)
    samples = posterior_sample(denoiser, START.expand(count, 1, 1, 1), levels, draws(count), clip=False)
    # The last step is the denoiser, which rises: the place of its values is that of the points before.
    ends = denoiser(law.points.reshape(-1, 1, 1, 1), levels[-1]).flatten()
    below = (law.density.cumsum(0) - law.density / 2) * law.spacing
    shares = np.interp(samples.flatten().numpy(), ends.numpy(), below.numpy())
    assert stats.kstest(shares, "uniform").pvalue > 1e-6


def test_the_divergence_of_gaussians() -> None:
    generator = seeded(9)
    roots = torch.randn(2, 5, 5, dtype=torch.float64, generator=generator)
    first, second = (
        GaussianLaw(torch.randn(5, dtype=torch.float64, generator=generator), root @ root.T + torch.eye(5))
        for root in roots
    )
    expected = torch.distributions.kl_divergence(
        *(torch.distributions.MultivariateNormal(*law) for law in (first, second))
    )
    assert gaussian_kl(first, second) == pytest.approx(float(expected), rel=1e-10)
    # e²/4 an axis for variances in the ratio 1 + e, far below where the usual formula loses all digits.
    near = GaussianLaw(first.mean, first.covariance * (1 + 1e-8))
    assert gaussian_kl(near, first) == pytest.approx(5 * 1e-16 / 4, rel=1e-4)


def test_order() -> None:
    assert order([Distance(n, 3.0 / n**1.7) for n in (4, 10, 50)]) == pytest.approx(1.7)


PLANE = GaussianMixture(torch.tensor([[0.0, 0.0], [1.0, 1.0]]).double(), torch.ones(2).double())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: convergence(PLANE, torch.zeros(2), 0.5, [4]),
            "density: expected one Gaussian or a mixture in one dimension, got 2 components in 2 dimensions",
        ),
        (lambda: convergence(MIXTURE, START, 0.5, [4], Solver.ODE), "solver: expected ddpm or sde, got ode"),
        (lambda: convergence(MIXTURE, START, 0.5, [0]), "steps: expected an integer ≥ 1, got 0"),
        (lambda: convergence(MIXTURE, START, -0.5, [4]), "sigma: expected"),
        (lambda: convergence(MIXTURE, torch.zeros(2), 0.5, [4]), "noisy: expected"),
        (lambda: even_sigmas(math.inf, 3), "sigma: expected a finite number > 0, got inf"),
        (
            lambda: affine_chain_law(PLANE.denoiser(), torch.ones(2), [0.5, 0.2]),
            "denoiser: expected one that is affine in x, got another at sigma = 0.5",
        ),
        (lambda: affine_chain_law(MIXTURE.denoiser(), START, [0.5]), "sigmas: expected at least two"),
        (lambda: order([Distance(4, 0.1)]), "distances: expected at least two, got 1"),
        (lambda: order([Distance(1, math.inf), Distance(2, 0.1)]), "distances: expected a finite number > 0"),
        (lambda: order([Distance(1, -1e-13), Distance(2, 0.1)]), "got -1e-13, as where rounding hides them"),
    ],
)
def test_bad_arguments(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
