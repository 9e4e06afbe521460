"""Exact binomial bounds and the certified radii they give, in float64 (Cohen et al. 2019, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from scipy.special import betaincinv, ndtri

from diffproof.checks import check_at_least, check_member, check_positive, check_probability
from diffproof.errors import ArgumentError
from diffproof.intervals import sign_test


class Bound(StrEnum):
    """How a radius is bounded.

    ONE_SIDED: p_A from below, p_B ≤ 1 − p_A; Cohen et al.'s CERTIFY.
    TWO_SIDED: p_A from below and p_B from above (Theorem 1 of Cohen et al.), sharing alpha.
    """

    ONE_SIDED = "one-sided"
    TWO_SIDED = "two-sided"


def as_bound(bound: Bound | str) -> Bound:
    """A bound by name, or ValueError."""
    return check_member("bound", bound, Bound)


class RadiusBound(NamedTuple):
    """Bounds of the class probabilities and the radius they prove; radius 0 with p_a_lower ≤ p_b_upper."""

    p_a_lower: float
    p_b_upper: float
    radius: float


def lower_bound(count: int, n: int, alpha: float) -> float:
    """One-sided Clopper–Pearson lower confidence bound of a binomial proportion.

    The true proportion lies below it with probability at most alpha. count = n gives alpha^(1/n).

    Raises:
        ValueError: n < 1, count outside [0, n], or alpha outside (0, 1).
    """
    _check_counts(count, n, alpha)
    # The quantile of Beta(count, n − count + 1) itself: a root search on 1 − alpha loses a small alpha.
    return float(betaincinv(count, n - count + 1, alpha)) if count else 0.0


def upper_bound(count: int, n: int, alpha: float) -> float:
    """One-sided Clopper–Pearson upper confidence bound; the mirror image of `lower_bound`."""
    return 1.0 - lower_bound(n - count, n, alpha)


def _check_counts(count: int, n: int, alpha: float) -> None:
    check_at_least("n", n, 1)
    check_probability("alpha", alpha)
    if not 0 <= count <= n:
        raise ArgumentError("count", f"expected 0 ≤ count ≤ n = {n}, got {count}")


def radius_bound(
    counts: Sequence[int], label: int, alpha: float, sigma: float, bound: Bound | str = Bound.ONE_SIDED
) -> RadiusBound:
    """The ℓ2 radius that counts of smoothed labels prove for a label chosen beforehand.

    One-sided: radius = sigma·Φ⁻¹(p_A), p_A at confidence 1 − alpha. Two-sided: radius =
    sigma/2·(Φ⁻¹(p_A) − Φ⁻¹(p_B)), p_A at alpha/2 and p_B the largest of the C − 1 other classes' upper
    bounds at alpha/(2(C − 1)) each (union bound), or 1 − p_A if that is smaller.

    Args:
        counts: draws by class, of the estimation sample.
        label: class chosen from an independent selection sample.
        alpha: failure probability, in (0, 1).
        sigma: noise level, > 0; the radius is in its unit.
        bound: see Bound.

    Returns:
        Bounds and radius; the radius is 0 where p_A ≤ p_B, which means abstention.

    Raises:
        ValueError: alpha, sigma, label or counts out of range, or an unknown bound.
    """
    check_positive("sigma", sigma)
    check_probability("alpha", alpha)
    n = sum(counts)
    if not 0 <= label < len(counts):
        raise ArgumentError("label", f"expected 0 ≤ label < {len(counts)}, got {label}")
    if as_bound(bound) is Bound.ONE_SIDED:
        p_a = lower_bound(counts[label], n, alpha)
        p_b = 1.0 - p_a
    else:
        p_a = lower_bound(counts[label], n, alpha / 2)
        others = [count for other, count in enumerate(counts) if other != label]
        p_b = min(1.0 - p_a, upper_bound(max(others), n, alpha / (2 * len(others))))
    if p_a <= p_b:
        return RadiusBound(p_a, p_b, 0.0)
    return RadiusBound(p_a, p_b, float(sigma * (ndtri(p_a) - ndtri(p_b)) / 2))


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
    return order[0] if min(1.0, 2 * sign_test(first, second)) <= alpha else None
