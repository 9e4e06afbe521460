"""Certified accuracy of all images of a run from those that it has taken in random order so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from diffproof.intervals import Share
from diffproof.runs.certify.store import ImageResult
from diffproof.runs.settings import CertifySettings
from diffproof.smoothing.stopping import Stopping
from diffproof.wording import counted, unfinished

# Keeps the order from what else the seed chooses, such as --limit.
_ORDER = 1


def order(indices: Sequence[int], settings: CertifySettings) -> list[int]:
    """The order in which a run takes its images: at random by the seed where it ends at a half-width."""
    if settings.until_half_width is None:
        return list(indices)
    source = np.random.default_rng([settings.seed, _ORDER])
    return [int(index) for index in source.permutation(np.array(sorted(indices)))]


def accuracies(
    results: Mapping[int, ImageResult], indices: Sequence[int], settings: CertifySettings
) -> dict[float, Share]:
    """Certified accuracy of all of a run's images by radius, with 95% intervals that hold at any time.

    An image that failed, and so is not among the results though the order has gone beyond it, may be
    certified or not: it counts as not for the lower ends and as certified for the upper ones.

    Args:
        results: of finished images by index.
        indices: of all images of the run.
        settings: the run's; without a half-width there is no such accuracy.
    """
    if settings.until_half_width is None:
        return {}
    taken = [results.get(index) for index in order(indices, settings)]
    while taken and taken[-1] is None:
        del taken[-1]

    def hits(radius: float) -> list[bool | None]:
        return [None if one is None else one.certified_at(radius) for one in taken]

    radii = settings.accuracy_radii if taken else ()
    return {radius: Share.of_sequence(hits(radius), len(indices)) for radius in radii}


def known(shares: Iterable[Share], settings: CertifySettings) -> bool:
    """Whether a run's accuracies are known to the half-width that it was to reach."""
    widths = [(share.high - share.low) / 2 for share in shares]
    return settings.until_half_width is not None and bool(widths) and max(widths) <= settings.until_half_width


def untaken(
    shares: Mapping[float, Share], finished: int, images: int, settings: CertifySettings
) -> list[str]:
    """The remark on a run that has not taken all its images: how many, and whether it ended with them."""
    if finished >= images:
        return []
    if known(shares.values(), settings):
        width = f"{settings.until_half_width:g}"
        return [f"{finished:,} of {counted(images, 'image')}, enough for a half-width of {width}"]
    by_ease = settings.stop != Stopping.FIXED and settings.until_half_width is None
    sooner = "; those decided soon finish first, so that accuracy among them is not that of all" * by_ease
    return [remark + sooner for remark in unfinished(finished, images)]


def told(shares: Mapping[float, Share], images: int) -> str:
    """The intervals in words."""
    parts = (f"{share.low:.1%} to {share.high:.1%} at ε={radius:g}" for radius, share in shares.items())
    of = f"{'all ' * (images > 1)}{counted(images, 'image')}"
    return f"certified accuracy of {of} is {', '.join(parts)} (95% each, at any time)"
