"""The e-process against integration with many digits, its false alarms, what it costs, and predictions."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from scipy.stats import betabinom, norm

from diffproof.smoothing.eprocess import (
    chance_of_reaching,
    critical_counts,
    log_e,
    lower_limit,
    margin,
)

P0S = [0.5, norm.cdf(1.0), norm.cdf(2.0), norm.cdf(3.0), 1 - 1e-6]


def exact_log_e(hits: int, draws: int, p0: float) -> float:
    """By integration over the angle θ with p = cos²θ, in which the Jeffreys prior is flat; 30 digits."""
    with mpmath.workdps(30):
        p, misses = mpmath.mpf(p0), draws - hits
        widest = mpmath.asin(mpmath.sqrt(1 - p))
        peak = min(mpmath.asin(mpmath.sqrt(mpmath.mpf(misses) / draws)), widest)
        # The likelihood ratio is a bump of width 1 / (2 √draws) around its peak.
        cuts = [peak + k / (2 * mpmath.sqrt(draws)) for k in range(-12, 13, 3)]

        def ratio(angle: mpmath.mpf) -> mpmath.mpf:
            log = hits * mpmath.log(mpmath.cos(angle) ** 2 / p)
            return mpmath.exp(log + misses * mpmath.log(mpmath.sin(angle) ** 2 / (1 - p)) if misses else log)

        inside = [cut for cut in cuts if 0 < cut < widest]
        mixture = mpmath.quad(ratio, [mpmath.mpf(0), *inside, widest]) / widest
        return float(mpmath.log((mixture + (0 if misses else p**-draws)) / 2))


def cases(number: int, most: float) -> list[tuple[int, int, float]]:
    """(hits, draws, p0) up to 10^most draws, around p0 and some standard deviations above."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(number):
        draws, p0 = int(10 ** rng.uniform(0.5, most)), float(rng.choice(P0S))
        above = rng.uniform(-0.5, 6) * math.sqrt(draws * p0 * (1 - p0))
        made.append((min(draws, round(draws * p0 + above)), draws, p0))
    return [*made, (5, 5, 0.5), (318, 318, P0S[2])]


@pytest.mark.slow
def test_log_e_is_the_integral_within_its_margin() -> None:
    for hits, draws, p0 in cases(20, 7.0):
        off = abs(float(log_e(hits, draws, p0)) - exact_log_e(hits, draws, p0))
        assert off < float(margin(draws)) / 5, (hits, draws, p0)


@pytest.mark.slow
def test_critical_counts_are_the_first_to_pass_exactly() -> None:
    for _, draws, p0 in cases(8, 5.0):
        for alpha in (0.05, 0.001):
            count = int(critical_counts(draws, p0, alpha))
            if count <= draws:
                assert exact_log_e(count, draws, p0) >= -math.log(alpha)
            if count > 0:
                assert exact_log_e(count - 1, draws, p0) < -math.log(alpha) + 1e-5


def test_e_is_a_martingale_at_p0_and_less_below() -> None:
    # One more draw: the expectation of the next value is this one, at p0.
    for draws in (1, 7, 60):
        hits = np.arange(draws + 1)
        for p0 in P0S[:4]:
            now, hit, miss = (
                np.exp(log_e(k, n, p0)) for k, n in ((hits, draws), (hits + 1, draws + 1), (hits, draws + 1))
            )
            assert p0 * hit + (1 - p0) * miss == pytest.approx(now, rel=1e-9)
            p = 0.9 * p0
            assert np.all(p * hit + (1 - p) * miss < now)


def boundary(p0: float, alpha: float, draws: int) -> list[int]:
    """For 0, 1, … misses the first number of draws at which no more prove p > p0; all looked at."""
    number = np.arange(1, draws + 1)
    allowed = number - critical_counts(number, p0, alpha)
    return [int(np.argmax(allowed >= misses)) + 1 for misses in range(int(allowed.max()) + 1)]


