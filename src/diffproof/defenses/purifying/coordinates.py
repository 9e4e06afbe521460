"""The state of a guided purification in the coordinates of the papers."""

from __future__ import annotations

import math

from torch import Tensor


def papers_state(noisy: Tensor, sigma: float) -> Tensor:
    """The papers' x_t = √ᾱ·(2x − 1) of a state at noise level sigma, with ᾱ = 1/(1 + (2·sigma)²)."""
    return (2 * noisy - 1) / math.sqrt(1 + (2 * sigma) ** 2)


def as_image(noisy: Tensor, sigma: float) -> Tensor:
    """The papers' x_t as a classifier of [0, 1] pixels sees it: [−1, 1] mapped to [0, 1], not clipped."""
    return 0.5 + 0.5 * papers_state(noisy, sigma)
