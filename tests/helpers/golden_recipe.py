"""Weights made from their names, the same everywhere: golden files need not store any; and their error."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from torch import Tensor

from helpers.paths import GOLDEN


def recipe_tensor(name: str, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Float32 weights that depend on nothing but name, shape and seed.

    Uniform draws straight from Philox' bits, which no library version changes; of variance 1/fan-in for
    matrices and kernels, so that activations keep their size, and 0.04 around 1 (norm weights) or 0 for
    vectors. No layer is left at zero.
    """
    key = int.from_bytes(hashlib.sha256(f"{seed}|{name}".encode()).digest()[:16], "little")
    bits = np.random.Philox(key=key).random_raw(math.prod(shape))
    unit = ((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53 - 0.5) * math.sqrt(12)
    if len(shape) >= 2:
        values = unit / math.sqrt(math.prod(shape[1:]))
    else:
        values = 0.2 * unit + name.endswith("weight")
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)


def recipe_state(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """A whole state dict under the checkpoint's own keys."""
    return {name: recipe_tensor(name, shape, seed) for name, shape in shapes.items()}


def stored_tensors(file: str, kind: str) -> dict[str, Tensor]:
    """What a golden file holds of a kind of network, by name."""
    with np.load(GOLDEN / file) as stored:
        names = [name for name in stored.files if name.startswith(f"{kind}.")]
        return {name.removeprefix(f"{kind}."): torch.from_numpy(stored[name]) for name in names}


def difference(got: Tensor, expected: Tensor) -> float:
    """The largest error of any row, relative to that row's largest value."""
    errors = (got - expected).abs().flatten(1).amax(1) / expected.abs().flatten(1).amax(1)
    return float(errors.max())
