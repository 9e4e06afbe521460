"""Two shares of the same images: their difference with its interval, the exact test, many tests at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from diffproof.checks import check_at_least, check_probability
from diffproof.errors import ArgumentError
from diffproof.intervals import sign_test


@dataclass(frozen=True)
class PairedDifference:
    """How much larger one share of hits is than another, of the same images.

    Attributes:
        value: the first share minus the second, in [−1, 1].
        low: lower end of its score interval.
        high: upper end of it.
        gained: images that only the first hit.
        lost: images that only the second hit.
        images: how many there are.
        p_value: two-sided, of the exact McNemar test that both shares are the same.
    """

    value: float
    low: float
    high: float
    gained: int
    lost: int
    images: int
    p_value: float

    @classmethod
    def of(cls, first: Sequence[bool], second: Sequence[bool], confidence: float = 0.95) -> PairedDifference:
        """Tango's score interval (1998, Statistics in Medicine 17, 891–908) and McNemar's exact test.

        The interval holds the differences that the score test does not reject, with the nuisance parameter at
        its restricted maximum likelihood; its coverage is approximate, near its confidence also for small
        numbers. The test is exact: under the hypothesis, of images that one alone hit, each falls to either
        like a fair coin.

        Args:
            first: whether one hit, of each image.
            second: whether the other did, of the same images in the same order.
            confidence: the interval's, in (0, 1).

        Raises:
            ValueError: no images, other numbers of them, or confidence out of range.
        """
        images = check_at_least("images", len(first), 1)
        check_probability("confidence", confidence)
        if len(second) != images:
            raise ArgumentError("second", f"expected {images} outcomes as of the first, got {len(second)}")
        hits = np.asarray(first, np.bool_), np.asarray(second, np.bool_)
        gained, lost = int((hits[0] & ~hits[1]).sum()), int((hits[1] & ~hits[0]).sum())
        quantile = float(ndtri((1 + confidence) / 2))
        return cls(
            (gained - lost) / images,
            -_score_limit(lost, gained, images, quantile),
            _score_limit(gained, lost, images, quantile),
            gained,
            lost,
            images,
            min(1.0, 2 * sign_test(max(gained, lost), min(gained, lost))),
        )


def _score_limit(gained: int, lost: int, images: int, quantile: float) -> float:
    """The largest difference that the score test does not reject, by bisection."""
    inside, outside = (gained - lost) / images, 1.0
    while outside - inside > 1e-12:
        middle = (inside + outside) / 2
        if _score(middle, gained, lost, images) > -quantile:
            inside = middle
        else:
            outside = middle
    return outside


def _score(difference: float, gained: int, lost: int, images: int) -> float:
    """Tango's statistic, approximately standard normal if that is the difference of the shares."""
    # The chance that the second alone hits, at which such counts are likeliest given the difference.
    slope = (2 * images - gained + lost) * difference - gained - lost
    root = math.sqrt(slope**2 + 8 * images * lost * difference * (1 - difference))
    only_second = (root - slope) / (4 * images)
    variance = images * (2 * only_second + difference * (1 - difference))
    return (gained - lost - images * difference) / math.sqrt(variance)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of many tests, corrected so that one wrong rejection among all has the chance of the level.

    Holm's step-down correction (1979) holds however the tests depend on each other.

    Args:
        p_values: of the tests, each in [0, 1].

    Returns:
        The corrected ones in the same order: reject what is at most the level.

    Raises:
        ValueError: no chance.
    """
    if not all(0.0 <= p_value <= 1.0 for p_value in p_values):
        raise ArgumentError("p_values", f"expected chances in [0, 1], got {list(p_values)}")
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected, largest = [0.0] * len(order), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected
