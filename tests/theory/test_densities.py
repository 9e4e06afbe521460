"""Exact densities: Theorem 3.1 scores, posteriors, samplers and diffusion against truth."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from diffproof.theory.densities import Density, GaussianMixture
from diffproof.theory.finite_support import FiniteSupport
from helpers.tensors import normal

INSTANCES = 200


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    return float(torch.empty(1, dtype=torch.float64).uniform_(low, high, generator=generator))


def simplex(generator: torch.Generator, count: int) -> Tensor:
    weights = 0.05 + torch.rand(count, dtype=torch.float64, generator=generator)
    return weights / weights.sum()


def spd(generator: torch.Generator, count: int, dimension: int) -> Tensor:
    roots = normal(generator, count, dimension, dimension) / math.sqrt(dimension)
    return roots @ roots.mT + 0.05 * torch.eye(dimension, dtype=torch.float64)


def labels_in_turn(count: int) -> Tensor:
    return torch.arange(count) % min(count, 3)


def mixture_with_covariances(
    seed: int, dimension: int | None = None
) -> tuple[GaussianMixture, Tensor, torch.Generator]:
    """A random mixture, isotropic for even seeds, its covariances as matrices, and a generator."""
    generator = torch.Generator().manual_seed(seed)
    if dimension is None:
        dimension = int(torch.randint(1, 65, (1,), generator=generator))
    count = 1 + int(torch.randint(0, 5, (1,), generator=generator))
    means, weights = 2 * normal(generator, count, dimension), simplex(generator, count)
    if seed % 2:
        covariances = spd(generator, count, dimension)
        return GaussianMixture(means, covariances, weights, labels_in_turn(count)), covariances, generator
    variances = 0.1 + torch.rand(count, dtype=torch.float64, generator=generator)
    matrices = variances[:, None, None] * torch.eye(dimension, dtype=torch.float64)
    return GaussianMixture(means, variances, weights, labels_in_turn(count)), matrices, generator


def support(seed: int, dimension: int | None = None) -> tuple[FiniteSupport, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    if dimension is None:
        dimension = int(torch.randint(1, 65, (1,), generator=generator))
    count = 1 + int(torch.randint(0, 12, (1,), generator=generator))
    points, weights = normal(generator, count, dimension), simplex(generator, count)
    return FiniteSupport(points, weights, labels_in_turn(count)), generator


def component_logs(means: Tensor, covariances: Tensor, points: Tensor) -> Tensor:
    """Log densities N×K by Cholesky factors, where the code under test has eigenvalues or distances."""
    components = torch.distributions.MultivariateNormal(means, covariances, validate_args=False)
    return torch.as_tensor(components.log_prob(points[:, None]))


def reference_log_density(density: GaussianMixture, covariances: Tensor, points: Tensor) -> Tensor:
    return torch.logsumexp(component_logs(density.means, covariances, points) + density.log_weights, dim=1)


@pytest.mark.slow
def test_the_density_and_the_diffused_density_are_those_of_cholesky_factors() -> None:
    for seed in range(INSTANCES):
        density, covariances, generator = mixture_with_covariances(seed)
        points = 2 * normal(generator, 3, density.dimension)
        expected = reference_log_density(density, covariances, points)
        torch.testing.assert_close(density.log_density(points), expected, rtol=1e-10, atol=1e-9)
        sigma = uniform(generator, 0.05, 3)
        wider = covariances + sigma**2 * torch.eye(density.dimension, dtype=torch.float64)
        expected = reference_log_density(density, wider, points)
        torch.testing.assert_close(
            density.diffused(sigma).log_density(points), expected, rtol=1e-10, atol=1e-9
        )


@pytest.mark.slow
@pytest.mark.parametrize("paper", [False, True])
def test_theorem_3_1_for_mixtures(paper: bool) -> None:
    """Differences of the log posterior are those of log p(x) plus the Gaussian log likelihood."""
    for seed in range(INSTANCES):
        density, covariances, generator = mixture_with_covariances(seed)
        points = 2 * normal(generator, 6, density.dimension)
        alpha = uniform(generator, 0.05, 0.99)
        sigma = math.sqrt((1 - alpha) / alpha)
        noisy = points[0] + sigma * normal(generator, density.dimension)
        if paper:
            # q(x_t | x0 = x) = N(√α·x, (1 − α)·I) at x_t = √α·x_a.
            likelihood = -(math.sqrt(alpha) * (noisy - points)).square().sum(1) / (2 * (1 - alpha))
        else:
            likelihood = -(noisy - points).square().sum(1) / (2 * sigma**2)
        joint = reference_log_density(density, covariances, points) + likelihood
        log_posterior = density.posterior(noisy, sigma).log_density(points)
        torch.testing.assert_close(
            log_posterior - log_posterior[0], joint - joint[0], rtol=1e-8, atol=1e-8, msg=f"seed {seed}"
        )


@pytest.mark.parametrize("paper", [False, True])
def test_theorem_3_1_for_finite_supports(paper: bool) -> None:
    for seed in range(INSTANCES):
        density, generator = support(seed)
        alpha = uniform(generator, 0.05, 0.99)
        sigma = math.sqrt((1 - alpha) / alpha)
        noisy = density.points[0] + sigma * normal(generator, density.dimension)
        scale, variance = (math.sqrt(alpha), 1 - alpha) if paper else (1.0, sigma**2)
        joint = density.log_weights - (scale * (noisy - density.points)).square().sum(1) / (2 * variance)
        expected = torch.exp(joint - joint.max())
        posterior = density.posterior(noisy, sigma)
        torch.testing.assert_close(
            posterior.log_weights.exp(), expected / expected.sum(), rtol=1e-10, atol=1e-14
        )
        assert torch.equal(posterior.points, density.points)


@pytest.mark.slow
def test_the_posterior_of_one_dimension_is_bayes_rule_by_quadrature() -> None:
    """Mass 1, mean and variance of p(x)·N(x_a; x, σ²) integrated by scipy, and Bayes' denominator is p_t."""
    for seed in range(INSTANCES):
        density, _, generator = mixture_with_covariances(seed, 1)
        sigma = uniform(generator, 0.1, 2)
        noisy = 2 * normal(generator, 1)
        posterior = density.posterior(noisy, sigma)
        grid = torch.linspace(-25, 25, 4001, dtype=torch.float64)
        likelihood = torch.from_numpy(stats.norm.pdf(float(noisy), grid.numpy(), sigma))
        joint = (density.log_density(grid[:, None]).exp() * likelihood).numpy()
        evidence = integrate.simpson(joint, x=grid.numpy())
        assert evidence == pytest.approx(
            float(density.diffused(sigma).log_density(noisy[None]).exp()), rel=1e-8
        )
        curve = posterior.log_density(grid[:, None]).exp().numpy()
        assert integrate.simpson(curve, x=grid.numpy()) == pytest.approx(1, rel=1e-8)
        np.testing.assert_allclose(curve, joint / evidence, rtol=1e-7, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mixture", "support"])
def test_tweedie_score_posterior_mean_and_denoiser_agree(kind: str) -> None:
    for seed in range(INSTANCES):
        density: Density
        if kind == "mixture":
            density, _, generator = mixture_with_covariances(seed)
        else:
            density, generator = support(seed)
        sigma = uniform(generator, 0.1, 3)
        noisy = 2 * normal(generator, 3, density.dimension)
        tweedie = density.score(noisy, sigma) * sigma**2 + noisy
        image = noisy.reshape(3, 1, 1, -1)
        torch.testing.assert_close(density.denoiser()(image, sigma).flatten(1), tweedie, rtol=1e-9, atol=1e-9)
        for row, mean in zip(noisy, tweedie, strict=True):
            posterior = density.posterior(row, sigma)
            assert isinstance(posterior, GaussianMixture | FiniteSupport)
            places = posterior.means if isinstance(posterior, GaussianMixture) else posterior.points
            torch.testing.assert_close(posterior.log_weights.exp() @ places, mean, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_the_score_is_the_gradient_of_the_log_density() -> None:
    """Against automatic differentiation and central differences along a random direction."""
    for seed in range(INSTANCES):
        density, _, generator = mixture_with_covariances(seed)
        sigma = uniform(generator, 0.1, 3) if seed % 3 else 0.0
        diffused = density.diffused(sigma) if sigma else density
        points = (2 * normal(generator, 3, density.dimension)).requires_grad_()
        (gradient,) = torch.autograd.grad(diffused.log_density(points).sum(), points)
        score = density.score(points.detach(), sigma)
        torch.testing.assert_close(score, gradient, rtol=1e-9, atol=1e-9)
        step = 1e-5 * normal(generator, 3, density.dimension)
        ahead, behind = diffused.log_density(points + step), diffused.log_density(points - step)
        slope = (score * step).sum(1) / 1e-5
        torch.testing.assert_close((ahead - behind).detach() / 2e-5, slope, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_far_points_have_finite_scores_that_point_back() -> None:
    for seed in range(INSTANCES):
        density, _, generator = mixture_with_covariances(seed)
        sigma = uniform(generator, 0.1, 3)
        direction = torch.nn.functional.normalize(normal(generator, density.dimension), dim=0)
        scale = math.sqrt(float(density.variances.max()) + sigma**2)
        points = (1e3 * scale * direction)[None]
        score = density.score(points, sigma)
        assert torch.isfinite(score).all()
        assert torch.isfinite(density.posterior_classes(points, sigma)).all()
        assert float((score[0] * direction).sum()) < 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mixture", "support"])
def test_diffusion_is_convolution(kind: str) -> None:
    """In one dimension by scipy: the integral of p(x0)·N(x; x0, σ²), or the sum for a finite support."""
    for seed in range(INSTANCES):
        sigma = 0.1 + 0.01 * seed
        if kind == "mixture":
            density, _, generator = mixture_with_covariances(seed, 1)
            grid = np.linspace(-25, 25, 4001)
            values = density.log_density(torch.from_numpy(grid)[:, None]).exp().numpy()
            at = 2 * normal(generator, 1, 1)
            expected = integrate.simpson(values * stats.norm.pdf(float(at), grid, sigma), x=grid)
            got = density.diffused(sigma).log_density(at)
        else:
            finite, generator = support(seed, 1)
            at = 2 * normal(generator, 1, 1)
            kernel = stats.norm.pdf(float(at), finite.points[:, 0].numpy(), sigma)
            expected = (finite.log_weights.exp().numpy() * kernel).sum()
            got = finite.diffused(sigma).log_density(at)
        assert float(got.exp()) == pytest.approx(float(expected), rel=1e-7, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mixture", "support"])
def test_posterior_classes_are_bayes_rule_over_components(kind: str) -> None:
    for seed in range(INSTANCES):
        sigma = 0.1 + 0.01 * seed
        density: Density
        if kind == "mixture":
            density, covariances, generator = mixture_with_covariances(seed)
            centres = density.means
        else:
            density, generator = support(seed)
            centres = density.points
            covariances = torch.zeros(len(centres), density.dimension, density.dimension)
        noisy = centres[:1] + sigma * normal(generator, 2, density.dimension)
        wider = covariances + sigma**2 * torch.eye(density.dimension, dtype=torch.float64)
        logs = component_logs(centres, wider, noisy)
        shares = torch.softmax(logs + density.log_weights, dim=1)
        one_hot = torch.nn.functional.one_hot(density.check_labels()).double()
        got = density.posterior_classes(noisy, sigma)
        torch.testing.assert_close(got, shares @ one_hot, rtol=1e-8, atol=1e-10)


def directions_are_as_predicted(
    density: GaussianMixture, samples: Tensor, generator: torch.Generator
) -> float:
    """The least Kolmogorov-Smirnov p-value along three directions, whose laws are 1-D mixtures."""
    least = 1.0
    for _ in range(3):
        direction = torch.nn.functional.normalize(normal(generator, density.dimension), dim=0)
        matrices = density.covariances
        if matrices.ndim == 1:
            matrices = matrices[:, None, None] * torch.eye(density.dimension, dtype=torch.float64)
        deviations = torch.einsum("kde,d,e->k", matrices, direction, direction).sqrt().numpy()
        centres, weights = (density.means @ direction).numpy(), density.log_weights.exp().numpy()

        def law(x: np.ndarray, at: np.ndarray = centres, by: np.ndarray = deviations) -> np.ndarray:
            return np.asarray(stats.norm.cdf(x[:, None], at, by) @ weights)  # noqa: B023

        least = min(least, float(stats.kstest((samples @ direction).numpy(), law).pvalue))
    return least


@pytest.mark.parametrize(
    "derive",
    [
        lambda density, noisy: density,
        lambda density, noisy: density.diffused(0.7),
        lambda density, noisy: density.posterior(noisy, 0.7),
    ],
    ids=["prior", "diffused", "posterior"],
)
def test_samples_follow_their_law(derive: Callable[[GaussianMixture, Tensor], GaussianMixture]) -> None:
    """20 densities × 3 directions a case; false alarms at 1e-6 each: below 1e-4 a case, seeds fixed."""
    for seed in range(20):
        density, _, generator = mixture_with_covariances(seed, 1 + seed % 8)
        law = derive(density, normal(generator, density.dimension))
        samples = law.sample(2000, generator)
        assert samples.shape == (2000, density.dimension)
        assert directions_are_as_predicted(law, samples, generator) > 1e-6


def test_posterior_samples_are_those_of_bayes_rule_by_rejection() -> None:
    """Pairs (x0, x_σ) kept where x_σ falls near x_a; false alarms below 1e-6, seed fixed."""
    density, _, generator = mixture_with_covariances(12, 1)
    clean = density.sample(400_000, generator)
    noisy = clean + 0.5 * normal(generator, 400_000, 1)
    target = torch.tensor([0.4], dtype=torch.float64)
    kept = clean[(noisy - target).abs()[:, 0] < 0.01, 0]
    assert len(kept) > 500
    drawn = density.posterior(target, 0.5).sample(len(kept), generator)[:, 0]
    assert stats.ks_2samp(kept.numpy(), drawn.numpy()).pvalue > 1e-6


def test_support_samples_have_the_masses() -> None:
    """Chi-squared tests of 20 supports and their posteriors; false alarms below 40·1e-6, seeds fixed."""
    for seed in range(20):
        density, generator = support(seed + 100, 2)
        if len(density.points) == 1:
            continue
        for law in (density, density.posterior(normal(generator, 2), 1.5)):
            samples = law.sample(4000, generator)
            counts = (samples[:, None] == law.points).all(2).sum(0)
            expected = 4000 * law.log_weights.exp()
            assert int(counts.sum()) == 4000
            rare = expected < 5
            observed = torch.cat([counts[~rare].double(), counts[rare].sum()[None].double()]).numpy()
            wanted = torch.cat([expected[~rare], expected[rare].sum()[None]]).numpy()
            positive = wanted > 0
            statistic = ((observed - wanted)[positive] ** 2 / wanted[positive]).sum()
            assert stats.chi2.sf(statistic, max(1, int((~rare).sum()))) > 1e-6


def test_kernel_density_and_repeated_points() -> None:
    points = normal(torch.Generator().manual_seed(0), 5, 3)
    at = normal(torch.Generator().manual_seed(1), 4, 3)
    kernel = GaussianMixture.kernel_density(points, 0.3, [0, 1, 0, 1, 1])
    expected = reference_log_density(kernel, 0.09 * torch.eye(3, dtype=torch.float64).expand(5, 3, 3), at)
    torch.testing.assert_close(kernel.log_density(at), expected)
    diffused = FiniteSupport(points).diffused(0.3)
    torch.testing.assert_close(diffused.log_density(at), expected)
    repeated = FiniteSupport(points[[2, 0, 2, 1]], [0.1, 0.2, 0.3, 0.4], [4, 1, 4, 0])
    assert torch.equal(repeated.points, points[[2, 0, 1]])
    assert repeated.check_labels().tolist() == [4, 1, 0]
    torch.testing.assert_close(repeated.log_weights.exp(), torch.tensor([0.4, 0.2, 0.4], dtype=torch.float64))


def test_denoisers_are_conditional_and_take_an_image_shape() -> None:
    """Each class's estimate is that of its components alone; a posterior's weights may be below any float."""
    generator = torch.Generator().manual_seed(31)
    labels = torch.tensor([0, 1, 0, 2, 1, 0])
    density = GaussianMixture(normal(generator, 6, 6), spd(generator, 6, 6), simplex(generator, 6), labels)
    noisy = normal(generator, 3, 6)
    denoiser = density.denoiser((1, 2, 3))
    per_class = denoiser.per_class(noisy.reshape(3, 1, 2, 3), 0.8)
    for one in range(int(labels.max()) + 1):
        kept = labels == one
        weights = density.log_weights[kept].exp()
        alone = GaussianMixture(density.means[kept], density.covariances[kept], weights / weights.sum())
        expected = alone.score(noisy, 0.8) * 0.64 + noisy
        torch.testing.assert_close(per_class[:, one].flatten(1), expected)
    far = FiniteSupport(torch.tensor([[0.0], [100.0]]), labels=[0, 1]).posterior(torch.zeros(1), 0.5)
    estimate = far.denoiser()(torch.full((1, 1, 1, 1), 100.0, dtype=torch.float64), 1.0, torch.tensor([1]))
    assert float(estimate) == 100


EYE = torch.eye(2, dtype=torch.float64)
TWO = torch.zeros(2, 2, dtype=torch.float64)
GOOD = GaussianMixture(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.ones(2))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: GaussianMixture(TWO, torch.stack([EYE, torch.ones(2, 2).double()])),
            "covariances: expected positive definite matrices, got component 1 with smallest eigenvalue",
        ),
        (lambda: GaussianMixture(TWO, torch.tensor([0.0, 1.0])), "component 0 with smallest eigenvalue 0"),
        (lambda: GaussianMixture(TWO, torch.tensor([1.0, -1.0])), "component 1 with smallest eigenvalue -1"),
        (
            lambda: GaussianMixture(TWO, torch.stack([EYE, torch.tensor([[1.0, 0.5], [0.0, 1.0]]).double()])),
            "covariances: expected symmetric matrices, got component 1 off by 0.5",
        ),
        (lambda: GaussianMixture(TWO, torch.ones(3)), "covariances: expected 2 variances or 2×2×2"),
        (lambda: GaussianMixture(TWO, torch.ones(2) * math.nan), "covariances: expected finite numbers"),
        (lambda: GaussianMixture(TWO, torch.ones(2), [0.5, 0.6]), "weights: expected a sum of 1, got 1.1"),
        (lambda: GaussianMixture(TWO, torch.ones(2), [1.5, -0.5]), "weights: expected numbers > 0, got -0.5"),
        (
            lambda: GaussianMixture(TWO, torch.ones(2), [0.5, math.nan]),
            "weights: expected numbers > 0, got nan",
        ),
        (lambda: GaussianMixture(TWO, torch.ones(2), [1.0]), "weights: expected 2 numbers, got shape"),
        (lambda: GaussianMixture(TWO, torch.ones(2), labels=[0]), "labels: expected 2 integers, got shape"),
        (
            lambda: GaussianMixture(TWO, torch.ones(2), labels=[0, -1]),
            "labels: expected integers ≥ 0, got -1",
        ),
        (
            lambda: GaussianMixture(torch.zeros(2), torch.ones(2)),
            "means: expected at least one row of D floats",
        ),
        (
            lambda: GaussianMixture.kernel_density(TWO, 0.0),
            "bandwidth: expected a finite number > 0, got 0.0",
        ),
        (lambda: FiniteSupport(TWO[:0]), "points: expected at least one row of D floats"),
        (lambda: FiniteSupport(TWO, [0.5, 0.4]), "weights: expected a sum of 1, got 0.9"),
        (
            lambda: FiniteSupport(TWO, labels=[0, 1]),
            "labels: expected one label a point, got points 0 and 1 at the same place with labels 0 and 1",
        ),
        (lambda: FiniteSupport(EYE).score(EYE, 0.0), "sigma: expected a finite number > 0, got 0.0"),
        (lambda: GOOD.diffused(-1.0), "sigma: expected a finite number > 0, got -1.0"),
        (
            lambda: GOOD.diffused(1e-200),
            "sigma: expected a number whose square is one of float64, got 1e-200",
        ),
        (lambda: GOOD.posterior(torch.zeros(3), 1.0), "noisy: expected N×2 floats"),
        (lambda: GOOD.posterior(TWO, 1.0), "noisy: expected 2 numbers, got shape (2, 2)"),
        (lambda: GOOD.log_density(torch.full((1, 2), math.inf)), "points: expected finite numbers"),
        (lambda: GOOD.posterior_classes(TWO, 1.0), "labels: expected a density with labels"),
        (lambda: GOOD.sample(0, torch.Generator()), "count: expected an integer ≥ 1, got 0"),
        (lambda: GOOD.denoiser((1, 2, 2)), "image_shape: expected C·H·W = 2, got (1, 2, 2)"),
    ],
)
def test_bad_inputs_end_in_one_line(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=r"^\w+: ") as caught:
        build()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
