"""Shares known at any time: their coverage, by enumeration and simulation, and what they say at the ends."""

from __future__ import annotations

import math
from itertools import pairwise, product

import numpy as np
import pytest
from scipy.stats import hypergeom

from diffproof.intervals import Share


def path_interval(outcomes: list[bool], population: int) -> tuple[float, float]:
    """Shares in the population that Waudby-Smith & Ramdas's martingale never excluded, by its definition.

    It is the prior over the posterior of the count, a Beta(½, ½)-binomial before.
    """
    kept = np.arange(population + 1)
    for seen in range(1, len(outcomes) + 1):
        hits = sum(outcomes[:seen])
        likelihood = hypergeom.pmf(hits, population, kept, seen)
        prior = np.array([_beta_binomial(int(count), population) for count in range(population + 1)])
        every = hypergeom.pmf(hits, population, np.arange(population + 1), seen)
        posterior = likelihood / (prior * every).sum()
        # Prior over posterior is the inverse of this factor.
        kept = kept[posterior > 0.05]
    return kept.min() / population, kept.max() / population


def _beta_binomial(count: int, number: int) -> float:
    logs = (
        math.lgamma(count + 0.5)
        + math.lgamma(number - count + 0.5)
        - math.log(math.pi)
        - math.lgamma(count + 1)
        - math.lgamma(number - count + 1)
    )
    return math.exp(logs)


@pytest.mark.parametrize("population", [1, 2, 5, 37])
def test_the_interval_is_what_the_martingale_never_excludes(population: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(8):
        ones = int(rng.integers(0, population + 1))
        outcomes = rng.permutation(np.arange(population) < ones).tolist()
        for seen in {1, (population + 1) // 2, population}:
            share = Share.of_sequence(outcomes[:seen], population)
            assert (share.low, share.high) == pytest.approx(path_interval(outcomes[:seen], population))
        assert share.value == pytest.approx(ones / population)
        if seen == population:
            assert share.low == pytest.approx(ones / population) == pytest.approx(share.high)


@pytest.mark.parametrize("seed", range(4))
def test_unknown_outcomes_may_be_any(seed: int) -> None:
    rng, population = np.random.default_rng(seed), 14
    outcomes: list[bool | None] = (rng.random(9) < 0.6).tolist()
    for place in rng.choice(9, 3, replace=False).tolist():
        outcomes[place] = None
    share = Share.of_sequence(outcomes, population)
    ends = []
    for given in product((False, True), repeat=3):
        fill = iter(given)
        ends.append(path_interval([next(fill) if one is None else one for one in outcomes], population))
    assert share.low == pytest.approx(min(low for low, _ in ends))
    assert share.high == pytest.approx(max(high for _, high in ends))
    known = [one for one in outcomes if one is not None]
    assert (share.value, share.images) == (sum(known) / 6, 6)


@pytest.mark.slow
@pytest.mark.parametrize(("population", "share"), [(120, 0.9), (120, 0.5), (None, 0.7), (None, 0.02)])
def test_the_share_is_in_all_intervals_of_a_sequence(population: int | None, share: float) -> None:
    # One interval narrowed by all before it, at the end, says whether the share was in every one of them. It
    # may miss 10% of 600: 60, with a standard deviation of 7.3.
    rng, missed = np.random.default_rng(1), 0
    for _ in range(600):
        if population is None:
            outcomes = rng.random(400) < share
        else:
            outcomes = rng.permutation(np.arange(population) < share * population)[:100]
        made = Share.of_sequence(outcomes.tolist(), population, confidence=0.9)
        missed += not made.low <= share <= made.high
    assert 3 < missed < 90


def test_intervals_narrow_with_images_and_towards_the_whole_population() -> None:
    outcomes = (np.random.default_rng(2).random(2_000) < 0.8).tolist()
    shares = [Share.of_sequence(outcomes[:seen]) for seen in (1, 10, 100, 1_000, 2_000)]
    assert all(a.low <= b.low < b.high <= a.high for a, b in pairwise(shares))
    fixed, finite = Share.of(0.8, 2_000), Share.of_sequence(outcomes, 2_500)
    # Looking at any time costs width; having seen most of all images gives it back.
    assert fixed.high - fixed.low < shares[-1].high - shares[-1].low
    assert finite.high - finite.low < fixed.high - fixed.low
    assert Share.of_sequence([True]).low == pytest.approx(0.05 * 0.5, rel=1e-6)
    assert Share.of_sequence([False] * 50).low == 0.0
    assert Share.of_sequence([True] * 50).high == 1.0


def test_an_improbable_order_leaves_the_last_interval() -> None:
    # No share is in all intervals of all hits first and all misses then.
    share = Share.of_sequence([True] * 300 + [False] * 3_000)
    assert share.low < 300 / 3_300 < share.high


def test_sequences_that_are_none() -> None:
    with pytest.raises(ValueError, match=r"outcomes: expected an integer ≥ 1, got 0"):
        Share.of_sequence([])
    with pytest.raises(ValueError, match=r"outcomes: expected an integer ≥ 1, got 0"):
        Share.of_sequence([None, None])
    with pytest.raises(ValueError, match=r"outcomes: expected at most 2, got 3"):
        Share.of_sequence([True] * 3, 2)
    with pytest.raises(ValueError, match=r"confidence: expected a number in \(0, 1\), got 95"):
        Share.of_sequence([True], confidence=95)
