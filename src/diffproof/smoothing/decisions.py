"""What a sequential test decides of an image's draws, and after how many of them it looks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

# Looks from here on, each at so many times the draws of the last. Earlier looks give up images that a miss at
# the start makes look lost; on Cohen et al.'s CIFAR-10 images a grid of 1.1 costs some 5% more draws.
FIRST_LOOK, GROWTH = 32, 1.05


class Stop(StrEnum):
    """Why the draws of an image end.

    PROVED: every asked radius is.
    HOPELESS: the next radius will hardly be proved with the draws that are left.
    SETTLED: the radius will hardly grow by more than the tolerance.
    SPENT: all n draws are made.
    """

    PROVED = "proved"
    HOPELESS = "hopeless"
    SETTLED = "settled"
    SPENT = "spent"


@dataclass(frozen=True)
class Proof:
    """The counts at which a radius was proved, from which it can be proved again.

    Attributes:
        radius: the certified ℓ2 radius.
        p_a_lower: what the probability of a hit exceeds.
        draws: how many draws had been made.
        hits: how many of them gave the selected class.
    """

    radius: float
    p_a_lower: float
    draws: int
    hits: int


@dataclass(frozen=True)
class Decision:
    """What hits at the checkpoints so far prove, and whether to go on.

    Attributes:
        stop: why no more draws are needed, None where they are.
        draws: how many draws it rests on.
        hits: how many of them gave the selected class.
        proofs: of the proved radii in ascending order; none means abstention.
    """

    stop: Stop | None
    draws: int
    hits: int
    proofs: tuple[Proof, ...] = ()

    @property
    def radius(self) -> float | None:
        """The largest proved radius, None where none is."""
        return self.proofs[-1].radius if self.proofs else None


def checkpoints(n: int, others: Iterable[int] = ()) -> tuple[int, ...]:
    """The draws at which a test looks: from FIRST_LOOK, each GROWTH times the last; n; and others below n."""
    looks, look = {n, *(other for other in others if other < n)}, FIRST_LOOK
    while look < n:
        looks.add(look)
        look = math.ceil(look * GROWTH)
    return tuple(sorted(looks))
