"""Searches for perturbations in ℓ2, as the objectives share them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffproof.attacks.threat import L2
from diffproof.training.objectives.base import divergences


def ascend(
    objective: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    steps: int,
    size: float,
    settle: Callable[[Tensor], Tensor],
) -> list[Tensor]:
    """Gradient ascent in steps of one ℓ2 length. Parameters get no gradient from it.

    Args:
        objective: N×… points → N values.
        start: N×….
        steps: how many.
        size: length of a step of each point, before settling.
        settle: brings points back to where they may be.

    Returns:
        All points, the start first, without a graph.
    """
    points = [start.detach()]
    for _ in range(steps):
        point = points[-1].clone().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(objective(point).sum(), point)
        points.append(settle(points[-1] + size * unit(gradient)).detach())
    return points


def perturbed(
    changes: Tensor,
    images: Tensor,
    logits_of: Callable[[Tensor], Tensor],
    log_target: Tensor,
    *,
    budget: float,
    steps: int,
) -> Tensor:
    """Images under changes that were moved, each within an ℓ2 ball, to where the answer differs most.

    Every change keeps its mean and standard deviation over the pixels, settled so after each projection, as
    the authors of CAT-RS do; it can lie outside the ball by what that takes. (Their code takes the root mean
    square for the deviation, which for noise is the same within its scatter.)

    Args:
        changes: N×m×C×H×W, such as noise.
        images: N×C×H×W, which they are added to.
        logits_of: N×m×C×H×W → N×m×K, for the search.
        log_target: N×K log-probabilities; KL(target ‖ p) is raised.
        budget: radius of the balls, in [0, 1] pixels.
        steps: of the length 2·budget/steps.

    Returns:
        N×m×C×H×W, without a graph.
    """
    centres = changes.detach().flatten(0, 1)

    def settle(points: Tensor) -> Tensor:
        return standardised(within(points, centres, budget).reshape(changes.shape), changes).flatten(0, 1)

    def objective(points: Tensor) -> Tensor:
        answers = logits_of(images[:, None] + points.reshape(changes.shape)).log_softmax(2)
        return divergences(log_target[:, None], answers).flatten()

    found = ascend(objective, centres, steps=steps, size=2 * budget / steps, settle=settle)[-1]
    return images[:, None] + found.reshape(changes.shape)


def unit(gradient: Tensor) -> Tensor:
    """Each of N×… at ℓ2 length 1; 0 where it is 0."""
    return L2(1.0).steepest(gradient.flatten(1)[..., None, None]).reshape(gradient.shape)


def within(points: Tensor, centre: Tensor, radius: float) -> Tensor:
    """N×… points, moved towards their centres to within an ℓ2 radius."""
    change = (points - centre).flatten(1)
    norm = torch.linalg.vector_norm(change, dim=1, keepdim=True)
    shorter = torch.where(norm > radius, radius / norm.clamp(min=torch.finfo(norm.dtype).tiny), 1.0)
    return centre + (change * shorter).reshape(points.shape)


def standardised(points: Tensor, like: Tensor) -> Tensor:
    """N×m×C×H×W, each with the mean and the standard deviation over pixels that its counterpart has."""
    axes = (2, 3, 4)
    mean, deviation = points.mean(axes, keepdim=True), points.std(axes, correction=0, keepdim=True)
    theirs, wanted = like.mean(axes, keepdim=True), like.std(axes, correction=0, keepdim=True)
    tiny = torch.finfo(points.dtype).tiny
    return theirs + (points - mean) * (wanted / deviation.clamp(min=tiny))
