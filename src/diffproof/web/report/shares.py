"""Certified accuracies with their intervals, and percentages as the pages write them."""

from __future__ import annotations

from diffproof.intervals import Share
from diffproof.runs.certify.report import Row


def certified_share(row: Row, radius: float) -> Share | None:
    """Certified accuracy at a radius with its 95% interval, Clopper–Pearson's; None where nothing is known.

    Of a run that ends at a half-width, the intervals are those that hold at any time, at its radii alone.
    """
    if row.settings.until_half_width is not None:
        return row.shares.get(radius)
    if radius > row.largest_radius:
        return None
    return row.certification.certified_accuracy(radius)


def percent(share: float) -> str:
    """A share of images as tables have it: 92.0%."""
    return f"{share:.1%}"


def interval(share: Share) -> str:
    """An interval in the place of a bracket: 80.8–97.8."""
    return f"{100 * share.low:.1f}–{100 * share.high:.1f}"


def interval_in_words(share: Share) -> str:
    """An interval in a sentence: 80.8% to 97.8%."""
    return f"{share.low:.1%} to {share.high:.1%}"
