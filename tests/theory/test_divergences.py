"""Theorem 3.4 and Remark 4: closed forms of linear processes, quadrature, brute force, trained networks."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffproof.denoisers.base import Denoiser, Estimate, Sigma, per_row
from diffproof.reverse.solvers import Solver
from diffproof.theory.densities import GaussianMixture
from diffproof.theory.divergences import (
    Estimated,
    chain_law,
    end_point_divergence,
    score_matching_error,
    total_variation_bound,
)
from diffproof.theory.finite_support import FiniteSupport
from helpers.tensors import seeded

NODES, NODE_WEIGHTS = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(40))


def mixture_on_a_line(means: list[float], variances: list[float], weights: list[float]) -> GaussianMixture:
    return GaussianMixture(
        torch.tensor(means).double()[:, None],
        torch.tensor(variances).double(),
        weights,
        labels=[k % 2 for k in range(len(means))],
    )


EXACT = mixture_on_a_line([-1.0, 0.2, 1.0], [0.02, 0.05, 0.01], [0.3, 0.3, 0.4])
WRONG = mixture_on_a_line([-0.9, 0.2, 1.1], [0.02, 0.03, 0.02], [0.4, 0.3, 0.3])
SIGMA, SIGMA_MIN = 0.8, 0.05


class Linear(Denoiser):
    """s_θ(x, s) = −κ(x − c)/(λ + s²) along each column of an orthogonal matrix: no score unless κ = 1."""

    def __init__(self, basis: Tensor, kappa: Tensor, centre: Tensor, variance: Tensor) -> None:
        super().__init__()
        self.image_shape = (1, 1, len(basis))
        self.basis, self.kappa, self.centre, self.variance = basis, kappa, centre, variance

    def estimate(self, noisy: Tensor, sigma: Sigma, label: Tensor | None) -> Estimate:
        v = torch.as_tensor(sigma, dtype=torch.float64) ** 2
        offset = noisy.flatten(1) @ self.basis - self.centre
        return Estimate(
            noisy - (self.kappa * v / (self.variance + v) * offset @ self.basis.T).reshape(noisy.shape)
        )


class Shifted(Denoiser):
    """Another denoiser plus a constant."""

    def __init__(self, denoiser: Denoiser, shift: Tensor) -> None:
        super().__init__()
        self.denoiser, self.shift, self.image_shape = denoiser, shift, denoiser.image_shape

    def estimate(self, noisy: Tensor, sigma: Sigma, label: Tensor | None) -> Estimate:
        return Estimate(self.denoiser(noisy, sigma) + self.shift.reshape(noisy.shape[1:]))


def linear_case(seed: int) -> tuple[GaussianMixture, Linear, float, float, Tensor | None, float, float]:
    """A Gaussian and a linear process: density, denoiser, sigma, sigma_min, x_a, KL of the ends, J.

    Both in closed form along each axis, but for J's integral over s, which is Gauss–Legendre in log s.
    """
    generator = seeded(seed)
    dimension = 1 + int(torch.randint(64, (1,), generator=generator)) if seed % 4 else 1 + seed % 3

    def normal() -> Tensor:
        return torch.randn(dimension, dtype=torch.float64, generator=generator)

    def uniform(low: float, high: float, count: int = dimension) -> Tensor:
        return low + (high - low) * torch.rand(count, dtype=torch.float64, generator=generator)

    basis = torch.linalg.qr(
        torch.randn(dimension, dimension, dtype=torch.float64, generator=generator)
    ).Q.contiguous()
    mean, variance, kappa = normal(), uniform(-3.0, 1.4).exp(), uniform(0.55, 1.6)
    centre, wrong = mean + 0.3 * normal(), variance * (0.3 * normal()).exp()
    sigma = float(uniform(0.3, 2.0, 1))
    sigma_min = sigma * float(uniform(0.02, 0.4, 1))
    top, bottom = sigma**2, sigma_min**2
    start = mean + (variance + top).sqrt() * normal()
    given = seed % 2 == 0
    # x_a, or its law: mean and variance along each axis.
    at, spread = (start, torch.zeros_like(start)) if given else (mean, variance + top)

    ratio = (variance + bottom) / (variance + top)
    learned_ratio = ((wrong + bottom) / (wrong + top)) ** kappa
    exact_variance = ratio * (top - bottom)
    power = 1 - 2 * kappa
    integral = ((wrong + top) ** power - (wrong + bottom) ** power) / power
    learned_variance = (wrong + bottom) ** (2 * kappa) * integral
    slope, constant = ratio - learned_ratio, (1 - ratio) * mean - (1 - learned_ratio) * centre
    shift = (slope * at + constant) ** 2 + slope**2 * spread
    quotient = exact_variance / learned_variance
    kl = 0.5 * float((quotient - 1 - quotient.log() + shift / learned_variance).sum())

    length = math.log(sigma / sigma_min)
    j = 0.0
    for node, weight in zip(NODES.tolist(), NODE_WEIGHTS.tolist(), strict=True):
        v = (sigma_min * math.exp(length * (node + 1) / 2)) ** 2
        way = (variance + v) / (variance + top)
        # The exact process at s: its mean and variance over the start too.
        here, width = mean + way * (at - mean), way * (top - v) + way**2 * spread
        slope = kappa / (wrong + v) - 1 / (variance + v)
        constant = mean / (variance + v) - kappa * centre / (wrong + v)
        square = (slope * here + constant) ** 2 + slope**2 * width
        j += weight * length / 2 * v * float(square.sum())
    density = GaussianMixture((basis @ mean)[None], (basis * variance @ basis.T)[None])
    noisy = basis @ start if given else None
    return density, Linear(basis, kappa, centre, wrong), sigma, sigma_min, noisy, kl, j


@pytest.mark.slow
def test_the_bound_holds_for_linear_processes() -> None:
    """100 processes in 1 to 64 dimensions: KL ≤ J with no exception, and J estimated is J.

    Every fifth is estimated. False alarms, for a normal error: 20·1e-7 of the bound, 20·7e-8 of the largest
    deviation, 1e-6 each of their sum and their sum of squares.
    """
    deviations, ratios = [], []
    for seed in range(100):
        density, denoiser, sigma, sigma_min, noisy, kl, j = linear_case(seed)
        assert 0 <= kl < j
        ratios.append(kl / j)
        if seed % 5 == 0:
            estimated = score_matching_error(
                density,
                denoiser,
                sigma,
                noisy=noisy,
                sigma_min=sigma_min,
                samples=512,
                generator=seeded(seed),
            )
            assert kl <= estimated.upper(1 - 1e-7)
            assert estimated.samples == 512
            deviations.append((estimated.mean - j) / estimated.standard_error)
    squares = np.square(deviations)
    assert squares.max() < 5.4**2
    # χ² with 20 degrees of freedom, a little wider since the errors come from 64 differences each.
    assert 2.3 < squares.sum() < 72
    assert abs(sum(deviations)) < 4.9 * math.sqrt(20)
    assert min(ratios) < 0.7 < 0.9 < max(ratios)


@pytest.mark.slow
def test_equality_for_scores_of_another_distribution() -> None:
    """64 wrong Gaussians in 1 to 64 dimensions: where s_θ is a score, KL of the ends is J (κ = 1)."""
    for seed in range(64):
        generator = seeded(seed)
        dimension = 1 + int(torch.randint(64, (1,), generator=generator))
        roots = torch.randn(2, dimension, dimension, dtype=torch.float64, generator=generator)
        mean, wrong, noisy = torch.randn(3, dimension, dtype=torch.float64, generator=generator)
        identity = torch.eye(dimension, dtype=torch.float64)
        covariance, other = (root @ root.T / dimension + 0.2 * identity for root in roots)
        top, bottom = 1.0, 0.01

        def ends(m: Tensor, c: Tensor, v: float, x: Tensor, total: float = top) -> tuple[Tensor, Tensor]:
            """Mean and covariance at v of the exact reverse process of N(m, c) that starts in x."""
            gain = torch.linalg.solve(c + total * torch.eye(len(c)), c + v * torch.eye(len(c))).T
            return m + gain @ (x - m), (total - v) * gain

        (m1, c1), (m2, c2) = ends(mean, covariance, bottom, noisy), ends(wrong, other, bottom, noisy)
        ratio = torch.linalg.solve(c2, c1)
        shift = m1 - m2
        kl = 0.5 * float(
            ratio.trace() - dimension - ratio.slogdet()[1] + shift @ torch.linalg.solve(c2, shift)
        )
        j = 0.0
        length = math.log(top / bottom) / 2
        for node, weight in zip(*np.polynomial.legendre.leggauss(12), strict=True):
            v = bottom * math.exp(length * (node + 1))
            here, spread = ends(mean, covariance, v, noisy)
            inverse, other_inverse = (torch.linalg.inv(c + v * identity) for c in (covariance, other))
            slope = other_inverse - inverse
            constant = inverse @ mean - other_inverse @ wrong
            square = (slope @ here + constant).square().sum() + (slope @ spread * slope).sum()
            j += 0.5 * weight * length * v * float(square)
        assert j == pytest.approx(kl, rel=1e-7)
        if seed < 8:
            learned = GaussianMixture(wrong[None], other[None]).denoiser()
            estimated = score_matching_error(
                GaussianMixture(mean[None], covariance[None]),
                learned,
                1.0,
                noisy=noisy,
                sigma_min=0.1,
                samples=2048,
                generator=generator,
            )
            # False alarm 8·4e-7.
            assert abs(estimated.mean - kl) < 5.1 * estimated.standard_error


@pytest.mark.slow
def test_a_constant_error_in_closed_form() -> None:
    """D = D* + ε: J = ‖ε‖²/2·(1/sigma_min² − 1/sigma²), so to sigma_min = 0 it is infinite."""
    shift = torch.tensor([0.03, -0.01], dtype=torch.float64)
    support = FiniteSupport(torch.tensor([[0.0, 0.0], [1.0, 0.5], [0.2, 0.9]]).double(), [0.5, 0.2, 0.3])
    previous = 0.0
    for sigma_min in (0.1, 0.03, 0.01):
        for noisy in (None, torch.tensor([0.4, 0.4]).double()):
            estimated = score_matching_error(
                support,
                Shifted(support.denoiser(), shift),
                0.5,
                noisy=noisy,
                sigma_min=sigma_min,
                samples=1,
                generator=seeded(1),
            )
            expected = float(shift.square().sum()) / 2 * (sigma_min**-2 - 0.5**-2)
            assert abs(estimated.mean - expected) < 5 * estimated.standard_error
            # Strata leave of the spread over s what 64 parts of it have.
            assert estimated.standard_error < 0.01 * expected
        assert estimated.mean > 5 * previous
        previous = estimated.mean


def test_wrong_masses_of_a_finite_support() -> None:
    """Masses alone wrong: J is the divergence of the posterior masses, finite even towards sigma_min = 0."""
    points = torch.tensor([[0.0], [0.5], [1.2]], dtype=torch.float64)
    exact, wrong = FiniteSupport(points, [0.2, 0.5, 0.3]), FiniteSupport(points, [0.5, 0.2, 0.3])
    noisy = torch.tensor([0.4], dtype=torch.float64)
    likelihood = torch.exp(-(points[:, 0] - 0.4).square() / 2)
    p, q = (torch.tensor(w).double() * likelihood for w in ([0.2, 0.5, 0.3], [0.5, 0.2, 0.3]))
    p, q = p / p.sum(), q / q.sum()
    estimated = score_matching_error(
        exact, wrong.denoiser(), 1.0, noisy=noisy, sigma_min=0.02, samples=40000, generator=seeded(2)
    )
    # False alarm 6e-7.
    assert abs(estimated.mean - float((p * (p / q).log()).sum())) < 5 * estimated.standard_error
    assert estimated.standard_error < 0.02 * estimated.mean


@pytest.mark.slow
def test_the_mean_over_starts_is_the_unconditional_error() -> None:
    """E over x_a ~ p_sigma of J(x_a) is J; 5 standard errors of 24 starts, false alarm 5e-5."""
    denoiser = WRONG.denoiser()
    starts = EXACT.sample(24, seeded(3)) + SIGMA * torch.randn(
        24, 1, dtype=torch.float64, generator=seeded(4)
    )
    each = torch.tensor(
        [
            score_matching_error(
                EXACT, denoiser, SIGMA, noisy=x, sigma_min=SIGMA_MIN, samples=128, generator=seeded(100 + i)
            ).mean
            for i, x in enumerate(starts)
        ]
    )
    whole = score_matching_error(
        EXACT, denoiser, SIGMA, sigma_min=SIGMA_MIN, samples=5000, generator=seeded(5)
    )
    error = math.hypot(float(each.std()) / math.sqrt(24), whole.standard_error)
    assert abs(float(each.mean()) - whole.mean) < 5 * error


@pytest.mark.parametrize("solver", [Solver.DDPM, Solver.SDE])
def test_the_law_on_a_grid_is_that_of_brute_force(solver: Solver) -> None:
    """Three steps from Chapman–Kolmogorov's integral written out, on one fine grid."""
    levels, noisy = [0.8, 0.5, 0.3, 0.2], 0.1
    denoiser = EXACT.denoiser()
    law = chain_law(denoiser, noisy, levels, solver)
    grid = torch.linspace(-4.0, 4.0, 1601, dtype=torch.float64)

    def step(x: Tensor, s: float, t: float) -> tuple[Tensor, float]:
        clean = denoiser(x.reshape(-1, 1, 1, 1), s).flatten()
        if solver is Solver.DDPM:
            return clean + (t / s) ** 2 * (x - clean), t * math.sqrt(1 - (t / s) ** 2)
        # Euler–Maruyama of dy = −½βy·dt + √β·dW backwards, in y = (2x − 1)/√(1 + 4s²).
        beta = math.log((1 + 4 * s * s) / (1 + 4 * t * t))
        stretch, back = math.sqrt(1 + 4 * s * s), math.sqrt(1 + 4 * t * t)
        y = (2 * x - 1) / stretch
        score = (2 * clean - 2 * x) / (4 * s * s) * stretch
        return ((y + beta * (y / 2 + score)) * back + 1) / 2, math.sqrt(beta) * back / 2

    def gaussian(x: Tensor, mean: Tensor, deviation: float) -> Tensor:
        return torch.exp(-((x - mean) ** 2) / (2 * deviation**2)) / (deviation * math.sqrt(2 * math.pi))

    mean, deviation = step(torch.tensor([noisy], dtype=torch.float64), *levels[:2])
    density = gaussian(grid, mean, deviation)
    mean, deviation = step(grid, *levels[1:3])
    density = 0.005 * gaussian(grid[:, None], mean, deviation) @ density
    mean, deviation = step(grid, *levels[2:])
    expected = 0.005 * gaussian(law.points[:, None], mean, deviation) @ density
    torch.testing.assert_close(law.density, expected, rtol=0, atol=1e-9)
    assert float(law.density.sum()) * law.spacing == pytest.approx(1.0, abs=1e-12)


