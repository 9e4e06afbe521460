"""Random tensors of a seed, and how far tensors are apart."""

from __future__ import annotations

import torch
from torch import Tensor


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal draws of a generator of their own."""
    return normal(seeded(seed), *shape)


def error(got: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest value."""
    assert got.shape == expected.shape
    return float((got - expected).abs().max() / expected.abs().max())
