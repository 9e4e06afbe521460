"""Products of Jacobians with directions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from helpers.images import SHAPE
from helpers.tensors import random


def direction(seed: int, rows: int = 2) -> Tensor:
    return random(rows, *SHAPE, seed=seed)


def pulled(function: Callable[[Tensor], Tensor], images: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
    """function(images) and the product of `by` with its Jacobian."""
    leaf = images.clone().requires_grad_()
    output = function(leaf)
    (gradient,) = torch.autograd.grad(output, leaf, by)
    return output.detach(), gradient
