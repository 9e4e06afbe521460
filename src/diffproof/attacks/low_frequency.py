"""PGD in the subspace of low frequencies, which purification leaves alone (Guo et al. 2019)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffproof.attacks.pgd import PGD
from diffproof.attacks.threat import PixelThreat
from diffproof.checks import check_share
from diffproof.errors import ArgumentError

_PROJECTIONS = 5


@dataclass(frozen=True)
class LowFrequency(PGD):
    """PGD whose perturbation has low frequencies only (Guo et al. 2019).

    The perturbation stays in the span of the first frequencies of the discrete cosine transform and in the
    ball; only pixels that would leave [0, 1] are clamped out of it. Returns the last iterate. (The attack of
    that name of Kassis et al. 2025, on purifications, is another: learned filters, bounded by LPIPS.)

    Args:
        share: share of the frequencies of each axis, the lowest ones, in (0, 1]. Guo et al. search 1/4 to
            1/32 of ImageNet's 224, which is 56 to 7; of smaller images a half keeps about as many.
    """

    share: float = 0.5

    name = "low-frequency"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("share", self.share)
        if self.random_start:
            raise ArgumentError("random_start", "low-frequency starts at the image, got True")

    def advance(
        self, points: Tensor, gradient: Tensor, step: float, images: Tensor, threat: PixelThreat
    ) -> Tensor:
        """A step of the low frequencies of the gradient."""
        heading = self.heading(low_pass(gradient, self.share), threat)
        perturbation = low_pass(points - images + step * heading, self.share)
        # Projections on the ball and on the low frequencies in turn approach a point of both.
        for _ in range(_PROJECTIONS):
            perturbation = low_pass(threat.project(perturbation), self.share)
        # Scaled the last bit: clamping single pixels would bring high frequencies in.
        norm = threat.norm(perturbation)[:, None, None, None]
        scale = torch.where(norm > threat.budget, threat.budget / norm, 1.0)
        return threat.clip(images + scale * perturbation, images)


def low_pass(images: Tensor, share: float) -> Tensor:
    """The part of N×C×H×W in the lowest ⌈share·H⌉ × ⌈share·W⌉ frequencies of the orthonormal DCT-II."""
    rows, columns = (_projection(size, math.ceil(share * size)).to(images) for size in images.shape[-2:])
    low: Tensor = rows @ images @ columns
    return low


def _projection(size: int, kept: int) -> Tensor:
    position = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(torch.pi / size * (position[None, :] + 0.5) * position[:kept, None])
    basis = basis / basis.norm(dim=1, keepdim=True)
    projection: Tensor = basis.T @ basis
    return projection
