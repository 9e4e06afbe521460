"""Certificates of classifiers that smooth at several noise levels: a cascade, or one chosen for the image.

Draws of all levels are counted side by side: the counts of a rule are those of its blocks one after another,
and block i has every draw whose number is i modulo the number of blocks.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

from diffproof.checks import check_number, check_positive
from diffproof.errors import ArgumentError
from diffproof.smoothing.bounds import Bound, RadiusBound, as_bound, lower_bound, upper_bound
from diffproof.smoothing.outward import float_above, float_below, normal_quantile_below
from diffproof.smoothing.stopping import Stopping


class Block(NamedTuple):
    """Draws at one noise level.

    Attributes:
        sigma: the noise level.
        labels: how many there may be.
        chooses: whether they choose a noise level, not a class.
    """

    sigma: float
    labels: int
    chooses: bool


class Settled(NamedTuple):
    """What the counts of a rule prove.

    Attributes:
        label: the class that the selection draws chose.
        cell: the place of its count among all, at the level that answers.
        scale: the index of that level among `sigmas`.
        draws: estimation draws there.
        proved: bounds of its probability there, and the radius of the whole rule.
    """

    label: int
    cell: int
    scale: int
    draws: int
    proved: RadiusBound


class Rule(ABC):
    """How labels at several noise levels make one classifier, and what counts of them prove.

    Attributes:
        sigmas: the noise levels of the classes, ascending, in [0, 1] pixels.
    """

    sigmas: tuple[float, ...]

    @abstractmethod
    def blocks(self, num_classes: int) -> tuple[Block, ...]:
        """What is drawn, for so many classes."""

    @abstractmethod
    def settle(
        self, selection: Sequence[int], counts: Sequence[int], alpha: float, failure_mass: float
    ) -> Settled:
        """The class that the selection draws choose, and what independent draws prove of it.

        Which of the probabilities are bounded is settled by the selection draws alone, so that alpha is
        shared by just those.

        Args:
            selection: counts of the selection draws, block after block.
            counts: those of the estimation draws.
            alpha: probability, at most, that the radius is wrong, in (0, 1).
            failure_mass: see `bounds.radius_bound`; of the level that has the most.
        """

    @abstractmethod
    def largest(self, n: int, alpha: float) -> float:
        """The radius of n unanimous draws, above which no certificate can be; 0 at least."""

    @abstractmethod
    def stated(self) -> dict[str, Any]:
        """What makes the rule again, by `rule_of`."""


@dataclass(frozen=True)
class Cascade(Rule):
    """The first level, from the largest down, at which some class has a probability above the threshold.

    Multi-scale denoised smoothing of Jeong & Shin 2023, section 3.1. Its last resort, the base classifier
    without noise, is left out, since nothing is certified of it: where no level answers, nor does this.

    Around an image whose level k answers c, within a radius R, level k answers c as long as
    R ≤ σ_k·(Φ⁻¹(p_c) − Φ⁻¹(p0)), and no larger level j answers another class as long as
    R ≤ σ_j·(Φ⁻¹(p0) − Φ⁻¹(p̄_j)), p̄_j the largest probability of another one (their theorem 3.1). Each of
    these k + 1 levels has one bound at alpha/(k + 1): a lower one of p_c, or an upper one of p̄_j, which is
    1 − the lower one of p_c there or the union over the other classes, whichever the selection draws
    recommend. All are Clopper and Pearson's, where the authors' code takes an asymptotic one.

    Attributes:
        sigmas: see Rule.
        threshold: p0, in [0.5, 1).

    Raises:
        ValueError: the levels do not ascend, or p0 is out of range.
    """

    sigmas: tuple[float, ...]
    threshold: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigmas", check_scales(self.sigmas))
        check_number("threshold", self.threshold, lambda p: 0.5 <= p < 1.0, "a number in [0.5, 1)")

    def blocks(self, num_classes: int) -> tuple[Block, ...]:
        """A block a level, the largest first."""
        return tuple(Block(sigma, num_classes, False) for sigma in self.sigmas[::-1])

    def settle(
        self, selection: Sequence[int], counts: Sequence[int], alpha: float, failure_mass: float
    ) -> Settled:
        """See Rule; of the levels, that which the selection draws promise the largest radius."""
        classes = len(counts) // len(self.sigmas)
        chosen, found = (_split(some, [classes] * len(self.sigmas)) for some in (selection, counts))
        promised = [self._promised(chosen, stage) for stage in range(len(self.sigmas))]
        stage = promised.index(max(promised))
        label = _leader(chosen[stage])
        share = math.nextafter(alpha / (stage + 1), 0.0)
        threshold = Fraction(self.threshold)
        p_a = _below(found[stage], label, share, failure_mass)
        radii = [_times(self._sigma(stage), p_a, 1 - threshold)]
        for earlier in range(stage):
            whole = self._whole(chosen[earlier], label, share)
            other = _others_above(found[earlier], label, share, failure_mass, whole=whole)
            radii.append(_times(self._sigma(earlier), threshold, 1 - other))
        radius = max(0.0, min(radii))
        proved = RadiusBound(float(p_a), float_above(1 - p_a), radius)
        scale, cell = len(self.sigmas) - 1 - stage, stage * classes + label
        return Settled(label, cell, scale, sum(found[stage]), proved)

    def largest(self, n: int, alpha: float) -> float:
        """That of the largest level, at which all draws fall on one class."""
        draws = -(-n // len(self.sigmas))
        p_a = Fraction(lower_bound(draws, draws, alpha))
        return max(0.0, _times(self.sigmas[-1], p_a, 1 - Fraction(self.threshold)))

    def stated(self) -> dict[str, Any]:
        """See Rule."""
        return {"kind": "cascade", "sigmas": list(self.sigmas), "threshold": self.threshold}

    def _sigma(self, stage: int) -> float:
        return self.sigmas[len(self.sigmas) - 1 - stage]

    def _whole(self, counts: Sequence[int], label: int, alpha: float) -> bool:
        """Whether 1 − p_c bounds the other classes better than the union of their bounds."""
        ways = [_others_above(counts, label, alpha, 0.0, whole=whole) for whole in (True, False)]
        return ways[0] <= ways[1]

    def _promised(self, chosen: list[Sequence[int]], stage: int) -> float:
        """The radius if the selection draws' shares were the probabilities."""
        label = _leader(chosen[stage])
        middle = normal_quantile_below(Fraction(self.threshold))
        radii = [self._sigma(stage) * (normal_quantile_below(_share(chosen[stage], label)) - middle)]
        for earlier in range(stage):
            others = [_share(chosen[earlier], one) for one in range(len(chosen[earlier])) if one != label]
            radii.append(self._sigma(earlier) * (middle - normal_quantile_below(max(others))))
        return min(radii)


