"""Binomial bounds and radii against scipy, statsmodels, the binomial tail and Cohen et al.'s Theorem 1."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import beta, binom, binomtest, norm

from diffproof.smoothing.bounds import (
    Bound,
    as_bound,
    fewest_hits,
    largest_radius,
    lower_bound,
    pixeldp_radius,
    prediction,
    radius_bound,
    upper_bound,
)

ALPHAS = [0.5, 0.05, 0.001, 1e-6, 1e-12, 1e-20]
SIZES = [1, 2, 7, 100, 1_000, 100_000]


def some_counts(n: int) -> list[int]:
    return sorted({0, 1, n // 3, n // 2, n - n // 10, n - 1, n})


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("n", SIZES)
def test_lower_bound_is_the_beta_quantile_and_inverts_the_tail(n: int, alpha: float) -> None:
    for count in some_counts(n):
        bound = lower_bound(count, n, alpha)
        if count == 0:
            assert bound == 0.0
            continue
        assert bound == pytest.approx(beta.ppf(alpha, count, n - count + 1), rel=1e-10)
        # Its definition: the proportion at which `count` or more successes have probability alpha.
        assert binom.sf(count - 1, n, bound) == pytest.approx(alpha, rel=1e-7)


@pytest.mark.parametrize("alpha", [0.5, 0.05, 0.001, 1e-6])
@pytest.mark.parametrize("n", SIZES)
def test_bounds_against_statsmodels(n: int, alpha: float) -> None:
    from statsmodels.stats.proportion import proportion_confint

    for count in some_counts(n):
        # Each end of a two-sided interval at 2·alpha is a one-sided bound at alpha.
        low, high = proportion_confint(count, n, alpha=2 * alpha, method="beta")
        assert lower_bound(count, n, alpha) == pytest.approx(low, rel=1e-8, abs=1e-14)
        assert upper_bound(count, n, alpha) == pytest.approx(high, rel=1e-8, abs=1e-14)


@pytest.mark.parametrize("alpha", [0.05, 0.001])
@pytest.mark.parametrize("n", [2, 20, pytest.param(300, marks=pytest.mark.slow)])
def test_bounds_are_monotone(n: int, alpha: float) -> None:
    bounds = [lower_bound(count, n, alpha) for count in range(n + 1)]
    assert all(a < b for a, b in itertools.pairwise(bounds))
    assert all(bound < count / n for count, bound in enumerate(bounds) if count)
    for count in range(1, n + 1):
        assert lower_bound(count, n, alpha / 2) < bounds[count] < lower_bound(count, n, alpha * 2)
        # One more draw that fails lowers the bound, the same share of more draws raises it.
        assert lower_bound(count, n + 1, alpha) < bounds[count] < lower_bound(2 * count, 2 * n, alpha)


@pytest.mark.parametrize(("n", "alpha"), [(1, 0.05), (100, 0.001), (10_000, 0.001), (100_000, 1e-9)])
def test_unanimous_draws(n: int, alpha: float) -> None:
    assert lower_bound(n, n, alpha) == pytest.approx(alpha ** (1 / n), rel=1e-13)
    for sigma in (0.25, 1.0):
        radius = max(0.0, sigma * norm.ppf(alpha ** (1 / n)))
        proved = radius_bound([0, n, 0], 1, alpha, sigma)
        assert proved.radius == pytest.approx(radius, rel=1e-9)
        assert largest_radius(n, alpha, sigma) == pytest.approx(radius, rel=1e-9)


@pytest.mark.parametrize(("n", "alpha"), [(1, 0.3), (7, 0.05), (40, 0.5), (1_000, 0.0005), (3_000, 1e-12)])
def test_the_fewest_hits_that_prove_a_probability(n: int, alpha: float) -> None:
    for p0 in (1e-9, 0.1, 0.5, 0.9, 0.9987, 1 - 1e-12):
        # P(hits or more) ≤ alpha, by scipy; p0 at no such sum.
        tails = binom.sf(np.arange(n + 1) - 1, n, p0)
        expected = int(np.argmax(tails <= alpha)) if tails[-1] <= alpha else n + 1
        assert fewest_hits(n, p0, alpha) == expected


def test_largest_radius_is_the_largest() -> None:
    # The bound of the paper's setting: n = 100,000 and alpha = 0.001 reach 3.81 sigma (Cohen et al., 3.2.2).
    assert largest_radius(100_000, 0.001, 1.0) == pytest.approx(3.81, abs=0.01)
    n, alpha, sigma = 60, 0.01, 0.5
    radii = [radius_bound([count, n - count], 0, alpha, sigma).radius for count in range(n + 1)]
    assert max(radii) == radii[-1] == pytest.approx(largest_radius(n, alpha, sigma))
    # Six draws cannot prove anything at alpha = 0.001, ten can: (1/2)^10 < 0.001.
    assert largest_radius(6, 0.001, 1.0) == 0.0
    assert largest_radius(10, 0.001, 1.0) > 0.0
    # Two-sided, p_A has only half of alpha.
    assert largest_radius(10, 0.001, 1.0, "two-sided") == 0.0
    both = radius_bound([1000, 0, 0], 0, 0.001, 1.0, "two-sided").radius
    assert largest_radius(1000, 0.001, 1.0, "two-sided", 3) == both < largest_radius(1000, 0.001, 1.0)


@pytest.mark.parametrize("alpha", [0.2, 0.05, 0.001])
@pytest.mark.parametrize("n", [1, 5, 40, 250])
def test_coverage_is_exact(n: int, alpha: float) -> None:
    bounds = np.array([lower_bound(count, n, alpha) for count in range(n + 1)])
    # Coverage falls to its minimum just below each bound, so the grid has those points besides even ones.
    grid = np.concatenate([np.linspace(0.0, 1.0, 501), bounds[1:] * (1 - 1e-9), bounds[1:] * (1 + 1e-9)])
    inside = bounds[None, :] <= grid[:, None]
    coverage = (binom.pmf(np.arange(n + 1), n, grid[:, None]) * inside).sum(1)
    assert coverage.min() >= 1 - alpha - 1e-12
    # And it is no smaller than needed: just below a bound nothing is given away.
    just_below = coverage[501 : 501 + n]
    assert just_below == pytest.approx(1 - alpha, abs=1e-6)


@pytest.mark.parametrize("sigma", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("counts", [[990, 7, 3], [600, 390, 10], [511, 489, 0], [999, 0, 1], [700, 300, 0]])
def test_one_sided_radius(counts: list[int], sigma: float) -> None:
    alpha, n = 0.001, sum(counts)
    p_a = beta.ppf(alpha, counts[0], n - counts[0] + 1)
    proved = radius_bound(counts, 0, alpha, sigma)
    assert proved.p_a_lower == pytest.approx(p_a, rel=1e-10)
    assert proved.p_b_upper == pytest.approx(1 - p_a, rel=1e-10)
    assert proved.radius == pytest.approx(sigma * norm.ppf(p_a) if p_a > 0.5 else 0.0, rel=1e-9)


@pytest.mark.parametrize(
    "counts", [[990, 7, 3], [600, 390, 10], [450, 275, 275], [340, 330, 330], [998, 0, 2]]
)
@pytest.mark.parametrize("label", [0, 1])
def test_two_sided_radius_is_theorem_1(counts: list[int], label: int) -> None:
    from statsmodels.stats.proportion import proportion_confint

    alpha, sigma, n = 0.01, 0.5, sum(counts)
    others = [count for i, count in enumerate(counts) if i != label]
    p_a, _ = proportion_confint(counts[label], n, alpha=2 * (alpha / 2), method="beta")
    highs = [proportion_confint(c, n, alpha=2 * alpha / 2 / len(others), method="beta")[1] for c in others]
    p_b = min(max(highs), 1 - p_a)
    radius = max(0.0, sigma / 2 * (norm.ppf(p_a) - norm.ppf(p_b)))
    proved = radius_bound(counts, label, alpha, sigma, "two-sided")
    assert proved == pytest.approx((p_a, p_b, radius), rel=1e-8)


def pixeldp(p_a: float, p_b: float, sigma: float) -> float:
    """Lécuyer et al.'s radius by a search over both of ε and δ."""
    epsilon, delta = np.geomspace(1e-3, 1.0, 600)[:, None], np.geomspace(1e-9, 0.3, 600)
    proved = p_a >= np.exp(2 * epsilon) * p_b + (1 + np.exp(epsilon)) * delta
    return float(np.max(sigma * epsilon / np.sqrt(2 * np.log(1.25 / delta)), where=proved, initial=0.0))


