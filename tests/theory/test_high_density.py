"""The high-density purifier: exact arithmetic on finite supports, grids and certificates on mixtures."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from diffproof.theory import high_density
from diffproof.theory.densities import GaussianMixture
from diffproof.theory.finite_support import FiniteSupport
from diffproof.theory.high_density import HighDensityPurifier, Mode
from helpers.tensors import normal


def scattered_mixture(
    seed: int, dimension: int, spread: float = 1.5, most: int = 7
) -> tuple[GaussianMixture, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    count = 1 + int(torch.randint(0, most, (1,), generator=generator))
    weights = 0.05 + torch.rand(count, dtype=torch.float64, generator=generator)
    if seed % 2:
        roots = normal(generator, count, dimension, dimension) / math.sqrt(dimension)
        covariances = roots @ roots.mT + 0.02 * torch.eye(dimension, dtype=torch.float64)
    else:
        covariances = 0.05 + torch.rand(count, dtype=torch.float64, generator=generator)
    means = spread * normal(generator, count, dimension)
    labels = torch.arange(count) % min(count, 3)
    return GaussianMixture(means, covariances, weights / weights.sum(), labels), generator


def inside_the_certificate(
    density: GaussianMixture, noisy: Tensor, sigma: float, mode: Mode, points: Tensor
) -> None:
    """The mode has the density that it says, and no point is above it by more than the gap."""
    posterior = density.posterior(noisy, sigma)
    torch.testing.assert_close(posterior.log_density(mode.points), mode.log_density, rtol=1e-9, atol=1e-9)
    assert float(mode.gap) >= 0
    assert float(posterior.log_density(points).max()) <= float(mode.log_density + mode.gap) + 1e-10


@pytest.mark.slow
def test_finite_supports_in_exact_arithmetic() -> None:
    """Masses are powers of two, so that their logarithms lie between fractions; ties are left out."""
    generator = torch.Generator().manual_seed(0)
    low, high = Fraction(693147180559945309, 10**18), Fraction(693147180559945310, 10**18)
    decided = 0
    for seed in range(128):
        dimension = 1 + seed % 64
        count = 2 + seed % 9
        # Multiples of 1/8 are exact, and close calls are frequent.
        points = torch.randint(-8, 9, (count, dimension), generator=generator).double() / 8
        points = torch.unique(points, dim=0)
        halvings = [1 + i for i in range(len(points) - 1)]
        exponents = torch.tensor([*halvings, halvings[-1] if halvings else 0])
        order = torch.randperm(len(points), generator=generator)
        noisy = torch.randint(-8, 9, (dimension,), generator=generator).double() / 8
        sigma = Fraction(1 + seed % 5, 4)
        support = FiniteSupport(points, 2.0 ** -exponents[order].double())
        distances = [
            sum(
                ((Fraction(a) - Fraction(b)) ** 2 for a, b in zip(row, noisy.tolist(), strict=True)),
                Fraction(0),
            )
            for row in points.tolist()
        ]
        # exponent·log 2 + ‖x − x_a‖²/(2σ²), the less the better.
        costs = [
            (int(e) * low + d / (2 * sigma**2), int(e) * high + d / (2 * sigma**2))
            for e, d in zip(exponents[order], distances, strict=True)
        ]
        best = min(range(len(costs)), key=lambda i: costs[i][1])
        if any(costs[i][0] <= costs[best][1] for i in range(len(costs)) if i != best):
            continue
        decided += 1
        mode = HighDensityPurifier(support).purify(noisy[None], float(sigma))
        assert torch.equal(mode.points[0], support.points[best])
        assert float(mode.gap) == 0
        masses = torch.tensor([math.exp(-float(c[0] - costs[best][0])) for c in costs], dtype=torch.float64)
        assert float(mode.log_density) == pytest.approx(-math.log(float(masses.sum())), abs=1e-12)
    assert decided >= 85


def test_ties_go_to_the_lowest_index() -> None:
    points = torch.tensor([[3.0], [1.0], [-1.0], [1.5]])
    purifier = HighDensityPurifier(FiniteSupport(points, labels=[0, 2, 1, 0]))
    assert float(purifier.purify(torch.zeros(1, 1), 0.5).points) == 1.0
    assert purifier.labels(torch.zeros(1, 1), 0.5).tolist() == [2]


@pytest.mark.slow
@pytest.mark.parametrize("dimension", [1, 2])
def test_mixtures_against_grids(dimension: int) -> None:
    """The grid never beats the mode by 1e-9, and the mode is within a cell of the best grid point."""
    axis = torch.linspace(-5, 5, 4001 if dimension == 1 else 161, dtype=torch.float64)
    grid = torch.cartesian_prod(*[axis] * dimension).reshape(-1, dimension)
    for seed in range(20):
        density, generator = scattered_mixture(seed, dimension)
        sigma = 0.3 + 0.075 * seed
        noisy = 1.5 * normal(generator, dimension)
        mode = HighDensityPurifier(density).purify(noisy[None], sigma)
        assert float(mode.gap) <= 1.1e-9
        inside_the_certificate(density, noisy, sigma, mode, grid)
        # The mode is stationary: no gradient is left.
        assert float(density.posterior(noisy, sigma).score(mode.points, 0.0).abs().max()) < 1e-4


def test_boxes_are_bounded_from_above() -> None:
    """No point of a box is above its bound: half of the points are corners."""
    for seed in range(64):
        dimension = 1 + seed * 7 % 64
        density, generator = scattered_mixture(seed, dimension)
        noisy, sigma = normal(generator, 1, dimension), 0.2 + 0.03 * seed
        posteriors, owner = high_density._Posteriors(density, noisy, sigma), torch.zeros(5, dtype=torch.int64)
        centres = posteriors.means[0, :1] + 0.3 * normal(generator, 5, dimension)
        values = posteriors.log_peaks.amax(1)
        half = torch.rand(5, dimension, dtype=torch.float64, generator=generator) / dimension
        tops = high_density._tops(posteriors, centres, half, owner, values)
        inside = 2 * torch.rand(5, 60, dimension, dtype=torch.float64, generator=generator) - 1
        inside[:, ::2] = inside[:, ::2].sign()
        points = (centres[:, None] + inside * half[:, None]).flatten(0, 1)
        heights = density.posterior(noisy[0], sigma).log_density(points).reshape(5, 60)
        assert bool((heights.amax(1) <= tops + 1e-10).all())


def test_the_bound_of_a_box_is_of_second_order() -> None:
    """Between two components log q has slope 0 and curvature d²/4 − 1 in deviations: the bound follows it."""
    density = GaussianMixture(torch.tensor([[-3.0], [3.0]]), torch.ones(2))
    posteriors = high_density._Posteriors(density, torch.zeros(1, 1), 1e6)
    centre, owner = torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    middle = float(density.log_density(centre))
    for half in (0.03, 0.01, 0.001):
        width = torch.tensor([[half]], dtype=torch.float64)
        top = float(high_density._tops(posteriors, centre, width, owner, posteriors.log_peaks.amax(1)))
        assert float(density.log_density(width)) <= top <= middle + 5 * half**2


@pytest.mark.slow
def test_the_search_by_boxes_alone_finds_the_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ascents what it says of the supremum must still hold, and be close."""
    monkeypatch.setattr(high_density, "_ascend", lambda posteriors, points, owner: points)
    axis = torch.linspace(-5, 5, 161, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    for seed in range(20):
        density, generator = scattered_mixture(seed, 2)
        noisy = 1.5 * normal(generator, 2)
        mode = HighDensityPurifier(density).purify(noisy[None], 1.0)
        assert float(mode.gap) <= 1.1e-9
        inside_the_certificate(density, noisy, 1.0, mode, grid)


@pytest.mark.slow
def test_the_certificate_holds_in_any_dimension() -> None:
    """Against random points round every component, of all scales, and the segments between components."""
    for seed in range(64):
        dimension = 1 + seed * 7 % 64
        density, generator = scattered_mixture(seed, dimension, spread=(0.1, 0.5, 1.5)[seed % 3])
        sigma = 0.2 + 0.034 * seed
        noisy = density.sample(1, generator)[0] + sigma * normal(generator, dimension)
        posterior = density.posterior(noisy, sigma)
        mode = HighDensityPurifier(density).purify(noisy[None], sigma)
        shares = torch.softmax(4 * normal(generator, 300, len(posterior.means)), dim=1)
        scales = 10 ** (-3 * torch.rand(300, 1, dtype=torch.float64, generator=generator))
        points = torch.cat(
            [
                posterior.means,
                shares @ posterior.means,
                posterior.sample(300, generator),
                mode.points + scales * normal(generator, 300, dimension),
            ]
        )
        inside_the_certificate(density, noisy, sigma, mode, points)


@pytest.mark.slow
def test_the_gap_closes_where_components_are_apart() -> None:
    """62 kernel densities in 3…64 dimensions, their posteriors' means at least 12 deviations apart."""
    for seed in range(62):
        generator = torch.Generator().manual_seed(seed)
        dimension = 3 + seed
        points = normal(generator, 8, dimension)
        density = GaussianMixture.kernel_density(points, float(torch.pdist(points).min()) / 24)
        sigma = 2 * float(density.variances[0].sqrt())
        noisy = points[:1] + sigma * normal(generator, 1, dimension)
        posterior = density.posterior(noisy[0], sigma)
        assert float(torch.pdist(posterior.means).min()) > 12 * float(posterior.variances[0].sqrt())
        mode = HighDensityPurifier(density).purify(noisy, sigma)
        assert float(mode.gap) < 1e-6


@pytest.mark.slow
def test_a_batch_is_its_rows() -> None:
    for seed in range(4):
        density, generator = scattered_mixture(seed, 2)
        noisy = 1.5 * normal(generator, 3, 2)
        purifier = HighDensityPurifier(density)
        together = purifier.purify(noisy, 0.7)
        alone = [purifier.purify(row[None], 0.7) for row in noisy]
        torch.testing.assert_close(together.log_density, torch.cat([one.log_density for one in alone]))
        expected = torch.stack([density.class_shares(one.points)[0].argmax() for one in alone])
        assert torch.equal(purifier.labels(noisy, 0.7), expected)


@pytest.mark.slow
def test_the_class_at_the_mode_is_the_posteriors() -> None:
    """The shares of the posterior's own components: the likelihood is common to all."""
    for seed in range(200):
        density, generator = scattered_mixture(seed, 3 + seed % 62)
        noisy = normal(generator, 1, density.dimension)
        purifier = HighDensityPurifier(density)
        posterior = density.posterior(noisy[0], 0.6)
        shares = posterior.class_shares(purifier.purify(noisy, 0.6).points)
        assert purifier.labels(noisy, 0.6).tolist() == shares.argmax(1).tolist()


def test_a_mode_that_no_component_leads_to() -> None:
    """Two narrow ridges cross at a third mode, higher than both that ascents find: the boxes lead there."""
    means = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    covariances = torch.stack([torch.diag(torch.tensor([1.0, 0.02])), torch.diag(torch.tensor([0.02, 1.0]))])
    density = GaussianMixture(means, covariances)
    mode = HighDensityPurifier(density).purify(torch.zeros(1, 2), 50.0)
    assert float(mode.gap) <= 1.1e-9
    assert float(mode.points.norm()) < 0.1
    posterior = density.posterior(torch.zeros(2), 50.0)
    assert float(mode.log_density) > float(posterior.log_density(means).max()) + 0.1


LABELLED = GaussianMixture(torch.eye(2), torch.ones(2), labels=[0, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: HighDensityPurifier(LABELLED).purify(torch.zeros(1, 3), 1.0),
            "noisy: expected N×2 floats, got",
        ),
        (
            lambda: HighDensityPurifier(LABELLED).purify(torch.zeros(1, 2), 0.0),
            "sigma: expected a finite number",
        ),
        (
            lambda: HighDensityPurifier(LABELLED).labels(torch.full((1, 2), math.nan), 1.0),
            "noisy: expected finite",
        ),
        (
            lambda: HighDensityPurifier(FiniteSupport(torch.eye(2))).purify(torch.zeros(2), 1.0),
            "noisy: expected N×2 floats, got",
        ),
        (
            lambda: HighDensityPurifier(FiniteSupport(torch.eye(2))).labels(torch.zeros(1, 2), 1.0),
            "labels: expected a density with labels, got one without",
        ),
    ],
)
def test_bad_inputs_end_in_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=r"^\w+: ") as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
