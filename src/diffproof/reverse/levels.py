"""Noise levels that a reverse process visits: step rules, times of the VP-SDE."""

from __future__ import annotations

import itertools
import math
from enum import StrEnum

import torch
from torch import Tensor

from diffproof.checks import check_at_least, check_member, check_number, check_positive
from diffproof.denoisers.base import Denoiser, check_denoiser
from diffproof.denoisers.schedules import VariancePreservingSchedule
from diffproof.errors import ArgumentError
from diffproof.noise import MAX_STEP

# Pixels of [−1, 1], for which the papers write β and ᾱ, are twice as far apart as those of [0, 1].
WIDTH = 2.0


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
    rule = check_member("step_rule", rule, StepRule)
    check_positive("sigma", sigma)
    check_denoiser(denoiser).check_sigma(sigma)
    if steps is not None:
        check_at_least("steps", steps, 1, MAX_STEP)
    if denoiser.sigmas is None:
        return _continuous_sigmas(denoiser, sigma, steps, rule)

    start = denoiser.nearest_index(sigma)
    if steps is None:
        indices = list(range(start, -1, -1))
    elif steps > start + 1:
        raise ArgumentError(
            "steps", f"the grid has {start + 1} levels up to sigma = {sigma:g}, got {steps} steps"
        )
    elif rule is StepRule.LOG_SIGMA:
        indices = log_sigma_indices(denoiser.sigmas, start, steps)
    elif rule is StepRule.PAPER:
        indices = [timestep - 1 for timestep in paper_timesteps(start + 1, steps)]
    else:
        first = denoiser.first_timestep
        indices = [timestep - first for timestep in authors_timesteps(denoiser.start_timestep(sigma), steps)]
    levels = [sigma, *(float(denoiser.sigmas[index]) for index in indices[1:])]
    if any(later >= earlier for earlier, later in itertools.pairwise(levels)):
        raise ArgumentError("steps", f"{steps} steps from sigma = {sigma:g} repeat a level of the grid")
    return levels


def _continuous_sigmas(denoiser: Denoiser, sigma: float, steps: int | None, rule: StepRule) -> list[float]:
    if steps == 1:
        return [sigma]
    if steps is None or rule is not StepRule.LOG_SIGMA:
        raise ArgumentError(
            "step_rule",
            "this denoiser has no timesteps; expected a number of steps and the rule"
            f" {StepRule.LOG_SIGMA.value!r}, got steps={steps} and {rule.value!r}",
        )
    if denoiser.sigma_min <= 0.0 or denoiser.sigma_min >= sigma:
        raise ArgumentError(
            "step_rule", f"{rule.value!r} needs 0 < sigma_min < sigma, got sigma_min = {denoiser.sigma_min:g}"
        )
    ratio = math.log(denoiser.sigma_min / sigma)
    return [sigma * math.exp(ratio * i / (steps - 1)) for i in range(steps)]


def vp_sigmas(t_star: float, steps: int) -> list[float]:
    """Noise levels of the papers' VP-SDE at the times t*·(1 − i/steps), i = 0…steps − 1, in [0, 1] pixels.

    σ(t) = ½·√(exp(∫β) − 1) with β(t) = 0.1 + 19.9t (Nie et al. 2022, section 3.1); a time t is timestep
    1000·t of the linear DDPM chain. The levels are those of any network, whatever schedule trained it.

    Raises:
        ValueError: t_star outside (0, 1], or steps < 1.
    """
    check_t_star(t_star)
    check_at_least("steps", steps, 1, MAX_STEP)
    time = t_star * (1 - torch.arange(steps, dtype=torch.float64) / steps)
    levels: list[float] = (VariancePreservingSchedule().sigma(time) / WIDTH).tolist()
    return levels


def check_t_star(t_star: float) -> float:
    """A time in (0, 1], or ValueError; a timestep is told how to write it as a time."""
    check_number("t_star", t_star, lambda time: time == time, "a time in (0, 1]")
    if 1 < t_star <= 1000:
        raise ArgumentError(
            "t_star",
            f"expected a time in (0, 1], got {t_star:.12g}; timestep {t_star:.12g} of 1000 is"
            f" t_star = {t_star / 1000:.12g}",
        )
    if not 0 < t_star <= 1:
        raise ArgumentError("t_star", f"expected a time in (0, 1], got {t_star!r}")
    return t_star


def t_star_of(sigma: float) -> float:
    """The time at which the papers' VP-SDE has noise level sigma of [0, 1] pixels.

    Raises:
        ValueError: sigma ≤ 0 or beyond time 1.
    """
    level = torch.tensor(sigma * WIDTH, dtype=torch.float64)
    time = float(VariancePreservingSchedule().time(level)) if sigma > 0 else 0.0
    if not 0 < time <= 1:
        raise ArgumentError("sigma", f"expected a noise level of the VP-SDE, in (0, 76.08], got {sigma!r}")
    return time
