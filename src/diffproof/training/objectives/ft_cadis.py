"""FT-CADIS: confidence-aware fine-tuning on denoised images (Jang et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diffproof.training.objectives.base import (
    Objective,
    Step,
    by_draw,
    cross_entropies,
    divergences,
    mean_of_draws,
)
from diffproof.training.objectives.search import perturbed


@dataclass(frozen=True)
class FTCADIS(Objective):
    """Cross-entropy of the denoised draws whose label is right, and the worst change nearby where all are.

    Of an image without any such draw that of the least cross-entropy is learned. η_i = x̂_i − x moves within
    an ℓ2 ball up the divergence from p̄, the mean over the draws, keeping its mean and deviation over pixels;
    max_i KL(p̄ ‖ p(x + η_i)) has the weight λ, gradients through both sides, as the authors' code has them.

    Attributes:
        draws: m.
        weight: λ; the default is the authors' for CIFAR-10 at σ = 1.
        budget: ε of the change, in [0, 1] pixels; the default is the authors' .25 of pixels in [−1, 1].
        steps: T of the search; a step has the length 2ε/T.
    """

    name = "ft-cadis"
    can = frozenset({"finetune"})
    draws: int = 4
    weight: float = 4.0
    budget: float = 0.125
    steps: int = 4

    def loss(self, step: Step) -> Tensor:
        """See Objective."""
        noisy = step.noisy(step.images)
        denoised = by_draw(step.denoise, noisy).detach()
        draws = by_draw(step.classify, denoised).log_softmax(2)
        entropies, right = cross_entropies(draws, step.labels), draws.argmax(2) == step.labels[:, None]
        least = entropies == entropies.amin(1, keepdim=True)
        chosen = right | (least & ~right.any(1, keepdim=True))
        selected = (entropies * chosen).mean(1)
        mean = mean_of_draws(draws)
        with step.searching() as still:
            moved = perturbed(
                denoised - step.images[:, None],
                step.images,
                lambda many: by_draw(still.classify, many),
                mean.detach(),
                budget=self.budget,
                steps=self.steps,
            )
        worst = divergences(mean[:, None], by_draw(step.classify, moved).log_softmax(2)).amax(1)
        return (selected + self.weight * right.all(1) * worst).mean()
