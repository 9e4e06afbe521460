"""Labels of noisy draws counted by class: the state of a certification."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch

from diffproof.defenses.base import Labelled, Labelling, Underway


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


def last(counting: Iterator[Tally]) -> Tally:
    """The last tally; the others hold images, and are let go."""
    return deque(counting, maxlen=1).pop()