@pytest.mark.slow
def test_the_measured_divergence_of_an_exact_denoiser_vanishes() -> None:
    """As 1/steps², the square of the ancestral step's order."""
    support = FiniteSupport(torch.tensor([[-0.5], [0.4], [0.6]]).double(), labels=[0, 1, 0])
    for density, sigma_min in ((EXACT, SIGMA_MIN), (support, SIGMA / 2)):
        measured = [
            end_point_divergence(density, density.denoiser(), 0.1, SIGMA, sigma_min=sigma_min, steps=steps)
            for steps in (20, 40, 80)
        ]
        assert measured[2].kl < 1e-3
        for coarse, fine in itertools.pairwise(measured):
            assert 3.3 < coarse.kl / fine.kl < 4.7
            assert 1.7 < coarse.total_variation / fine.total_variation < 2.3


@pytest.mark.slow
def test_the_measured_divergence_of_another_distribution() -> None:
    """Its process ends in its own posterior: a divergence of two mixtures, to an error of order 1/steps."""
    noisy = torch.tensor([0.1], dtype=torch.float64)
    between = math.sqrt(SIGMA**2 - SIGMA_MIN**2)
    grid = torch.linspace(-3.0, 3.0, 6001, dtype=torch.float64)[:, None]
    p, q = (m.diffused(SIGMA_MIN).posterior(noisy, between).log_density(grid) for m in (EXACT, WRONG))
    kl = float((p.exp() * (p - q)).sum()) * 0.001
    tv = float((p.exp() - q.exp()).abs().sum()) * 0.0005
    errors = []
    for steps in (25, 50, 100):
        got = end_point_divergence(EXACT, WRONG.denoiser(), 0.1, SIGMA, sigma_min=SIGMA_MIN, steps=steps)
        errors.append((got.kl - kl, got.total_variation - tv))
    for column in zip(*errors, strict=True):
        for coarse, fine in itertools.pairwise(column):
            assert abs(coarse) > 1.6 * abs(fine)
    assert abs(errors[-1][0]) < 0.02 * kl
    assert abs(errors[-1][1]) < 0.03 * tv


