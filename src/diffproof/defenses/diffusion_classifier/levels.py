"""Noise levels of a diffusion loss: which are summed, and their weights (Chen et al. 2023, eq. 6)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

from torch import Tensor

from diffproof.checks import check_at_least, check_levels
from diffproof.denoisers.base import Denoiser
from diffproof.errors import ArgumentError

# Karras et al. (2022), table 1: training noise ln σ' ~ N(P_MEAN, P_STD²) for data of standard deviation 0.5.
_P_MEAN, _P_STD, _DATA_STD = -1.2, 1.2, 0.5


class Weighting(StrEnum):
    """The w_t of the loss, a mean over levels of w_t·‖ε_θ − ε‖².

    σ' = 2σ is the level relative to data in [−1, 1], T the number of levels of the whole grid.

    SIMPLE: 1, as the paper's experiments (its eq. 6).
    VLB: the mean is the sum over t of the variational bound (Ho et al. 2020, eq. 12; L_0 with a decoder of
        variance β_1): T·½(σ_t²/σ_{t−1}² − 1), and T·½(1 + σ'_1²) at the lowest level.
    EDM: the mean is Σ λ(σ')·p(σ')·Δσ'·‖D_θ − x‖² in [−1, 1] units, with λ and the log-normal p of EDM's
        training (Karras et al. 2022, table 1).
    EDM_AUTHORS: as EDM, with the exponent of p multiplied by P_std² where the log-normal divides by it, as in
        the released code of Chen et al.
    """

    SIMPLE = "simple"
    VLB = "vlb"
    EDM = "edm"
    EDM_AUTHORS = "edm-authors"


def edm_sigmas(count: int) -> list[float]:
    """The authors' levels for EDM: `count` equal steps of σ' from 1e-4 up to but not including 3.

    Returns:
        Ascending noise levels σ = σ'/2 of [0, 1] pixels.

    Raises:
        ValueError: count < 1.
    """
    check_at_least("count", count, 1)
    # In Python's own arithmetic, which is the same to the last bit everywhere: the levels are among settings.
    return [(1e-4 + (3.0 - 1e-4) * step / count) / 2 for step in range(count)]


def edm_levels(denoiser: Denoiser, count: int) -> list[float]:
    """Those of `edm_sigmas` that are not below what a continuous denoiser takes.

    EDM's networks begin at σ' = 0.002, so that of the authors' levels the first is left out, whose share of
    EDM's weights is below 1e-7.

    Raises:
        ValueError: count < 1, or a denoiser with levels of its own.
    """
    if denoiser.sigmas is not None:
        raise ArgumentError(
            "sigmas", "edm:N is for a continuous denoiser, and this one has levels of its own"
        )
    return [sigma for sigma in edm_sigmas(count) if sigma >= denoiser.sigma_min]


def levels_of(denoiser: Denoiser, sigmas: Sequence[float] | Tensor | str | None) -> list[float]:
    """The whole grid, ascending: the levels that are given, or the denoiser's own.

    Raises:
        ValueError: a continuous denoiser and no levels, or one that it does not take.
    """
    if isinstance(sigmas, str):
        name, _, count = sigmas.partition(":")
        if name != "edm" or not (count.isascii() and count.isdecimal()):
            raise ArgumentError("sigmas", f"expected levels or edm:N, got {sigmas!r}")
        sigmas = edm_levels(denoiser, int(count))
    if sigmas is None:
        if denoiser.sigmas is None:
            raise ArgumentError("sigmas", "this denoiser is continuous, expected noise levels, got None")
        sigmas = denoiser.sigmas
    grid = check_levels("sigmas", sigmas)
    for sigma in grid:
        denoiser.check_sigma(sigma)
    return grid


def chosen(timesteps: str, total: int) -> list[int]:
    """The indices into a grid of `total` levels that a rule chooses.

    Args:
        timesteps: "all", "first:N" or "uniform:N"; see DiffusionLoss.
        total: levels of the grid.

    Raises:
        ValueError: another rule, or N outside [1, total].
    """
    if timesteps == "all":
        return list(range(total))
    rule, _, number = str(timesteps).partition(":")
    if rule not in ("first", "uniform") or not (number.isascii() and number.isdecimal() and len(number) < 10):
        raise ArgumentError("timesteps", f"expected all, first:N or uniform:N, got {timesteps!r}")
    count = int(number)
    if not 1 <= count <= total:
        raise ArgumentError(
            "timesteps", f"expected 1 ≤ N ≤ {total} (the number of noise levels), got {timesteps!r}"
        )
    if rule == "first":
        return list(range(count))
    return [(2 * part + 1) * total // (2 * count) for part in range(count)]


def weight_of(weighting: Weighting, grid: list[float], index: int, sigma: float) -> float:
    """w_t of a level of the grid, for images at noise level sigma below it."""
    if weighting is Weighting.SIMPLE:
        return 1.0
    if weighting is Weighting.VLB:
        return len(grid) * _divergence(grid, index, sigma)
    return len(grid) * _edm(grid, index, of_authors=weighting is Weighting.EDM_AUTHORS)


def _divergence(grid: list[float], index: int, sigma: float) -> float:
    """The factor of ‖(s/σ)·ε_θ − ε‖² in a term of the variational bound on log p_sigma.

    With s_t² = σ_t² − τ², KL(q(x_{t−1}|x_t, x_τ) ‖ p(x_{t−1}|x_t)) is ½(1/s_{t−1}² − 1/s_t²) times the
    squared error of E[x_τ|x_t], whose root is s_t times that of the noise s_t·ε. At the lowest level above τ
    stands a decoder of variance s²/(1 + s'²), for τ = 0 the β_1 of the discrete process.
    """
    own = grid[index] ** 2 - sigma**2
    below = grid[index - 1] ** 2 - sigma**2 if index > 0 else 0.0
    ratio = own / below - 1.0 if below > 0.0 else 1.0 + 4.0 * own
    return 0.5 * ratio


def _edm(grid: list[float], index: int, *, of_authors: bool) -> float:
    """λ(σ')·p(σ')·Δσ'·σ'² of a level, the last factor from ‖D_θ − x‖² to ‖ε_θ − ε‖²."""
    if len(grid) < 2:
        raise ArgumentError("sigmas", f"the weightings of EDM need at least two noise levels, got {grid}")
    # The width of the last level is that of the one before.
    low = min(index, len(grid) - 2)
    level, width = 2 * grid[index], 2 * (grid[low + 1] - grid[low])
    precision = _P_STD**2 if of_authors else _P_STD**-2
    exponent = -0.5 * precision * (math.log(level) - _P_MEAN) ** 2
    density = math.exp(exponent) / (level * _P_STD * math.sqrt(2 * math.pi))
    return (level**2 + _DATA_STD**2) / (level * _DATA_STD) ** 2 * density * width * level**2
