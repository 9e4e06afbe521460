"""Bounds and radii are on the safe side of the exact numbers, and next to them; the exact ones by mpmath."""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from diffproof.smoothing import outward
from diffproof.smoothing.bounds import lower_bound, prediction, radius_bound, upper_bound
from diffproof.smoothing.outward import (
    float_above,
    float_below,
    normal_above,
    normal_quantile_below,
    tail_at_most,
)

few = hypothesis_settings(max_examples=40)


@pytest.fixture(autouse=True)
def _fifty_digits() -> object:
    with mpmath.workdps(50):
        yield


def exact_tail(count: int, n: int, p: mpmath.mpf) -> mpmath.mpf:
    """P[X ≥ count] of a binomial X, summed term by term."""
    term = mpmath.binomial(n, count) * p**count * (1 - p) ** (n - count)
    odds, total, k = p / (1 - p), mpmath.mpf(0), count
    while k <= n and (k < n * p or term > total * mpmath.mpf(10) ** -40):
        total, term, k = total + term, term * (n - k) / (k + 1) * odds, k + 1
    return total


def exact_bound(count: int, n: int, alpha: float) -> mpmath.mpf:
    """The Clopper–Pearson lower bound to 40 digits: Newton's method in log p from scipy's float."""
    log_p = mpmath.log(mpmath.mpf(lower_bound(count, n, alpha)))
    for _ in range(3):
        p = mpmath.exp(log_p)
        tail = exact_tail(count, n, p)
        slope = count * mpmath.binomial(n, count) * p**count * (1 - p) ** (n - count) / tail
        log_p -= mpmath.log(tail / mpmath.mpf(alpha)) / slope
    return mpmath.exp(log_p)


@st.composite
def draws(draw: st.DrawFn, most: float = 6.0) -> tuple[int, int, float]:
    """(count, n, alpha): n up to 10^most, counts near 0 and n and anywhere, alpha from 1e-12 to ½."""
    n = int(10 ** draw(st.floats(0, most)))
    near = draw(st.integers(0, min(n, 40)))
    count = draw(st.sampled_from([near, n - near, draw(st.integers(0, n))]))
    return count, n, draw(st.sampled_from([0.5, 0.05, 0.001, 1e-12, 10 ** draw(st.floats(-12, -0.31))]))


@pytest.mark.slow
@few
@given(draws())
@example((1, 1, 0.5))
@example((1_000_000, 1_000_000, 1e-12))
@example((500_000, 1_000_000, 0.5))
def test_binomial_bounds_are_outward_and_tight(case: tuple[int, int, float]) -> None:
    count, n, alpha = case
    low = lower_bound(count, n, alpha)
    if count == 0:
        assert low == 0.0
        return
    assert exact_tail(count, n, mpmath.mpf(low)) <= alpha
    assert exact_tail(count, n, mpmath.mpf(low) * (1 + mpmath.mpf("1e-13"))) > alpha or low == 1 - 2**-53
    # The mirror image: at most n − count hits are as rare at the upper bound.
    high = upper_bound(n - count, n, alpha)
    assert Fraction(high) >= 1 - Fraction(low) > Fraction(math.nextafter(high, 0.0))


def test_scipys_bound_alone_would_be_too_high() -> None:
    from scipy.special import betaincinv

    # What the proof is for: unproved quantiles are above the exact bound about as often as below.
    above = 0
    for count in range(1, 101):
        unproved = mpmath.mpf(float(betaincinv(count, 101 - count, 0.001)))
        above += bool(exact_tail(count, 100, unproved) > mpmath.mpf(0.001))
        assert exact_tail(count, 100, mpmath.mpf(lower_bound(count, 100, 0.001))) <= mpmath.mpf(0.001)
    assert above > 10


@pytest.mark.parametrize("off", [1 + 1e-12, 1 + 1e-4, 1 - 1e-12, 1 - 1e-4])
def test_bounds_hold_whatever_scipys_guess_is(monkeypatch: pytest.MonkeyPatch, off: float) -> None:
    from scipy.special import betaincinv, ndtr, ndtri

    # Before anything is off: it is kept for later calls.
    exact = lower_bound(990, 1000, 0.001)
    monkeypatch.setattr(outward, "betaincinv", lambda *given: betaincinv(*given) * off)
    monkeypatch.setattr(outward, "ndtri", lambda p: ndtri(p) * off)
    monkeypatch.setattr(outward, "ndtr", lambda z: ndtr(z) * off)
    # Past what is kept from calls with the right guess.
    low = outward.binomial_bound_below.__wrapped__(990, 1000, 0.001)
    assert exact_tail(990, 1000, mpmath.mpf(low)) <= 0.001
    assert low == pytest.approx(exact, rel=1e-6)
    z = outward.normal_quantile_below.__wrapped__(Fraction(3, 4))
    assert mpmath.ncdf(mpmath.mpf(z)) <= 0.75
    assert mpmath.ncdf(mpmath.mpf(outward.normal_quantile_below.__wrapped__(Fraction(1, 4)))) <= 0.25
    assert outward.normal_above.__wrapped__(0.5, 0.25) >= mpmath.ncdf(2)


@few
@given(st.integers(1, 3_000), st.data())
def test_a_proved_tail_is_one(n: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, n))
    p = data.draw(st.floats(1e-6, 1 - 1e-6))
    tail = exact_tail(count, n, mpmath.mpf(p))
    if 1e-300 < tail < 0.9:
        # Equal to 15 digits is not proved, and a little more is.
        assert not tail_at_most(count, n, p, float(tail * (1 - mpmath.mpf("1e-15"))))
        assert tail_at_most(count, n, p, float(tail * (1 + mpmath.mpf("1e-11"))))


