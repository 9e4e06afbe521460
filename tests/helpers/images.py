"""Small random images."""

from __future__ import annotations

import torch
from torch import Tensor

from helpers.tensors import seeded

SHAPE = (1, 3, 3)


def pictures(
    rows: int = 2, seed: int = 0, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float64
) -> Tensor:
    return torch.rand(rows, *shape, dtype=dtype, generator=seeded(seed))


def inner_pictures(rows: int = 3, seed: int = 1, shape: tuple[int, ...] = (1, 4, 4)) -> Tensor:
    """Away from the edges of the pixel range by 0.3."""
    return 0.3 + 0.4 * pictures(rows, seed, shape)
