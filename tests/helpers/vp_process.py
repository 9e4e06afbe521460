"""The variance-preserving process as the papers write it: states y = √ᾱ·(2x − 1) + √(1 − ᾱ)·z at times t."""

from __future__ import annotations

import math

from scipy.integrate import quad
from torch import Tensor


def beta(time: float) -> float:
    """β(t) of Song et al. 2021 and Nie et al. 2022."""
    return 0.1 + (20 - 0.1) * time


def integral(start: float, end: float) -> float:
    value: float = quad(beta, start, end, epsabs=0, epsrel=1e-13)[0]
    return value


def bar(time: float) -> float:
    """ᾱ(t)."""
    return math.exp(-integral(0, time))


def level(time: float) -> float:
    """Noise of [0, 1] pixels: that of y by √ᾱ, by the width 2 of [−1, 1]."""
    return math.sqrt(1 / bar(time) - 1) / 2


def to_y(pixels: Tensor, sigma: float) -> Tensor:
    return (2 * pixels - 1) / math.sqrt(1 + 4 * sigma**2)


def from_y(y: Tensor, sigma: float) -> Tensor:
    return (y * math.sqrt(1 + 4 * sigma**2) + 1) / 2
