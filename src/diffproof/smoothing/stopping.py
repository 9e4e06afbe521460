"""Which test ends the draws of an image, of those that can be asked for."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Any

from diffproof.checks import check_listed, check_member, check_number
from diffproof.errors import ArgumentError
from diffproof.smoothing.bounds import Bound, as_bound
from diffproof.smoothing.sequential import (
    EXACT_SHARE,
    FUTILITY,
    TOLERANCE,
    RadiusSequence,
    RadiusTest,
    SequentialTest,
)


class Stopping(StrEnum):
    """When the draws of an image end.

    FIXED: after n.
    SEQUENTIAL: when what is asked is proved or hopeless, after n at most.
    """

    FIXED = "fixed"
    SEQUENTIAL = "sequential"


def stopping_test(stop: Stopping | str, bound: Bound | str, **asked: Any) -> SequentialTest | None:
    """The test that ends the draws, None for a fixed number of them; see `sequential_test`.

    Raises:
        ValueError: what a sequential test refuses, a two-sided bound, or what a fixed number has no use for.
    """
    if check_member("stop", stop, Stopping) is Stopping.SEQUENTIAL:
        if (given := as_bound(bound)) is not Bound.ONE_SIDED:
            raise ArgumentError("bound", f"sequential certificates are {Bound.ONE_SIDED}, got {given}")
        return sequential_test(**asked)
    for name in ("radii", "tolerance", "futility", "exact_share"):
        if asked[name] is not None:
            raise ArgumentError(name, f"expected stop {Stopping.SEQUENTIAL} with it, got {stop}")
    return None


def sequential_test(
    *,
    radii: Sequence[float] | None,
    tolerance: float | None,
    futility: float | None,
    exact_share: float | None,
    sigma: float,
    alpha: float,
    n: int,
    failure_mass: float,
) -> SequentialTest:
    """The test of asked radii, or, with None, the sequence of radii to a tolerance; kept, for its tables.

    Tolerance, futility and exact_share are TOLERANCE, FUTILITY and EXACT_SHARE where they are None.

    Raises:
        ValueError: an argument is out of range, or a tolerance besides radii.
    """
    given: dict[str, Any] = {"sigma": sigma, "alpha": alpha, "n": n, "failure_mass": failure_mass}
    given["futility"] = FUTILITY if futility is None else futility
    given["exact_share"] = EXACT_SHARE if exact_share is None else exact_share
    if radii is None:
        growth = TOLERANCE if tolerance is None else tolerance
        return RadiusSequence(tolerance=growth, **given)
    if tolerance is not None:
        raise ArgumentError("tolerance", f"asked radii need none, got {tolerance}")
    # What the numbers must be is the test's to say.
    asked = tuple(
        check_number("radii", one, lambda number: True, "numbers") for one in check_listed("radii", radii)
    )
    return _radius_test(asked, **given)


# For its tables.
_radius_test = lru_cache(maxsize=64)(RadiusTest)
