"""Purifications by a toy network, guided or not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import diffproof as dp
from diffproof.defenses.purifying.reverse_process import Draw, potential_gradient
from helpers.classifiers import linear_classifier
from helpers.denoisers import ToyDenoiser

ROUNDS: dict[str, Any] = {"t_star": (0.3, 0.15), "steps": (4, 3)}
SOLVERS = list(dp.Solver)


class Guided(dp.Purification):
    """Guided by a potential in which state, images and noise meet in products, so no part of it may drop."""

    method = "guided"

    def score_shift(self, noisy: Tensor, sigma: float, images: Tensor, draw: Draw) -> Tensor:
        def potential(point: Tensor) -> Tensor:
            target = images + sigma * draw()
            return (torch.sin(3 * point * target) - 2 * (point - target) ** 2).flatten(1).sum(1)

        return potential_gradient(potential, noisy)


class Unguided(dp.Purification):
    method = "unguided"


def purification(
    kind: type[dp.Purification], solver: dp.Solver, channels: int = 2, **settings: Any
) -> dp.Purification:
    return kind(ToyDenoiser(channels), linear_classifier(), solver=solver, **{**ROUNDS, **settings})
