"""Binomial tails and the normal distribution on the safe side: floats proved with decimals of 40 digits.

A certificate must not be larger than its counts prove, not even by a rounding. So every number here is first
guessed with scipy and then proved, or moved by units in the last place until it is. `decimal` rounds each
operation, ln and exp included, correctly; what its at most some thousand operations can be off, and the
truncation of each series, is below a stated margin by some orders of magnitude.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from functools import lru_cache

import numpy as np
from scipy.special import betaincinv, ndtr, ndtri

_DIGITS = Context(prec=40)
# What logarithms of tails, up to 1e9, and values of Φ are off at most, and much more.
_LOG_MARGIN, _NORMAL_MARGIN = Decimal("1e-25"), Decimal("1e-35")
_HALF_LOG_TWO_PI = Decimal("0.9189385332046727417803297364056176398613974736377834")
# B_2k / (2k(2k − 1)): Stirling's series, whose error is below the first term left out, 13.4 / x^21.
_STIRLING = [
    _DIGITS.divide(Decimal(top), Decimal(bottom))
    for top, bottom in (
        *((1, 12), (-1, 360), (1, 1260), (-1, 1680), (1, 1188), (-691, 360360), (1, 156)),
        *((-3617, 122400), (43867, 244188), (-174611, 125400)),
    )
]
# From here that is below 1e-32; smaller binomial coefficients are exact integers.
_LARGE = 41
# Unit roundoff of float64.
_UNIT = 2.0**-53


def float_below(value: Fraction) -> float:
    """The largest float that is not above an exact number."""
    nearest = float(value)
    return nearest if Fraction(nearest) <= value else math.nextafter(nearest, -math.inf)


def float_above(value: Fraction) -> float:
    """The smallest float that is not below an exact number."""
    return -float_below(-value)


def _moved(guess: float, towards: float, holds: Callable[[float], bool]) -> float:
    """The guess, or the nearest of those 1, 2, 4, … units in the last place from it that holds."""
    value, step = guess, math.ulp(guess or 2.0**-60)
    while not holds(value):
        value = guess + math.copysign(step, towards - guess)
        step *= 2
        if abs(value - guess) >= abs(towards - guess):
            return towards
    return value


def _log_factorial(number: int) -> Decimal:
    x = Decimal(number)
    series, square = Decimal(0), 1 / (x * x)
    for term in reversed(_STIRLING):
        series = series * square + term
    return (x + Decimal("0.5")) * x.ln() - x + _HALF_LOG_TWO_PI + series / x


@lru_cache(maxsize=256)
def _log_choose(n: int, count: int) -> Decimal:
    if min(count, n - count) < _LARGE:
        return Decimal(math.comb(n, count)).ln()
    return _log_factorial(n) - _log_factorial(count) - _log_factorial(n - count)


def _tail_over_first(count: int, n: int, p: float) -> float:
    """Not below P[X ≥ count] / P[X = count] of a binomial X, in float64 with its error added.

    The terms' ratios are (n − k + 1)/k · p/(1 − p), k > count. Five roundings a ratio make the j-th term, and
    one more a term their sum; where the ratios are below 1, a geometric series bounds the rest.
    """
    if count == n:
        return 1.0
    odds = p / (1.0 - p)
    total = last = 1.0
    weighted, done, size = 0.0, 0, 16
    while done < n - count:
        j = np.arange(done + 1, min(done + size, n - count) + 1, dtype=np.float64)
        terms = last * np.cumprod((n - count + 1 - j) / (count + j) * odds)
        total, weighted = total + float(terms.sum()), weighted + float(terms @ j)
        done, size, last = done + len(j), 2 * size, float(terms[-1])
        ratio = (n - count - done) / (count + done + 1) * odds * (1 + 8 * _UNIT)
        if ratio < 1 and (rest := last * ratio / (1 - ratio)) < 1e-17 * total:
            total += 2 * rest
            break
    return total + (5 * weighted + (done + 8) * total) * _UNIT * 1.001


def _tail_over_alpha(count: int, n: int, p: float, alpha: float) -> tuple[float, float]:
    """Not below P[X ≥ count] / alpha of a binomial X, and the tail over its first term."""
    ratio = _tail_over_first(count, n, p)
    with localcontext(_DIGITS):
        exact = Decimal(p)
        log_first = _log_choose(n, count) + count * exact.ln() + _LOG_MARGIN
        if n > count:
            log_first += (n - count) * (1 - exact).ln()
        return float_above(Fraction(log_first.exp() * Decimal(ratio) / Decimal(alpha))), ratio


def tail_at_most(count: int, n: int, p: float, alpha: float) -> bool:
    """Whether `count` or more hits of n draws, each with p in (0, 1), are proved to have probability ≤ alpha.

    False within some units in the last place of equality.
    """
    return count > 0 and alpha > 0 and _tail_over_alpha(count, n, p, alpha)[0] <= 1


@lru_cache(maxsize=4096)
def binomial_bound_below(count: int, n: int, alpha: float) -> float:
    """Not above the exact Clopper–Pearson lower bound (Clopper & Pearson 1934), where the tail is alpha."""
    if count == 0 or alpha == 0:
        return 0.0
    # The quantile of Beta(count, n − count + 1) itself: a root search on 1 − alpha loses a small alpha.
    guess = min(float(betaincinv(count, n - count + 1, alpha)), 1 - _UNIT)
    # For an alpha near the least of float64 it may come out as NaN, or its next step below 0.
    if not guess > 0.0:
        return 0.0
    # One step of Newton: the tail's logarithm has the slope count / ratio in log p.
    excess, ratio = _tail_over_alpha(count, n, guess, alpha)
    guess = math.nextafter(guess - guess * math.log(excess) * ratio / count, 0.0)
    return _moved(guess, 0.0, lambda p: tail_at_most(count, n, p, alpha)) if guess > 0.0 else 0.0


def _upper_half(z: Decimal) -> Decimal:
    """Φ(z) − ½ for z ≥ 0 by φ(z) Σ z^(2k+1) / (1·3·…·(2k+1)), whose terms are positive (Marsaglia 2004)."""
    square = z * z
    term, total, k = z, z, 0
    # Once the ratio of terms is at most ½, the rest is at most the last term.
    while 2 * square > 2 * k + 3 or term > _NORMAL_MARGIN / 100:
        k += 1
        term = term * square / (2 * k + 1)
        total += term
    return total * (-square / 2 - _HALF_LOG_TWO_PI).exp()


def _normal(z: Decimal) -> Decimal:
    return Decimal("0.5") + _upper_half(abs(z)).copy_sign(z)


@lru_cache(maxsize=4096)
def normal_quantile_below(p: Fraction) -> float:
    """Not above Φ⁻¹(p), p < 1; −∞ where p is too small for the margin."""
    if p < Fraction(1, 10**30):
        return -math.inf
    guess = float(ndtri(float(p)) if 2 * p < 1 else -ndtri(float(1 - p)))
    with localcontext(_DIGITS):
        exact = Decimal(p.numerator) / p.denominator - _NORMAL_MARGIN
        return _moved(guess, -math.inf, lambda z: _normal(Decimal(z)) <= exact)


@lru_cache(maxsize=4096)
def normal_above(numerator: float, denominator: float) -> float:
    """Not below Φ(numerator / denominator), a ratio ≥ 0: the probability that a radius needs at sigma."""
    if numerator == 0 or numerator > 9 * denominator:
        return 1.0 if numerator else 0.5
    with localcontext(_DIGITS):
        exact = _normal(Decimal(numerator) / Decimal(denominator)) + _NORMAL_MARGIN
        return _moved(float(ndtr(numerator / denominator)), 1.0, lambda p: exact <= Decimal(p))
