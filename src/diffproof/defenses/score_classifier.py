"""SBGC: the class whose diffusion model gives the image the largest likelihood (Zimmermann et al. 2021)."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from diffproof import gradients
from diffproof.checks import MOST_ROWS, check_at_least, check_positive
from diffproof.defenses.base import Defense, noise_for
from diffproof.denoisers.base import Denoiser, check_denoiser
from diffproof.errors import ArgumentError
from diffproof.gradients import Step
from diffproof.noise import Noise
from diffproof.reverse.levels import vp_sigmas

# The likelihood is that of the image at the first time, the Gaussian stands at the last (Song et al. 2021).
_FIRST_TIME, _LAST_TIME = 1e-5, 1.0
# Variance of pixels that the variance-preserving process ends with, of [0, 1] pixels.
_PIXEL_VARIANCE = 0.25


class SBGC(Defense):
    """logits_y = log p(x|y)/temperature, by the probability-flow ODE of each class (Zimmermann et al. 2021).

    With u = ln σ, dx/du = x − D(x, σ, y), and log p(x|y) = log N(x_T; ½, (σ_T² + ¼)·I) + ∫ (d − tr ∂D/∂x) du
    (Song et al. 2021, eq. 39, in this package's coordinates). The trace is Hutchinson's estimate vᵀ(∂D/∂x)v
    with one Rademacher vector v an image, the same for all its classes and noise levels. The ODE is solved by
    the classical Runge-Kutta method in equal steps of u, from the level of the time 1e-5 to that of the time
    1, as far as the denoiser knows them. Gradients are exact, those of the numerical solution.

    Args:
        denoiser: a class-conditional denoiser.
        steps: steps of the solver, ≥ 1, of four denoiser evaluations a class, each with a gradient.
        temperature: divides the log-likelihoods, > 0; above 1 where their differences, of hundreds of nats,
            leave a softmax no gradient.

    Raises:
        ValueError: the denoiser is unconditional, or an argument is out of range.
    """

    method = "sbgc"

    denoiser: Denoiser

    def __init__(self, denoiser: Denoiser, *, steps: int = 50, temperature: float = 1.0) -> None:
        if check_denoiser(denoiser).num_classes is None:
            raise ArgumentError("denoiser", "expected a class-conditional one, got one without classes")
        super().__init__(None, denoiser, num_classes=denoiser.num_classes)
        self.steps = check_at_least("steps", steps, 1, MOST_ROWS)
        self.temperature = check_positive("temperature", temperature)
        low, *_, high = self.levels()
        if low >= high:
            raise ArgumentError(
                "denoiser", f"expected one of noise levels below {high:.6g}, got them from {low:.6g} on"
            )

    @property
    def rows_per_image(self) -> int:
        """A row for each class."""
        return self.num_classes

    def respond(self, images: Tensor, noise: Noise) -> Tensor:
        """N×num_classes logits."""
        return self.log_likelihoods(images, noise) / self.temperature

    def log_likelihoods(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """log p(x|y) of each class, of densities on [0, 1] pixels, in nats.

        Args:
            images: N×C×H×W in [0, 1].
            noise: one row an image; None draws afresh.

        Returns:
            N×num_classes. Gradients flow to the images.

        Raises:
            ValueError: as calling the defence.
        """
        noise = noise_for(images, noise)
        probe = torch.where(noise.normal(images.shape[1:], 0, images.dtype) < 0, -1.0, 1.0).to(images.dtype)
        probes = probe.repeat_interleave(self.num_classes, dim=0)
        levels = self.levels()
        chain = [self._spread, *[self._step(*pair, probes) for pair in itertools.pairwise(levels)]]
        final = gradients.checkpointed(images, chain)
        size, variance = images[0].numel() if len(images) else 1, levels[-1] ** 2 + _PIXEL_VARIANCE
        squares = (final[:, :-1] - 0.5).square().sum(1) / variance
        constant = size * (math.log(levels[-1] / levels[0]) - 0.5 * math.log(2 * math.pi * variance))
        return (constant - 0.5 * squares - final[:, -1]).reshape(len(images), self.num_classes)

    def levels(self) -> list[float]:
        """The ascending noise levels between the steps, of [0, 1] pixels."""
        low = max(*vp_sigmas(_FIRST_TIME, 1), self.denoiser.sigma_min)
        high = min(*vp_sigmas(_LAST_TIME, 1), self.denoiser.sigma_max)
        inner = [low * (high / low) ** (step / self.steps) for step in range(1, self.steps)]
        return [low, *inner, high]

    def settings(self) -> dict[str, Any]:
        """Method, steps and temperature."""
        return {"method": self.method, "steps": self.steps, "temperature": self.temperature}

    def _spread(self, state: Tensor, images: Tensor) -> Tensor:
        """A row of pixels for each image and class, and behind them ∫ tr ∂D/∂x du so far."""
        rows = images.flatten(1).repeat_interleave(self.num_classes, dim=0)
        return torch.cat([rows, rows.new_zeros(len(rows), 1)], dim=1)

    def _step(self, sigma: float, following: float, probes: Tensor) -> Step:
        """A step of the Runge-Kutta method of fourth order."""
        width, middle = math.log(following / sigma), math.sqrt(sigma * following)

        def step(state: Tensor, images: Tensor) -> Tensor:
            first = self._slope(state, sigma, probes)
            second = self._slope(state + width / 2 * first, middle, probes)
            third = self._slope(state + width / 2 * second, middle, probes)
            fourth = self._slope(state + width * third, following, probes)
            return state + width / 6 * (first + 2 * second + 2 * third + fourth)

        return step

    def _slope(self, state: Tensor, sigma: float, probes: Tensor) -> Tensor:
        """d state/d ln σ."""
        differentiable = torch.is_grad_enabled()
        classes = torch.arange(self.num_classes, device=state.device)
        # Always, so that running a step again gives the same bits, with a graph or without.
        with torch.enable_grad(), gradients.twice_differentiable():
            pixels = state[:, :-1].reshape(probes.shape)
            point = pixels if differentiable and pixels.requires_grad else pixels.detach().requires_grad_()
            clean = self.denoiser.checked_estimate(
                point, sigma, classes.repeat(len(state) // self.num_classes)
            ).clean
            (pulled,) = torch.autograd.grad(
                (clean * probes).sum(), point, create_graph=differentiable, materialize_grads=True
            )
            trace = (pulled * probes).flatten(1).sum(1, keepdim=True)
            slope = torch.cat([(point - clean).flatten(1), trace], dim=1)
        return slope if differentiable else slope.detach()
