"""Stability training: the clean image's answer is kept under noise (Li et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diffproof.training.objectives.base import Objective, Step, at_sigma, cross_entropies

_WEIGHTS = {0.25: 2.0, 0.5: 2.0, 1.0: 1.0}


@dataclass(frozen=True)
class Stability(Objective):
    """CE(f(x), y) − λ·Σ_c p_c(x) log p_c(x + δ); the clean image has the label, and gets gradients of both.

    Attributes:
        weight: λ; None for that of Jeong & Shin 2020 at the nearest noise level, 2, 2, 1 at σ = .25, .5, 1.
    """

    name = "stability"
    weight: float | None = None

    def loss(self, step: Step) -> Tensor:
        """See Objective."""
        clean = step.classify(step.images).log_softmax(1)
        noisy = step.log_probabilities(step.images)
        kept = -(clean.exp()[:, None] * noisy).sum(2).mean()
        weight = at_sigma(self.weight, _WEIGHTS, step.sigma)
        return cross_entropies(clean, step.labels).mean() + weight * kept
