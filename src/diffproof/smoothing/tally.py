"""Labels of noisy draws counted by class, and their counting: the state of a certification."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch

from diffproof.defenses.base import Labelled, Labelling, Underway
from diffproof.noise import Stream
from diffproof.smoothing.sequential import SequentialTest

T = TypeVar("T")


@dataclass(frozen=True)
class Tally:
    """Labels counted so far over the draws 0 … draws − 1 of one stream, and what they cost.

    Attributes:
        counts: labels by class.
        draws: how many were counted.
        denoiser_evaluations: images that went through the denoiser for them.
        classifier_evaluations: images that went through the classifier for them.
        underway: the next draws, where the networks have begun with them.
    """

    counts: tuple[int, ...]
    draws: int = 0
    denoiser_evaluations: int = 0
    classifier_evaluations: int = 0
    underway: Underway | None = field(default=None, compare=False)

    @property
    def begun(self) -> int:
        """Images that went through a network for draws underway."""
        now = self.underway
        return 0 if now is None else now.denoiser_evaluations + now.classifier_evaluations

    @property
    def selected(self) -> int:
        """The class with most labels, the first of several."""
        return self.counts.index(max(self.counts))

    def add(self, labelled: Labelled, num_classes: int) -> Tally:
        """The tally with one more batch."""
        batch = torch.bincount(labelled.labels, minlength=num_classes).tolist()
        return Tally(
            tuple(a + b for a, b in zip(self.counts, batch, strict=True)),
            self.draws + len(labelled.labels),
            self.denoiser_evaluations + labelled.denoiser_evaluations,
            self.classifier_evaluations + labelled.classifier_evaluations,
        )


def tallies(tally: Tally, labelling: Labelling, num_classes: int) -> Iterator[Tally]:
    """The tally after each network call for its next draws, and with their labels in the end."""
    while True:
        try:
            underway = next(labelling)
        except StopIteration as end:
            yield tally.add(end.value, num_classes)
            return
        yield replace(tally, underway=underway)


@dataclass(frozen=True)
class Counted:
    """What is counted of an image so far.

    Attributes:
        selection: the labels of the draws that select its class; None before they began.
        estimation: the labels of those that bound its probability; None before they began.
        hits: of the selected class among the latter, at each look so far.
    """

    selection: Tally | None = None
    estimation: Tally | None = None
    hits: tuple[int, ...] = ()


@dataclass(frozen=True)
class Looks:
    """Looks at the hits after so many draws, ascending; they end no draws before the last."""

    checkpoints: tuple[int, ...]

    def enough(self, hits: Sequence[int]) -> bool:
        """Never."""
        return False


def counting(
    tally: Callable[..., Iterator[Tally]],
    n0: int,
    looks: Looks | SequentialTest,
    done: Counted | None = None,
) -> Iterator[Counted]:
    """Count n0 selection draws, then estimation draws from look to look, yielding after each network call.

    Args:
        tally: `Smoothed.tally` of an image.
        n0: selection draws, ≥ 1.
        looks: when to look at the hits, and whether they are enough.
        done: what an earlier counting of the same draws yielded last.
    """
    counted = done or Counted()
    for selection in tally(n0, stream=Stream.SELECTION, done=counted.selection):
        counted = replace(counted, selection=selection)
        yield counted
    for look in looks.checkpoints[len(counted.hits) :]:
        if looks.enough(counted.hits):
            return
        for estimation in tally(look, stream=Stream.ESTIMATION, done=counted.estimation):
            # A look's hits are there as soon as its draws are: what is saved is never between the two.
            now = (estimation.counts[selection.selected],) * (estimation.draws == look)
            counted = replace(counted, estimation=estimation, hits=counted.hits + now)
            yield counted


def last(counting: Iterator[T]) -> T:
    """The last of what is counted; the others hold images, and are let go."""
    return deque(counting, maxlen=1).pop()
