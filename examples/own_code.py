"""Code of one's own beside diffproof's: three defences, an attack, a denoiser, each one class or function.

From the folder of this file:

    diffproof methods own_code:Quantized
    diffproof attack --data digits --indices 0:40:10 --classifier digits \
        --defense own_code:Quantized:levels=4 --attack own_code:Contrast:shares=2 --threat linf --budget 0.3 \
        --out attacked
    diffproof certify --data digits --indices 0:20:10 --denoiser own_code:denoiser --classifier digits \
        --defense own_code:Shrunk:variance=0.2 --sigma 0.25 --n0 20 --n 100 --out certified

A run folder holds the hash of this file: it continues and verifies only as long as the file is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import diffproof as dp


class Quantized(dp.Defense):
    """Rounds pixels to a few levels; gradients pass straight through (`gradient` is honest BPDA here)."""

    method = "quantized"
    random = False

    def __init__(self, classifier: nn.Module, *, levels: int = 8) -> None:
        super().__init__(classifier)
        if levels < 2:
            raise dp.ArgumentError("levels", f"expected an integer ≥ 2, got {levels}")
        self.levels = levels

    def respond(self, images: Tensor, noise: dp.Noise) -> Tensor:
        """The classifier's logits of the rounded images."""
        rounded = (images * (self.levels - 1)).round() / (self.levels - 1)
        return self.classifier_logits(images + (rounded - images).detach(), noise)

    def settings(self) -> dict[str, Any]:
        """Method and levels."""
        return {"method": self.method, "levels": self.levels}


class OneShot(dp.Purifier):
    """Adds noise of a fixed level and removes it by one evaluation of the denoiser."""

    method = "one-shot"
    evaluations = 1

    def __init__(self, denoiser: dp.Denoiser, classifier: nn.Module, *, level: float = 0.1) -> None:
        super().__init__(denoiser, classifier)
        self.level = level

    def purify(self, images: Tensor, noise: dp.Noise | None = None) -> Tensor:
        """The denoiser's estimates of the noisy images, clipped."""
        drawn = dp.noise_for(images, noise).normal(images.shape[1:], 0, images.dtype)
        estimates: Tensor = self.denoiser(images + self.level * drawn, self.level)
        return estimates.clamp(0.0, 1.0)

    def settings(self) -> dict[str, Any]:
        """Method and level."""
        return {"method": self.method, "level": self.level}


class Shrunk(dp.CertifiableDefense):
    """Noisy pixels moved towards grey: the linear denoiser of pixels that have a variance."""

    method = "shrunk"

    def __init__(self, classifier: nn.Module, *, variance: float = 0.1) -> None:
        super().__init__(classifier)
        self.variance = variance

    def logits(self, noisy: Tensor, sigma: float, noise: dp.Noise) -> Tensor:
        """The classifier's logits of the shrunk images."""
        share = self.variance / (self.variance + sigma**2)
        return self.classifier_logits((0.5 + share * (noisy - 0.5)).clamp(0.0, 1.0), noise)

    def classify(self, noisy: Tensor, sigma: float, noise: dp.Noise, batch_size: int) -> dp.Labelled:
        """One classifier evaluation an image."""
        parts = zip(noisy.split(batch_size), noise.split(batch_size), strict=True)
        labels = [self.logits(part, sigma, own).argmax(1) for part, own in parts]
        return dp.Labelled(torch.cat(labels), 0, len(noisy))


@dataclass(frozen=True)
class Contrast(dp.Attack):
    """Moves all pixels towards black or white by shares of the budget; keeps what lowers the margin most."""

    shares: int = 4

    name = "contrast"
    threats = (dp.Linf,)
    needs_gradient = False

    def find(self, job: dp.Job, threat: dp.Threat) -> list[dp.AttackResult]:
        """Look at each candidate once."""
        assert isinstance(threat, dp.PixelThreat)
        account = dp.Expectation(job, eot=1, loss=dp.Loss.MARGIN)
        best, value = job.images, account.value(job.images, 0)
        for number in range(2 * self.shares):
            move = threat.budget * (1 + number // 2) / self.shares * (-1) ** number
            candidate = threat.clip(job.images + move, job.images)
            found = account.value(candidate, number + 1)
            best = torch.where((found > value)[:, None, None, None], candidate, best)
            value = torch.maximum(value, found)
        return account.results(best, threat.norm(best - job.images))


def denoiser() -> dp.Denoiser:
    """The exact denoiser of two grey levels, at the noise levels of a schedule."""
    means = torch.stack([torch.full((1, 8, 8), level) for level in (0.25, 0.75)])
    sigmas = dp.DiscreteSchedule.linear(100, 0.001, 0.2).sigmas
    return dp.GaussianMixtureDenoiser(means, torch.full((2,), 0.1), sigmas=sigmas / 2)
