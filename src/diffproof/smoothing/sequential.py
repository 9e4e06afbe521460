"""Certification that stops when it is proved or hopeless: asked radii, or the largest, at any stopping time.

Both look at the hits of the selected class at checkpoints that are fixed beforehand, and decide from these
alone: a decision does not depend on batches or interruptions, and can be made again from what was recorded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Any

from diffproof.checks import (
    check_at_least,
    check_listed,
    check_not_negative,
    check_number,
    check_positive,
    check_unit,
)
from diffproof.errors import ArgumentError
from diffproof.smoothing.bounds import RadiusBound, fewest_hits, lower_bound
from diffproof.smoothing.decisions import Decision, Proof, Stop, checkpoints
from diffproof.smoothing.eprocess import chance_of_reaching, critical_counts, lower_limit
from diffproof.smoothing.outward import float_above, float_below, normal_above, normal_quantile_below

# Before this share of the draws that prove a radius if all hit, it is not given up while it can be proved:
# one miss among few says little of an image that misses once in thousands. There it costs 5% more draws.
PATIENCE = 0.05
# The predictive probability below which draws end, and the growth of a radius that is worth more draws.
FUTILITY, TOLERANCE = 0.02, 0.01
# Of alpha, for the exact test of all n draws. An e-process needs hits there that some five standard errors
# part from p0, the exact test three: without it 1% of images lose a radius that fixed draws prove.
EXACT_SHARE = 0.5


def check_radii(radii: Sequence[float]) -> tuple[float, ...]:
    """Ascending radii ≥ 0, at least one, or ValueError."""
    checked = tuple(float(check_not_negative("radii", one)) for one in check_listed("radii", radii))
    if not checked or any(a >= b for a, b in pairwise(checked)):
        raise ArgumentError("radii", f"expected ascending numbers, got {list(checked)}")
    return checked


def _needed(radius: float, sigma: float, failure_mass: float) -> float:
    """The probability, rounded up, that draws must be proved to exceed for a radius; 1 or more for none."""
    return float_above(Fraction(normal_above(radius, sigma)) + Fraction(failure_mass))


def _radius(p_a: float, sigma: float, failure_mass: float) -> float:
    """The radius, rounded down, of draws whose probability is proved to exceed p_a."""
    quantile = normal_quantile_below(Fraction(p_a) - Fraction(failure_mass))
    return float_below(Fraction(sigma) * Fraction(quantile)) if quantile > 0 else 0.0


@lru_cache(maxsize=65_536)
def _fewest_hits(count: int, n: int, draws: int, futility: float) -> int:
    """The fewest hits after which `count` of n have a predictive probability above futility."""
    low, high = -1, draws + 1
    while high - low > 1:
        middle = (low + high) // 2
        hopeless = chance_of_reaching(count, n, middle, draws) <= futility
        low, high = (middle, high) if hopeless else (low, middle)
    return high


class _Sequential(ABC):
    """A test of the selected class's probability that looks at its hits at checkpoints.

    An e-process decides at all of them, and after all n draws Clopper and Pearson's exact test as well. Each
    has a share of alpha, so that both together are wrong with probability alpha at most.

    Args:
        sigma: noise level of the draws, > 0, in the radii's unit.
        alpha: probability, over the draws, that a proved radius is too large, in (0, ½].
        n: most draws, ≥ 1.
        futility: draws end where the predictive probability of what is lacking is at most this, in [0, 1].
        failure_mass: see `bounds.radius_bound`.
        exact_share: of alpha, what the exact test has, in [0, 1); 0 leaves it out.
    """

    checkpoints: tuple[int, ...]

    @property
    @abstractmethod
    def largest(self) -> float:
        """The largest radius that it can prove, 0 where it can prove none."""

    def __init__(
        self,
        sigma: float,
        alpha: float,
        n: int,
        futility: float,
        failure_mass: float,
        exact_share: float,
    ) -> None:
        self.sigma = check_positive("sigma", sigma)
        self.alpha = check_number("alpha", alpha, lambda value: 0.0 < value <= 0.5, "a number in (0, 0.5]")
        self.n = check_at_least("n", n, 1)
        self.futility = check_unit("futility", futility)
        self.failure_mass = check_not_negative("failure_mass", failure_mass)
        self.exact_share = check_number(
            "exact_share", exact_share, lambda value: 0.0 <= value < 1.0, "a number in [0, 1)"
        )
        self._exact = self.alpha * self.exact_share
        self._anytime = float_below(Fraction(self.alpha) - Fraction(self._exact))
        if self._anytime <= 0:
            raise ArgumentError("exact_share", f"leaves nothing of alpha {self.alpha:g}, got {exact_share}")

    def _limit(self, hits: int, draws: int) -> float:
        """What the probability is proved to exceed by hits at one look."""
        limit = lower_limit(hits, draws, self._anytime)
        return max(limit, lower_bound(hits, draws, self._exact)) if draws == self.n and self._exact else limit

    def _fewest_at_n(self, p0: float) -> int:
        """The fewest hits of all n draws that prove a probability above p0; n + 1 where none do."""
        fewest = int(critical_counts(self.n, p0, self._anytime))
        return min(fewest, fewest_hits(self.n, p0, self._exact)) if self._exact else fewest

    def _looks(self, hits: Sequence[int]) -> list[tuple[int, int]]:
        """(draws, hits) at each checkpoint so far."""
        if len(hits) > len(self.checkpoints):
            raise ArgumentError("hits", f"expected at most {len(self.checkpoints)} numbers, got {len(hits)}")
        looks = list(zip(self.checkpoints, hits, strict=False))
        for (before, old), (after, new) in pairwise([(0, 0), *looks]):
            if not 0 <= new - old <= after - before:
                raise ArgumentError("hits", f"expected {old} to {old + after - before} of {after}, got {new}")
        return looks

    @abstractmethod
    def decide(self, hits: Sequence[int]) -> Decision:
        """What hits at the first checkpoints prove, and whether to go on.

        Args:
            hits: draws that gave the selected class, among the first checkpoints[0], checkpoints[1], … draws.

        Raises:
            ValueError: numbers that no draws can give.
        """

    def enough(self, hits: Sequence[int]) -> bool:
        """Whether no more draws are needed."""
        return self.decide(hits).stop is not None

    def first_end(self, hits: Sequence[int]) -> int:
        """The next checkpoint after those of the hits: draws may end there."""
        return self.checkpoints[len(hits)]

    def proved(self, hits: Sequence[int]) -> tuple[RadiusBound, dict[str, Any]]:
        """What a certificate states of the hits: bounds and radius, and how they were asked for and decided.

        The bounds are 0 and 1 where nothing is proved. For the rest see `Certificate.sequential`.
        """
        decision = self.decide(hits)
        stated = {
            "radii": list(self.radii) if isinstance(self, RadiusTest) else None,
            "tolerance": self.tolerance if isinstance(self, RadiusSequence) else None,
            "futility": self.futility,
            "exact_share": self.exact_share,
            "n": self.n,
            "hits": list(hits),
            "stopped": None if decision.stop is None else decision.stop.value,
        }
        if not decision.proofs:
            return RadiusBound(0.0, 1.0, 0.0), stated
        best = decision.proofs[-1]
        p_a = float_below(Fraction(best.p_a_lower) - Fraction(self.failure_mass))
        return RadiusBound(p_a, float_above(1 - Fraction(p_a)), best.radius), stated


class RadiusTest(_Sequential):
    """Tests asked radii one after another, each with an e-process against p_A ≤ Φ(radius / sigma).

    After all n draws the exact test decides, too, with its share of alpha. A radius counts only if all
    smaller ones have passed. So a false one needs the smallest false one to pass, and each has the whole
    alpha (fixed-sequence rule). See `eprocess.log_e`.

    Args:
        radii: asked ℓ2 radii, ascending, ≥ 0; 0 asks for p_A > ½.
        sigma: noise level of the draws, > 0, in the radii's unit.
        alpha: probability, over the draws, that any proved radius is too large, in (0, ½].
        n: most draws, ≥ 1.
        futility: draws end where the predictive probability that the next radius is proved at n is at most
            this, in [0, 1], and PATIENCE is over; 0 ends them where it cannot be any more.
        failure_mass: see `bounds.radius_bound`.
        exact_share: of alpha, what the exact test of all n draws has, in [0, 1); 0 leaves it out.

    Attributes:
        checkpoints: numbers of draws at which it looks at the hits; fixed by the arguments.

    Raises:
        ValueError: an argument is out of range, or a radius is one that n hits cannot prove.
    """

    def __init__(
        self,
        radii: Sequence[float],
        *,
        sigma: float,
        alpha: float,
        n: int,
        futility: float = FUTILITY,
        failure_mass: float = 0.0,
        exact_share: float = EXACT_SHARE,
    ) -> None:
        super().__init__(sigma, alpha, n, futility, failure_mass, exact_share)
        self.radii = check_radii(radii)
        self._p0 = [_needed(radius, self.sigma, self.failure_mass) for radius in self.radii]
        unanimous = [self._first_pass(radius, p0) for radius, p0 in zip(self.radii, self._p0, strict=True)]
        self._patience = [PATIENCE * draws for draws in unanimous]
        self.checkpoints = checkpoints(self.n, unanimous)
        self._critical = [
            [*critical_counts(self.checkpoints[:-1], p0, self._anytime).tolist(), self._fewest_at_n(p0)]
            for p0 in self._p0
        ]

    def _first_pass(self, radius: float, p0: float) -> int:
        """The fewest draws that prove a radius if all hit; ValueError where more than n are needed."""
        low, high = 0, self.n + 1
        while high - low > 1 and p0 < 1:
            middle = (low + high) // 2
            passed = critical_counts(middle, p0, self._anytime) <= middle
            low, high = (low, middle) if passed else (middle, high)
        if high > self.n and self._limit(self.n, self.n) >= p0:
            return self.n
        if high > self.n:
            most = _radius(self._limit(self.n, self.n), self.sigma, self.failure_mass)
            raise ArgumentError(
                "radii",
                f"{radius:g} cannot be proved: at sigma {self.sigma:g} and alpha {self.alpha:g}"
                f" {self.n} draws prove at most {most:.4g}, if all hit",
            )
        return high

    @property
    def largest(self) -> float:
        """See `_Sequential.largest`."""
        return self.radii[-1]

    def decide(self, hits: Sequence[int]) -> Decision:
        """See `_Sequential.decide`; the proofs are of the smallest asked radii."""
        looks = self._looks(hits)
        if not looks:
            return Decision(None, 0, 0)
        proofs: list[Proof] = []
        for radius, p0, critical in zip(self.radii, self._p0, self._critical, strict=True):
            passed = [look for look, count in zip(looks, critical, strict=False) if look[1] >= count]
            if not passed:
                break
            proofs.append(Proof(radius, p0, *passed[0]))
        draws, now = looks[-1]
        return Decision(self._stop(len(proofs), draws, now), draws, now, tuple(proofs))

    def first_end(self, hits: Sequence[int]) -> int:
        """The first checkpoint after those of the hits at which some hits would end the draws."""
        looks = self._looks(hits)
        draws, now = looks[-1] if looks else (0, 0)
        proved = len(self.decide(hits).proofs)
        # The fewest hits with which so many radii are proved: as few as prove the last, and then none more.
        fewest: dict[int, int] = {proved: now}
        for place in range(len(hits), len(self.checkpoints)):
            look = self.checkpoints[place]
            for more in range(proved, len(self.radii)):
                if (count := self._critical[more][place]) <= now + look - draws:
                    fewest.setdefault(more + 1, count)
            if any(self._stop(some, look, least) is not None for some, least in fewest.items()):
                return look
        return self.n

    def _stop(self, proved: int, draws: int, hits: int) -> Stop | None:
        if proved == len(self.radii):
            return Stop.PROVED
        if draws == self.n:
            return Stop.SPENT
        futility = self.futility if draws >= self._patience[proved] else 0.0
        fewest = _fewest_hits(self._critical[proved][-1], self.n, draws, futility)
        return Stop.HOPELESS if hits < fewest else None


class RadiusSequence(_Sequential):
    """A lower confidence sequence of the radius, which ends where it will hardly grow any more.

    The radius is that of the largest p0 against which the e-process has ever passed its threshold, at a
    checkpoint, or that the exact test of all n draws excludes; all radii up to it are proved. See
    `eprocess.lower_limit`.

    Args:
        sigma: noise level of the draws, > 0, in the radius's unit.
        alpha: probability, over the draws, that the radius is ever too large, in (0, ½].
        n: most draws, ≥ 1.
        tolerance: growth of the radius that is worth more draws, > 0, in its unit.
        futility: draws end where the predictive probability of such growth at n is at most this, in [0, 1];
            0 ends them where all further draws hitting would not give it.
        failure_mass: see `bounds.radius_bound`.
        exact_share: of alpha, what the exact test of all n draws has, in [0, 1); 0 leaves it out.

    Attributes:
        checkpoints: numbers of draws at which it looks at the hits; fixed by n.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        *,
        sigma: float,
        alpha: float,
        n: int,
        tolerance: float = TOLERANCE,
        futility: float = FUTILITY,
        failure_mass: float = 0.0,
        exact_share: float = EXACT_SHARE,
    ) -> None:
        super().__init__(sigma, alpha, n, futility, failure_mass, exact_share)
        self.tolerance = check_positive("tolerance", tolerance)
        self.checkpoints = checkpoints(self.n)

    @property
    def largest(self) -> float:
        """See `_Sequential.largest`."""
        return _radius(self._limit(self.n, self.n), self.sigma, self.failure_mass)

    def decide(self, hits: Sequence[int]) -> Decision:
        """See `_Sequential.decide`; the proof, if any, is one, of the largest radius so far."""
        looks = self._looks(hits)
        if not looks:
            return Decision(None, 0, 0)
        # The first of the largest limits.
        best = max(looks, key=lambda look: self._limit(look[1], look[0]))
        p_a = self._limit(best[1], best[0])
        radius = _radius(p_a, self.sigma, self.failure_mass)
        proofs = (Proof(radius, p_a, *best),) if p_a >= _needed(0.0, self.sigma, self.failure_mass) else ()
        draws, now = looks[-1]
        return Decision(self._stop(radius if proofs else None, draws, now), draws, now, proofs)

    def _stop(self, radius: float | None, draws: int, hits: int) -> Stop | None:
        if draws == self.n:
            return Stop.SPENT
        p0 = _needed(0.0 if radius is None else radius + self.tolerance, self.sigma, self.failure_mass)
        count = self._fewest_at_n(p0) if p0 < 1 else self.n + 1
        if chance_of_reaching(count, self.n, hits, draws) > self.futility:
            return None
        return Stop.HOPELESS if radius is None else Stop.SETTLED


SequentialTest = RadiusTest | RadiusSequence
