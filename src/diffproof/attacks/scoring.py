"""Honest scores of a random defence: four accuracies after an attack, and the same four without any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from diffproof.checks import MOST_DRAWS, check_at_least
from diffproof.classifiers.base import predicted_labels
from diffproof.defenses.base import Defense
from diffproof.defenses.voting import majority
from diffproof.errors import ArgumentError
from diffproof.intervals import Share
from diffproof.noise import Noise, Stream
from diffproof.notebooks import table
from diffproof.wording import counted


class Score(StrEnum):
    """One of the four accuracies: an attribute of `Scores`, which says what they mean."""

    FRESH = "fresh"
    MAJORITY = "majority"
    WORST = "worst"
    OPTIMISATION = "optimisation"


@dataclass(frozen=True)
class Hits:
    """What the four accuracies are means of, image by image.

    Attributes:
        fresh: N float64, the share of fresh draws that are right.
        majority: N booleans, whether the majority label is right.
        worst: N booleans, whether all draws are right.
        optimisation: N booleans, whether no success was seen.
    """

    fresh: Tensor
    majority: Tensor
    worst: Tensor
    optimisation: Tensor


@dataclass(frozen=True)
class Scores:
    """Four accuracies of a defence on the same images.

    Attributes:
        fresh: mean over images and fresh draws of noise: one submission.
        majority: accuracy of the majority label over `votes` draws.
        worst: right under every one of `draws` draws: an attacker who submits the same image so many times.
        optimisation: no success seen while the attack optimised; without an attack, right under as many draws
            as it looked at. Counts lucky draws against the defence.
        draws: fresh draws of an image that count for `fresh` and `worst`.
        votes: draws that vote for `majority`.
        fixed: right under one draw of noise that the attack knows (Liu & Wei, arXiv 2505.22839): what `fresh`
            has beyond it, the defence owes to its randomness. None where it was not asked for.
    """

    fresh: Share
    majority: Share
    worst: Share
    optimisation: Share
    draws: int
    votes: int
    fixed: Share | None = None

    @property
    def named(self) -> dict[str, Share]:
        """The four by what people call them."""
        majority, worst = f"majority of {self.votes}", f"worst of {self.draws}"
        names = ("one draw", majority, worst, "while optimising")
        four = dict(zip(names, (getattr(self, one.value) for one in Score), strict=True))
        return four if self.fixed is None else {**four, "fixed noise": self.fixed}

    def _repr_html_(self) -> str:
        """The four with their intervals, for notebooks."""
        images = counted(self.fresh.images, "image")
        return table(f"accuracy on {images}, and its 95% interval", self.named.items())

    @classmethod
    def of(cls, found: Hits, *, draws: int, votes: int, fixed: Tensor | None = None) -> Scores:
        """The accuracies of images that are right in these, and under fixed noise."""

        def share(one: Tensor) -> Share:
            return Share.of(float(one.double().mean()), len(one))

        parts = {name.value: share(getattr(found, name.value)) for name in Score}
        known = None if fixed is None else share(fixed)
        return cls(**parts, draws=draws, votes=votes, fixed=known)


def draw_labels(
    defense: Defense,
    images: Tensor,
    *,
    draws: int,
    seed: int,
    image_indices: Sequence[int],
    batch_size: int,
    stream: Stream = Stream.SCORING,
) -> Tensor:
    """Labels under fresh noise, N×draws int64; one draw where the defence is not random, repeated.

    Args:
        defense: what is scored.
        images: N×C×H×W in [0, 1].
        draws: draws of noise of each image, ≥ 1.
        seed: see Attack.run.
        image_indices: see Attack.run.
        batch_size: most rows that go through at once, ≥ 1; changes no result.
        stream: what the draws are for; not the attack's.

    Raises:
        ValueError: draws or batch_size < 1, or logits that are NaN.
    """
    check_at_least("draws", draws, 1, MOST_DRAWS)
    check_at_least("batch_size", batch_size, 1)
    different = draws if defense.random else 1
    index = torch.tensor(list(image_indices)).repeat_interleave(different)
    draw = torch.arange(different).repeat(len(images))
    row = torch.arange(len(images)).repeat_interleave(different)
    labels = []
    with torch.no_grad():  # labels have no gradient
        for part in torch.arange(len(row)).split(defense.images_at_once(batch_size)):
            noise = Noise.for_rows(seed, stream, index[part], draw[part])
            labels.append(predicted_labels(defense(images[row[part]], noise)).cpu())
    return torch.cat(labels).reshape(len(images), different).expand(-1, draws)


def hits(drawn: Tensor, labels: Tensor, seen: Tensor, num_classes: int, *, draws: int, votes: int) -> Hits:
    """What each image is right in.

    Args:
        drawn: labels under fresh noise, N×D with D ≥ draws and votes, of attacked or of clean images.
        labels: N true labels.
        seen: N booleans, a wrong answer was seen while the attack optimised (or under as many clean draws).
        num_classes: number of classes.
        draws: how many of the drawn labels count for `fresh` and `worst`, in 1…D.
        votes: how many of them vote for `majority`, in 1…D.

    Raises:
        ValueError: fewer labels than draws or votes, or none asked for.
    """
    available = drawn.shape[1]
    for name, number in (("draws", draws), ("votes", votes)):
        check_at_least(name, number, 1)
        if number > available:
            raise ArgumentError(name, f"expected at most the {available} labels drawn, got {number}")
    right = drawn[:, :draws] == labels[:, None]
    return Hits(
        fresh=right.double().mean(1),
        majority=majority(drawn[:, :votes], num_classes) == labels,
        worst=right.all(1),
        optimisation=~seen,
    )
