"""SmoothMix: mixing images with adversaries of the smoothed classifier (Jeong et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffproof.errors import ArgumentError
from diffproof.training.objectives.base import (
    Objective,
    Step,
    at_sigma,
    cross_entropies,
    mean_of_draws,
    warmed_up,
)
from diffproof.training.objectives.search import ascend, within

_STEPS = {0.25: 0.5, 0.5: 1.0, 1.0: 2.0}


@dataclass(frozen=True)
class SmoothMix(Objective):
    """Mean CE(f(x_s + δ_i), y) + η·mean KL(t ‖ p(x_mix + δ_i)), the latter where p̄(x_s) is right.

    x_T is found without a ball by T steps up −log p̄_y, x_s on the way; x_mix = (1 − u)·x_s + u·x_T and
    t = (1 − u)·p̄(x_s) + u/C, u uniform in [0, ½) for each image. Every image has the same draws throughout.

    Attributes:
        draws: m.
        steps: T.
        step: length of a step in ℓ2; None for the paper's at the nearest of σ = .25, .5, 1: .5, 1, 2.
        mix_step: the step at which x_s lies, 0 for the clean image; at most T.
        weight: η.
        warmup: share of the training over which η, and how far x_s may lie, rise from 0.
    """

    name = "smoothmix"
    uniform = True
    draws: int = 2
    steps: int = 4
    step: float | None = None
    mix_step: int = 1
    weight: float = 5.0
    warmup: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mix_step > self.steps:
            raise ArgumentError("mix_step", f"expected at most steps, {self.steps}, got {self.mix_step}")

    def loss(self, step: Step) -> Tensor:
        """See Objective."""
        start, end = self.search(step)
        share = step.uniform[:, :1] / 2
        draws = step.log_probabilities(start)
        mean = mean_of_draws(draws)
        right = mean.argmax(1) == step.labels
        target = (1 - share) * mean.exp() + share / mean.shape[1]
        pixels = share[:, :, None, None]
        mixed = step.log_probabilities((1 - pixels) * start + pixels * end)
        # Σ t·log t is finite where t is 0.
        apart = (torch.xlogy(target, target)[:, None] - target[:, None] * mixed).sum(2).mean(1)
        weight = self.weight * warmed_up(step.done, self.warmup)
        return cross_entropies(draws, step.labels).mean() + weight * (right * apart).mean()

    def search(self, step: Step) -> tuple[Tensor, Tensor]:
        """x_s and x_T, N×C×H×W, without a graph."""
        size = at_sigma(self.step, _STEPS, step.sigma)
        with step.searching() as still:
            points = ascend(
                lambda points: cross_entropies(mean_of_draws(still.log_probabilities(points)), step.labels),
                step.images,
                steps=self.steps,
                size=size,
                settle=lambda points: points.clamp(0, 1),
            )
        reach = size * self.mix_step * warmed_up(step.done, self.warmup)
        return within(points[self.mix_step], step.images, reach), points[-1]
