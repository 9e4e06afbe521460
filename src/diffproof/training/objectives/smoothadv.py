"""SmoothAdv: adversarial training of the smoothed classifier (Salman et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diffproof.training.objectives.base import (
    Objective,
    Step,
    at_sigma,
    cross_entropies,
    mean_of_draws,
    warmed_up,
)
from diffproof.training.objectives.search import ascend, within

_BUDGETS = {0.25: 1.0, 0.5: 1.0, 1.0: 2.0}
_DRAWS = {0.25: 4.0, 0.5: 8.0, 1.0: 2.0}


@dataclass(frozen=True)
class SmoothAdv(Objective):
    """(1/m)·Σ_i CE(f(x + η + δ_i), y), η maximising −log (1/m)·Σ_i p_y(x + η + δ_i) within an ℓ2 ball.

    The same draws serve the search and the loss. The search starts at the image, in evaluation mode, and
    takes steps of 2ε/T along the unit gradient; pixels are clipped before the perturbation is projected.

    Attributes:
        draws: m; None for the paper's at the nearest noise level, 4, 8, 2 at σ = .25, .5, 1.
        budget: ε, of [0, 1] pixels; None for the paper's at the nearest noise level, 1, 1, 2.
        steps: T.
        warmup: share of the training over which ε rises from 0.
    """

    name = "smoothadv"
    draws: int | None = None
    budget: float | None = None
    steps: int = 10
    warmup: float = 0.1

    def draws_at(self, sigma: float) -> int:
        """See Objective."""
        return int(at_sigma(self.draws, _DRAWS, sigma))

    def loss(self, step: Step) -> Tensor:
        """See Objective."""
        budget = at_sigma(self.budget, _BUDGETS, step.sigma) * warmed_up(step.done, self.warmup)
        found = self.search(step, budget) if budget else step.images
        return cross_entropies(step.log_probabilities(found), step.labels).mean()

    def search(self, step: Step, budget: float) -> Tensor:
        """The adversarial images N×C×H×W within the budget, without a graph."""
        with step.searching() as still:
            return ascend(
                lambda points: cross_entropies(mean_of_draws(still.log_probabilities(points)), step.labels),
                step.images,
                steps=self.steps,
                size=2 * budget / self.steps,
                settle=lambda points: within(points.clamp(0, 1), step.images, budget),
            )[-1]
