"""The e-process against p ≤ p0 of coin flips, its critical counts, and predictions of where it will stand.

Where the hypothesis holds, an e-process is at most a nonnegative martingale that starts at 1. By the
inequality of Ville (1939) it ever reaches 1/alpha with probability at most alpha, however often one looks.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, betaincc, betaincinv, betaln

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

# Gauss–Legendre nodes and weights on (0, 1).
_NODES, _WEIGHTS = (0.5 * a for a in np.polynomial.legendre.leggauss(48))
_NODES = _NODES + 0.5


def log_e(hits: ArrayLike, draws: ArrayLike, p0: ArrayLike) -> Floats:
    """log of the e-process against p ≤ p0 after `draws` flips with `hits` hits, in float64.

    e = ½·1[hits = draws]·p0^(−draws) + ½·E: half an atom at p = 1, half a Jeffreys mixture of the likelihood
    ratios p^hits (1 − p)^misses / (p0^hits (1 − p0)^misses) over p > p0 only (Robbins 1970's method of
    mixtures). Every alternative exceeds p0, so that for p < p0, too, e is at most a martingale. At so many
    draws it increases in the hits. It is off by less than `margin`.

    Args:
        hits: how many draws hit, in [0, draws].
        draws: how many there were.
        p0: in (0, 1).
    """
    hits, draws, p0 = (np.asarray(given, np.float64) for given in (hits, draws, p0))
    misses = draws - hits
    a, b = hits + 0.5, misses + 0.5
    atom = -draws * np.log(p0)
    with np.errstate(divide="ignore"):
        above = np.log(betaincc(a, b, p0))
    # B(½, ½) (1 − I_p0(½, ½)), the prior's mass above p0, is 2 arcsin √(1 − p0).
    mass = np.log(2 * np.arcsin(np.sqrt(1 - p0)))
    mixture = betaln(a, b) + above - mass - hits * np.log(p0) - misses * np.log1p(-p0)
    both: Floats = np.logaddexp(mixture, np.where(misses == 0, atom, -np.inf)) - math.log(2)
    return both


def margin(draws: ArrayLike) -> Floats:
    """More than the floating-point error of `log_e`, which is below 1e-8 + 1e-14·draws up to 10^7 draws.

    Measured against integration with 50 digits; logarithms of factorials lose most.
    """
    return 1e-7 + 1e-13 * np.asarray(draws, np.float64)


def critical_counts(draws: ArrayLike, p0: float, alpha: float) -> Counts:
    """The fewest hits at which the e-process has passed 1/alpha, or draws + 1 where all hits are too few."""
    number = np.asarray(draws, np.int64)
    needed = margin(number) - math.log(alpha)
    # With a share of hits below p0 no likelihood ratio is above 1.
    low, high = np.floor(number * p0).astype(np.int64) - 1, number + 1
    while np.any(high - low > 1):
        middle = (low + high) // 2
        passed = (log_e(np.minimum(middle, number), number, p0) >= needed) & (middle <= number)
        low, high = np.where(passed, low, middle), np.where(passed, middle, high)
    return high


@lru_cache(maxsize=65_536)
def lower_limit(hits: int, draws: int, alpha: float) -> float:
    """The largest p0 ≥ ½ against which the e-process has passed 1/alpha, from below; 0 where ½ has not.

    Where it has passed, it falls in p0 (for alpha ≤ ½), so that all between ½ and this have passed as well:
    what one radius after another would prove in a fixed sequence.
    """
    needed = float(margin(draws)) - math.log(alpha)
    low, high = 0.5, hits / draws
    if high <= low or log_e(hits, draws, low) < needed:
        return 0.0
    # All hits prove at most that p^draws is alpha.
    high = min(high, math.exp(math.log(alpha) / draws))
    while high - low > max(1e-13 * (1 - low), 2.0**-51):
        between = np.linspace(low, high, 64)
        passed = max(1, int(np.count_nonzero(log_e(hits, draws, between[:-1]) >= needed)))
        low, high = float(between[passed - 1]), float(between[passed])
    return low


def chance_of_reaching(count: int, total: int, hits: int, draws: int) -> float:
    """The predictive probability of at least `count` hits in `total` draws, after `hits` in `draws`.

    p is Beta(hits + ½, draws − hits + ½), its posterior under the Jeffreys prior. With c hits lacking of the
    `left` draws, p must exceed an independent Beta(c, left − c + 1) variable: an integral over quantiles of
    the narrower of both, to some 1e-4. Nothing that is proved rests on it.
    """
    lacking, left = count - hits, total - draws
    if lacking <= 0:
        return 1.0
    if lacking > left:
        return 0.0
    posterior, needed = (hits + 0.5, draws - hits + 0.5), (lacking, left - lacking + 1.0)
    if left > draws:
        chances = betaincc(*posterior, betaincinv(*needed, _NODES))
    else:
        chances = betainc(*needed, betaincinv(*posterior, _NODES))
    return float(_WEIGHTS @ chances)
