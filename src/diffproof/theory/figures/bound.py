"""Theorem 3.4 on wrong denoisers and on networks: measured divergences beside their bound."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffproof.denoisers.base import Denoiser, Estimate, Sigma, per_row
from diffproof.theory.densities import GaussianMixture
from diffproof.theory.divergences import (
    Estimated,
    end_point_divergence,
    score_matching_error,
    total_variation_bound,
)

# σ_min as a part of σ, where both processes end; steps of the learned one; samples of J_SM.
_END = 1 / 8
_STEPS = 40
_SAMPLES = 8192
# A bound with this confidence fails once in a thousand runs of the nine.
CONFIDENCE = 1 - 1e-3 / 9
_ITERATIONS = (20, 80, 400)


class Bounded(NamedTuple):
    """One denoiser.

    Attributes:
        family: the kind of denoiser: "means shifted", "variances scaled" or "network".
        name: which of them, such as "0.3 σ".
        bound: J_SM in nats.
        kl: the divergence that was measured, of ever finer steps, in nats.
        total_variation: the distance that was measured, likewise.
        step_error: how much of kl the finest steps miss.
    """

    family: str
    name: str
    bound: Estimated
    kl: float
    total_variation: float
    step_error: float

    @property
    def resolved(self) -> bool:
        """Whether the divergence is large enough to be measured with these steps."""
        return self.kl > 2 * abs(self.step_error)

    @property
    def holds(self) -> bool:
        """Whether KL ≤ J_SM and the total variation ≤ √(J_SM/2), at the upper end of J_SM's interval."""
        upper = self.bound.upper(CONFIDENCE)
        return self.kl <= upper and self.total_variation <= total_variation_bound(upper)


class Bounds(list[Bounded]):
    """All denoisers, and what they show."""

    def __str__(self) -> str:
        measured = self.measured
        if not measured:
            return f"Theorem 3.4 on pixel 1: all {len(self)} denoisers are too close to measure a divergence"
        parts = []
        for family in dict.fromkeys(one.family for one in measured):
            ratios = [one.kl / one.bound.mean for one in measured if one.family == family]
            parts.append(f"{family} {min(ratios):.2f} to {max(ratios):.2f}")
        left = len(self) - len(measured)
        return (
            f"Theorem 3.4 on pixel 1: KL ≤ J_SM and total variation ≤ √(J_SM/2) for"
            f" {sum(one.holds for one in measured)} of {len(measured)} denoisers"
            f"{f' ({left} too close to measure)' * bool(left)}; KL / J_SM: {', '.join(parts)}"
        )

    @property
    def measured(self) -> list[Bounded]:
        """Those whose divergence could be measured."""
        return [one for one in self if one.resolved]


def bounds(density: GaussianMixture, noisy: float, sigma: float, generator: torch.Generator) -> Bounds:
    """Denoisers of shifted and of widened densities and a network at three lengths of training.

    Args:
        density: the exact distribution, of one pixel.
        noisy: x_a.
        sigma: its noise level.
        generator: where the random numbers come from.
    """
    cases: list[tuple[str, str, Denoiser]] = []
    for shift in (0.1, 0.3, 1.0):
        shifted = GaussianMixture(
            density.means + shift * sigma, density.covariances, density.log_weights.exp()
        )
        cases.append(("means shifted", f"{shift:g} σ", shifted.denoiser()))
    for factor in (0.5, 2.0, 4.0):
        scaled = GaussianMixture(density.means, factor * density.covariances, density.log_weights.exp())
        cases.append(("variances scaled", f"× {factor:g}", scaled.denoiser()))
    low = _END * sigma
    for iterations, network in zip(_ITERATIONS, _train(density, low, sigma, generator), strict=True):
        cases.append(("network", f"{iterations} iterations", network))
    found = Bounds()
    for family, name, denoiser in cases:
        bound = score_matching_error(
            density,
            denoiser,
            sigma,
            noisy=torch.tensor([noisy], dtype=torch.float64),
            sigma_min=low,
            samples=_SAMPLES,
            generator=generator,
        )
        coarse, fine = (
            end_point_divergence(density, denoiser, noisy, sigma, sigma_min=low, steps=steps)
            for steps in (_STEPS, 2 * _STEPS)
        )
        # The chain's own error is of order 1/steps: what is measured is the process it tends to.
        kl, variation = (
            2 * getattr(fine, what) - getattr(coarse, what) for what in ("kl", "total_variation")
        )
        found.append(Bounded(family, name, bound, kl, variation, fine.kl - kl))
    return found


class _Network(Denoiser):
    """A network of one pixel, preconditioned for data of this mean and variance (Karras et al. 2022)."""

    image_shape = (1, 1, 1)

    def __init__(self, mean: float, variance: float) -> None:
        super().__init__()
        self.mean, self.variance = mean, variance
        self.layers = nn.Sequential(
            nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1)
        ).double()

    def estimate(self, noisy: Tensor, sigma: Sigma, label: Tensor | None) -> Estimate:
        s = per_row(sigma, noisy).expand_as(noisy)
        total, offset = self.variance + s**2, noisy - self.mean
        inputs = torch.cat(
            [(offset / total.sqrt()).flatten(1), (s.log() - math.log(self.variance) / 2).flatten(1)], 1
        )
        residual = self.layers(inputs).reshape(noisy.shape)
        scale = s * math.sqrt(self.variance) / total.sqrt()
        return Estimate(self.mean + self.variance / total * offset + scale * residual)


def _train(
    density: GaussianMixture, low: float, high: float, generator: torch.Generator
) -> Sequence[_Network]:
    """One network after each of the numbers of iterations."""
    weights = density.log_weights.exp()
    mean = float(weights @ density.means[:, 0])
    variance = float(weights @ (density.covariances + (density.means[:, 0] - mean).square()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        network = _Network(mean, variance)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    taken = []
    for iteration in range(1, max(_ITERATIONS) + 1):
        clean = density.sample(256, generator).reshape(-1, 1, 1, 1)
        place = torch.rand(256, dtype=torch.float64, generator=generator)
        sigma = low * (high / low) ** place
        noise = torch.randn(clean.shape, dtype=torch.float64, generator=generator)
        error = network(clean + per_row(sigma, clean) * noise, sigma) - clean
        optimiser.zero_grad()
        (error / per_row(sigma, clean)).square().mean().backward()
        optimiser.step()
        if iteration in _ITERATIONS:
            taken.append(copy.deepcopy(network).requires_grad_(False))
    return taken
