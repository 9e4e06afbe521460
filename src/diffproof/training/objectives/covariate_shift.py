"""Fine-tuning on images denoised of adversarial noise (Hedayatnia et al. 2025, arXiv:2509.10913)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffproof.training.objectives.base import Objective, Step, cross_entropies


@dataclass(frozen=True)
class CovariateShift(Objective):
    """CE(f(D(x + σ·n)), y), the unit noise n moved from its draw by sign steps up that loss, without a ball.

    The gradient goes through the classifier, in evaluation mode, and the denoiser.

    Attributes:
        steps: how many.
        step: what a step adds to each pixel of the unit noise, up or down.
    """

    name = "covariate-shift"
    can = frozenset({"finetune"})
    steps: int = 2
    step: float = 0.1

    def loss(self, step: Step) -> Tensor:
        """See Objective."""
        normal = step.normal
        with step.searching() as still, torch.enable_grad():
            for _ in range(self.steps):
                normal = normal.detach().requires_grad_()
                found = cross_entropies(
                    replace(still, normal=normal).log_probabilities(step.images), step.labels
                )
                (gradient,) = torch.autograd.grad(found.sum(), normal)
                normal = (normal + self.step * gradient.sign()).detach()
        moved = replace(step, normal=normal)
        return cross_entropies(moved.log_probabilities(step.images), step.labels).mean()
