"""One step of a reverse process from noise level sigma to a lower one."""

from __future__ import annotations

import math
from enum import StrEnum

from torch import Tensor

from diffproof.errors import ArgumentError
from diffproof.reverse.levels import WIDTH


def reverse_step(
    noisy: Tensor,
    clean: Tensor,
    sigma: float,
    next_sigma: float,
    normal: Tensor | None,
    *,
    eta: float = 1.0,
    variance: Tensor | None = None,
) -> Tensor:
    """One step from noise level sigma to next_sigma < sigma.

    With s = next_sigma and v = eta²·s²(1 − s²/sigma²):
    x ← x̂0 + √(s² − v)·(x − x̂0)/sigma + √v·z. eta = 1 is DDPM's ancestral step with the posterior variance
    β̃ (Ho et al. 2020, eq. 7), eta = 0 is deterministic DDIM (Song et al. 2021, eq. 12 and 16).

    Args:
        noisy: x, N×C×H×W. clean: x̂0, same shape. normal: z, same shape; None where eta = 0.
        sigma, next_sigma: noise levels, sigma > next_sigma ≥ 0.
        eta: stochasticity in [0, 1].
        variance: replaces v in the noise (learned variance), not in the mean, as DDPM has it.

    Raises:
        ValueError: next_sigma ≥ sigma or negative, or eta outside [0, 1].
    """
    if not 0.0 <= next_sigma < sigma:
        raise ArgumentError("next_sigma", f"expected 0 ≤ next_sigma < sigma = {sigma:g}, got {next_sigma:g}")
    if not 0.0 <= eta <= 1.0:
        raise ArgumentError("eta", f"expected a number in [0, 1], got {eta:g}")
    posterior_variance = eta**2 * next_sigma**2 * (1 - next_sigma**2 / sigma**2)
    direction = math.sqrt(next_sigma**2 - posterior_variance) / sigma
    mean = clean + direction * (noisy - clean)
    if normal is None:
        return mean
    scale = math.sqrt(posterior_variance) if variance is None else variance.sqrt()
    return mean + scale * normal


class Solver(StrEnum):
    """How a purification walks from one noise level to the next.

    DDPM: the ancestral step (Ho et al. 2020, eq. 7), clean estimates clipped to [0, 1].
    SDE: Euler–Maruyama of the reverse VP-SDE (Song et al. 2021, eq. 6 and 11), as DiffPure integrates it:
        estimates are not clipped but the image it ends in is.
    ODE: Euler's method for the probability-flow ODE in sigma, which is DDIM (Song et al. 2021, eq. 13);
        clean estimates clipped.
    """

    DDPM = "ddpm"
    SDE = "sde"
    ODE = "ode"


def solver_step(
    solver: Solver,
    noisy: Tensor,
    clean: Tensor,
    sigma: float,
    next_sigma: float,
    normal: Tensor | None,
    *,
    score_shift: Tensor | None = None,
    variance: Tensor | None = None,
) -> Tensor:
    """One step of a purification from noise level sigma to next_sigma < sigma, perhaps guided.

    Args:
        solver: see Solver.
        noisy: x, N×C×H×W. clean: the denoiser's estimate there, same shape.
        sigma, next_sigma: noise levels, sigma > next_sigma ≥ 0.
        normal: noise of the step, same shape; not used by the ODE, nor by DDPM where next_sigma = 0.
        score_shift: ∇ₓ of what guides the process, added to the score at x; it moves the mean of DDPM and SDE
            by Σ·score_shift (Dhariwal & Nichol 2021, algorithm 1), Σ the step's variance, and the ODE as
            their algorithm 2 does.
        variance: learned variance of DDPM's step, in place of β̃.

    Returns:
        x at next_sigma.
    """
    high, low = (WIDTH * sigma) ** 2, (WIDTH * next_sigma) ** 2
    # The papers add Σ·∇ in y = (2x − 1)/√(1 + σ'²): from there to x it is √(ᾱ_next/ᾱ) as far.
    stretch = math.sqrt((1 + high) / (1 + low))
    if solver is Solver.DDPM:
        spread: float | Tensor = next_sigma**2 * (1 - next_sigma**2 / sigma**2)
        spread = spread if variance is None else variance
        following = reverse_step(
            noisy,
            clean,
            sigma,
            next_sigma,
            normal if next_sigma > 0 else None,
            eta=float(next_sigma > 0),
            variance=variance,
        )
    elif solver is Solver.ODE:
        # Its velocity is −σ·score, and that of x itself.
        stretch = 1.0
        spread = sigma * (sigma - next_sigma)
        following = reverse_step(noisy, clean, sigma, next_sigma, None, eta=0.0)
    else:
        # In y, with β·dt as its integral over the step.
        beta = 2 * math.log(stretch)
        score_scaled = (clean - noisy) * (1 + high) / high
        centred = noisy - 0.5
        following = 0.5 + (centred * (1 + beta / 2) + beta * score_scaled) / stretch
        spread = beta * (1 + low) / WIDTH**2
        if normal is None:
            raise ArgumentError("normal", "the SDE's step needs noise, got None")
        following = following + math.sqrt(spread) * normal
    if score_shift is None:
        return following
    return following + spread * stretch * score_shift
