"""Gradual noise levels: several purifications, each with more noise than the last (Lee & Kim 2023)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from diffproof.defenses.purifying.reverse_process import Purification
from diffproof.denoisers.base import Denoiser
from diffproof.reverse.solvers import Solver

# Of CIFAR-10: 30 four times, 50 twice, 125 twice, of 1000 timesteps.
_TIMES = (0.03,) * 4 + (0.05,) * 2 + (0.125,) * 2


class GradualNoise(Purification):
    """Rounds of diffusing and denoising at growing noise levels (Lee & Kim 2023).

    Args:
        denoiser: see Purification.
        classifier: see Purification.
        t_star: noise level of each round, as times in (0, 1]; the paper's for CIFAR-10. Its last two are 0.2
            for ImageNet.
        steps: denoiser evaluations of each round, ≥ 1; None for one a timestep.
        solver: see Solver.
    """

    method = "gradual"

    def __init__(
        self,
        denoiser: Denoiser,
        classifier: nn.Module,
        *,
        t_star: Sequence[float] = _TIMES,
        steps: Sequence[int] | None = None,
        solver: Solver | str = Solver.DDPM,
    ) -> None:
        super().__init__(denoiser, classifier, t_star=t_star, steps=steps, solver=solver)
