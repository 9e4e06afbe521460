"""One step of a reverse process from noise level sigma to a lower one."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import ClassVar, NamedTuple

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
        noisy: x, N×C×H×W.
        clean: x̂0, same shape.
        sigma: noise level of x, in [0, 1] pixels.
        next_sigma: that after the step, sigma > next_sigma ≥ 0.
        normal: z, same shape; None where eta = 0.
        eta: stochasticity in [0, 1].
        variance: replaces v in the noise (learned variance), not in the mean, as DDPM has it.

    Raises:
        ValueError: next_sigma ≥ sigma or negative, or eta outside [0, 1].
    """
    if not 0.0 <= next_sigma < sigma:
        raise ArgumentError("next_sigma", f"expected 0 ≤ next_sigma < sigma = {sigma:g}, got {next_sigma:g}")
    if not 0.0 <= eta <= 1.0:
        raise ArgumentError("eta", f"expected a number in [0, 1], got {eta:g}")
    spread = eta**2 * posterior_variance(sigma, next_sigma)
    direction = math.sqrt(next_sigma**2 - spread) / sigma
    mean = clean + direction * (noisy - clean)
    if normal is None:
        return mean
    scale = math.sqrt(spread) if variance is None else variance.sqrt()
    return mean + scale * normal


def posterior_variance(sigma: float, next_sigma: float) -> float:
    """β̃ of DDPM's step in [0, 1] pixels (Ho et al. 2020, eq. 7); 0 where the step leads to the image."""
    return next_sigma**2 * (1 - next_sigma**2 / sigma**2)


def largest_variance(sigma: float, next_sigma: float) -> float:
    """β of DDPM's step in [0, 1] pixels, its "fixed large" variance (Ho et al. 2020, section 3.2)."""
    return (sigma**2 - next_sigma**2) / _stretch(sigma, next_sigma) ** 2


def last_variance(sigma: float, before: float | None, mix: Tensor | None = None) -> float | Tensor:
    """Σ of the step from sigma to the image in improved-diffusion's code, whose β̃ is that of the step before.

    Args:
        sigma: where the step begins, in [0, 1] pixels.
        before: where the one before it began; None where there was none, which leaves β.
        mix: the network's share of log β in log Σ, N×C×H×W; None for β̃ alone.
    """
    upper = largest_variance(sigma, 0.0)
    lower = upper if before is None else posterior_variance(before, sigma) / _stretch(sigma, 0.0) ** 2
    return lower if mix is None else lower * (upper / lower) ** mix


class Solver(StrEnum):
    """How a purification walks from one noise level to the next; `INTEGRATORS` has the steps.

    DDPM: the ancestral step (Ho et al. 2020, eq. 7), clean estimates clipped to [0, 1].
    SDE: Euler–Maruyama of the reverse VP-SDE (Song et al. 2021, eq. 6 and 11), as DiffPure integrates it:
        estimates are not clipped but the image it ends in is.
    ODE: Euler's method for the probability-flow ODE in sigma, which is DDIM (Song et al. 2021, eq. 13);
        clean estimates clipped.
    """

    DDPM = "ddpm"
    SDE = "sde"
    ODE = "ode"


class Start(NamedTuple):
    """Where a step begins.

    Attributes:
        noisy: x, N×C×H×W.
        clean: the denoiser's estimate there, same shape.
        sigma: noise level of x, in [0, 1] pixels.
        next_sigma: that after the step, sigma > next_sigma ≥ 0.
        normal: noise of the step, same shape, or None.
        variance: learned variance of the step, or None.
    """

    noisy: Tensor
    clean: Tensor
    sigma: float
    next_sigma: float
    normal: Tensor | None
    variance: Tensor | None


class Moved(NamedTuple):
    """Where a step leads.

    Attributes:
        noisy: x at the lower noise level, N×C×H×W.
        per_score: how far x moves there for each unit that is added to the score where the step began.
    """

    noisy: Tensor
    per_score: float | Tensor


class Integrator:
    """The steps of a solver. Subclasses write `step`.

    Attributes:
        clips: it takes clean estimates clipped to [0, 1].
        random: its steps, that to noise level 0 perhaps aside, have noise.
        learns: a learned variance can take the place of its own.
    """

    clips: ClassVar[bool] = True
    random: ClassVar[bool] = True
    learns: ClassVar[bool] = False

    def noise_at(self, next_sigma: float) -> bool:
        """Whether the step to this noise level has noise."""
        return self.random

    def step(self, at: Start) -> Moved:
        """One step without guidance. Written by subclasses."""
        raise TypeError(f"{type(self).__name__} does not define step()")


class Ancestral(Integrator):
    """Solver.DDPM."""

    learns = True

    def noise_at(self, next_sigma: float) -> bool:
        """In every step but that to the image."""
        return next_sigma > 0

    def step(self, at: Start) -> Moved:
        """The posterior's mean, and its spread or the learned one."""
        noisy, clean, sigma, next_sigma, normal, variance = at
        own = posterior_variance(sigma, next_sigma)
        following = reverse_step(
            noisy,
            clean,
            sigma,
            next_sigma,
            normal if self.noise_at(next_sigma) else None,
            eta=float(self.noise_at(next_sigma)),
            variance=variance,
        )
        return Moved(following, (own if variance is None else variance) * _stretch(sigma, next_sigma))


class EulerMaruyama(Integrator):
    """Solver.SDE."""

    clips = False

    def step(self, at: Start) -> Moved:
        """The step in y = (2x − 1)/√(1 + σ'²), with β·dt as its integral over the step."""
        noisy, clean, sigma, next_sigma, normal, _ = at
        if normal is None:
            raise ArgumentError("normal", "the SDE's step needs noise, got None")
        high, low = (WIDTH * sigma) ** 2, (WIDTH * next_sigma) ** 2
        stretch = _stretch(sigma, next_sigma)
        beta = 2 * math.log(stretch)
        score_scaled = (clean - noisy) * (1 + high) / high
        centred = noisy - 0.5
        mean = 0.5 + (centred * (1 + beta / 2) + beta * score_scaled) / stretch
        spread = beta * (1 + low) / WIDTH**2
        return Moved(mean + math.sqrt(spread) * normal, spread * stretch)


class ProbabilityFlow(Integrator):
    """Solver.ODE."""

    random = False

    def step(self, at: Start) -> Moved:
        """Along the velocity −σ·score of x itself."""
        following = reverse_step(at.noisy, at.clean, at.sigma, at.next_sigma, None, eta=0.0)
        return Moved(following, at.sigma * (at.sigma - at.next_sigma))


INTEGRATORS: dict[Solver, Integrator] = {
    Solver.DDPM: Ancestral(),
    Solver.SDE: EulerMaruyama(),
    Solver.ODE: ProbabilityFlow(),
}


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
        noisy: x, N×C×H×W.
        clean: the denoiser's estimate there, same shape.
        sigma: noise level of x, in [0, 1] pixels.
        next_sigma: that after the step, sigma > next_sigma ≥ 0.
        normal: noise of the step, same shape; not used by the ODE, nor by DDPM where next_sigma = 0.
        score_shift: ∇ₓ of what guides the process, added to the score at x; it moves the mean of DDPM and SDE
            by Σ·score_shift (Dhariwal & Nichol 2021, algorithm 1), Σ the step's variance, and the ODE as
            their algorithm 2 does.
        variance: learned variance of DDPM's step, in place of β̃.

    Returns:
        x at next_sigma.

    Raises:
        ValueError: next_sigma ≥ sigma or negative, or no noise for a step that has some.
    """
    start = Start(noisy, clean, sigma, next_sigma, normal, variance)
    following, per_score = INTEGRATORS[solver].step(start)
    return following if score_shift is None else following + per_score * score_shift


def _stretch(sigma: float, next_sigma: float) -> float:
    """√(ᾱ_next/ᾱ): the papers add Σ·∇ in y = (2x − 1)/√(1 + σ'²), which is so much farther in x."""
    return math.sqrt((1 + (WIDTH * sigma) ** 2) / (1 + (WIDTH * next_sigma) ** 2))
