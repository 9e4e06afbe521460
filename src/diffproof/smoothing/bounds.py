"""Binomial bounds and the certified radii they give, rounded outward (Cohen et al. 2019, section 3.2)."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache
from math import nextafter
from typing import NamedTuple

import numpy as np
from scipy.special import bdtrik

from diffproof.checks import (
    check_at_least,
    check_member,
    check_not_negative,
    check_positive,
    check_probability,
)
from diffproof.errors import ArgumentError
from diffproof.smoothing.outward import (
    binomial_bound_below,
    float_above,
    float_below,
    normal_quantile_below,
    tail_at_most,
)


class Bound(StrEnum):
    """How a radius is bounded.

    ONE_SIDED: p_A from below, p_B ≤ 1 − p_A; Cohen et al.'s CERTIFY.
    TWO_SIDED: p_A from below and p_B from above (Theorem 1 of Cohen et al.), sharing alpha.
    PIXELDP: both bounds of TWO_SIDED, but the radius that differential privacy gives them (Lécuyer et al.
        2019), far below; for comparisons.
    """

    ONE_SIDED = "one-sided"
    TWO_SIDED = "two-sided"
    PIXELDP = "pixeldp"


def as_bound(bound: Bound | str) -> Bound:
    """A bound by name, or ValueError."""
    return check_member("bound", bound, Bound)


class RadiusBound(NamedTuple):
    """Bounds of the class probabilities and the radius they prove; radius 0 with p_a_lower ≤ p_b_upper."""

    p_a_lower: float
    p_b_upper: float
    radius: float


def lower_bound(count: int, n: int, alpha: float) -> float:
    """One-sided Clopper–Pearson lower confidence bound of a binomial proportion, rounded down.

    The true proportion lies below it with probability at most alpha. count = n gives alpha^(1/n).

    Raises:
        ValueError: n < 1, count outside [0, n], or alpha outside (0, 1).
    """
    n = check_at_least("n", n, 1)
    alpha = check_probability("alpha", alpha)
    if not 0 <= count <= n:
        raise ArgumentError("count", f"expected 0 ≤ count ≤ n = {n}, got {count}")
    return binomial_bound_below(int(count), n, alpha)


@lru_cache(maxsize=4096)
def fewest_hits(n: int, p0: float, alpha: float) -> int:
    """The fewest hits of n draws whose `lower_bound` is p0 or more; n + 1 where that of n hits is less."""
    # From where the tail is about alpha; NaN where that cannot be told.
    guess = float(bdtrik(1 - alpha, n, p0))
    low = high = n // 2 if math.isnan(guess) else min(n, max(0, int(guess)))
    step = 1
    while low > 0 and lower_bound(low, n, alpha) >= p0:
        low, step = max(0, low - step), 2 * step
    step = 1
    while high < n and lower_bound(high, n, alpha) < p0:
        high, step = min(n, high + step), 2 * step
    between = range(low, high + 1)
    return low + bisect_left(between, True, key=lambda hits: lower_bound(hits, n, alpha) >= p0)


def upper_bound(count: int, n: int, alpha: float) -> float:
    """One-sided Clopper–Pearson upper confidence bound, rounded up; the mirror image of `lower_bound`."""
    return float_above(1 - Fraction(lower_bound(n - count, n, alpha)))


def radius_bound(
    counts: Sequence[int],
    label: int,
    alpha: float,
    sigma: float,
    bound: Bound | str = Bound.ONE_SIDED,
    *,
    failure_mass: float = 0.0,
) -> RadiusBound:
    """The ℓ2 radius that counts of smoothed labels prove for a label chosen beforehand.

    One-sided: radius = sigma·Φ⁻¹(p_A), p_A at confidence 1 − alpha. Two-sided: radius =
    sigma/2·(Φ⁻¹(p_A) − Φ⁻¹(p_B)), p_A at alpha/2 and p_B the largest of the C − 1 other classes' upper
    bounds at alpha/(2(C − 1)) each (union bound), or 1 − p_A if that is smaller. PixelDP: the same bounds,
    and the radius of `pixeldp_radius`. Every number is rounded to the safe side, so that the float radius is
    at most the exact one.

    Args:
        counts: draws by class, of the estimation sample.
        label: class chosen from an independent selection sample.
        alpha: failure probability, in (0, 1).
        sigma: noise level, > 0; the radius is in its unit.
        bound: see Bound.
        failure_mass: the probability, at most, that a draw's noise is not what the theorem says, whatever its
            label then is: p_A is lower and p_B higher by it; in [0, 1).

    Returns:
        Bounds and radius; the radius is 0 where p_A ≤ p_B, which means abstention.

    Raises:
        ValueError: alpha, sigma, label or counts out of range, or an unknown bound.
    """
    sigma = check_positive("sigma", sigma)
    alpha = check_probability("alpha", alpha)
    failures = Fraction(check_not_negative("failure_mass", failure_mass))
    n = sum(counts)
    if not 0 <= label < len(counts):
        raise ArgumentError("label", f"expected 0 ≤ label < {len(counts)}, got {label}")
    one_sided = as_bound(bound) is Bound.ONE_SIDED
    hits = lower_bound(counts[label], n, alpha if one_sided else alpha / 2)
    p_a = max(0.0, float_below(Fraction(hits) - failures))
    p_b = float_above(1 - Fraction(p_a))
    if not one_sided:
        others = [count for other, count in enumerate(counts) if other != label]
        share = nextafter(alpha / (2 * len(others)), 0.0)
        p_b = min(p_b, float_above(Fraction(upper_bound(max(others), n, share)) + failures))
    if p_a <= p_b:
        return RadiusBound(p_a, p_b, 0.0)
    if as_bound(bound) is Bound.PIXELDP:
        return RadiusBound(p_a, p_b, pixeldp_radius(p_a, p_b, sigma))
    quantiles = normal_quantile_below(Fraction(p_a)), normal_quantile_below(1 - Fraction(p_b))
    if quantiles[0] + quantiles[1] <= 0:
        return RadiusBound(p_a, p_b, 0.0)
    exact = Fraction(sigma) * (Fraction(quantiles[0]) + Fraction(quantiles[1])) / 2
    return RadiusBound(p_a, p_b, max(0.0, float_below(exact)))


def pixeldp_radius(p_a: float, p_b: float, sigma: float) -> float:
    """The ℓ2 radius that the privacy of Gaussian noise proves (Lécuyer et al. 2019, proposition 1).

    The Gaussian mechanism is (ε, δ)-private for changes of ℓ2 norm up to sigma·ε/√(2 ln(1.25/δ)), ε ≤ 1, and
    then no label changes where p_A > e^(2ε)·p_B + (1 + e^ε)·δ. The largest such radius is searched for over δ
    in (0, 0.3); each is proved, so that a coarse search errs on the safe side, as does the rounding.

    Args:
        p_a: lower bound of the label's probability.
        p_b: upper bound of every other's.
        sigma: noise level, > 0; the radius is in its unit.

    Returns:
        The radius, 0 where none is proved.
    """
    # Of a probability that is no more than δ nothing follows.
    deltas = np.geomspace(1e-12, 0.3, 4001)[:-1]
    deltas = deltas[deltas < p_a]
    # The largest e^ε: the positive root of p_B·x² + δ·x + δ − p_A, in the form that p_B = 0 has, too.
    growth = 2 * (p_a - deltas) / (deltas + np.sqrt(deltas**2 + 4 * p_b * (p_a - deltas)))
    epsilon = np.clip(np.log(np.maximum(growth, 1.0)) - _SLACK, 0.0, 1.0)
    radii = sigma * epsilon / np.sqrt(2 * np.log(1.25 / deltas))
    return max(0.0, float(radii.max(initial=0.0)) * (1 - _SLACK))


# Far above the rounding errors of a dozen operations of float64.
_SLACK = 1e-12


def largest_radius(
    n: int, alpha: float, sigma: float, bound: Bound | str = Bound.ONE_SIDED, num_classes: int = 2
) -> float:
    """The radius of n unanimous draws, above which no certificate can be; 0 at least.

    One-sided: sigma·Φ⁻¹(alpha^(1/n)).
    """
    check_at_least("n", n, 1)
    return radius_bound((n, *[0] * (num_classes - 1)), 0, alpha, sigma, bound).radius


def prediction(counts: Sequence[int], alpha: float) -> int | None:
    """The most frequent label, or None where the runner-up may be as likely (Cohen et al., PREDICT).

    The two-sided binomial test of the two largest counts against ½ must have a p-value of at most alpha.
    """
    check_probability("alpha", alpha)
    order = sorted(range(len(counts)), key=lambda label: (-counts[label], label))
    first, second = counts[order[0]], counts[order[1]]
    if first + second == 0:
        raise ArgumentError("counts", "expected at least one draw, got none")
    return order[0] if tail_at_most(first, first + second, 0.5, alpha / 2) else None
