"""The reverse process from noisy = image + sigma·N(0, I) to a clean image: steps, step rules, sampling."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from enum import StrEnum

import torch
from torch import Tensor

from diffproof.checks import check_at_least
from diffproof.denoisers.protocol import Denoiser, Estimate
from diffproof.denoisers.schedules import VariancePreservingSchedule
from diffproof.noise import Noise


class StepRule(StrEnum):
    """Which timesteps a reverse process of b steps visits.

    AUTHORS: round(n − i·n/b), i = 0…b−1, as the authors' code of DensePure does (ties to even).
    PAPER: ⌊n − i·n/b⌋, the last one replaced by the lowest timestep (DensePure, appendix C.2).
    LOG_SIGMA: from sigma to the lowest noise level, uniform in log sigma; the only rule for a denoiser
        without timesteps.
    """

    AUTHORS = "authors"
    PAPER = "paper"
    LOG_SIGMA = "log-sigma"


def authors_timesteps(start: float, steps: int) -> list[int]:
    """round(n − i·n/b) for i = 0…b−1 with n = start and b = steps, ties to even; n may be fractional."""
    return [round(start - i * start / steps) for i in range(steps)]


def paper_timesteps(start: int, steps: int) -> list[int]:
    """⌊n − i·n/b⌋ for i = 0…b−2, then 1, in the paper's 1-based counting; n alone for b = 1."""
    if steps == 1:
        return [start]
    return [start - (i * start + steps - 1) // steps for i in range(steps - 1)] + [1]


def log_sigma_indices(sigmas: Tensor, start: int, steps: int) -> list[int]:
    """`steps` distinct grid indices from `start` down to 0, nearest to uniform spacing in log sigma."""
    if steps == 1:
        return [start]
    log_grid = sigmas.log()
    wanted = torch.linspace(float(log_grid[start]), float(log_grid[0]), steps, dtype=torch.float64)
    indices: list[int] = []
    for i, level in enumerate(wanted.tolist()):
        nearest = int((log_grid - level).abs().argmin())
        # Where the grid is coarser than the spacing, neighbours move apart so that no level repeats.
        highest = start if not indices else indices[-1] - 1
        indices.append(max(min(nearest, highest), steps - 1 - i))
    return indices


def select_sigmas(
    denoiser: Denoiser, sigma: float, steps: int | None, rule: StepRule | str = StepRule.AUTHORS
) -> list[float]:
    """The descending noise levels at which a reverse process from sigma evaluates the denoiser.

    The first is sigma exactly as asked, the others lie on the denoiser's grid; after the last comes the
    jump to the clean estimate. `steps=1` is one-shot denoising.

    Args:
        denoiser: gives the grid.
        sigma: noise level of the image to purify, in [0, 1] pixels.
        steps: number of denoiser evaluations, or None for the full process, every trained level.
        rule: see StepRule.

    Raises:
        ValueError: sigma outside the denoiser's range, steps < 1 or more than the grid has below sigma, an
            unknown rule, or a rule that needs timesteps for a continuous denoiser.
    """
    try:
        rule = StepRule(rule)
    except ValueError:
        raise ValueError(f"step_rule: expected one of {', '.join(StepRule)}, got {rule!r}") from None
    denoiser.check_sigma(sigma)
    if steps is not None:
        check_at_least("steps", steps, 1)
    if denoiser.sigmas is None:
        return _continuous_sigmas(denoiser, sigma, steps, rule)

    start = denoiser.nearest_index(sigma)
    if steps is None:
        indices = list(range(start, -1, -1))
    elif steps > start + 1:
        raise ValueError(f"steps: the grid has {start + 1} levels up to sigma = {sigma:g}, got {steps} steps")
    elif rule is StepRule.LOG_SIGMA:
        indices = log_sigma_indices(denoiser.sigmas, start, steps)
    elif rule is StepRule.PAPER:
        indices = [timestep - 1 for timestep in paper_timesteps(start + 1, steps)]
    else:
        first = denoiser.first_timestep
        indices = [timestep - first for timestep in authors_timesteps(denoiser.start_timestep(sigma), steps)]
    levels = [sigma, *(float(denoiser.sigmas[index]) for index in indices[1:])]
    if any(later >= earlier for earlier, later in itertools.pairwise(levels)):
        raise ValueError(f"steps: {steps} steps from sigma = {sigma:g} repeat a level of the grid")
    return levels


def _continuous_sigmas(denoiser: Denoiser, sigma: float, steps: int | None, rule: StepRule) -> list[float]:
    if steps == 1:
        return [sigma]
    if steps is None or rule is not StepRule.LOG_SIGMA:
        raise ValueError(
            "step_rule: this denoiser has no timesteps; expected a number of steps and the rule"
            f" {StepRule.LOG_SIGMA.value!r}, got steps={steps} and {rule.value!r}"
        )
    if denoiser.sigma_min <= 0.0 or denoiser.sigma_min >= sigma:
        raise ValueError(
            f"step_rule: {rule.value!r} needs 0 < sigma_min < sigma, got sigma_min = {denoiser.sigma_min:g}"
        )
    ratio = math.log(denoiser.sigma_min / sigma)
    return [sigma * math.exp(ratio * i / (steps - 1)) for i in range(steps)]


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
        raise ValueError(f"next_sigma: expected 0 ≤ next_sigma < sigma = {sigma:g}, got {next_sigma:g}")
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta: expected a number in [0, 1], got {eta:g}")
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


# Pixels of [−1, 1], for which the papers write β and ᾱ, are twice as far apart as those of [0, 1].
_WIDTH = 2.0


def vp_sigmas(t_star: float, steps: int) -> list[float]:
    """Noise levels of the papers' VP-SDE at the times t*·(1 − i/steps), i = 0…steps − 1, in [0, 1] pixels.

    σ(t) = ½·√(exp(∫β) − 1) with β(t) = 0.1 + 19.9t (Nie et al. 2022, section 3.1); a time t is timestep
    1000·t of the linear DDPM chain. The levels are those of any network, whatever schedule trained it.

    Raises:
        ValueError: t_star outside (0, 1], or steps < 1.
    """
    check_t_star(t_star)
    check_at_least("steps", steps, 1)
    time = t_star * (1 - torch.arange(steps, dtype=torch.float64) / steps)
    levels: list[float] = (VariancePreservingSchedule().sigma(time) / _WIDTH).tolist()
    return levels


def check_t_star(t_star: float) -> float:
    """A time in (0, 1], or ValueError; a timestep is told how to write it as a time."""
    if 1 < t_star <= 1000:
        raise ValueError(
            f"t_star: expected a time in (0, 1], got {t_star:g}; timestep {t_star:g} of 1000 is"
            f" t_star = {t_star / 1000:g}"
        )
    if not 0 < t_star <= 1:
        raise ValueError(f"t_star: expected a time in (0, 1], got {t_star!r}")
    return t_star


def t_star_of(sigma: float) -> float:
    """The time at which the papers' VP-SDE has noise level sigma of [0, 1] pixels.

    Raises:
        ValueError: sigma ≤ 0 or beyond time 1.
    """
    level = torch.tensor(sigma * _WIDTH, dtype=torch.float64)
    time = float(VariancePreservingSchedule().time(level)) if sigma > 0 else 0.0
    if not 0 < time <= 1:
        raise ValueError(f"sigma: expected a noise level of the VP-SDE, in (0, 76.08], got {sigma!r}")
    return time


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
    high, low = (_WIDTH * sigma) ** 2, (_WIDTH * next_sigma) ** 2
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
        spread = beta * (1 + low) / _WIDTH**2
        if normal is None:
            raise ValueError("normal: the SDE's step needs noise, got None")
        following = following + math.sqrt(spread) * normal
    if score_shift is None:
        return following
    return following + spread * stretch * score_shift


def first_estimate(
    denoiser: Denoiser, noisy: Tensor, sigma: float, *, label: Tensor | None = None, clip: bool = True
) -> Estimate:
    """The denoiser's estimate at the start of a reverse process, clipped to [0, 1] if `clip`."""
    clean, mix = denoiser.checked_estimate(noisy, sigma, label)
    return Estimate(clean.clamp(0.0, 1.0) if clip else clean, mix)


def one_shot(
    denoiser: Denoiser, noisy: Tensor, sigma: float, *, label: Tensor | None = None, clip: bool = True
) -> Tensor:
    """One-shot denoising (Carlini et al. 2023, algorithm 2): the estimate at sigma, clipped to [0, 1].

    Args:
        denoiser: any denoiser. noisy: N×C×H×W, image + sigma·N(0, I). sigma: its noise level.
        label: N integers to condition on, None for unconditional.
        clip: False leaves the estimate as it is, for exact denoisers of unbounded densities.

    Raises:
        ValueError: as the denoiser does.
    """
    return first_estimate(denoiser, noisy, sigma, label=label, clip=clip).clean


def posterior_sample(
    denoiser: Denoiser,
    noisy: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    label: Tensor | None = None,
    eta: float = 1.0,
    clip: bool = True,
    start: Estimate | None = None,
) -> Tensor:
    """A sample of the image given the noisy image by the reverse process (DensePure, algorithm 1 and C.2).

    As the steps grow and with eta = 1 and an exact denoiser, the result's law tends to the posterior
    p(image | noisy). Gradients flow through every step.

    Args:
        denoiser: any denoiser.
        noisy: N×C×H×W, image + sigmas[0]·N(0, I).
        sigmas: descending noise levels, from `select_sigmas`.
        noise: one row a sample; its step i is the noise of the i-th reverse step, from 1.
        label: N integers to condition on, None for unconditional.
        eta: 1 for the ancestral process, 0 for DDIM.
        clip: clip each clean estimate, and so the result, to [0, 1].
        start: the estimate at sigmas[0], where the caller has it already.

    Returns:
        N×C×H×W.

    Raises:
        ValueError: as the denoiser and `reverse_step` do, no sigmas, or another number of noise rows.
    """
    if not sigmas:
        raise ValueError("sigmas: expected at least one noise level")
    if eta != 0.0 and len(noise) != len(noisy):
        raise ValueError(f"noise: expected one row for each of {len(noisy)} images, got {len(noise)}")
    estimate = first_estimate(denoiser, noisy, sigmas[0], label=label, clip=clip) if start is None else start
    for i, (sigma, next_sigma) in enumerate(itertools.pairwise(sigmas), start=1):
        normal = None if eta == 0.0 else noise.normal(noisy.shape[1:], i, noisy.dtype)
        variance = denoiser.learned_variance(estimate, sigma, next_sigma) if eta == 1.0 else None
        noisy = reverse_step(noisy, estimate.clean, sigma, next_sigma, normal, eta=eta, variance=variance)
        estimate = first_estimate(denoiser, noisy, next_sigma, label=label, clip=clip)
    return estimate.clean
