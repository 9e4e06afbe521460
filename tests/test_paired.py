"""Differences of paired shares against published examples, statsmodels, scipy and exact enumeration."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import chi2, multinomial

from diffproof.paired import PairedDifference, holm


def table(both: int, gained: int, lost: int, neither: int, confidence: float = 0.95) -> PairedDifference:
    """The difference of so many images of each kind."""
    first = [True] * (both + gained) + [False] * (lost + neither)
    second = [True] * both + [False] * gained + [True] * lost + [False] * neither
    return PairedDifference.of(first, second, confidence)


def test_a_published_example() -> None:
    # Airway hyper-responsiveness (Bentur et al. 2009), in Fagerland, Lydersen & Laake 2014, Statistics in
    # Medicine 33, table of intervals: Tango's is −0.517 to −0.026, the exact conditional p-value 0.070.
    found = table(1, 1, 7, 12)
    assert (found.gained, found.lost, found.images) == (1, 7, 21)
    assert found.value == pytest.approx(-6 / 21)
    assert (round(found.low, 3), round(found.high, 3)) == (-0.517, -0.026)
    assert round(found.p_value, 3) == 0.070


def deviance(difference: float, gained: int, lost: int, images: int) -> float:
    """The square of the score statistic, its nuisance parameter found by minimising the likelihood."""

    def cost(chance: float) -> float:
        parts = (gained, chance + difference), (lost, chance), (images - gained - lost, None)
        rest = 1 - 2 * chance - difference
        chances = [rest if one is None else one for _, one in parts]
        return -sum(
            count * math.log(max(one, 1e-300)) for (count, _), one in zip(parts, chances, strict=True)
        )

    low, high = max(0.0, -difference), (1 - difference) / 2
    best = minimize_scalar(cost, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    variance = (2 * best + difference - difference**2) / images
    return float(((gained - lost) / images - difference) ** 2 / variance)


@pytest.mark.parametrize("counts", [(36, 12, 2, 0), (60, 40, 20, 40), (5, 3, 1, 9), (0, 1, 3, 2)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
def test_the_ends_are_where_the_score_test_turns(
    counts: tuple[int, int, int, int], confidence: float
) -> None:
    found = table(*counts, confidence=confidence)
    for end in (found.low, found.high):
        value = deviance(end, found.gained, found.lost, found.images)
        assert value == pytest.approx(chi2.ppf(confidence, 1), rel=1e-4)


def test_ends_without_disagreement_and_beyond_it() -> None:
    quantile = chi2.ppf(0.95, 1)
    for both in (0, 10):
        found = table(both, 0, 0, 10 - both)
        assert (found.value, found.p_value) == (0.0, 1.0)
        # Where no image tells them apart, n·δ² = quantile·δ·(1 − δ).
        assert (-found.low, found.high) == pytest.approx((quantile / (10 + quantile),) * 2)
    assert table(0, 10, 0, 0).high == table(0, 10, 0, 0).value == 1.0
    # Exchanging the two turns the sign of everything but the test.
    one, other = table(3, 8, 1, 4), table(3, 1, 8, 4)
    assert (one.value, one.low, one.high) == (-other.value, -other.high, -other.low)
    assert one.p_value == other.p_value


@pytest.mark.parametrize("counts", [(9, 0, 0, 1), (5, 1, 7, 2), (5, 6, 6, 2), (0, 9, 0, 3), (100, 90, 50, 7)])
def test_the_exact_test_against_statsmodels(counts: tuple[int, int, int, int]) -> None:
    from statsmodels.stats.contingency_tables import mcnemar

    both, gained, lost, neither = counts
    expected = mcnemar([[both, gained], [lost, neither]], exact=True).pvalue
    assert table(*counts).p_value == pytest.approx(expected, rel=1e-12)


def test_what_the_exact_test_tells_apart_the_interval_does_too() -> None:
    for discordant in range(6, 120):
        lost = next(one for one in range(discordant + 1) if table(0, discordant - one, one, 0).p_value > 0.05)
        if lost:
            assert table(400, discordant - lost + 1, lost - 1, 0).low > 0


@pytest.mark.parametrize(
    ("chances", "images"),
    [((0.7, 0.1, 0.1, 0.1), 20), ((0.5, 0.2, 0.05, 0.25), 30), ((0.9, 0.05, 0.02, 0.03), 40)],
)
def test_coverage_by_enumeration(chances: tuple[float, float, float, float], images: int) -> None:
    # No chance is involved: every table of so many images is weighed with its probability.
    gained, lost = np.mgrid[: images + 1, : images + 1].reshape(2, -1)
    possible = gained + lost <= images
    counts = np.stack([gained, lost, images - gained - lost], 1)[possible]
    weights = multinomial.pmf(counts, images, [chances[1], chances[2], chances[0] + chances[3]])
    truth = chances[1] - chances[2]
    covered = 0.0
    for (one, other, rest), weight in zip(counts.tolist(), weights, strict=True):
        if weight > 1e-7:
            found = table(rest, one, other, 0)
            covered += weight * (found.low <= truth <= found.high)
    assert 0.94 <= covered <= 0.99


@pytest.mark.slow
def test_holm_against_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests

    rng = np.random.default_rng(0)
    for number in (1, 2, 7):
        p_values = np.round(rng.uniform(size=number) ** 3, 2).tolist()
        assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())
    assert holm([]) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PairedDifference.of([], []), "images: expected"),
        (lambda: PairedDifference.of([True], [True, False]), "second: expected 1 outcomes"),
        (lambda: PairedDifference.of([True], [True], 1.0), "confidence: expected"),
        (lambda: holm([0.1, math.nan]), "p_values: expected chances"),
    ],
    ids=["none", "lengths", "confidence", "chances"],
)
def test_what_is_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
