"""Consistency regularisation: the draws of an image agree with their mean (Jeong & Shin 2020)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diffproof.training.objectives.base import (
    Objective,
    Step,
    at_sigma,
    cross_entropies,
    divergences,
    mean_of_draws,
)

_WEIGHTS = {0.25: 20.0, 0.5: 10.0, 1.0: 10.0}


@dataclass(frozen=True)
class Consistency(Objective):
    """Mean over draws of CE + λ·KL(p̄ ‖ p_i), + η·H(p̄): p_i of each draw, p̄ their mean, which gets gradients.

    Attributes:
        draws: m.
        weight: λ; None for the paper's of CIFAR-10 at the nearest noise level, 20, 10, 10 at σ = .25, .5, 1.
        entropy: η.
    """

    name = "consistency"
    draws: int = 2
    weight: float | None = None
    entropy: float = 0.5

    def loss(self, step: Step) -> Tensor:
        """See Objective."""
        draws = step.log_probabilities(step.images)
        mean = mean_of_draws(draws)
        apart = divergences(mean[:, None], draws).mean()
        entropy = -(mean.exp() * mean).sum(1).mean()
        weight = at_sigma(self.weight, _WEIGHTS, step.sigma)
        return cross_entropies(draws, step.labels).mean() + weight * apart + self.entropy * entropy
