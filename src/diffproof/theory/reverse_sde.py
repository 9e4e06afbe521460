"""The discretised reverse process with an exact denoiser against the exact posterior p(x0 | x_sigma).

One ancestral step from sigma to s has the right mean given where it starts, for any distribution, and the
variance s²(1 − r) with r = s²/sigma²; the right one is larger by (1 − r)²·Var(x0 | x_sigma). With steps
evenly spaced in sigma, these defects sum to a relative error of order 1/n in the variance of the result. So
the KL divergence, quadratic in it, falls as 1/n², and total variation and Wasserstein distance as 1/n.

For one Gaussian the result's law is Gaussian and its mean and covariance follow an exact recursion; for
mixtures in one dimension it is computed on a grid.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffproof.checks import check_at_least, check_positive
from diffproof.denoisers.base import Denoiser
from diffproof.errors import ArgumentError
from diffproof.reverse.solvers import INTEGRATORS, Solver, solver_step
from diffproof.theory.densities import GaussianMixture
from diffproof.theory.divergences import chain_law, noise_scale

# A map is affine if it is so to this part of its largest value.
_AFFINE = 1e-9


class GaussianLaw(NamedTuple):
    """N(mean, covariance) with mean D and covariance D×D, perhaps singular."""

    mean: Tensor
    covariance: Tensor


class Distance(NamedTuple):
    """How far the reverse process of some steps ends from the posterior.

    Attributes:
        steps: denoiser evaluations.
        kl: KL(posterior ‖ law of the result) in nats; inf where that law is singular, as after one step.
    """

    steps: int
    kl: float


def even_sigmas(sigma: float, steps: int) -> list[float]:
    """The levels sigma·(1 − i/steps), i = 0…steps − 1, for `posterior_sample`, whose last step goes to 0.

    Raises:
        ValueError: sigma is not a finite number > 0, or steps < 1.
    """
    check_positive("sigma", sigma)
    check_at_least("steps", steps, 1)
    return [sigma * (1 - i / steps) for i in range(steps)]


def affine_chain_law(
    denoiser: Denoiser, noisy: Tensor, sigmas: Sequence[float], solver: Solver = Solver.DDPM
) -> GaussianLaw:
    """The law of a discretised reverse process whose denoiser is affine in x, exact to rounding.

    x_{i+1} = A_i·x_i + c_i + s_i·z, so the mean is mapped by the step and the covariance becomes
    A_i·C·A_iᵀ + s_i²·I. The steps are `solver_step`'s own, so with levels that end in 0 this is
    the law of `posterior_sample` without clipping.

    Args:
        denoiser: a denoiser of D pixels, affine at every level, as that of one Gaussian is; called without
            labels.
        noisy: where the process starts, D numbers.
        sigmas: two or more descending noise levels ≥ 0.
        solver: how to step.

    Raises:
        ValueError: fewer than two levels, levels that do not descend or lie outside the denoiser's range, or
            a denoiser that is not affine.
    """
    if len(sigmas) < 2:
        raise ArgumentError("sigmas", f"expected at least two noise levels, got {list(sigmas)}")
    dimension = len(noisy)
    shape = denoiser.image_shape or (1, 1, dimension)
    identity = torch.eye(dimension, dtype=torch.float64)
    # One unit from the mean along each axis, one along all of them as a check, and none.
    offsets = torch.cat([identity, torch.ones_like(identity[:1]), torch.zeros_like(identity[:1])])
    mean, covariance = noisy.double(), torch.zeros_like(identity)
    for sigma, next_sigma in itertools.pairwise(sigmas):
        images = (mean + offsets).reshape(-1, *shape)
        with torch.no_grad():
            clean = denoiser(images, sigma)
        still = solver_step(solver, images, clean, sigma, next_sigma, torch.zeros_like(images)).flatten(1)
        mean, slopes, diagonal = still[-1], still[:-2] - still[-1], still[-2] - still[-1]
        if not torch.allclose(slopes.sum(0), diagonal, rtol=0, atol=_AFFINE * float(still.abs().max())):
            raise ArgumentError(
                "denoiser", f"expected one that is affine in x, got another at sigma = {sigma:g}"
            )
        noise = noise_scale(solver, sigma, next_sigma)
        covariance = slopes.T @ covariance @ slopes + noise**2 * identity
    return GaussianLaw(mean, covariance)


def gaussian_kl(first: GaussianLaw, second: GaussianLaw) -> float:
    """KL(first ‖ second) in nats, without the cancellation of the usual formula where they are close.

    inf where the second is singular; the first must not be.
    """
    factor, failed = torch.linalg.cholesky_ex(second.covariance)
    if int(failed):
        return math.inf
    half = torch.linalg.solve_triangular(factor, first.covariance - second.covariance, upper=False)
    excess = torch.linalg.eigvalsh(torch.linalg.solve_triangular(factor, half.T, upper=False))
    shift = torch.linalg.solve_triangular(factor, (first.mean - second.mean)[:, None], upper=False)
    return 0.5 * float((excess - excess.log1p()).sum() + shift.square().sum())


def convergence(
    density: GaussianMixture,
    noisy: Tensor,
    sigma: float,
    steps: Sequence[int],
    solver: Solver = Solver.DDPM,
) -> list[Distance]:
    """How the reverse process with the exact denoiser approaches the posterior as its steps grow.

    The process is `posterior_sample` with `even_sigmas` and without clipping.

    Args:
        density: one Gaussian in any dimension, or a mixture in one dimension.
        noisy: x_sigma, D numbers.
        sigma: its noise level.
        steps: numbers of denoiser evaluations.
        solver: `Solver.DDPM`, or `Solver.SDE` for Euler–Maruyama of the reverse VP-SDE.

    Raises:
        ValueError: several components in more than one dimension, `Solver.ODE` (its result is one point),
            steps < 1, or sigma and noisy as `GaussianMixture.posterior` has it.
    """
    if not INTEGRATORS[solver].random:
        raise ArgumentError("solver", "expected ddpm or sde, got ode, whose result is one point")
    posterior = density.posterior(noisy, sigma)
    denoiser = density.denoiser()
    if len(density.means) == 1:
        law = _gaussian(posterior)
        return [
            Distance(
                n, gaussian_kl(law, affine_chain_law(denoiser, noisy, [*even_sigmas(sigma, n), 0.0], solver))
            )
            for n in steps
        ]
    if density.dimension > 1:
        raise ArgumentError(
            "density",
            f"expected one Gaussian or a mixture in one dimension, got {len(density.means)}"
            f" components in {density.dimension} dimensions",
        )
    return [
        Distance(n, _grid_kl(posterior, denoiser, float(noisy[0]), even_sigmas(sigma, n), solver))
        for n in steps
    ]


def order(distances: Sequence[Distance]) -> float:
    """The measured order p of kl ∝ steps⁻ᵖ: minus the slope of the least-squares line in log-log coordinates.

    Raises:
        ValueError: fewer than two distances, or one that is not a finite number > 0.
    """
    if len(distances) < 2:
        raise ArgumentError("distances", f"expected at least two, got {len(distances)}")
    for distance in distances:
        if not 0.0 < distance.kl < math.inf:
            found = f"got {distance.kl:.2g}, as where rounding hides them at a low noise level"
            raise ArgumentError("distances", f"expected a finite number > 0, {found}")
    x, y = (
        torch.tensor(values, dtype=torch.float64).log()
        for values in ([d.steps for d in distances], [d.kl for d in distances])
    )
    x, y = x - x.mean(), y - y.mean()
    return -float((x * y).sum() / x.square().sum())


def _gaussian(mixture: GaussianMixture) -> GaussianLaw:
    """The one component of a mixture."""
    covariance = mixture.covariances[0]
    if covariance.ndim == 0:
        covariance = covariance * torch.eye(mixture.dimension, dtype=torch.float64)
    return GaussianLaw(mixture.means[0], covariance)


def _grid_kl(
    posterior: GaussianMixture, denoiser: Denoiser, noisy: float, sigmas: Sequence[float], solver: Solver
) -> float:
    """KL(posterior ‖ law of the result) in one dimension."""
    if INTEGRATORS[solver].noise_at(0.0):
        points, density = chain_law(denoiser, noisy, [*sigmas, 0.0], solver)
        spacing = torch.full_like(points, float(points[1] - points[0]))
    elif len(sigmas) == 1:
        return math.inf
    else:
        # The ancestral process ends in a map, the denoiser, which rises and so carries the density along.
        law = chain_law(denoiser, noisy, sigmas, solver)
        before = law.points.reshape(-1, 1, 1, 1).requires_grad_()
        clean = denoiser(before, sigmas[-1])
        (slope,) = torch.autograd.grad(clean.sum(), before)
        points, slope = clean.detach().flatten(), slope.flatten()
        density, spacing = law.density / slope, slope * law.spacing
    log_exact = posterior.log_density(points[:, None])
    return float((log_exact.exp() * (log_exact - density.log()) * spacing).sum())
