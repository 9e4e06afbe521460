"""How far a learned reverse process ends from the exact one: Theorem 3.4 and Remark 4 of DensePure.

Both processes start in the same noisy point at sigma and run down to sigma_min (Xiao et al. 2023). With
x_s = x0 + s·N(0, I) and v = s², the exact one is dx = ∇log p_s(x)·|dv| + dW; the learned one has
s_θ(x, s) = (denoiser(x, s) − x)/s² in place of the score. The theorem's λ = g² makes g²·ds = dv.

What the theorem says, precisely. J_SM = ½∫E‖∇log p_s(x) − s_θ(x, s)‖² dv is, by Girsanov's theorem,
KL(exact ‖ learned) of the laws of whole paths. Of their ends, at sigma_min, it is an upper bound (data
processing). The two are equal, as the theorem is printed, where s_θ is itself the score of some diffused
distribution: given their ends, both processes are then the same Brownian bridge. A network's output is no
such score in general. With E over the exact process that starts in x_a the bound holds for that x_a; with
E over p_s, for the mean of the divergences over x_a ~ p_sigma.

What it assumes (appendix B.1). Finite second moments; a score and an s_θ that are Lipschitz and grow at
most linearly, so that both processes exist; a condition of Novikov's kind, so that Girsanov's theorem
applies. Down to a sigma_min > 0, Gaussian mixtures and finite supports meet all that concerns the exact
process: where the points lie within R, the score at s has Lipschitz constant max(1, R²/s²)/s². The rest is
on the network, whose layers meet it if they are Lipschitz. At 0 a finite support breaks the assumptions: it
has no density, its score grows as 1/s, and J_SM is finite only if the denoiser's error vanishes faster than
s. So sigma_min is always asked for, and what is compared is x at sigma_min.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy.special import ndtri
from torch import Tensor

from diffproof.checks import check_at_least, check_positive, check_probability
from diffproof.denoisers.base import Denoiser
from diffproof.errors import ArgumentError
from diffproof.reverse.solvers import Solver, solver_step
from diffproof.theory.densities import Density

# Rows that go through a denoiser at once, and parts of log sigma with two noise levels each.
_ROWS = 4096
_STRATA = 64


@dataclass(frozen=True)
class Estimated:
    """A Monte-Carlo mean.

    Attributes:
        mean: unbiased.
        standard_error: the mean's standard error, estimated from the same samples.
        samples: how many there were.
    """

    mean: float
    standard_error: float
    samples: int

    def upper(self, confidence: float = 0.99) -> float:
        """Upper end of the one-sided interval of this confidence, by the central limit theorem.

        Raises:
            ValueError: confidence outside (0, 1).
        """
        return self.mean + float(ndtri(check_probability("confidence", confidence))) * self.standard_error


def score_matching_error(
    density: Density,
    denoiser: Denoiser,
    sigma: float,
    *,
    noisy: Tensor | None = None,
    sigma_min: float,
    samples: int,
    generator: torch.Generator,
) -> Estimated:
    """J_SM(θ, t; g²) of Theorem 3.4, the bound of the KL divergence, by Monte Carlo; see the module.

    ½∫ E‖∇log p_s(x) − s_θ(x, s)‖² d(s²) over sigma_min ≤ s ≤ sigma: two levels s are drawn from each of 64
    equal parts of log s, and equally many x at each level. The difference within a part gives the error.

    Args:
        density: the exact distribution of D-dimensional points.
        denoiser: the learned one, of images of D pixels; called without labels.
        sigma: noise level at which both reverse processes start.
        noisy: x_a, D numbers: the expectation is over the exact reverse process from there, and J bounds
            KL(p(x_sigma_min | x_sigma = x_a) ‖ its law in the learned process). None: over p_s, and J bounds
            the mean of those divergences over x_a ~ p_sigma.
        sigma_min: noise level at which both end.
        samples: how many x at least; rounded up to a multiple of 128.
        generator: where the random numbers come from.

    Returns:
        The mean in nats; its `upper(confidence)` bounds the KL divergence with that confidence.

    Raises:
        ValueError: sigma or sigma_min outside the denoiser's range, sigma_min ≥ sigma, samples < 1, or
            dimensions that differ.
    """
    _check_levels(denoiser, sigma, sigma_min)
    check_at_least("samples", samples, 1)
    _check_dimension(denoiser, density.dimension)
    length = math.log(sigma / sigma_min)
    place = torch.rand(_STRATA, 2, dtype=torch.float64, generator=generator)
    place = (torch.arange(_STRATA)[:, None] + place).flatten() / _STRATA
    levels = sigma_min * torch.exp(length * place)
    count = math.ceil(samples / len(levels))
    total = count * len(levels)
    normal = torch.randn(total, density.dimension, dtype=torch.float64, generator=generator)
    level = levels.repeat_interleave(count)[:, None]
    if noisy is None:
        points = density.sample(total, generator) + level * normal
    else:
        clean = density.posterior(noisy, sigma).sample(total, generator)
        # Given both its ends, the path of a diffusing point is a Brownian bridge in s².
        way = (level / sigma).square()
        points = clean + way * (noisy.double() - clean) + level * (1 - way).sqrt() * normal
    means = []
    for s, part in zip(levels.tolist(), points.split(count), strict=True):
        difference = density.score(part, s) - learned_score(denoiser, part, s)
        # d(s²) = 2s²·d(log s).
        means.append(length * s**2 * float(difference.square().sum(1).mean()))
    pairs = torch.tensor(means, dtype=torch.float64).reshape(_STRATA, 2)
    spread = float((pairs[:, 0] - pairs[:, 1]).square().sum())
    return Estimated(float(pairs.mean()), math.sqrt(spread) / len(levels), total)


def learned_score(denoiser: Denoiser, points: Tensor, sigma: float) -> Tensor:
    """s_θ of points N×D at one noise level: (denoiser(x, sigma) − x)/sigma², N×D, without gradients."""
    return (_estimates(denoiser, points, sigma) - points) / sigma**2


def total_variation_bound(kl: float) -> float:
    """min(1, √(kl/2)): Pinsker's inequality (Remark 4).

    No event's probability differs by more between the two laws, nor does the share of any class, whether
    it is the share of a region or E[P(class | x)].

    Args:
        kl: a KL divergence in nats, or a bound of it.

    Raises:
        ValueError: kl is negative.
    """
    if not kl >= 0:
        raise ArgumentError("kl", f"expected a number ≥ 0, got {kl!r}")
    return min(1.0, math.sqrt(kl / 2))


class GridLaw(NamedTuple):
    """A one-dimensional law.

    Attributes:
        points: M, evenly spaced.
        density: M, at the points; the trapezoidal rule integrates it to 1.
    """

    points: Tensor
    density: Tensor

    @property
    def spacing(self) -> float:
        """Distance of neighbouring points."""
        return float(self.points[-1] - self.points[0]) / (len(self.points) - 1)


# A grid's spacing in standard deviations of the Gaussian steps into and out of it: the trapezoidal rule is
# exact to e^(−2π²·½/0.5²) < 1e-17 for their product. A step reaches to where it is 1e-16 of its peak.
_SPACING = 0.5
_REACH = 8.5
# Mass of a grid point that is no longer followed, and the largest grid.
_NEGLIGIBLE = 1e-40
_MAX_POINTS = 2**20


def chain_law(
    denoiser: Denoiser, noisy: float, sigmas: Sequence[float], solver: Solver = Solver.DDPM
) -> GridLaw:
    """The law of a discretised reverse process of one pixel at its last noise level, without sampling error.

    Chapman–Kolmogorov: the law after each step is the integral of the step's Gaussian over the law before
    it, on grids fine enough to make the integral exact to rounding. The steps are `solver_step`'s own, so the
    ancestral ones (`Solver.DDPM`) are those of `posterior_sample` without clipping.

    Args:
        denoiser: a denoiser of images 1×1×1; called without labels.
        noisy: where the process starts.
        sigmas: two or more descending noise levels, all > 0 but for the last of `Solver.SDE`, which may be 0.
        solver: `Solver.DDPM` or `Solver.SDE`.

    Raises:
        ValueError: the denoiser is of more than one pixel, a level outside its range, levels that do not
            descend, a step without noise, or steps so small that a grid would have more than 2^20 points.
    """
    _check_dimension(denoiser, 1)
    if len(sigmas) < 2:
        raise ArgumentError("sigmas", f"expected at least two noise levels, got {list(sigmas)}")
    scales = [noise_scale(solver, *pair) for pair in itertools.pairwise(sigmas)]
    if 0.0 in scales:
        raise ArgumentError("sigmas", f"expected steps with noise, got {solver.value} down to {sigmas[-1]:g}")
    levels = list(itertools.pairwise(sigmas))
    points, mass = torch.tensor([noisy], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    means, spacing = _step_means(denoiser, points, *levels[0], solver), math.inf
    for i, scale in enumerate(scales):
        spacing = _SPACING * min(scales[i : i + 2])
        points, after = _after_step(means, mass, scale, spacing)
        if i + 1 < len(levels):
            following = _step_means(denoiser, points, *levels[i + 1], solver)
            # Where the next step stretches distances, its Gaussian is that much narrower in today's points.
            known = after[1:] > 1e-16 * float(after.max())
            stretch = float((following.diff().abs() * known).max()) / spacing
            needed = _SPACING * scales[i + 1] / max(stretch, 1.0)
            if needed < spacing:
                spacing = needed
                points, after = _after_step(means, mass, scale, spacing)
                following = _step_means(denoiser, points, *levels[i + 1], solver)
            means = following
        mass = after
    return GridLaw(points, mass / spacing)


def _after_step(means: Tensor, mass: Tensor, scale: float, spacing: float) -> tuple[Tensor, Tensor]:
    """Masses at N means, each spread as a Gaussian of deviation `scale`: M even points and masses there."""
    reach = math.ceil(_REACH * scale / spacing)
    first = float(means.min()) - (reach + 1) * spacing
    count = math.ceil((float(means.max()) - first) / spacing) + reach + 2
    if count > _MAX_POINTS:
        raise ArgumentError(
            "sigmas",
            f"a step with noise {scale:.3g} needs a grid of {count} points, expected at most {_MAX_POINTS}",
        )
    nearest = torch.round((means - first) / spacing).long()
    index = nearest[:, None] + torch.arange(-reach, reach + 1)
    distance = (first + spacing * index.double() - means[:, None]) / scale
    peak = spacing / (scale * math.sqrt(2 * math.pi))
    shares = torch.exp(-0.5 * distance.square()) * (peak * mass[:, None])
    after = torch.zeros(count, dtype=torch.float64).index_add_(0, index.flatten(), shares.flatten())
    kept = (after > _NEGLIGIBLE).nonzero()[:, 0]
    low, high = int(kept[0]), int(kept[-1]) + 1
    return first + spacing * torch.arange(low, high, dtype=torch.float64), after[low:high]


class Divergence(NamedTuple):
    """Two one-dimensional laws of x at sigma_min and their distance.

    Attributes:
        kl: KL(exact ‖ learned) in nats; inf where the learned law has no mass (< 1e-40 a point) for a share
            above 1e-9 of the exact one.
        total_variation: half the integral of |exact − learned|.
        learned: the law in which the learned process ends.
        exact: M, the density p(x_sigma_min | x_sigma) at `learned.points`.
    """

    kl: float
    total_variation: float
    learned: GridLaw
    exact: Tensor


def end_point_divergence(
    density: Density, denoiser: Denoiser, noisy: float, sigma: float, *, sigma_min: float, steps: int = 200
) -> Divergence:
    """The divergence that Theorem 3.4 bounds, measured in one dimension without sampling error.

    The learned process is followed in ancestral steps uniform in log sigma, whose own error is of order
    1/steps in the law and in a divergence, and of order 1/steps² in a divergence that would be 0.

    Args:
        density: the exact distribution of one-dimensional points.
        denoiser: see `score_matching_error`.
        noisy: x_a.
        sigma: see `score_matching_error`.
        sigma_min: see `score_matching_error`.
        steps: steps of the learned process, ≥ 1.

    Raises:
        ValueError: as `score_matching_error` and `chain_law` do, or fewer than one step.
    """
    _check_levels(denoiser, sigma, sigma_min)
    check_at_least("steps", steps, 1)
    ratio = math.log(sigma_min / sigma)
    sigmas = [sigma * math.exp(ratio * i / steps) for i in range(steps + 1)]
    learned = chain_law(denoiser, noisy, sigmas)
    between = math.sqrt(sigma**2 - sigma_min**2)
    # Theorem 3.1 with p at sigma_min in place of p(x0).
    posterior = density.diffused(sigma_min).posterior(torch.tensor([noisy], dtype=torch.float64), between)
    log_exact = posterior.log_density(learned.points[:, None])
    exact, spacing = log_exact.exp(), learned.spacing
    outside = max(0.0, 1 - float(exact.sum()) * spacing)
    kl = float((exact * (log_exact - learned.density.log())).sum()) * spacing
    distance = float((exact - learned.density).abs().sum()) * spacing
    return Divergence(kl if outside < 1e-9 else math.inf, (distance + outside) / 2, learned, exact)


def noise_scale(solver: Solver, sigma: float, next_sigma: float) -> float:
    """Standard deviation of the noise in one step of a discretised reverse process; 0 where it has none.

    Raises:
        ValueError: the step does not descend.
    """
    zero, one = torch.zeros(1, 1, 1, 1, dtype=torch.float64), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    with_noise, without = (solver_step(solver, zero, zero, sigma, next_sigma, z) for z in (one, zero))
    return float(with_noise - without)


def _step_means(
    denoiser: Denoiser, points: Tensor, sigma: float, next_sigma: float, solver: Solver
) -> Tensor:
    """Where a step from each of M points of one pixel leads on average, M."""
    clean = _estimates(denoiser, points[:, None], sigma)
    noisy = points.reshape(-1, 1, 1, 1)
    step = solver_step(solver, noisy, clean.reshape(noisy.shape), sigma, next_sigma, torch.zeros_like(noisy))
    return step.flatten()


def _estimates(denoiser: Denoiser, points: Tensor, sigma: float) -> Tensor:
    """The denoiser's estimates N×D at points N×D."""
    shape = denoiser.image_shape or (1, 1, points.shape[1])
    with torch.no_grad():
        parts = [denoiser(part, sigma).flatten(1) for part in points.reshape(-1, *shape).split(_ROWS)]
    return torch.cat(parts)


def _check_levels(denoiser: Denoiser, sigma: float, sigma_min: float) -> None:
    check_positive("sigma", sigma)
    check_positive("sigma_min", sigma_min)
    if sigma_min >= sigma:
        raise ArgumentError("sigma_min", f"expected 0 < sigma_min < sigma = {sigma:g}, got {sigma_min:g}")
    denoiser.check_sigma(sigma)
    denoiser.check_sigma(sigma_min)


def _check_dimension(denoiser: Denoiser, dimension: int) -> None:
    if denoiser.image_shape is not None and math.prod(denoiser.image_shape) != dimension:
        raise ArgumentError(
            "denoiser",
            f"expected images of {dimension} pixels, as the density has dimensions,"
            f" got {'×'.join(map(str, denoiser.image_shape))}",
        )
