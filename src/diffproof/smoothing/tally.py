"""Labels of noisy draws counted by class: the state of a certification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Tally:
    """Labels of some draws of one stream, and what they cost.

    Attributes:
        counts: labels by class.
        draws: how many were counted.
        denoiser_evaluations: images that went through the denoiser for them.
        classifier_evaluations: images that went through the classifier for them.
    """

    counts: tuple[int, ...]
    draws: int = 0
    denoiser_evaluations: int = 0
    classifier_evaluations: int = 0

    @property
    def selected(self) -> int:
        """The class with most labels, the first of several."""
        return self.counts.index(max(self.counts))

    @property
    def evaluations(self) -> int:
        """Images that went through a network for them."""
        return self.denoiser_evaluations + self.classifier_evaluations

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)),
            self.draws + other.draws,
            self.denoiser_evaluations + other.denoiser_evaluations,
            self.classifier_evaluations + other.classifier_evaluations,
        )


@dataclass(frozen=True)
class Counted:
    """What is counted of an image so far, draw by draw from the first.

    Attributes:
        selection: the labels of the draws that select its class; None before they began.
        estimation: the labels of those that bound its probability; None before they began.
        hits: of the selected class among the latter, at each look so far.
    """

    selection: Tally | None = None
    estimation: Tally | None = None
    hits: tuple[int, ...] = ()

    @property
    def evaluations(self) -> int:
        """Images that went through a network for all of them."""
        return sum(tally.evaluations for tally in (self.selection, self.estimation) if tally is not None)


class Looking(Protocol):
    """When draws may end: after each of some numbers of them somebody looks at the hits."""

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """The numbers of draws, ascending; after the last they end."""

    def enough(self, hits: Sequence[int]) -> bool:
        """Whether no more draws are needed after hits at the first checkpoints."""

    def first_end(self, hits: Sequence[int]) -> int:
        """The number of draws, later than those of the hits, before which they hardly end.

        Draws up to there may be made before it is looked at them.
        """


@dataclass(frozen=True)
class Looks:
    """Looks at the hits after so many draws, ascending; they end no draws before the last."""

    checkpoints: tuple[int, ...]

    def enough(self, hits: Sequence[int]) -> bool:
        """Never before the last."""
        return len(hits) == len(self.checkpoints)

    def first_end(self, hits: Sequence[int]) -> int:
        """The last look."""
        return self.checkpoints[-1]