def test_a_learned_law_that_misses_a_mode_is_infinitely_far() -> None:
    """A denoiser that always says 0 ends near 0, where the exact process has next to no mass."""
    far = mixture_on_a_line([-40.0, 40.0], [0.01, 0.01], [0.5, 0.5])
    nothing = Shifted(mixture_on_a_line([0.0], [1e-6], [1.0]).denoiser(), torch.zeros(1).double())
    got = end_point_divergence(far, nothing, 0.0, 1.0, sigma_min=0.5, steps=10)
    assert got.kl == math.inf
    assert got.total_variation == pytest.approx(1.0, abs=1e-9)


class Network(Denoiser):
    """A small network on one pixel: D = c_skip·x + c_out·F (Karras et al. 2022) for data of variance 1."""

    image_shape = (1, 1, 1)

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(
            nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1)
        ).double()

    def estimate(self, noisy: Tensor, sigma: Sigma, label: Tensor | None) -> Estimate:
        s = per_row(sigma, noisy).expand_as(noisy)
        scale = (1 + s**2).sqrt()
        inputs = torch.cat([(noisy / scale).flatten(1), s.log().flatten(1)], dim=1)
        return Estimate(noisy / scale**2 + s / scale * self.layers(inputs).reshape(noisy.shape))


@functools.cache
def trained(iterations: int) -> Network:
    network = Network(0)
    generator = seeded(6)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations)
    for _ in range(iterations):
        clean = EXACT.sample(256, generator).reshape(-1, 1, 1, 1)
        place = torch.rand(256, dtype=torch.float64, generator=generator)
        sigma = SIGMA_MIN * (SIGMA / SIGMA_MIN) ** place
        noise = torch.randn(clean.shape, dtype=torch.float64, generator=generator)
        error = network(clean + per_row(sigma, clean) * noise, sigma) - clean
        optimiser.zero_grad()
        (error / per_row(sigma, clean)).square().mean().backward()
        optimiser.step()
        schedule.step()
    return network.requires_grad_(False)


