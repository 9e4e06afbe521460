"""DensePure's votes on one noisy draw, as they come in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from diffproof.defenses.base import Defense
from diffproof.defenses.densepure import DensePure
from diffproof.defenses.voting import NOT_CAST, standing, votes_needed
from diffproof.errors import ArgumentError
from diffproof.noise import Noise, Stream
from diffproof.reverse.sampling import posterior_sample
from diffproof.smoothing.smoothed import Smoothed
from diffproof.web.demo.picture import Picture

# Portions that all votes come in, so that one sees them come.
_PORTIONS = 8


@dataclass(frozen=True)
class Ballot:
    """Votes so far on one draw.

    Attributes:
        noisy: the noisy image, C×H×W.
        samples: the purified images that voted, n×C×H×W.
        labels: their labels, n.
        leader: the label that wins as it stands.
        settled: after how many votes the outstanding ones could not change the winner; None while they can.
        votes: how many there will be.
    """

    noisy: Tensor
    samples: Tensor
    labels: tuple[int, ...]
    leader: int
    settled: int | None
    votes: int


def ballots(
    defense: Defense, picture: Picture, *, sigma: float, seed: int = 0, draw: int = 0
) -> Iterator[Ballot]:
    """The votes on one draw, a portion more each time.

    Args:
        defense: a DensePure.
        picture: what noise is added to.
        sigma: standard deviation of the noise in [0, 1] pixels.
        seed: see `Smoothed.certify`.
        draw: which of a certificate's draws.

    Raises:
        ValueError: another defence, a sigma that it cannot work with, or networks that cannot take the
            picture.
    """
    if not isinstance(defense, DensePure):
        raise ArgumentError("defense", f"expected densepure, whose samples vote, got {defense.method}")
    smoothed = Smoothed(defense, sigma, levels=picture.levels)
    image = smoothed.check_image(picture.image)
    noise = Noise.for_draws(seed, Stream.ESTIMATION, picture.index, draw, draw + 1).to(image.device)
    noisy, own = smoothed.noise.added(image, noise), noise.after_first()
    sigmas, samples, labels = defense.sigmas(sigma), picture.image.new_empty(0, *image.shape), []
    for part in torch.arange(defense.votes).split(max(1, defense.votes // _PORTIONS)):
        with torch.no_grad():
            # Vote k has the noise of vote index k + 1: that of index 0 is in the draw.
            rows = own.rows(torch.zeros_like(part), part + 1)
            fresh = posterior_sample(
                defense.denoiser, noisy.expand(len(part), -1, -1, -1), sigmas, rows, eta=defense.eta
            )
            labels += defense.classifier_labels(fresh, rows).tolist()
        samples = torch.cat([samples, fresh])
        settled = _settled(labels, defense)
        leader = int(standing(torch.tensor([labels]), defense.num_classes).leader)
        yield Ballot(noisy[0], samples, tuple(labels), leader, settled, defense.votes)


def _settled(labels: list[int], defense: DensePure) -> int | None:
    for cast in range(1, len(labels) + 1):
        ballot = torch.full((1, defense.votes), NOT_CAST)
        ballot[0, :cast] = torch.tensor(labels[:cast])
        if int(votes_needed(ballot, defense.num_classes, defense.consensus)) == 0:
            return cast
    return None
