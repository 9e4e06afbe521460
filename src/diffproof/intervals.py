"""Exact intervals of shares, and the sign test."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.special import betainc, betaincinv

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


def sign_test(more: int, fewer: int) -> float:
    """Chance that a fair coin falls on one side at least `more` of more + fewer times: a one-sided p-value.

    It is scipy.stats' binom.sf(more - 1, more + fewer, 0.5), without the second that scipy.stats takes to
    import.
    """
    return float(betainc(more, fewer + 1, 0.5)) if more else 1.0