@pytest.mark.slow
def test_the_bound_holds_on_learned_networks() -> None:
    """Measured KL ≤ J for each start and on average, at two lengths of training; KL falls as J does.

    KL is that of ever finer steps: its error of order 1/steps is extrapolated away. J's upper ends have
    confidence 1 − 1e-6 each, 8 of them.
    """
    sure = 1 - 1e-6
    starts = [-1.4, 0.1, 0.6]
    kls, bounds, averages = [], [], []
    # The mean over starts by Gauss–Legendre over what has all but 1e-5 of p_sigma.
    nodes, weights = np.polynomial.legendre.leggauss(10)
    density = EXACT.diffused(SIGMA).log_density(torch.from_numpy(4.5 * nodes)[:, None]).exp().numpy()
    shares = weights * density / (weights * density).sum()
    for iterations in (40, 300):
        network = trained(iterations)
        for noisy in starts:
            coarse, measured = (
                end_point_divergence(EXACT, network, noisy, SIGMA, sigma_min=SIGMA_MIN, steps=steps)
                for steps in (20, 40)
            )
            kl = 2 * measured.kl - coarse.kl
            j = score_matching_error(
                EXACT,
                network,
                SIGMA,
                noisy=torch.tensor([noisy], dtype=torch.float64),
                sigma_min=SIGMA_MIN,
                samples=5000,
                generator=seeded(7),
            )
            assert kl <= j.upper(sure)
            kls.append(kl)
            bounds.append(j.mean)
            # Remark 4, and for the share of a class by place and by component.
            assert measured.total_variation <= total_variation_bound(measured.kl)
            points, learned = measured.learned
            difference = (measured.exact - learned) * measured.learned.spacing
            right = float(difference[points > 0.5].sum())
            component = float(difference @ EXACT.diffused(SIGMA_MIN).class_shares(points[:, None])[:, 1])
            assert max(abs(right), abs(component)) <= measured.total_variation + 1e-12
        average = sum(
            share * end_point_divergence(EXACT, network, x, SIGMA, sigma_min=SIGMA_MIN, steps=20).kl
            for share, x in zip(shares.tolist(), (4.5 * nodes).tolist(), strict=True)
            if share > 1e-4
        )
        j = score_matching_error(
            EXACT, network, SIGMA, sigma_min=SIGMA_MIN, samples=5000, generator=seeded(8)
        )
        assert average <= j.upper(sure)
        averages.append((average, j.mean))
    assert averages[1][1] < 0.5 * averages[0][1]
    assert averages[1][0] < 0.5 * averages[0][0]
    assert max(kls) > 0.01


