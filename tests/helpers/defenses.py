"""Defences made for a check."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import diffproof as dp
from diffproof.noise import Noise


class JitteryGradient(dp.Defense):
    """The gradient of its margin for the label 1 is mean + spread·z, z standard normal."""

    method = "jittery"

    def __init__(self, spread: float, mean: Tensor) -> None:
        super().__init__(dp.Classifier(nn.Identity(), 2))
        self.spread, self.mean = spread, mean

    def respond(self, images: Tensor, noise: Noise) -> Tensor:
        slope = self.mean + self.spread * noise.normal(self.mean.shape, 0, images.dtype)
        rise = (slope * images).flatten(1).sum(1)
        return torch.stack([rise, torch.zeros_like(rise)], dim=1)
