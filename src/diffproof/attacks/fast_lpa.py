"""The fast Lagrangian perceptual attack: far in pixels, near in features (Laidlaw et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffproof.attacks.base import Attack, Job, Traits, check_draws
from diffproof.attacks.expectation import Expectation
from diffproof.attacks.features import features_of, pulled
from diffproof.attacks.losses import Loss
from diffproof.attacks.result import AttackResult
from diffproof.attacks.threat import Perceptual, Threat
from diffproof.attacks.views import AttackedDefense
from diffproof.noise import MAX_DRAW, Noise, Stream

# Of the authors: the deviation of the start, where the features' rate of change is measured, what keeps a
# division finite, and the weight of what is beyond the budget, which rises tenfold.
START, _PROBE, _RATE_FLOOR, _LAST_WEIGHT = 0.01, 0.1, 1e-4, 10.0

# Iteration, points and λ → the gradient of −margin + λ·max(0, distance − ε), and the features there.
Slope = Callable[[int, Tensor, float], tuple[Tensor, Tensor]]


def descend(
    slope: Slope, features: Callable[[Tensor], Tensor], start: Tensor, *, budget: float, steps: int
) -> Tensor:
    """Descend −margin + λ_k·max(0, ‖φ(x + δ) − φ(x)‖ − ε).

    A step along the unit gradient is as long as changes the features by ε·0.1^{k/T}, measured at 0.1 from
    where it starts; λ_k rises from 1 to 10. What is found is not projected.

    Args:
        slope: see Slope.
        features: N×C×H×W → N×D.
        start: N×C×H×W, where it begins.
        budget: ε.
        steps: T.

    Returns:
        N×C×H×W in [0, 1], without a graph.
    """
    found = start.detach()
    for k in range(steps):
        weight, change = _LAST_WEIGHT * 0.1 ** (1 - k / steps), budget * 0.1 ** (k / steps)
        gradient, here = slope(k, found, weight)
        norm = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
        unit = gradient / torch.where(norm > 0, norm, 1.0)[:, None, None, None]
        with torch.no_grad():
            there = features(found - _PROBE * unit)
        rate = torch.linalg.vector_norm(there - here, dim=1) / _PROBE
        length = (change / (rate + _RATE_FLOOR)).to(found.dtype)
        found = (found - length[:, None, None, None] * unit).clamp(0.0, 1.0)
    return found


def excess(here: Tensor, clean: Tensor, budget: float) -> Tensor:
    """max(0, ‖φ(x′) − φ(x)‖₂ − ε), N values."""
    far: Tensor = torch.linalg.vector_norm(here - clean, dim=1)
    return (far - budget).clamp(min=0.0)


@dataclass(frozen=True)
class FastLPA(Attack):
    """Fast-LPA with EOT, self-bounded: distances are of the features of the defence's own classifier.

    The margin is that of the whole defence. Its steps may leave the ball of the budget; what it returns is
    pulled back into it, straight towards the image, and success is what that image does.

    Args:
        iterations: gradient steps, ≥ 1. The image that is returned is looked at once more.
        eot: draws of noise an iteration, ≥ 1.

    Raises:
        ValueError: an argument is out of range.
    """

    iterations: int = 10
    eot: int = 1

    name = "fast-lpa"
    threats = (Perceptual,)

    def __post_init__(self) -> None:
        check_draws(self.iterations, self.eot)

    def check(self, view: AttackedDefense, threat: Threat) -> None:
        """See Attack; a defence without a classifier has no features, either."""
        super().check(view, threat)
        features_of(view.defense)

    def traits(self) -> Traits:
        """It raises the margin."""
        return replace(super().traits(), loss=Loss.MARGIN)

    def most_draws(self, result: AttackResult, num_classes: int) -> int:
        """Those of the one look at what it returns."""
        return self.eot

    def find(self, job: Job, threat: Threat) -> list[AttackResult]:
        """Steps on the image, and the way back into the ball."""
        assert isinstance(threat, Perceptual)
        expectation = Expectation(job, eot=self.eot, loss=Loss.MARGIN)
        whole = features_of(job.view.defense)

        def features(images: Tensor) -> Tensor:
            return torch.cat([whole(part) for part in images.split(job.images_at_once)])

        with torch.no_grad():
            clean = features(job.images)

        def slope(iteration: int, points: Tensor, weight: float) -> tuple[Tensor, Tensor]:
            gradient = -expectation.gradient(points, iteration)
            parts = []
            for rows in torch.arange(len(points)).split(job.images_at_once):
                with torch.enable_grad():
                    some = points[rows].detach().requires_grad_()
                    here = whole(some)
                    beyond = excess(here, clean[rows], threat.budget).sum()
                    (away,) = torch.autograd.grad(weight * beyond, some)
                gradient[rows] += away
                parts.append(here.detach())
            return gradient, torch.cat(parts)

        # The last draw of all belongs to no iteration.
        draw = torch.full_like(job.image_indices, MAX_DRAW)
        noise = Noise.for_rows(job.seed, Stream.ATTACK, job.image_indices, draw).to(job.images.device)
        start = (job.images + START * noise.normal(job.images.shape[1:], 0, job.images.dtype)).clamp(0.0, 1.0)
        found = descend(slope, features, start, budget=threat.budget, steps=self.iterations)
        found, norms = pulled(features, found, job.images, threat.budget)
        # What was seen on the way may have been beyond the budget.
        expectation.first.fill_(-1)
        expectation.look(found, self.iterations)
        return expectation.results(found, norms)