@pytest.mark.parametrize(("p_a", "p_b"), [(0.999, 0.0), (0.99, 0.01), (0.9, 0.05), (0.6, 0.3), (0.51, 0.49)])
def test_pixeldp_radius_is_the_best_of_a_search(p_a: float, p_b: float) -> None:
    found, wanted = pixeldp_radius(p_a, p_b, 0.5), pixeldp(p_a, p_b, 0.5)
    # The grid of the search is coarse, so that it finds a little less.
    assert wanted <= found <= 1.05 * wanted + 1e-6
    # Privacy proves less than Cohen et al.'s theorem, which is tight.
    assert 0 < found < 0.25 * (norm.ppf(p_a) - norm.ppf(p_b) if p_b else 2 * norm.ppf(p_a))


def test_pixeldp_takes_the_two_sided_bounds() -> None:
    both, private = (radius_bound([900, 90, 10], 0, 0.01, 0.5, bound) for bound in ("two-sided", "pixeldp"))
    assert private[:2] == both[:2]
    assert private.radius == pixeldp_radius(both.p_a_lower, both.p_b_upper, 0.5) < both.radius
    assert radius_bound([500, 490, 10], 0, 0.01, 0.5, "pixeldp").radius == 0.0
    assert pixeldp_radius(0.4, 0.5, 0.5) == pixeldp_radius(0.0, 0.0, 0.5) == 0.0


