"""Another machine's elementary functions: everywhere off by one unit in the last place."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

_TORCH = ("cos", "sin", "asin", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt")


def _moved(value: Any) -> Any:
    """A result one unit in the last place higher, or lower where its last bit is set."""
    if isinstance(value, float):
        return math.nextafter(value, math.inf if float(value).hex()[-4] in "02468ace" else -math.inf)
    if isinstance(value, np.ndarray):
        return np.nextafter(value, np.where(value.view(np.int64) % 2, -np.inf, np.inf))
    if isinstance(value, Tensor) and value.dtype in (torch.float32, torch.float64):
        bits = value.detach().view(torch.int32 if value.dtype == torch.float32 else torch.int64)
        to = torch.where(bits % 2 == 0, math.inf, -math.inf).to(value.dtype)
        # What is exact on any machine stays.
        fixed = (value == 0) | (value == 1) | ~torch.isfinite(value)
        return value + torch.where(fixed, 0.0, torch.nextafter(value, to) - value).detach()
    return value


def other_libm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the test ends, compute cosines, roots, powers and grids as another machine might."""

    def replace(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def other(*arguments: Any, **settings: Any) -> Any:
            return _moved(real(*arguments, **settings))

        monkeypatch.setattr(owner, name, other)

    for name in _TORCH:
        replace(torch, name)
        replace(Tensor, name)
    # Sums of products, which some processors round once and others twice.
    replace(torch, "linspace")
    replace(torch, "cumprod")
    for name in ("cos", "sin", "asin", "exp", "log", "pow", "sqrt"):
        replace(math, name)
    for name in ("cos", "sin", "exp", "log", "sqrt"):
        replace(np, name)
    decomposed = torch.linalg.eigh

    def other_axes(matrix: Tensor) -> tuple[Tensor, Tensor]:
        values, axes = decomposed(matrix)
        return _moved(values), -axes

    monkeypatch.setattr(torch.linalg, "eigh", other_axes)