def times_of_passing(p: float, first: list[int], images: int, seed: int) -> np.ndarray:
    """When each of some images passes, looked at after every draw; 0 where it does not.

    Between two places of the boundary a miss more than allowed is not made good, so that looking at these is
    looking at every draw.
    """
    rng = np.random.default_rng(seed)
    misses, passed, before = np.zeros(images, np.int64), np.zeros(images, np.int64), 0
    for allowed, draws in enumerate(first):
        misses += rng.binomial(draws - before, 1 - p, images)
        passed[(passed == 0) & (misses <= allowed)] = draws
        before = draws
    return passed


@pytest.mark.slow
@pytest.mark.parametrize(("p0", "alpha", "draws"), [(P0S[1], 0.001, 4_000), (P0S[2], 0.001, 20_000)])
def test_false_certificates_of_100_000_images_at_the_worst_p(p0: float, alpha: float, draws: int) -> None:
    images = 100_000
    false = np.count_nonzero(times_of_passing(p0, boundary(p0, alpha, draws), images, seed=1))
    # At most 100 on average: 140 has a chance of 1e-4. Fewer than 50 would give away half of alpha.
    assert 50 < false < 140


@pytest.mark.slow
def test_false_certificates_at_a_large_alpha() -> None:
    false = np.count_nonzero(times_of_passing(P0S[1], boundary(P0S[1], 0.05, 3_000), 100_000, seed=2))
    # 5,000 at most on average, with a standard deviation of 69.
    assert 3_000 < false < 5_250


@pytest.mark.slow
@pytest.mark.parametrize(
    ("p0", "p", "mean"),
    [
        (P0S[1], 0.9, 629),
        (P0S[1], 0.95, 144),
        (P0S[1], 0.99, 57),
        (P0S[2], 0.99, 1879),
        (P0S[2], 0.995, 748),
        (P0S[2], 0.999, 375),
    ],
)
def test_mean_draws_are_those_of_a_simulation_done_before(p0: float, p: float, mean: int) -> None:
    passed = times_of_passing(p, boundary(p0, 0.001, 20 * mean), 2_000, seed=3)
    assert np.count_nonzero(passed) > 1_990
    # Of 150 to 300 runs: a standard error of some 6%.
    assert passed[passed > 0].mean() == pytest.approx(mean, rel=0.18)


@pytest.mark.parametrize(("p0", "draws"), [(P0S[1], 43), (P0S[2], 318), (P0S[3], 5418)])
def test_unanimous_draws_prove_as_soon_as_they_should(p0: float, draws: int) -> None:
    assert critical_counts([draws - 1, draws], p0, 0.001).tolist() == [draws, draws]


@pytest.mark.slow
def test_lower_limit_is_where_the_critical_count_is_reached() -> None:
    rng = np.random.default_rng(4)
    for alpha in (0.5, 0.05, 0.001):
        for _ in range(6):
            draws = int(10 ** rng.uniform(0.5, 5))
            hits = draws - int(draws * rng.uniform(0, 0.45) ** 2)
            limit = lower_limit(hits, draws, alpha)
            if not limit:
                assert hits < critical_counts(draws, 0.5, alpha)
                continue
            # It passes against everything from ½ up to the limit, and against nothing above.
            below, above = np.linspace(0.5, limit, 30), np.linspace(limit + 1e-9, 1 - 1e-12, 30)
            assert all(critical_counts(draws, p0, alpha) <= hits for p0 in below)
            assert not any(critical_counts(draws, p0, alpha) <= hits for p0 in above)
    assert lower_limit(0, 5, 0.05) == lower_limit(6, 6, 0.001) == 0.0


def test_predictions_are_beta_binomial() -> None:
    rng = np.random.default_rng(5)
    for _ in range(60):
        total = int(10 ** rng.uniform(1, 5))
        draws = int(rng.integers(1, total))
        hits = int(draws * rng.random())
        count = hits + int((total - draws) * rng.beta(hits + 0.5, draws - hits + 0.5))
        exact = betabinom.sf(count - hits - 1, total - draws, hits + 0.5, draws - hits + 0.5)
        assert chance_of_reaching(count, total, hits, draws) == pytest.approx(exact, abs=2e-4)
    assert chance_of_reaching(9, 10, 2, 4) == 0.0
    assert chance_of_reaching(3, 10, 3, 4) == 1.0
