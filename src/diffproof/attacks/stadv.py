"""Spatially transformed adversarial examples: pixels move instead of changing (Xiao et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from diffproof.attacks.base import Attack, Job, Traits, check_draws
from diffproof.attacks.expectation import Expectation
from diffproof.attacks.losses import Loss
from diffproof.attacks.result import AttackResult
from diffproof.attacks.threat import Flow, Threat
from diffproof.checks import check_positive

# Makes the root of the total variation differentiable at 0.
_TINY = 1e-10


def identity_grid(images: Tensor) -> Tensor:
    """Where each pixel of N×C×H×W lies, N×H×W×2 (x, y) in (−1, 1); for grid_sample."""
    number = len(images)
    affine = torch.eye(2, 3, dtype=images.dtype, device=images.device).expand(number, 2, 3)
    return nn.functional.affine_grid(affine, list(images.shape), align_corners=False)


def warp(images: Tensor, flow: Tensor) -> Tensor:
    """Images whose pixel at p is, by bilinear interpolation, that of `images` at p + flow(p) (eq. 1).

    Args:
        images: N×C×H×W.
        flow: N×H×W×2 (x, y) in halves of the image's width and height. Beyond its edges the image is 0.
    """
    grid = identity_grid(images) + flow
    return nn.functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def total_variation(flow: Tensor) -> Tensor:
    """Σ of |flow(p) − flow(q)| over pixels p and their four neighbours q (eq. 3), N values."""
    total = torch.zeros(len(flow), dtype=flow.dtype, device=flow.device)
    for axis in (1, 2):
        lengths = (flow.diff(dim=axis).square().sum(-1) + _TINY).sqrt()
        # Each pair of neighbours is in the sum from both sides.
        total = total + 2 * lengths.flatten(1).sum(1)
    return total


@dataclass(frozen=True)
class StAdv(Attack):
    """StAdv with EOT. Raises margin − (smoothness/budget)·total variation by Adam; returns the last iterate.

    The flow stays within ± budget, and no pixel is taken from beyond the image's edges. Settings and units
    are those of the public implementation that the purification papers evaluate with.

    Args:
        iterations: Adam steps, ≥ 1. The iterate after the last is looked at once more.
        eot: draws of noise an iteration, ≥ 1.
        learning_rate: Adam's learning rate, > 0, in the units of the budget.
        smoothness: weight of the total variation, > 0, times the budget.

    Raises:
        ValueError: an argument is out of range.
    """

    iterations: int = 100
    eot: int = 1
    learning_rate: float = 0.01
    smoothness: float = 0.0025

    name = "stadv"
    threats = (Flow,)

    def __post_init__(self) -> None:
        check_draws(self.iterations, self.eot)
        check_positive("learning_rate", self.learning_rate)
        check_positive("smoothness", self.smoothness)

    def traits(self) -> Traits:
        """It raises the margin."""
        return replace(super().traits(), loss=Loss.MARGIN)

    def find(self, job: Job, threat: Threat) -> list[AttackResult]:
        """Adam on the flow."""
        assert isinstance(threat, Flow)
        expectation = Expectation(job, eot=self.eot, loss=Loss.MARGIN)
        grid = identity_grid(job.images)
        flow = torch.zeros_like(grid, requires_grad=True)
        optimizer = torch.optim.Adam([flow], lr=self.learning_rate)
        weight = self.smoothness / threat.budget
        # Means of pixels leave [0, 1] by no more than rounding, which the clamps below take off.
        for iteration in range(self.iterations):
            with torch.enable_grad():
                warped = warp(job.images, flow)
                roughness = weight * total_variation(flow).sum()
            # The defence's graph is gone by now: only its gradient at the warped images goes on.
            gradient = expectation.gradient(warped.detach().clamp(0.0, 1.0), iteration)
            (flow.grad,) = torch.autograd.grad((roughness, warped), flow, (None, -gradient))
            optimizer.step()
            with torch.no_grad():
                flow.clamp_(-threat.budget, threat.budget)
                flow.copy_((grid + flow).clamp(-1.0, 1.0) - grid)
        points = warp(job.images, flow.detach()).clamp(0.0, 1.0)
        expectation.look(points, self.iterations)
        return expectation.results(points, threat.norm(flow.detach()))
