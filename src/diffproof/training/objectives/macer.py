"""MACER: maximising the certified radius without attacks (Zhai et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffproof.training.objectives.base import Objective, Step, at_sigma

_WEIGHTS = {0.25: 12.0, 0.5: 4.0, 1.0: 12.0}
# Until the authors' first decay of the learning rate, in epoch 200 of 440.
_DEFERRED = {0.25: 0.0, 0.5: 0.0, 1.0: 200 / 440}
# Keeps the logarithm of a mean probability finite.
_TINY = 1e-10


@dataclass(frozen=True)
class MACER(Objective):
    """−log z̄_y + λ·(σ/2)·(γ − ξ), z̄ the mean softmax of the draws, ξ the radius over σ of a sharper one.

    ξ = Φ⁻¹(z_y) − Φ⁻¹(z_c), z the mean softmax of β·logits, c its runner-up. The second term is of images
    whose label is right and whose ξ is finite and at most γ; of others it is 0. It is computed in float32.

    Attributes:
        draws: how many.
        weight: λ; None for the authors' at the nearest noise level, 12, 4, 12 at σ = .25, .5, 1.
        beta: β, the inverse temperature.
        gamma: γ, beyond which a radius is no longer raised.
        deferred: share of the training in which λ is 0; None for the authors' at the nearest noise level,
            0, 0, 5/11.
    """

    name = "macer"
    draws: int = 16
    weight: float | None = None
    beta: float = 16.0
    gamma: float = 8.0
    deferred: float | None = None

    def loss(self, step: Step) -> Tensor:
        """See Objective."""
        logits = step.logits_of(step.noisy(step.images))
        right = logits.softmax(2).mean(1).gather(1, step.labels[:, None])
        loss = -(right + _TINY).log().mean()
        if step.done < at_sigma(self.deferred, _DEFERRED, step.sigma):
            return loss
        short = self.shortfall(logits, step.labels).sum() / len(logits)
        return loss + at_sigma(self.weight, _WEIGHTS, step.sigma) * step.sigma / 2 * short

    def shortfall(self, logits: Tensor, labels: Tensor) -> Tensor:
        """γ − ξ of those images whose radius is to grow."""
        largest = (self.beta * logits).softmax(2).mean(1).topk(2)
        values = largest.values[largest.indices[:, 0] == labels]
        with torch.no_grad():  # chosen first: the gradient of an infinite quantile is no number
            radius = torch.special.ndtri(values[:, 0]) - torch.special.ndtri(values[:, 1])
            chosen = torch.isfinite(radius) & (radius <= self.gamma)
        values = values[chosen]
        shortfall: Tensor = self.gamma - torch.special.ndtri(values[:, 0]) + torch.special.ndtri(values[:, 1])
        return shortfall
