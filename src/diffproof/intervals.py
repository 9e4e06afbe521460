"""Exact intervals of shares, at a fixed number of images or at any time, and the sign test."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaincinv, betaln, gammaln, xlog1py, xlogy

from diffproof.checks import check_at_least, check_probability
from diffproof.errors import ArgumentError


@dataclass(frozen=True)
class Share:
    """A share of images with its exact interval.

    Attributes:
        value: the share, in [0, 1].
        low: lower end of its Clopper–Pearson interval.
        high: upper end of it.
        images: how many it is a share of.
    """

    value: float
    low: float
    high: float
    images: int

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%})"

    @classmethod
    def of(cls, value: float, images: int, confidence: float = 0.95) -> Share:
        """The Clopper–Pearson interval of value·images hits among `images` (Clopper & Pearson 1934).

        A mean of shares within images has fractional hits; it varies less than that of so many hits or
        misses, so the interval errs on the wide side.

        Args:
            value: the share, in [0, 1].
            images: how many it is a share of, ≥ 1.
            confidence: the interval's, in (0, 1).

        Raises:
            ValueError: no images, or value or confidence out of range.
        """
        check_at_least("images", images, 1)
        check_probability("confidence", confidence)
        if not 0.0 <= value <= 1.0:
            raise ArgumentError("value", f"expected a share in [0, 1], got {value!r}")
        hits, tail = value * images, (1 - confidence) / 2
        low = float(betaincinv(hits, images - hits + 1, tail)) if hits > 0 else 0.0
        high = float(betaincinv(hits + 1, images - hits, 1 - tail)) if hits < images else 1.0
        return cls(value, low, high, images)

    @classmethod
    def of_sequence(
        cls, outcomes: Sequence[bool | None], population: int | None = None, confidence: float = 0.95
    ) -> Share:
        """The share among all images, from those seen in random order so far, valid however often one looks.

        The true share is in all intervals of growing sequences with this confidence. Each holds the shares
        whose likelihood is above 1 − confidence times that of a Beta(½, ½) mixture: the prior-posterior-ratio
        martingale, without replacement from a finite population (Waudby-Smith & Ramdas 2020, section 2),
        else with independent images. Intervals of earlier times narrow later ones.

        An image whose outcome is not known is a miss for the lower end and a hit for the upper one. Neither
        end falls with more hits, so the interval holds that of the true outcomes, whatever they are and why
        they are missing.

        Args:
            outcomes: whether each image hit, None where that is not known, in the order drawn; it is known of
                one at least.
            population: how many images there are in all, None where they are draws of a distribution.
            confidence: that of the sequence, in (0, 1).

        Returns:
            The share among the images of known outcome, with the interval of the share in the population.

        Raises:
            ValueError: no known outcome, more than the population has, or confidence out of range.
        """
        known = [outcome for outcome in outcomes if outcome is not None]
        images = check_at_least("outcomes", len(known), 1)
        check_at_least("outcomes", len(outcomes), 1, population)
        check_probability("confidence", confidence)
        low, high = _ends([bool(one) for one in outcomes], population, confidence)
        if images < len(outcomes):
            _, high = _ends([one is not False for one in outcomes], population, confidence)
        if low.max() > high.min():
            # Some have missed the share; the last is as good as any.
            low, high = low[-1:], high[-1:]
        return cls(sum(known) / images, float(low.max()), float(high.min()), images)


_Floats = NDArray[np.float64]
_Bools = NDArray[np.bool_]


def _ends(outcomes: Sequence[bool], population: int | None, confidence: float) -> tuple[_Floats, _Floats]:
    """Lower and upper ends after each image; see `Share.of_sequence`."""
    number = len(outcomes)
    hits = np.cumsum(np.asarray(outcomes, np.float64))
    misses = np.arange(1, number + 1) - hits
    needed = betaln(hits + 0.5, misses + 0.5) - math.log(math.pi) + math.log(1 - confidence) - 1e-7
    best = hits / (hits + misses)
    if population is None:
        whole, lowest, highest, step = 1, np.zeros(number), np.ones(number), 2.0**-40
    else:
        whole, lowest, highest, step = population, hits, population - misses, 1.0
        best = np.clip(np.floor((whole + 1) * best), lowest, highest)

    def inside(share: _Floats) -> _Bools:
        return np.asarray(_log_likelihood(share, hits, misses, population) > needed)

    low, high = (_edge(inside, outer, best, step) / whole for outer in (lowest, highest))
    return low, high


def _log_likelihood(share: _Floats, hits: _Floats, misses: _Floats, population: int | None) -> _Floats:
    """log of the chance of such a sequence, with a share of hits, or a number of them in the population."""
    if population is None:
        return np.asarray(xlogy(hits, share) + xlog1py(misses, -share))
    # Falling factorials: the hits and misses there are, over the images, in the order drawn.
    logs = (_log_falling(share, hits), _log_falling(population - share, misses))
    return logs[0] + logs[1] - _log_falling(population, hits + misses)


def _log_falling(number: _Floats | int, factors: _Floats) -> _Floats:
    """log of number·(number − 1)·…, with so many factors."""
    return np.asarray(gammaln(np.add(number, 1.0)) - gammaln(np.subtract(number, factors) + 1.0))


def _edge(inside: Callable[[_Floats], _Bools], outer: _Floats, inner: _Floats, step: float) -> _Floats:
    """Where sets that hold `inner` end towards `outer`: at `outer` where it is in, else up to a step outside.

    With a step of 1, of integers, it is the last one inside.
    """
    whole = inside(outer)
    end, last = outer, inner
    while np.any(np.abs(end - last) > step):
        middle = (end + last) / 2 if step < 1 else np.floor((end + last) / 2)
        is_in = inside(middle)
        end, last = np.where(is_in, end, middle), np.where(is_in, middle, last)
    return np.where(whole, outer, end if step < 1 else last)


def sign_test(more: int, fewer: int) -> float:
    """Chance that a fair coin falls on one side at least `more` of more + fewer times: a one-sided p-value.

    It is scipy.stats' binom.sf(more - 1, more + fewer, 0.5), without the second that scipy.stats takes to
    import.
    """
    return float(betainc(more, fewer + 1, 0.5)) if more else 1.0