@given(st.floats(1e-17, 1.0, exclude_max=True), st.booleans())
@example(0.5, True)
@example(2.0**-53, True)
def test_normal_quantiles_are_outward_and_tight(p: float, upper: bool) -> None:
    exact = 1 - Fraction(p) if upper else Fraction(p)
    z = normal_quantile_below(exact)
    chance = mpmath.mpf(exact.numerator) / exact.denominator
    assert mpmath.ncdf(mpmath.mpf(z)) <= chance
    assert mpmath.ncdf(mpmath.mpf(z) + 1e-14 * max(1.0, abs(z))) > chance


def test_normal_quantiles_of_nothing() -> None:
    assert normal_quantile_below(Fraction(0)) == -math.inf
    assert normal_quantile_below(Fraction(-1, 2)) == -math.inf


@given(st.floats(0, 4), st.floats(0.05, 2))
@example(0.0, 1.0)
@example(9.0, 1.0)
@example(5e9, 1e-9)
def test_needed_probabilities_are_outward_and_tight(radius: float, sigma: float) -> None:
    p = normal_above(radius, sigma)
    exact = mpmath.ncdf(mpmath.mpf(radius) / mpmath.mpf(sigma))
    assert exact <= p <= 1.0
    assert p - exact < 1e-15


@given(st.fractions(-2, 2))
def test_floats_beside_a_fraction(value: Fraction) -> None:
    low, high = float_below(value), float_above(value)
    assert Fraction(low) <= value <= Fraction(high)
    assert high in (low, math.nextafter(low, math.inf))


@few
@given(draws(most=4.0), st.floats(0.05, 3), st.sampled_from([0.0, 1e-12, 1e-3]))
@example((999, 1000, 0.001), 0.25, 0.0)
@example((1000, 1000, 0.001), 1 / 3, 0.0)
def test_radii_are_outward_and_tight(case: tuple[int, int, float], sigma: float, failures: float) -> None:
    count, n, alpha = case
    made = radius_bound([count, n - count], 0, alpha, sigma, failure_mass=failures)
    p = exact_bound(count, n, alpha) - mpmath.mpf(failures) if count else mpmath.mpf(0)
    assert made.p_a_lower <= max(p, mpmath.mpf(0)) <= 1 - mpmath.mpf(made.p_b_upper) + 1e-13
    exact = mpmath.mpf(sigma) * mpmath.sqrt(2) * mpmath.erfinv(2 * p - 1) if p > 0.5 else mpmath.mpf(0)
    assert made.radius <= exact
    if made.radius:
        quantile = normal_quantile_below(Fraction(made.p_a_lower))
        assert Fraction(made.radius) <= Fraction(sigma) * Fraction(quantile)
    # The float p_A has a unit roundoff of its own, which counts near 1.
    density = mpmath.npdf(exact / sigma) if p > 0.5 else 1
    assert exact - made.radius <= sigma * (1e-13 / density + 1e-14)


@few
@given(draws(most=3.5), st.floats(0.05, 3), st.integers(1, 9), st.sampled_from([0.0, 1e-6]))
@example((450, 1000, 0.01), 0.5, 2, 0.0)
@example((500, 1000, 0.5), 0.5, 4, 0.0)
def test_two_sided_radii_are_outward_and_tight(
    case: tuple[int, int, float], sigma: float, others: int, failures: float
) -> None:
    count, n, alpha = case
    rest = [(n - count) // others] * others
    rest[0] += n - count - sum(rest)
    made = radius_bound([count, *rest], 0, alpha, sigma, "two-sided", failure_mass=failures)
    p_a = (exact_bound(count, n, alpha / 2) if count else mpmath.mpf(0)) - mpmath.mpf(failures)
    share = mpmath.mpf(alpha) / (2 * others)
    low = exact_bound(n - max(rest), n, float(share)) if max(rest) < n else mpmath.mpf(0)
    p_b = min(1 - p_a, 1 - low + mpmath.mpf(failures))
    exact = mpmath.mpf(0)
    if 0 < p_b < p_a:
        quantiles = [mpmath.sqrt(2) * mpmath.erfinv(2 * p - 1) for p in (p_a, p_b)]
        exact = mpmath.mpf(sigma) / 2 * (quantiles[0] - quantiles[1])
    assert made.radius <= exact + mpmath.mpf("1e-17")
    assert exact - made.radius <= 1e-10 * sigma


def test_failures_lower_the_radius() -> None:
    counts = [990, 10]
    plain, lower = (radius_bound(counts, 0, 0.001, 0.5, failure_mass=mass) for mass in (0.0, 0.01))
    assert lower.p_a_lower == pytest.approx(plain.p_a_lower - 0.01, abs=1e-15)
    assert 0 < lower.radius < plain.radius
    assert tuple(radius_bound(counts, 0, 0.001, 0.5, failure_mass=0.6)) == pytest.approx(
        (plain.p_a_lower - 0.6, 1.6 - plain.p_a_lower, 0.0)
    )
    with pytest.raises(ValueError, match=r"failure_mass: expected a finite number ≥ 0, got -1e-09"):
        radius_bound(counts, 0, 0.001, 0.5, failure_mass=-1e-9)


def test_equally_likely_labels_are_told_apart_at_alpha_at_most() -> None:
    # 2·P[X ≥ 5] of five draws is 1/16 exactly, which a proof with floats does not reach, but the next does.
    assert prediction([5, 0], 0.0625) is None
    assert prediction([5, 0], 0.0626) == 0