def test_pixeldp_is_private_by_the_exact_profile_of_the_gaussian_mechanism() -> None:
    # Balle & Wang 2018, theorem 5: the least δ of a change of norm r under noise of sigma, at an ε.
    for p_a, p_b in ((0.99, 0.001), (0.9, 0.02), (0.7, 0.2)):
        radius = pixeldp_radius(p_a, p_b, 1.0)
        epsilons = np.geomspace(1e-4, 1.0, 2000)
        first = norm.cdf(radius / 2 - epsilons / radius)
        least = first - np.exp(epsilons) * norm.cdf(-radius / 2 - epsilons / radius)
        assert bool((p_a > np.exp(2 * epsilons) * p_b + (1 + np.exp(epsilons)) * least).any())
        # Of a radius ten times as large it would not hold.
        first = norm.cdf(5 * radius - epsilons / radius / 10)
        least = first - np.exp(epsilons) * norm.cdf(-5 * radius - epsilons / radius / 10)
        assert not bool((p_a > np.exp(2 * epsilons) * p_b + (1 + np.exp(epsilons)) * least).any())


def test_two_sided_can_certify_where_one_sided_abstains() -> None:
    counts = [450, 275, 275]
    assert radius_bound(counts, 0, 0.01, 0.5).radius == 0.0
    assert radius_bound(counts, 0, 0.01, 0.5, Bound.TWO_SIDED).radius > 0.0


@pytest.mark.parametrize("n", [30])
def test_two_sided_failure_probability_is_at_most_alpha(n: int) -> None:
    # Three classes, exact: the sum of the multinomial pmf over all outcomes whose radius is too large.
    alpha, sigma = 0.1, 1.0
    outcomes = [(a, b, n - a - b) for a in range(n + 1) for b in range(n + 1 - a)]
    radii = [radius_bound(counts, 0, alpha, sigma, "two-sided").radius for counts in outcomes]
    for shares in ([0.5, 0.25, 0.25], [0.8, 0.19, 0.01], [0.4, 0.3, 0.3], [0.34, 0.33, 0.33]):
        exact = sigma / 2 * (norm.ppf(shares[0]) - norm.ppf(max(shares[1:])))
        failure = 0.0
        for counts, radius in zip(outcomes, radii, strict=True):
            if radius > exact:
                ways = math.factorial(n) / math.prod(math.factorial(count) for count in counts)
                failure += ways * math.prod(p**c for p, c in zip(shares, counts, strict=True))
        assert 0.0 < failure <= alpha