@dataclass(frozen=True)
class Chosen(Rule):
    """The level that a smoothed chooser names for the image, and the class at that level.

    Dual randomized smoothing (arXiv 2512.01782). Within r_v = σ_v·Φ⁻¹(p_v) the choice does not change, so
    that the class at the chosen level σ does not within min(r_v, σ·Φ⁻¹(p_c)); p_v and p_c are bounded at
    alpha/2.

    Attributes:
        sigmas: see Rule; the chooser's labels are their indices.
        choice_sigma: σ_v, the noise under which the chooser is smoothed.

    Raises:
        ValueError: the levels do not ascend, or σ_v is out of range.
    """

    sigmas: tuple[float, ...]
    choice_sigma: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigmas", check_scales(self.sigmas))
        check_positive("choice_sigma", self.choice_sigma)

    def blocks(self, num_classes: int) -> tuple[Block, ...]:
        """The chooser's, then one a level, ascending."""
        own = tuple(Block(sigma, num_classes, False) for sigma in self.sigmas)
        return (Block(self.choice_sigma, len(self.sigmas), True), *own)

    def settle(
        self, selection: Sequence[int], counts: Sequence[int], alpha: float, failure_mass: float
    ) -> Settled:
        """See Rule."""
        scales = len(self.sigmas)
        classes = len(counts) // scales - 1
        sizes = [scales, *[classes] * scales]
        (votes, *chosen), (bounding, *found) = _split(selection, sizes), _split(counts, sizes)
        scale = _leader(votes)
        label, share = _leader(chosen[scale]), math.nextafter(alpha / 2, 0.0)
        p_v = _below(bounding, scale, share, failure_mass)
        p_a = _below(found[scale], label, share, failure_mass)
        radii = (_times(self.choice_sigma, p_v), _times(self.sigmas[scale], p_a))
        proved = RadiusBound(float(p_a), float_above(1 - p_a), max(0.0, min(radii)))
        return Settled(label, scales + scale * classes + label, scale, sum(found[scale]), proved)

    def largest(self, n: int, alpha: float) -> float:
        """See Rule; of the largest level."""
        draws = -(-n // (len(self.sigmas) + 1))
        p_a = Fraction(lower_bound(draws, draws, math.nextafter(alpha / 2, 0.0)))
        return max(0.0, _times(min(self.choice_sigma, self.sigmas[-1]), p_a))

    def stated(self) -> dict[str, Any]:
        """See Rule."""
        return {"kind": "chosen", "sigmas": list(self.sigmas), "choice_sigma": self.choice_sigma}


def rule_of(stated: dict[str, Any]) -> Rule:
    """The inverse of `Rule.stated`.

    Raises:
        ValueError: there is no such rule.
    """
    kinds: dict[str, type[Cascade | Chosen]] = {"cascade": Cascade, "chosen": Chosen}
    told = {name: value for name, value in stated.items() if name != "scale"}
    kind = kinds.get(str(told.pop("kind", None)))
    if kind is None:
        raise ArgumentError("scales", f"expected the kind cascade or chosen, got {stated}")
    try:
        return kind(**{**told, "sigmas": tuple(told["sigmas"])})
    except (TypeError, KeyError) as error:
        raise ArgumentError("scales", f"not readable: {error}") from None


def check_scales(sigmas: Sequence[float]) -> tuple[float, ...]:
    """Noise levels > 0, ascending, two at least; ValueError for others."""
    found = tuple(float(check_positive("scales", sigma)) for sigma in sigmas)
    if len(found) < 2 or list(found) != sorted(set(found)):
        raise ArgumentError("scales", f"expected two or more ascending noise levels, got {list(sigmas)}")
    return found


def check_asked(blocks: int, n0: int, n: int, bound: Bound | str, stop: Stopping | str) -> None:
    """Raise ValueError for a certification that several noise levels do not have.

    Args:
        blocks: how many share the draws.
        n0: see `Smoothed.certify`.
        n: see `Smoothed.certify`.
        bound: see `Smoothed.certify`.
        stop: see `Smoothed.certify`.
    """
    if as_bound(bound) is not Bound.ONE_SIDED:
        raise ArgumentError("bound", f"several noise levels have their own; expected one-sided, got {bound}")
    if Stopping(stop) is not Stopping.FIXED:
        # Its test is of one probability against one radius.
        raise ArgumentError(
            "stop",
            "expected fixed with several noise levels, whose radius is the least of several probabilities',"
            f" got {stop}",
        )
    for name, given in (("n0", n0), ("n", n)):
        if given < blocks:
            raise ArgumentError(name, f"{blocks} noise levels share the draws; expected as many, got {given}")


def _split(counts: Sequence[int], sizes: Sequence[int]) -> list[Sequence[int]]:
    if len(counts) != sum(sizes):
        raise ArgumentError("counts", f"expected {sum(sizes)} of all levels, got {len(counts)}")
    ends = [sum(sizes[: place + 1]) for place in range(len(sizes))]
    return [counts[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _leader(counts: Sequence[int]) -> int:
    return counts.index(max(counts))


def _share(counts: Sequence[int], label: int) -> Fraction:
    """Never 0 or 1."""
    return Fraction(2 * counts[label] + 1, 2 * sum(counts) + 2)


def _below(counts: Sequence[int], label: int, alpha: float, failure_mass: float) -> Fraction:
    """Not above the probability of a label, which it exceeds with probability alpha at most."""
    draws = sum(counts)
    if draws == 0:
        return Fraction(0)
    exact = Fraction(lower_bound(counts[label], draws, alpha)) - Fraction(failure_mass)
    return max(Fraction(0), Fraction(float_below(exact)))


def _others_above(
    counts: Sequence[int], label: int, alpha: float, failure_mass: float, *, whole: bool
) -> Fraction:
    """Not below the largest probability of any other label, but with probability alpha at most."""
    if whole:
        return 1 - _below(counts, label, alpha, failure_mass)
    draws, others = sum(counts), [count for one, count in enumerate(counts) if one != label]
    if draws == 0:
        return Fraction(1)
    share = math.nextafter(alpha / len(others), 0.0)
    return min(Fraction(1), Fraction(upper_bound(max(others), draws, share)) + Fraction(failure_mass))


def _times(sigma: float, *shares: Fraction) -> float:
    """Not above sigma·ΣΦ⁻¹(share); −∞ where a share is too small."""
    quantiles = [normal_quantile_below(share) for share in shares]
    if -math.inf in quantiles:
        return -math.inf
    return float_below(Fraction(sigma) * sum(map(Fraction, quantiles)))
