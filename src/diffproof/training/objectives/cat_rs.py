"""CAT-RS: confidence-aware training (Jeong et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffproof.training.objectives.base import (
    Objective,
    Step,
    at_sigma,
    cross_entropies,
    divergences,
    mean_of_draws,
)
from diffproof.training.objectives.search import perturbed

_WEIGHTS = {0.25: 0.5, 0.5: 1.0, 1.0: 2.0}


@dataclass(frozen=True)
class CATRS(Objective):
    """The K smallest cross-entropies of the draws over m, and the worst draw nearby where K is m.

    K ~ Binomial(m, share of the draws that are classified rightly), at least 1. The worst draw: each noise
    moves within an ℓ2 ball up the divergence from p̄, keeping its mean and deviation over the pixels;
    max_i KL(p̄ ‖ p(x + δ'_i)) has the weight λ. p̄ is the mean over the step's draws, without gradient, in
    place of the paper's prediction of 10,000 draws of a trained network.

    Attributes:
        draws: m.
        weight: λ; None for the paper's at the nearest noise level, .5, 1, 2 at σ = .25, .5, 1.
        budget: ε of the noise, in [0, 1] pixels.
        steps: T of the search; a step has the length 2ε/T.
    """

    name = "cat-rs"
    uniform = True
    draws: int = 4
    weight: float | None = None
    budget: float = 1.0
    steps: int = 4

    def loss(self, step: Step) -> Tensor:
        """See Objective."""
        draws = step.log_probabilities(step.images)
        right = (draws.argmax(2) == step.labels[:, None]).sum(1)
        kept = (step.uniform < right[:, None] / self.draws).sum(1).clamp(min=1)
        smallest = cross_entropies(draws, step.labels).sort(1).values
        rank = torch.arange(self.draws, device=smallest.device)
        low = (smallest * (rank < kept[:, None])).sum(1) / self.draws
        sure = kept == self.draws
        mean = mean_of_draws(draws).detach()
        with step.searching() as still:
            moved = perturbed(
                step.sigma * step.normal,
                step.images,
                still.logits_of,
                mean,
                budget=self.budget,
                steps=self.steps,
            )
        high = divergences(mean[:, None], step.logits_of(moved).log_softmax(2)).amax(1)
        return (low + at_sigma(self.weight, _WEIGHTS, step.sigma) * sure * high).mean()