@pytest.mark.parametrize("alpha", [0.001, 0.05])
@pytest.mark.parametrize("n", [1, 10, 11, 50])
def test_prediction_is_the_two_sided_binomial_test(n: int, alpha: float) -> None:
    for count in range(n + 1):
        leader = 0 if count >= n - count else 2
        expected = leader if binomtest(max(count, n - count), n, 0.5).pvalue <= alpha else None
        # A third class with fewer votes changes nothing.
        assert prediction([count, 0, n - count], alpha) == expected
    assert prediction([n, n, 0], alpha) is None


def test_prediction_is_wrong_with_probability_at_most_alpha() -> None:
    # With the two top classes equally likely, either is wrong half of the time it is returned (Prop. 2).
    n, alpha = 200, 0.05
    returned = sum(
        binom.pmf(count, n, 0.5)
        for count in range(n + 1)
        if prediction([count, n - count], alpha) is not None
    )
    assert 0.02 < returned <= alpha


def test_prediction_ignores_the_order_of_other_classes() -> None:
    assert prediction([1, 2, 90, 3], 0.001) == 2
    assert prediction([90, 3, 2, 1], 0.001) == 0


@pytest.mark.parametrize(
    ("count", "n", "alpha", "message"),
    [
        (1, 0, 0.1, r"n: expected an integer ≥ 1, got 0"),
        (-1, 5, 0.1, r"count: expected 0 ≤ count ≤ n = 5, got -1"),
        (6, 5, 0.1, r"count: expected 0 ≤ count ≤ n = 5, got 6"),
        (1, 5, 0.0, r"alpha: expected a number in \(0, 1\), got 0.0"),
        (1, 5, 1.0, r"alpha: expected a number in \(0, 1\), got 1.0"),
        (1, 5, math.nan, r"alpha: expected a number in \(0, 1\), got nan"),
    ],
)
def test_bounds_refuse(count: int, n: int, alpha: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lower_bound(count, n, alpha)
    with pytest.raises(ValueError, match="expected"):
        upper_bound(count, n, alpha)


@pytest.mark.parametrize(
    ("counts", "label", "alpha", "sigma", "bound", "message"),
    [
        ([3, 4], 2, 0.1, 0.5, "one-sided", r"label: expected 0 ≤ label < 2, got 2"),
        ([3, 4], -1, 0.1, 0.5, "one-sided", r"label: expected 0 ≤ label < 2, got -1"),
        ([3, 4], 0, 0.1, 0.0, "one-sided", r"sigma: expected a finite number > 0, got 0.0"),
        ([3, 4], 0, 0.1, math.inf, "one-sided", r"sigma: expected a finite number > 0, got inf"),
        ([3, 4], 0, 2.0, 0.5, "two-sided", r"alpha: expected a number in \(0, 1\), got 2.0"),
        ([3, 4], 0, 1.5, 0.5, "two-sided", r"alpha: expected a number in \(0, 1\), got 1.5"),
        ([0, 0], 0, 0.1, 0.5, "one-sided", r"n: expected an integer ≥ 1, got 0"),
        ([3, 4], 0, 0.1, 0.5, "both", r"bound: expected one of one-sided, two-sided, pixeldp, got 'both'"),
    ],
)
def test_radius_refuses(
    counts: list[int], label: int, alpha: float, sigma: float, bound: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        radius_bound(counts, label, alpha, sigma, bound)


def test_other_refusals() -> None:
    with pytest.raises(ValueError, match=r"bound: expected one of one-sided, two-sided, pixeldp, got 'x'"):
        as_bound("x")
    with pytest.raises(ValueError, match=r"sigma: expected a finite number > 0, got -1"):
        largest_radius(10, 0.1, -1)
    with pytest.raises(ValueError, match=r"alpha: expected a number in \(0, 1\), got 1.5"):
        prediction([3, 4], 1.5)
    with pytest.raises(ValueError, match=r"counts: expected at least one draw, got none"):
        prediction([0, 0], 0.1)