def test_total_variation_bound() -> None:
    assert total_variation_bound(0.0) == 0.0
    assert total_variation_bound(0.02) == pytest.approx(0.1)
    assert total_variation_bound(50.0) == total_variation_bound(math.inf) == 1.0


def test_the_upper_end_is_that_of_the_normal_distribution() -> None:
    assert Estimated(2.0, 0.1, 128).upper(0.975) == pytest.approx(2.0 + 0.1 * 1.959964, rel=1e-6)
    assert Estimated(2.0, 0.1, 128).upper(0.5) == pytest.approx(2.0)


def error_with(**changes: object) -> Callable[[], object]:
    arguments: dict[str, object] = {"sigma_min": 0.1, "samples": 128, "generator": seeded(0)}
    return lambda: score_matching_error(EXACT, WRONG.denoiser(), 0.5, **{**arguments, **changes})  # type: ignore[arg-type]


PLANE = GaussianMixture(torch.zeros(1, 2).double(), torch.ones(1).double())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (error_with(sigma_min=0.5), "sigma_min: expected 0 < sigma_min < sigma = 0.5, got 0.5"),
        (error_with(sigma_min=0.0), "sigma_min: expected a finite number > 0, got 0.0"),
        (error_with(samples=0), "samples: expected an integer ≥ 1, got 0"),
        (error_with(noisy=torch.zeros(2)), "noisy: expected"),
        (lambda: chain_law(PLANE.denoiser(), 0.0, [0.5, 0.2]), "denoiser: expected images of 1 pixels"),
        (lambda: chain_law(EXACT.denoiser(), 0.0, [0.5]), "sigmas: expected at least two noise levels"),
        (lambda: chain_law(EXACT.denoiser(), 0.0, [0.5, 0.0]), "sigmas: expected steps with noise, got ddpm"),
        (
            lambda: chain_law(EXACT.denoiser(), 0.0, [0.5, 0.2], Solver.ODE),
            "sigmas: expected steps with noise, got ode",
        ),
        (lambda: chain_law(EXACT.denoiser(), 0.0, [0.5, 0.6]), "next_sigma: expected"),
        (
            lambda: chain_law(EXACT.denoiser(), 0.0, [0.5, 0.4, 1e-7]),
            "needs a grid of .* expected at most 1048576",
        ),
        (
            lambda: end_point_divergence(EXACT, EXACT.denoiser(), 0.0, 0.5, sigma_min=0.1, steps=0),
            "steps: expected an integer ≥ 1, got 0",
        ),
        (
            lambda: end_point_divergence(
                EXACT, EXACT.denoiser(sigmas=torch.tensor([0.2, 0.9])), 0.0, 0.5, sigma_min=0.1
            ),
            "sigma: expected 0.2 ≤ sigma",
        ),
        (lambda: total_variation_bound(-0.1), "kl: expected a number ≥ 0, got -0.1"),
        (lambda: total_variation_bound(math.nan), "kl: expected a number ≥ 0, got nan"),
        (lambda: Estimated(1.0, 0.1, 128).upper(1.0), r"confidence: expected a number in \(0, 1\), got 1.0"),
    ],
)
def test_bad_arguments(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
