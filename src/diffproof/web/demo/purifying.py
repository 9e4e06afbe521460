"""A purification step by step, as the reverse process goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from diffproof.defenses.base import Defense
from diffproof.defenses.purifying.reverse_process import Purification
from diffproof.errors import ArgumentError
from diffproof.noise import Noise, Stream
from diffproof.web.demo.picture import Picture


@dataclass(frozen=True)
class Stage:
    """Where a purification stands.

    Attributes:
        sigma: noise level of the state in [0, 1] pixels, 0 at the end of a round.
        state: C×H×W, not cut to [0, 1].
        estimate: the denoiser's clean image of this state, C×H×W in [0, 1].
        label: what the classifier calls the estimate.
    """

    sigma: float
    state: Tensor
    estimate: Tensor
    label: int


def stages(defense: Defense, picture: Picture, *, seed: int = 0, draw: int = 0) -> Iterator[Stage]:
    """The states of a purification, from the diffused image to the purified one.

    Args:
        defense: one that runs a reverse process.
        picture: what is purified.
        seed: fixes the noise, with the picture's index and the draw.
        draw: which draw of the noise.

    Raises:
        ValueError: the defence runs no reverse process of its own, or its networks cannot take the picture.
    """
    if not isinstance(defense, Purification):
        raise ArgumentError(
            "defense", f"expected one whose reverse process has steps to show, got {defense.method}"
        )
    image = picture.image[None]
    noise = Noise.for_draws(seed, Stream.FORWARD, picture.index, draw, draw + 1).to(image.device)
    state, steps = image, iter(defense.chain(noise))
    for levels in defense.levels():
        # The diffusion leads to the first of these, each step of the reverse process to the next.
        for sigma in (*levels, 0.0):
            with torch.no_grad():
                state = next(steps)(state, image)
                estimate = defense.denoiser.checked_estimate(state, sigma).clean if sigma else state
                estimate = estimate.clamp(0.0, 1.0)
                label = int(defense.classifier_labels(estimate, noise))
            yield Stage(sigma, state[0], estimate[0], label)
